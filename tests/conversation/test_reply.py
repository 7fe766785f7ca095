"""Replies: what models write, well or badly, whole and as a stream, by id and by text."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reply_cases import (
    ARGUMENT,
    CALL,
    CALL_END,
    CASES,
    CUT_OFF,
    ELSEWHERE,
    FIRST,
    FORGOTTEN,
    MARKERS,
    ONE,
    ONE_CALL,
    ONE_END,
    SECTION,
    F,
    call,
    wrap,
)
from vocabulary import SPECIAL_TOKENS, small_vocabulary

from k2ref.conversation.events import Held, infer_name, name_of
from k2ref.conversation.reply import (
    CallArguments,
    CallBegin,
    CallEnd,
    Content,
    Reply,
    ReplyParser,
    Thinking,
    ToolCall,
    collect,
    parse,
)
from k2ref.conversation.template import render
from k2ref.tokenizer import Tokenizer

ROOT = Path(__file__).parents[2]


def tokenizer_of(tokens, without=(), style=None):
    names = [name for name in SPECIAL_TOKENS if name not in without]
    tokenizer = Tokenizer(tokens, {name: len(tokens) + i for i, name in enumerate(names)})
    tokenizer.style = style
    return tokenizer


FULL = tokenizer_of(small_vocabulary())
NO_THINK = tokenizer_of(small_vocabulary(), without=("<think>", "</think>"))
NO_MARKERS = tokenizer_of(small_vocabulary(), without=MARKERS)
VOCABULARIES = {"all markers have ids": FULL, "<think> is text": NO_THINK,
                "all markers are text": NO_MARKERS}
THINKING = {name: tokenizer_of(small_vocabulary(), without, "k2-thinking") for name, without in
            zip(VOCABULARIES, ((), ("<think>", "</think>"), MARKERS), strict=True)}


@pytest.mark.parametrize("tokenizer", VOCABULARIES.values(), ids=VOCABULARIES)
@pytest.mark.parametrize("name, written, expected", [(name, *case) for name, case in CASES.items()],
                         ids=CASES)
def test_parse(name, written, expected, tokenizer):
    reply = parse(tokenizer, tokenizer.encode(written, allow_special=True))
    assert reply == expected
    found = {i for i, call in enumerate(reply.tool_calls) if not call.complete}
    assert found == CUT_OFF.get(name, set())


@pytest.mark.parametrize("tokenizer", THINKING.values(), ids=THINKING)
@pytest.mark.parametrize("written, expected", [*FORGOTTEN.values(), *CASES.values()],
                         ids=[*FORGOTTEN, *CASES])
def test_parse_where_the_model_writes_think_itself(written, expected, tokenizer):
    """Trap: vllm#32216. What is said of any style holds for it, too."""
    ids = tokenizer.encode(written, allow_special=True)
    assert parse(tokenizer, ids) == expected


def test_where_no_thinking_is_expected_its_end_means_nothing():
    ids = FULL.encode("Hm.</think>Hi.", allow_special=True)
    for tokenizer, in_thinking in ((FULL, None), (THINKING["all markers have ids"], False)):
        assert parse(tokenizer, ids, in_thinking) == Reply("", "Hm.Hi.")


def test_an_end_of_thinking_that_comes_later_ends_nothing():
    for written, expected in (
            ("Hm.</think>Hi.</think> Bye.", Reply("Hm.", "Hi. Bye.")),
            ("Hm.<think>t</think>Hi.", Reply("t", "Hm.Hi.")),
            (f"Hi.{ONE_CALL}</think>Bye.", Reply("", "Hi.Bye.", [FIRST]))):
        tokenizer = THINKING["all markers have ids"]
        assert parse(tokenizer, tokenizer.encode(written, allow_special=True)) == expected


