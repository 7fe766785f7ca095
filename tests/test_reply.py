"""Replies: what models write, well or badly, whole and as a stream, by id and by text."""

import json
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
    ELSEWHERE,
    FIRST,
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

from k2ref.events import infer_name
from k2ref.reply import (
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
from k2ref.template import render
from k2ref.tokenizer import Tokenizer

ROOT = Path(__file__).parent.parent


def tokenizer_of(tokens, without=()):
    names = [name for name in SPECIAL_TOKENS if name not in without]
    return Tokenizer(tokens, {name: len(tokens) + i for i, name in enumerate(names)})


FULL = tokenizer_of(small_vocabulary())
NO_THINK = tokenizer_of(small_vocabulary(), without=("<think>", "</think>"))
NO_MARKERS = tokenizer_of(small_vocabulary(), without=MARKERS)
VOCABULARIES = {"all markers have ids": FULL, "<think> is text": NO_THINK,
                "all markers are text": NO_MARKERS}


@pytest.mark.parametrize("tokenizer", VOCABULARIES.values(), ids=VOCABULARIES)
@pytest.mark.parametrize("written, expected", CASES.values(), ids=CASES)
def test_parse(written, expected, tokenizer):
    assert parse(tokenizer, tokenizer.encode(written, allow_special=True)) == expected


def test_the_documented_cases_are_those_that_are_tested():
    check = [sys.executable, str(ROOT / "scripts" / "make_parsing.py"), "--check"]
    run = subprocess.run(check, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert set(ELSEWHERE) <= set(CASES)


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
    (None, False), ("k2-instruct", False), ("k2-thinking", False), ("k2.5", True), ("k2.6", True)])
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
    ("0", [WEATHER, FILE], "weather"), ("call_5", [WEATHER, FILE], "weather"),
    ("", [WEATHER, FILE], "weather"), ("functions.:0", [WEATHER], "weather"),
    ("weather", [WEATHER, FLIGHT], "weather"), ("0", [WEATHER, FLIGHT], ""),
    # An unknown name with an index is the model's mistake, which it should hear about.
    ("functions.rain:0", [WEATHER, FILE], "rain"), ("call_5", None, "call_5"),
])
def test_the_name_of_a_call_without_one_is_inferred(id, tools, name):
    """Trap: bare counters were dropped (vllm#46127), as were call_NNN ids (sglang#25358)."""
    ids = FULL.encode(wrap(call(id, '{"city": "Rome"}')), allow_special=True)
    assert parse(FULL, ids, tools=tools) == Reply("", "", [ToolCall(id, name, '{"city": "Rome"}')])


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


@given(writings, st.sampled_from(sorted(VOCABULARIES)), st.booleans())
def test_events_add_up_to_the_reply(written, vocabulary, in_thinking):
    tokenizer = VOCABULARIES[vocabulary]
    ids = tokenizer.encode(written, allow_special=True)
    parser = ReplyParser(tokenizer, in_thinking)
    events = [event for id in ids for event in parser.feed(id)] + parser.finish()
    assert collect(events) == parse(tokenizer, ids, in_thinking)
    calls = [event for event in events if not isinstance(event, Thinking | Content)]
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
                 if "<|im_" not in case[0] and "[EOT]" not in case[0]}


def parse_cut(written, cuts, in_thinking):
    """Parse bytes cut at some places, by a vocabulary in which the pieces are the tokens."""
    cuts = [0, *sorted(cut for cut in cuts if cut < len(written)), len(written)]
    pieces = [written[i:j] for i, j in zip(cuts[:-1], cuts[1:], strict=True) if i < j]
    tokens = dict.fromkeys([*(bytes([byte]) for byte in range(256)), *pieces])
    tokenizer = tokenizer_of(list(tokens), without=MARKERS)
    return parse(tokenizer, [tokenizer.ranks[piece] for piece in pieces], in_thinking)


@given(writings, st.sets(st.integers(1, 300)), st.booleans())
def test_the_reply_does_not_depend_on_how_the_text_is_cut(written, cuts, in_thinking):
    """Cut the bytes anywhere, inside markers and characters too."""
    written = written.encode()
    expected = parse_cut(written, [], in_thinking)
    assert parse_cut(written, cuts, in_thinking) == expected
    assert parse_cut(written, range(1, len(written)), in_thinking) == expected


@pytest.mark.parametrize("written, expected", CASES_IN_TEXT.values(), ids=CASES_IN_TEXT)
def test_the_cases_cut_once_at_every_byte(written, expected):
    written = written.encode()
    for cut in range(1, len(written)):
        assert parse_cut(written, [cut], in_thinking=False) == expected


# There and back again.

words = st.text(max_size=8) | st.sampled_from(["<", "<think>", CALL, "</think>", "\n", "城", "👍"])
names = st.from_regex(r"[ab_][ab_.\-12]{0,6}", fullmatch=True)
objects = st.dictionaries(words, words | st.integers() | st.lists(st.none()), max_size=3)


@pytest.mark.parametrize("style", ["k2-instruct", "k2-thinking", "k2.5", "k2.6"])
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
    if calls or style in ("k2-instruct", "k2.6"):  # else the template drops the last thinking
        assert parse(tokenizer, ids[len(prompt):]) == reply
    else:
        assert parse(tokenizer, ids[len(prompt):]) == Reply("", reply.content)
