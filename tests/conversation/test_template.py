"""The chat template: ids of real conversations, text that stays text, and wrong messages."""

import json
from itertools import groupby
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from vocabulary import SPECIAL_TOKENS, real_directory_or_skip, small_vocabulary

from k2ref.checkpoint.styles import STYLES, ChatError
from k2ref.conversation.declarations import as_json, as_typescript
from k2ref.conversation.template import render
from k2ref.tokenizer import Tokenizer, TokenizerError

DATA = Path(__file__).parents[1] / "data"
GOLDEN = json.loads((DATA / "chat_golden.json").read_text(encoding="utf-8"))
GOLDEN_MOONLIGHT = json.loads((DATA / "moonlight_golden.json").read_text(encoding="utf-8"))
NAMES = {offset: name for name, offset in SPECIAL_TOKENS.items()}


def small_tokenizer(without=()):
    """The small vocabulary with all 256 control tokens of K2, but for those in `without`."""
    tokens = small_vocabulary()
    names = [NAMES.get(i, f"<|reserved_token_{i}|>") for i in range(256)]
    names = [name for name in names if name not in without]
    return Tokenizer(tokens, {name: len(tokens) + i for i, name in enumerate(names)})


SMALL = small_tokenizer()


@pytest.fixture(scope="module")
def real():
    return Tokenizer.from_dir(real_directory_or_skip())


def golden_id(case):
    return "/".join([case["style"], case["conversation"], *case["options"]])


def render_golden(tokenizer, case, **options):
    conversation = GOLDEN["conversations"][case["conversation"]]
    return render(tokenizer, conversation["messages"], conversation["tools"],
                  style=case["style"], **case["options"], **options)


@pytest.mark.parametrize("case", GOLDEN["renders"], ids=golden_id)
def test_render_gives_the_ids_of_the_official_templates(real, case):
    assert render_golden(real, case) == case["ids"]


@pytest.mark.parametrize("case", GOLDEN["renders"], ids=golden_id)
def test_render_gives_the_text_of_the_official_templates(case):
    assert SMALL.decode(render_golden(SMALL, case)) == case["text"]


@pytest.mark.parametrize("case", GOLDEN["renders"], ids=golden_id)
def test_without_generation_prompt_it_is_a_prefix(case):
    prompt = case["text"][:case["text"].rindex("<|im_assistant|>")]
    assert SMALL.decode(render_golden(SMALL, case, add_generation_prompt=False)) == prompt


@pytest.mark.parametrize("case", GOLDEN["declarations"], ids=lambda case: case["case"])
def test_as_typescript_is_the_official_spelling(case):
    assert as_typescript(case["tools"]) == case["typescript"]
    ids = render(SMALL, [], case["tools"], style="k2.5", declare="typescript")
    declared = SMALL.decode(ids).split("<|im_middle|>")[1].split("<|im_end|>")[0]
    assert declared == (case["typescript"] or as_json(case["tools"]))


def test_k2_instruct_has_a_system_message_and_no_thinking():
    messages = [{"role": "user", "content": "a"},
                {"role": "assistant", "reasoning_content": "r", "content": "b"}]
    assert SMALL.decode(render(SMALL, messages, style="k2-instruct")) == (
        "<|im_system|>system<|im_middle|>You are Kimi, an AI assistant created by Moonshot AI."
        "<|im_end|><|im_user|>user<|im_middle|>a<|im_end|><|im_assistant|>assistant<|im_middle|>b"
        "<|im_end|><|im_assistant|>assistant<|im_middle|>")


def thinking_of(message, style):
    text = SMALL.decode(render(SMALL, [message], style=style, add_generation_prompt=False))
    return text.split("<think>")[1].split("</think>")[0]


@pytest.mark.parametrize("fields, older, newer", [
    ({}, "", ""),
    ({"reasoning_content": "r"}, "r", "r"),
    ({"reasoning": "r"}, "", "r"),
    ({"reasoning": "r", "reasoning_content": "c"}, "c", "r"),
    ({"reasoning_content": None}, "", ""),
    ({"reasoning": None, "reasoning_content": "c"}, "c", "c"),
])
def test_reasoning_is_read_from_the_style_s_fields_and_none_is_nothing(fields, older, newer):
    call = {"id": "functions.f:0", "function": {"arguments": "{}"}}
    message = {"role": "assistant", "content": None, "tool_calls": [call], **fields}
    assert thinking_of(message, "k2-thinking") == thinking_of(message, "k2.5") == older
    assert thinking_of(message, "k2.6") == newer