def test_the_documented_cases_are_those_that_are_tested():
    check = [sys.executable, "-m", "scripts.docs.make_parsing", "--check"]
    run = subprocess.run(check, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert set(ELSEWHERE) <= {*CASES, *FORGOTTEN} and set(CUT_OFF) <= set(CASES)


@pytest.mark.parametrize("written, expected", [
    ("t</think>a", Reply("t", "a")), ("<think>t</think>a", Reply("t", "a")),
    (" \n<think>t</think>a", Reply("t", "a")), ("\nt</think>a", Reply("\nt", "a")),
    ("</think>a", Reply("", "a")), ("t", Reply("t")), (f"t{ONE_CALL}", Reply("t", "", [FIRST])),
    (f"t {ONE} u</think>a", Reply("t u", "a")), (f"t{ONE}</think>a", Reply("t", "a")),
])
def test_parse_after_a_prompt_that_opened_thinking(written, expected):
    """Trap: vllm#36207, where </think> ended up in the content."""
    for tokenizer in VOCABULARIES.values():
        ids = tokenizer.encode(written, allow_special=True)
        assert parse(tokenizer, ids, in_thinking=True) == expected


@pytest.mark.parametrize("style, thinks", [
    (None, False), ("k2-instruct", False), ("k2-thinking", False), ("k2.5", True), ("k2.6", True),
    ("k2.7-code", True), ("moonlight", False)])
def test_parse_knows_which_styles_open_thinking(style, thinks):
    tokenizer = tokenizer_of(small_vocabulary())
    tokenizer.style = style
    ids = tokenizer.encode("a")
    assert parse(tokenizer, ids) == (Reply("a") if thinks else Reply("", "a"))
    assert parse(tokenizer, ids, in_thinking=False) == Reply("", "a")


def test_a_marker_written_as_text_is_text():
    """Content may talk about the markers that have ids; only the singular ones have none."""
    for marker in MARKERS:
        ids = FULL.encode(f"Write {marker} like this.")
        assert parse(FULL, ids) == Reply("", f"Write {marker} like this.")
    for marker in ("<think>", "</think>"):
        for before, thinking in ("", ""), ("<think>t</think>", "t"):
            ids = NO_MARKERS.encode(f"{before}a {marker}")
            assert parse(NO_MARKERS, ids) == Reply(thinking, f"a {marker}")
    assert parse(FULL, FULL.encode(f"Write {ONE} like this.")) == Reply("", "Write like this.")


def test_thinking_may_begin_again():
    ids = FULL.encode("<think>t</think>a<think>u</think>b", allow_special=True)
    assert parse(FULL, ids) == Reply("tu", "ab")


# Names of calls that bring none.

def tool(name, *keys, required=()):
    return {"type": "function", "function": {"name": name, "parameters": {
        "type": "object", "properties": {key: {} for key in keys}, "required": list(required)}}}


WEATHER, FLIGHT = tool("weather", "city", "unit"), tool("flight", "city")
FILE = tool("file", "path")


@pytest.mark.parametrize("tools, arguments, name", [
    (None, "{}", ""), ([], "{}", ""),
    ([WEATHER], '{"city": "Rome"}', "weather"), ([WEATHER], '{"city"', "weather"),
    ([WEATHER, FILE], '{"city": "Rome"}', "weather"), ([WEATHER, FILE], '{"path": "/"}', "file"),
    ([WEATHER, FLIGHT], '{"city": "Rome"}', ""), ([WEATHER, FLIGHT], '{"unit": 1}', "weather"),
    ([WEATHER, FILE], '{"city"', ""), ([WEATHER, FILE], "[1]", ""), ([WEATHER, FILE], "{}", ""),
    ([WEATHER, tool("f", "city", "x", required=["x"])], '{"city": 1}', "weather"),
    ([FILE, {"type": "function", "function": {"name": "now"}}], "{}", ""),
])
def test_infer_name(tools, arguments, name):
    assert infer_name(tools, arguments) == name


@pytest.mark.parametrize("id, tools, name", [
    ("0", [WEATHER, FILE], "weather"), ("", [WEATHER, FILE], "weather"),
    ("functions.:0", [WEATHER], "weather"), ("functions", [WEATHER, FILE], "weather"),
    (":3", [WEATHER, FILE], "weather"), ("0", [WEATHER, FLIGHT], ""),
    ("weather", [WEATHER, FLIGHT], "weather"),
    # A name of its own, whatever the arguments fit, is the model's mistake, which it should hear.
    ("functions.rain:0", [WEATHER, FILE], "rain"), ("functions.rain:0", [WEATHER], "rain"),
    ("call_5", [WEATHER, FILE], "call_5"), ("call_5", None, "call_5"),
    ("functions_book_1", [WEATHER], "functions_book_1"),
])
def test_the_name_of_a_call_without_one_is_inferred(id, tools, name):
    """Trap: bare counters were dropped (vllm#46127); call_NNN ids name no tool (sglang#25358)."""
    ids = FULL.encode(wrap(call(id, '{"city": "Rome"}')), allow_special=True)
    assert parse(FULL, ids, tools=tools) == Reply("", "", [ToolCall(id, name, '{"city": "Rome"}')])


def tools_named(*names):
    return [tool(name) for name in names]


@pytest.mark.parametrize("id, known, name", [
    # Spellings that models use: sglang#21377, exo#2281.
    *[(id, ["exec", "read"], "exec") for id in (
        "functions.exec:5", "functionsexec5", "functions.exec5", "functionsexec:5", "exec:5",
        "functionsexec", "functions_exec_5", "functions-exec-5", "functions-exec_5", "exec5",
        "functions:exec:5", "functions/exec/5", "functions.exec", "exec")],
    ("functions_get_weather_1", ["get_weather"], "get_weather"),
    ("functions-get_weather-1", ["get_weather", "get"], "get_weather"),
    # A tool that is spelled in full is meant, whatever else might be.
    ("functionsexec5", ["exec", "exec5"], "exec5"), ("functions.exec5", ["exec", "exec5"], "exec5"),
    ("functions.exec5:0", ["exec", "exec5"], "exec5"), ("exec:5", ["exec", "exec5"], "exec"),
    ("functions.exec:5", ["exec", "exec5"], "exec"),
    ("functions.x:0", ["functions.x"], "functions.x"), ("functions.x:0", ["functions.x", "x"], "x"),
    ("functionsx", ["functionsx", "x"], "functionsx"),
    ("functions", ["functions", "x"], "functions"), ("functions.functions:0", ["x"], "functions"),
    ("7", ["7", "x"], "7"), ("functions._:0", ["_", "x"], "_"),
    # More than one fits: none is meant.
    ("functionsexec12", ["exec", "exec1"], "functionsexec12"),
    ("functions_get_12", ["get", "get_1"], "functions_get_12"),
    ("functions_get_1", ["get", "get_1"], "get_1"),
    ("functions_x:0", ["_x", "x"], "functions_x"),
    # A counter is taken off once.
    ("functions.step2:0", ["step"], "step2"), ("functions.step2:0", ["step", "step2"], "step2"),
    ("functions.step:2:0", ["step"], "step:2"), ("step2_0", ["step"], "step2_0"),
    # No tool is spelled: what is said is its own name, and no tool of that name is run.
    ("functions.delete_file:0", ["read_file"], "delete_file"),
    ("functions.delete_file", ["read_file"], "delete_file"),
    ("functions_delete_file_0", ["read_file"], "functions_delete_file_0"),
    ("read_file_now:0", ["read_file"], "read_file_now"),
    ("functions.read:0", ["read_file"], "read"),
    ("call_abc123", ["abc"], "call_abc123"), ("chatcmpl-tool-9f", ["tool"], "chatcmpl-tool-9f"),
    ("functionsexe\u0441", ["exec"], "functionsexe\u0441"), ("Functions.exec:0", ["exec"],
                                                            "Functions.exec"),
    ("functions.EXEC:0", ["exec"], "EXEC"), ("functions.exec:\u0663", ["exec"],
                                             "exec:\u0663"),
    # Without tools nothing is known but the form.
    ("functionsexec5", [], "functionsexec5"), ("functions.exec5", [], "exec5"),
    ("functions.exec:5", [], "exec"), ("3", [], ""), ("functions.3:0", [], "3"),
])
def test_name_of(id, known, name):
    """Trap: neither the dot nor the colon is sure to be there."""
    assert name_of(id, tools_named(*known)) == name


tool_names = st.from_regex(r"(functions)?[._-]?[ab]{0,2}[_:-]?[12]{0,2}",
                           fullmatch=True).filter(bool)
spellings = st.tuples(st.sampled_from(["", "functions", "functions.", "functions_", "functions-"]),
                      tool_names, st.sampled_from(["", "1", "12", ":1", ":12", "_2", "-1", ".2"]))


@given(st.lists(tool_names, max_size=4, unique=True), spellings, st.booleans())
def test_a_name_is_a_tool_that_the_id_spells_or_the_id_s_own(known, spelling, is_declared):
    """Never another: what is left of the id beside the name is "functions" and a counter."""
    prefix, name, counter = spelling
    known = sorted({*known, name}) if is_declared else known
    id = prefix + name + counter
    found = name_of(id, tools_named(*known))
    if found in known:
        places = [i for i in range(len(id)) if id.startswith(found, i)]
        assert any(re.fullmatch(r"(functions[._:/-]?)?", id[:i])
                   and re.fullmatch(r"([._:/-]?[0-9]+)?", id[i + len(found):]) for i in places)
    elif found == "":
        assert not re.search("[a-z]", id.replace("functions", "", 1))
    else:
        assert found == re.sub(":[0-9]+$", "", id.removeprefix("functions."))
    # The form that the model was taught means what it says.
    if prefix == "functions." and re.fullmatch(":[0-9]+", counter) and is_declared:
        assert found == name


@pytest.mark.parametrize("tools", [
    [None, 5, "x", {}, {"function": None}, {"function": {}}, {"function": {"name": None}},
     {"function": {"name": 5}}, {"function": {"name": ""}}, {"function": ["name"]}],
    [{"function": {"name": "f", "parameters": schema}} for schema in (
        True, 5, [], "x", {"properties": None}, {"required": 5}, {"properties": [1]})],
])
def test_malformed_tools_name_nothing_and_break_nothing(tools):
    two = [*tools, WEATHER, FLIGHT]
    assert name_of("weather:0", two) == "weather"
    assert infer_name(two, '{"unit": 1}') == "weather"
    assert parse(FULL, FULL.encode(ONE_CALL, allow_special=True), tools=two).tool_calls


def test_a_huge_id_or_arguments_nested_deeply_take_no_time_and_raise_nothing():
    for id in ("functions." + "1" * 10**6, "functions" + "a1" * 10**6, ":1" * 10**6 + "x"):
        assert len(name_of(id, [WEATHER, FILE])) in (0, len(id), len(id.removeprefix("functions.")))
    for depth in (900, 994, 1000, 10**5):
        for text in ("[" * depth + "]" * depth, '{"a":' * depth + "1" + "}" * depth):
            assert infer_name([WEATHER, FILE], text) == ""


# Streams.

def test_events_come_as_soon_as_they_are_certain():
    parser = ReplyParser(FULL)
    ids = FULL.encode(f"<think>t</think>a{SECTION}{CALL}{F}{ARGUMENT}{{ }}{CALL_END}",
                      allow_special=True)
    events = [event for id in ids for event in parser.feed(id)]
    assert events == [Thinking("t"), Content("a"), CallBegin(0, F, "f"), CallArguments(0, "{"),
                      CallArguments(0, " }"), CallEnd(0)]
    assert parser.finish() == [] == parser.finish() == parser.feed(ids[0])


def test_a_character_is_never_torn():
    parser = ReplyParser(FULL)
    seen = [parser.feed(FULL.ranks[bytes([byte])]) for byte in "a👍".encode()]
    assert seen == [[Content("a")], [], [], [], [Content("👍")]]
    parser.feed(FULL.ranks[b"\xf0"])
    assert parser.feed(FULL.special_id("<think>")) == [Content("\ufffd")]
    parser.feed(FULL.ranks[b"\xf0"])
    assert parser.finish() == [Thinking("\ufffd")]


def test_what_may_become_a_marker_is_held_back():
    parser = ReplyParser(NO_MARKERS)
    seen = [parser.feed(NO_MARKERS.ranks[bytes([byte])]) for byte in b" <think>b<b</think>"]
    assert [event for some in seen for event in some] == [
        Thinking("b"), Thinking("<b")]
    assert parser.feed(NO_MARKERS.ranks[b"<"]) == []
    assert parser.finish() == [Content("<")]


pieces = st.sampled_from([*MARKERS, ONE, ONE_END, F, "3", "{", '"a"', "}", " ", "\n", "<", "<|tool",
                          "ab", "城", "👍", "<|im_end|>", "[BOS]"])
writings = st.lists(pieces, max_size=14).map("".join)


@given(writings, st.sampled_from(sorted(VOCABULARIES)), st.sampled_from([True, False, None]),
       st.booleans())
def test_events_add_up_to_the_reply(written, vocabulary, in_thinking, thinks):
    tokenizer = (THINKING if thinks else VOCABULARIES)[vocabulary]
    ids = tokenizer.encode(written, allow_special=True)
    parser = ReplyParser(tokenizer, in_thinking)
    events = [event for id in ids for event in parser.feed(id)] + parser.finish()
    whole = parse(tokenizer, ids, in_thinking)
    assert collect(events) == whole
    assert [event.complete for event in events if isinstance(event, CallEnd)] == [
        call.complete for call in whole.tool_calls]
    shown = [event.text for event in events if isinstance(event, Held)]
    texts = [event.text for event in events if isinstance(event, Thinking | Content)]
    assert not shown or "".join(shown) == texts[0]  # what is shown comes again as what it is
    calls = [event for event in events if not isinstance(event, Thinking | Content | Held)]
    n_calls, is_open = 0, False
    for event in calls:  # every call begins, goes on and ends before the next, counted from 0
        assert event.index == n_calls and isinstance(event, CallBegin) != is_open
        is_open = not isinstance(event, CallEnd)
        n_calls += not is_open
    assert not is_open


@given(writings)
def test_markers_never_leak(written):
    reply = parse(FULL, FULL.encode(written, allow_special=True))
    for marker in [*MARKERS, ONE, ONE_END]:
        assert marker not in reply.content and marker not in reply.thinking


# The end of a turn is only known by its id.
CASES_IN_TEXT = {name: case for name, case in CASES.items()
                 if not re.search(r"<\|im_|\[EO", case[0])}


def parse_cut(written, cuts, in_thinking, style=None):
    """Parse bytes cut at some places, by a vocabulary in which the pieces are the tokens."""
    cuts = [0, *sorted(cut for cut in cuts if cut < len(written)), len(written)]
    pieces = [written[i:j] for i, j in zip(cuts[:-1], cuts[1:], strict=True) if i < j]
    tokens = dict.fromkeys([*(bytes([byte]) for byte in range(256)), *pieces])
    tokenizer = tokenizer_of(list(tokens), MARKERS, style)
    return parse(tokenizer, [tokenizer.ranks[piece] for piece in pieces], in_thinking)


@given(writings, st.sets(st.integers(1, 300)), st.sampled_from([True, False, None]))
def test_the_reply_does_not_depend_on_how_the_text_is_cut(written, cuts, in_thinking):
    """Cut the bytes anywhere, inside markers and characters too."""
    written, style = written.encode(), "k2-thinking" if in_thinking is None else None
    expected = parse_cut(written, [], in_thinking, style)
    assert parse_cut(written, cuts, in_thinking, style) == expected
    assert parse_cut(written, range(1, len(written)), in_thinking, style) == expected


@pytest.mark.parametrize("written, expected", CASES_IN_TEXT.values(), ids=CASES_IN_TEXT)
def test_the_cases_cut_once_at_every_byte(written, expected):
    written = written.encode()
    for cut in range(1, len(written)):
        assert parse_cut(written, [cut], in_thinking=False) == expected


FORGOTTEN_IN_TEXT = {name: case for name, case in FORGOTTEN.items() if "<|im_" not in case[0]}


@pytest.mark.parametrize("written, expected", FORGOTTEN_IN_TEXT.values(), ids=FORGOTTEN_IN_TEXT)
def test_thinking_without_its_first_word_cut_once_at_every_byte(written, expected):
    written = written.encode()
    for cut in range(1, len(written)):
        assert parse_cut(written, [cut], None, "k2-thinking") == expected


def test_only_text_that_may_turn_out_to_be_thinking_is_held_back():
    tokenizer = THINKING["all markers have ids"]

    def seen(written):
        parser = ReplyParser(tokenizer)
        ids = tokenizer.encode(written, allow_special=True)
        return [*(parser.feed(id) for id in ids), parser.finish()]

    assert seen("<think>a</think>b") == [
        [], [Thinking("a")], [], [Content("b")], []]
    held = [[Held("a")], [Held(" ")], [Held("b")]]
    assert seen("a b</think>c d") == [*held, [Thinking("a b")], [Content("c")], [Content(" ")],
                                      [Content("d")], []]
    assert seen("a b") == [*held, [Content("a b")]]
    assert seen(f"a{SECTION}") == [[Held("a")], [Content("a")], []]
    assert seen(" a<think>b") == [[], [Held(" a")], [Content(" a")], [Thinking("b")], []]


# There and back again.

words = st.text(max_size=8) | st.sampled_from(["<", "<think>", CALL, "</think>", "\n", "城", "👍"])
names = st.from_regex(r"[ab_][ab_.\-12]{0,6}", fullmatch=True)
objects = st.dictionaries(words, words | st.integers() | st.lists(st.none()), max_size=3)


@pytest.mark.parametrize("style", ["k2-instruct", "k2-thinking", "k2.5", "k2.6", "k2.7-code"])
@given(data=st.data())
def test_parse_gives_back_what_render_was_given(style, data):
    tokenizer = tokenizer_of(small_vocabulary())
    tokenizer.style = style
    functions = data.draw(st.lists(st.tuples(names, objects), max_size=3))
    calls = [ToolCall(f"functions.{name}:{i}", name, json.dumps(arguments, ensure_ascii=False))
             for i, (name, arguments) in enumerate(functions)]
    reply = Reply("" if style == "k2-instruct" else data.draw(words), data.draw(words), calls)
    turn = {"role": "assistant", "content": reply.content, "reasoning_content": reply.thinking}
    if calls:
        turn["tool_calls"] = [{"id": c.id, "function": {"name": c.name, "arguments": c.arguments}}
                              for c in calls]
    messages = [{"role": "user", "content": "a"}]
    prompt = render(tokenizer, messages, style=style)
    options = {"preserve_thinking": True} if style == "k2.6" else {}
    ids = render(tokenizer, [*messages, turn], add_generation_prompt=False, **options)
    assert ids[:len(prompt)] == prompt
    # Without calls the other templates drop the last thinking.
    if calls or style in ("k2-instruct", "k2.6", "k2.7-code"):
        assert parse(tokenizer, ids[len(prompt):]) == reply
    else:
        assert parse(tokenizer, ids[len(prompt):]) == Reply("", reply.content)
