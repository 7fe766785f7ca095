"""The chat template: ids of real conversations, text that stays text, and wrong messages."""

import json
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from vocabulary import SPECIAL_TOKENS, real_directory_or_skip, small_vocabulary

from k2ref.config import Config
from k2ref.declarations import as_json, as_typescript
from k2ref.template import STYLES, ChatError, render, style_of
from k2ref.tokenizer import Tokenizer

DATA = Path(__file__).parent / "data"
GOLDEN = json.loads((DATA / "chat_golden.json").read_text(encoding="utf-8"))
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
conversations = st.tuples(st.lists(message, max_size=4), tools, st.sampled_from(STYLES))


def controls(ids):
    special = set(SMALL.special_tokens.values())
    return [id for id in ids if id in special]


def n_controls(message, style):
    """How many control tokens a message needs, whatever it says."""
    n = 3  # open, middle, end
    if message["role"] == "assistant":
        calls = message.get("tool_calls", [])
        n += 2 * (style != "k2-instruct") + (2 + 3 * len(calls) if calls else 0)
    return n


@given(conversations, st.sampled_from(["json", "typescript"]))
def test_the_number_of_control_tokens_does_not_depend_on_the_text(conversation, declare):
    messages, tools, style = conversation
    ids = render(SMALL, messages, tools, style=style, declare=declare)
    expected = sum(n_controls(message, style) for message in messages) + 3 * bool(tools)
    if style in ("k2-instruct", "k2-thinking"):
        expected += 2 + 3 * (not messages or messages[0]["role"] != "system")
    else:
        expected += 3
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
            assert SMALL.decode(ids).count(name) >= 8  # as text it is all there


@given(conversations)
@example(([{"role": "tool", "tool_call_id": "a", "content": "\n\nb"}], [], "k2-thinking"))
def test_text_between_control_tokens_is_encoded_in_one_piece(conversation):
    messages, tools, style = conversation
    ids = render(SMALL, messages, tools, style=style)
    for is_control, run in groupby(ids, lambda id: id in SMALL.special_tokens.values()):
        run = list(run)
        assert is_control or run == SMALL.encode(SMALL.decode(run))


# The style of a checkpoint.

@pytest.mark.parametrize("name, thinks, style", [
    ("Kimi-K2-Base", False, "k2-instruct"), ("Kimi-K2-Instruct", False, "k2-instruct"),
    ("Kimi-K2-Instruct-0905", False, "k2-instruct"), ("Kimi-K2-Thinking", True, "k2-thinking"),
    ("Kimi-K2-Thinking", False, "k2-thinking"), ("Kimi-K2.5", True, "k2.5"),
    ("Kimi-K2.6", True, "k2.6"), ("Kimi-K2.7-Code", True, "k2.6"),
])
def test_style_of_the_official_configurations(name, thinks, style):
    config = Config.from_dict(json.loads((DATA / "configs" / f"{name}.json").read_text()))
    ids = {"<|im_end|>": 163586} | ({"<think>": 163606} if thinks else {})
    assert style_of(config, SimpleNamespace(special_id=ids.get)) == style


@pytest.mark.parametrize("thinks, style", [(False, "k2-instruct"), (True, "k2-thinking")])
def test_style_of_a_model_without_quantization_depends_on_its_vocabulary(thinks, style):
    """Moonlight is flat and ends its turns as K2 Thinking does, but knows no <think>."""
    tokenizer = SMALL if thinks else small_tokenizer(without=("<think>", "</think>"))
    config = SimpleNamespace(eos_token_id=tokenizer.special_id("<|im_end|>"), tensor_prefix="",
                             quantization_config=None)
    assert style_of(config, tokenizer) == style


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
    ({"declare": "xml"}, "declare: expected one of json, typescript, found 'xml'"),
    ({"thinking": False}, "k2-thinking always thinks"),
    ({"preserve_thinking": True}, "preserve_thinking: expected style k2.6, found k2-thinking"),
])
def test_a_wrong_option_is_one_sentence(options, said):
    with pytest.raises(ChatError, match=said):
        render(SMALL, user(), **options)