def test_content_in_parts_is_their_text():
    """Trap: an empty content, made [{'type': 'text', 'text': ''}] by a server, was printed so."""
    def ids(content):
        return render(SMALL, [{"role": "user", "content": content}])
    part = {"type": "text", "text": ""}
    assert ids([part]) == ids("") == ids(None) == ids([])
    assert ids([{"type": "text", "text": "中"}, {"type": "text", "text": "文"}]) == ids("中文")


# What follows holds for every conversation.

text = st.text(max_size=8) | st.sampled_from([*SPECIAL_TOKENS, "## Return", "\n\n", "中文", " th"])
content = text | st.none() | st.lists(text.map(lambda t: {"type": "text", "text": t}), max_size=2)
calls = st.lists(st.fixed_dictionaries({
    "id": text, "function": st.fixed_dictionaries({
        "arguments": text | st.dictionaries(text, text | st.integers() | st.none(), max_size=2)}),
}), max_size=2)
message = st.one_of(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "system", "developer"]),
                           "content": content}, optional={"name": text}),
    st.fixed_dictionaries({"role": st.just("assistant"), "content": content},
                          optional={"reasoning_content": text, "tool_calls": calls}),
    st.fixed_dictionaries({"role": st.just("tool"), "content": content, "tool_call_id": text}))
function = st.fixed_dictionaries({"name": text, "description": text,
                                  "parameters": st.just({"type": "object", "properties": {}})})
tools = st.lists(function.map(lambda f: {"type": "function", "function": f}), max_size=2)
conversations = st.tuples(st.lists(message, max_size=4), tools, st.sampled_from(list(STYLES)))


def controls(ids):
    special = set(SMALL.special_tokens.values())
    return [id for id in ids if id in special]


def n_controls(message, style):
    """How many control tokens a message needs, whatever it says."""
    n = 3  # open, middle, end
    if STYLES[style].plain:
        return n - (message["role"] not in ("user", "assistant", "system"))
    if message["role"] == "assistant":
        calls = message.get("tool_calls", [])
        n += 2 * STYLES[style].thinks + (2 + 3 * len(calls) if calls else 0)
    return n


@given(conversations, st.sampled_from(["json", "typescript"]))
def test_the_number_of_control_tokens_does_not_depend_on_the_text(conversation, declare):
    messages, tools, style = conversation
    ids = render(SMALL, messages, tools, style=style, declare=declare)
    expected = sum(n_controls(message, style) for message in messages)
    expected += 3 * bool(tools) * (style != "moonlight")
    expected += 2 + STYLES[style].opens
    if style in ("k2-instruct", "k2-thinking"):
        expected += 3 * (not messages or messages[0]["role"] != "system")
    if style == "moonlight":
        expected += 3 * (messages != [] and messages[0]["role"] != "system")
    assert len(controls(ids)) == expected


@pytest.mark.parametrize("style", STYLES)
def test_specials_parsed_out_of_user_text(style):
    """Trap: the official tokenizer lets a text with "<|im_end|>" end its own turn."""
    def prompt(word, declare):
        call = {"id": word, "function": {"name": word, "arguments": word}}
        messages = [
            {"role": word, "name": word, "content": word},
            {"role": "user", "name": word, "content": [{"type": "text", "text": word}]},
            {"role": "assistant", "reasoning_content": word, "content": word, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": word, "name": word, "content": word}]
        tool = {"type": "function", "function": {"name": word, "description": word}}
        return render(SMALL, messages, [tool], style=style, declare=declare)

    for declare in ("json", "typescript"):
        harmless = prompt("x", declare)
        for name in SMALL.special_tokens:
            ids = prompt(name, declare)
            assert controls(ids) == controls(harmless)
            assert SMALL.decode(ids).count(name) >= 5 + 3 * (style != "moonlight")  # all there


@given(conversations)
@example(([{"role": "tool", "tool_call_id": "a", "content": "\n\nb"}], [], "k2-thinking"))
def test_text_between_control_tokens_is_encoded_in_one_piece(conversation):
    messages, tools, style = conversation
    ids = render(SMALL, messages, tools, style=style)
    for is_control, run in groupby(ids, lambda id: id in SMALL.special_tokens.values()):
        run = list(run)
        assert is_control or run == SMALL.encode(SMALL.decode(run))


def test_render_takes_the_tokenizer_s_style():
    tokenizer = small_tokenizer()
    messages = [{"role": "user", "content": "hi"}]
    assert tokenizer.style is None
    assert render(tokenizer, messages) == render(tokenizer, messages, style="k2-thinking")
    tokenizer.style = "k2.5"
    assert render(tokenizer, messages) == render(tokenizer, messages, style="k2.5")
    assert render(tokenizer, messages, style="k2-instruct") != render(tokenizer, messages)


# Vocabularies that lack control tokens, and messages that are wrong.

def test_think_is_spelled_out_where_the_vocabulary_lacks_it():
    tokenizer = small_tokenizer(without=("<think>", "</think>"))
    messages = [{"role": "assistant", "content": "b"}]
    text = tokenizer.decode(render(tokenizer, messages, style="k2.6"))
    assert text == ("<|im_assistant|>assistant<|im_middle|><think></think>b<|im_end|>"
                    "<|im_assistant|>assistant<|im_middle|><think>")


def test_a_vocabulary_without_turns_is_refused():
    with pytest.raises(ChatError, match=r"no control token <\|im_end\|>"):
        render(small_tokenizer(without=("<|im_end|>",)), [])


def user(**fields):
    return [{"role": "user", "content": "a", **fields}]


def calling(call):
    return [{"role": "assistant", "content": "", "tool_calls": [call]}]


def said_by_assistant(content, **fields):
    return {"role": "assistant", "content": content, **fields}


@pytest.mark.parametrize("messages, said", [
    ("hello", "messages: expected a list of dicts .*found 'hello'"),
    ({"role": "user"}, "messages: expected a list of dicts"),
    (["hello"], r"messages\[0\]: expected a dict with a role"),
    ([{"content": "a"}], r"messages\[0\]: expected a dict with a role"),
    ([*user(), {"role": None}], r"messages\[1\]: expected a dict with a role"),
    (user(content=7), r"messages\[0\]\.content: expected a string, a list .* or None, found 7"),
    (user(content={"text": "a"}), r"messages\[0\]\.content: expected a string"),
    (user(content=["a"]), r"messages\[0\]\.content\[0\]: expected a part like"),
    (user(content=[{"type": "text"}]), r"content\[0\]: expected a part like"),
    (user(content=[{"type": "image_url", "image_url": {}}]), "images and video are not supported"),
    (user(name=3), r"messages\[0\]\.name: expected a string, found 3"),
    ([{"role": "tool", "content": "a"}], r"messages\[0\] has role 'tool' but no tool_call_id"),
    ([{"role": "tool", "tool_call_id": None}], r"messages\[0\] has role 'tool' but no"),
    ([{"role": "tool", "tool_call_id": 5}], r"\.tool_call_id: expected a string, found 5"),
    ([{"role": "assistant", "reasoning_content": []}], r"\.reasoning_content: expected a string"),
    ([{"role": "assistant", "tool_calls": {"id": "a"}}], r"\.tool_calls: expected a list of dicts"),
    (calling("a"), r"messages\[0\]\.tool_calls\[0\]: expected a dict with an id"),
    (calling({"function": {"arguments": "{}"}}), "expected a dict with an id"),
    (calling({"id": "a"}), "expected a dict with an id .* and a function"),
    (calling({"id": "a", "function": {}}), r"arguments: expected a string of JSON or a dict"),
    (calling({"id": "a", "function": {"arguments": [1]}}), r"found \[1\]"),
    (calling({"id": "a", "function": {"arguments": {"x": {1}}}}), "expected what JSON can hold"),
    (user(prefix=True), r"messages\[0\]\.prefix: .* 'partial': True, or leave it out"),
    (user(function_call={"name": "f", "arguments": "{}"}), r"\.function_call: .* tool_calls"),
    (user(refusal="I will not."), r"\.refusal: .* into content"),
    (user(audio={"id": "a"}), r"\.audio: .* only text"),
    (user(tools=[{"type": "function"}]), r"\.tools: .* the whole conversation"),
    ([{"role": "function", "name": "f", "content": "1"}], "the role 'function'; use the role 'too"),
    (user(tool_calls=[{"id": "a"}]), r"\.tool_calls: .* of the assistant, found the role 'user'"),
    ([{"role": "u" * 9999, "tool_calls": [{"id": "a"}]}], "^.{0,300}$"),
    (user(partial=True), r"messages\[0\]\.partial: expected it in the last message, of the assis"),
    ([said_by_assistant("a", partial=True), *user()], r"messages\[0\]\.partial: expected it in"),
    ([{**calling({"id": "a"})[0], "partial": True}], r"\.partial: .* without tool_calls"),
    ([said_by_assistant("a", partial=1)], r"\.partial: expected True or False, found 1"),
])
def test_a_wrong_message_is_one_sentence(messages, said):
    with pytest.raises(ChatError, match=said) as caught:
        render(SMALL, messages)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("options, said", [
    ({"tools": {"name": "f"}}, "tools: expected a list of dicts"),
    ({"tools": ["f"]}, "tools: expected a list of dicts"),
    ({"tools": [{"f": {1}}]}, "tools: expected what JSON can hold"),
    ({"tools": [{"f": {1}}], "declare": "typescript"}, "tools: expected what JSON can hold"),
    ({"style": "k3"}, "style: expected one of k2-instruct, .* found 'k3'"),
    ({"style": ["k2.6"]}, r"style: expected one of k2-instruct, .* found \['k2.6'\]"),
    ({"style": "k2.6 or k2.7-code"}, "leave open whether it is k2.6 or k2.7-code; say which"),
    ({"declare": "xml"}, "declare: expected one of json, typescript, found 'xml'"),
    ({"thinking": False}, "k2-thinking always thinks"),
    ({"thinking": False, "style": "k2.7-code"}, "k2.7-code always thinks"),
    ({"preserve_thinking": True}, "preserve_thinking: expected style k2.6, found k2-thinking"),
    ({"preserve_thinking": True, "style": "k2.5"}, "expected style k2.6, found k2.5"),
    *[({name: value, "style": "k2.6"}, f"{name}: expected True or False, found ")
      for name in ("thinking", "preserve_thinking", "add_generation_prompt")
      for value in (None, 0, 1, "", "no", "False", {"type": "disabled"}, [])],
])
def test_a_wrong_option_is_one_sentence(options, said):
    with pytest.raises(ChatError, match=said):
        render(SMALL, user(), **options)


def test_what_changes_nothing_is_left_alone():
    """What the clients of other APIs put into every message, and what nobody knows."""
    nothing = {"refusal": None, "audio": None, "function_call": None, "tool_calls": None,
               "annotations": [], "prefix": False, "partial": False, "tools": [], "weight": 1,
               "cache_control": {"type": "ephemeral"}}
    messages = [*user(), said_by_assistant("b")]
    assert render(SMALL, [{**nothing, **message} for message in messages]) == render(
        SMALL, messages)


def test_a_model_without_a_tokenizer_is_one_sentence():
    with pytest.raises(TokenizerError, match="has no tokenizer: its directory lacks tiktoken.mod"):
        render(None, user())


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize("depth", [300, 994, 3000, 100_000])
def test_what_is_nested_too_deeply_is_one_sentence_wherever_it_stands(depth):
    deep = nested(depth)
    for messages, tools in (
            (user(content=deep), None), (user(name=deep), None), ([deep], None), (deep, None),
            (user(partial=deep), None), (calling(deep), None),
            (calling({"id": "a", "function": {"arguments": deep}}), None),
            (user(), {"a": deep})):
        with pytest.raises(ChatError) as caught:
            render(SMALL, messages, tools)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    for messages, tools in ((calling({"id": "a", "function": {"arguments": {"x": deep}}}), None),
                            (user(), [{"type": "function", "function": {"name": deep}}])):
        try:  # what JSON can still hold is written
            assert SMALL.decode(render(SMALL, messages, tools)).count("[") > depth
        except ChatError as error:
            assert depth > 900 and "expected what JSON can hold" in str(error)


# Thinking that is kept, answers at once, and messages to be continued.

TALK = [*user(), {"role": "assistant", "content": "b", "reasoning_content": "r"}, *user()]


@pytest.mark.parametrize("style, options, kept", [
    ("k2-thinking", {}, False), ("k2.5", {}, False), ("k2.6", {}, False),
    ("k2.6", {"preserve_thinking": True}, True), ("k2.7-code", {}, True),
    ("k2.7-code", {"preserve_thinking": True}, True),
])
def test_k2_7_code_keeps_the_thinking_of_all_turns(style, options, kept):
    """Trap: as K2.6 does, if it is asked to; that of K2 Thinking and K2.5 is always dropped."""
    text = SMALL.decode(render(SMALL, TALK, style=style, **options))
    assert ("<think>r</think>b" in text) == kept and ("<think></think>b" in text) != kept


def test_k2_7_code_is_k2_6_with_its_thinking_preserved():
    assert render(SMALL, TALK, style="k2.7-code") == render(
        SMALL, TALK, style="k2.6", preserve_thinking=True)


@pytest.mark.parametrize("style, end", [
    ("moonlight", "{"), ("k2-instruct", "{"), ("k2-thinking", "<think>r</think>{"),
    ("k2.5", "<think>r</think>{"), ("k2.7-code", "<think>r</think>{")])
@pytest.mark.parametrize("add_generation_prompt", [True, False])
def test_a_partial_message_is_left_open(style, end, add_generation_prompt):
    """Trap: a message to be continued was closed, and a new one opened. Kimi API, Partial Mode."""
    messages = [*user(), said_by_assistant("{", partial=True, reasoning_content="r", name="Al")]
    text = SMALL.decode(render(SMALL, messages, style=style,
                               add_generation_prompt=add_generation_prompt))
    role = "assistant" if style == "moonlight" else "Al"
    assert text.endswith(f"<|im_end|><|im_assistant|>{role}<|im_middle|>{end}")
    closed = render(SMALL, [*messages[:1], {**messages[1], "partial": False}], style=style,
                    add_generation_prompt=False, **({"preserve_thinking": True} if style == "k2.6"
                                                    else {}))
    assert SMALL.decode(closed).endswith("{<|im_end|>")


# Moonlight.

def moonlight_text(messages, add_generation_prompt=True):
    """What Moonlight's template says, in Python: neither names nor tools, roles as they are."""
    text = ""
    for i, message in enumerate(messages):
        if i == 0 and message["role"] != "system":
            text += "<|im_system|>system<|im_middle|>You are a helpful assistant<|im_end|>"
        if message["role"] in ("system", "user", "assistant"):
            text += f"<|im_{message['role']}|>"
        parts = message["content"] or []
        parts = parts if isinstance(parts, str) else "".join(part["text"] for part in parts)
        text += f"{message['role']}<|im_middle|>{parts}<|im_end|>"
    return text + "<|im_assistant|>assistant<|im_middle|>" * add_generation_prompt


@given(st.lists(message, max_size=4), tools, st.booleans())
@example([], [], True)
def test_moonlight_is_asked_as_its_own_template_does(messages, tools, add_generation_prompt):
    """Trap: it was given the system message of K2, and the names and tools of later templates."""
    ids = render(SMALL, messages, tools, add_generation_prompt, style="moonlight")
    assert SMALL.decode(ids) == moonlight_text(messages, add_generation_prompt)


@pytest.mark.parametrize("case", GOLDEN_MOONLIGHT, ids=lambda case: case["conversation"])
def test_render_gives_the_text_of_moonlight_s_template(case):
    conversation = GOLDEN["conversations"][case["conversation"]]
    ids = render(SMALL, conversation["messages"], conversation["tools"], style="moonlight")
    assert SMALL.decode(ids) == case["text"] == moonlight_text(conversation["messages"])
