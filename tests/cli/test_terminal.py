"""The look of a reply: sections, dimming, tool calls, control characters, the report."""

import io
import re
import time
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from k2ref.cli import terminal
from k2ref.cli.terminal import Printer, Stopwatch, may_dim, progress
from k2ref.conversation.events import (
    CallArguments,
    CallBegin,
    CallEnd,
    Content,
    Held,
    Thinking,
    ToolResult,
)


class Screen(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")


def shown(stream, events, **options):
    """What a stream holds after these events."""
    printer = Printer(stream, **options)
    for event in events:
        printer.show([event])
    printer.close()
    return stream.getvalue()


def undimmed(text):
    return text.replace("\x1b[2m", "").replace("\x1b[0m", "")


REPLY = [Thinking("Let me"), Thinking(" see."), Content("It is"), Content(" 95.")]


def test_a_terminal_gets_dim_thinking_a_blank_line_and_the_answer():
    text = shown(Screen(), REPLY)
    assert text == "\x1b[2mLet me\x1b[0m\x1b[2m see.\x1b[0m\n\nIt is 95.\n"


def test_a_pipe_gets_thinking_between_tags_and_no_escape():
    assert shown(io.StringIO(), REPLY) == "<think>\nLet me see.\n</think>\n\nIt is 95.\n"


@pytest.mark.parametrize("kind, then, text, end", [
    (Thinking, [Content("b")], "a b\n\nb\n", "</think>\n\nb\n"), (Content, [], "a b\n", ""),
    (Content, [CallBegin(0, "f:0", "f"), CallEnd(0)], "a b\n\ntool call: f \n",
     "\ntool call: f \n"),
])
def test_what_may_be_thinking_is_shown_at_once_and_once(kind, then, text, end):
    """In a pipe, too: the answer is what follows </think>, if it comes, and all if it does not."""
    held, known = [Held("\na"), Held(" b")], [kind("\na b"), *then]
    assert undimmed(shown(Screen(), [*held, *known])) == text
    assert shown(io.StringIO(), [*held, *known]) == "a b\n" + end
    assert undimmed(shown(Screen(), held)) == shown(io.StringIO(), held) == "a b\n"
    for stream in (io.StringIO, Screen):
        assert shown(stream(), [*held, *known], hide_thinking=True) == shown(
            stream(), known, hide_thinking=True)


@pytest.mark.parametrize("name, value", [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_a_terminal_that_does_not_want_colour_looks_like_a_pipe(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    assert not may_dim(Screen())
    assert shown(Screen(), REPLY) == shown(io.StringIO(), REPLY)


def test_an_empty_no_color_is_no_objection(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "")
    assert may_dim(Screen()) and not may_dim(io.StringIO())


@pytest.mark.parametrize("stream", [Screen, io.StringIO])
def test_hidden_thinking_leaves_the_answer_alone(stream):
    assert shown(stream(), REPLY, hide_thinking=True) == "It is 95.\n"


@pytest.mark.parametrize("stream, expected", [
    (io.StringIO, "<think>\nhm\n</think>\n\ntool call: add {}\ntool call: 7 {}\n\ndone\n"),
    (Screen, "hm\n\ntool call: add {}\ntool call: 7 {}\n\ndone\n"),
])
def test_tool_calls_stand_on_lines_of_their_own(stream, expected):
    events = [Thinking("hm"),
              CallBegin(0, "functions.add:0", "add"), CallArguments(0, "{"),
              CallArguments(0, "}"), CallEnd(0),
              CallBegin(1, "7", ""), CallArguments(1, "{}"), CallEnd(1), Content("\n\ndone")]
    assert undimmed(shown(stream(), events)) == expected


def test_thinking_that_is_cut_short_is_not_closed():
    assert shown(io.StringIO(), [Thinking("Let")]) == "<think>\nLet\n"


def test_nothing_said_prints_nothing():
    assert shown(io.StringIO(), [Thinking("\n"), Content("\n\n")]) == ""


texts = st.lists(st.text(st.sampled_from("ab \n"), min_size=1), max_size=5)


@given(texts, texts, st.sampled_from([Screen, io.StringIO]))
def test_layout_does_not_depend_on_the_pieces(thoughts, words, stream):
    events = [Thinking(t) for t in thoughts] + [Content(t) for t in words]
    whole = [Thinking("".join(thoughts)), Content("".join(words))]
    text = undimmed(shown(stream(), events))
    assert text == undimmed(shown(stream(), whole))
    answer = "".join(words).lstrip("\n")
    assert text.endswith(answer if answer.endswith("\n") else answer + "\n" if answer else "")


def test_each_piece_is_flushed():
    class Flushed(io.StringIO):
        seen = []

        def flush(self):
            self.seen.append(self.getvalue())

    stream = Flushed()
    Printer(stream).show([Content("a")])
    assert Flushed.seen == ["a"]


def test_a_terminal_shows_control_characters_instead_of_obeying_them():
    evil = "a\x1b[2Jb\x9b2Jc\x07\x7f\r\n\td"
    assert shown(Screen(), [Content(evil)]) == "a␛[2Jb□2Jc␇␡\n\td\n"
    assert shown(io.StringIO(), [Content(evil)]) == evil + "\n"


def test_no_bar_where_nobody_watches():
    stream = io.StringIO()
    with progress(stream, "reading", 10) as update:
        update(10)
    assert stream.getvalue() == ""


def test_no_bar_for_short_work():
    stream = Screen()
    with progress(stream, "reading", 10) as update:
        update(5)
        update(10)
    assert "reading" not in stream.getvalue()


@pytest.mark.parametrize("total, expected", [(10, r"reading: .*0/10"), (None, r"reading \[")])
def test_a_bar_appears_for_long_work_and_goes_away(monkeypatch, total, expected):
    monkeypatch.setattr(terminal, "WAIT_S", 0.0)
    stream = Screen()
    with progress(stream, "reading", total):
        deadline = time.monotonic() + 60
        while not re.search(expected, stream.getvalue()) and time.monotonic() < deadline:
            time.sleep(0.01)
    text = stream.getvalue()
    assert re.search(expected, text)
    assert text.endswith("\r") and text.rsplit("\r", 2)[1].strip() == ""  # the line is blank again


def test_the_bar_is_gone_when_the_work_is_done_not_later(monkeypatch):
    monkeypatch.setattr(terminal, "WAIT_S", 0.0)
    stream = Screen()
    with progress(stream, "reading", 10) as update:
        update(4)
        update(10)
        text = stream.getvalue()
        assert "4/10" in text and text.endswith("\r")
    assert stream.getvalue() == text


def ticking(monkeypatch, *times):
    clock = iter(times)
    monkeypatch.setattr(terminal.time, "perf_counter", lambda: next(clock))


def model_reading(n_bytes):
    return SimpleNamespace(config=SimpleNamespace(n_bytes_per_token=n_bytes), stream=None)


def test_the_stopwatch_reports_in_four_lines(monkeypatch):
    ticking(monkeypatch, 100.0, 102.0, 102.5, 103.0, 104.0)
    watch = Stopwatch()
    watch.begin()
    watch.read(50)
    watch.wrote(7)
    watch.wrote(8)
    watch.end("stop")
    prompt, reply, weights, memory = watch.report(model_reading(32_700_000_000)).split("\n")
    assert prompt == "prompt   50 tokens, 25.0 tokens/s"
    # Two tokens were read to get the second one and the stop, in two seconds.
    assert reply == "reply    2 tokens, 1.0 tokens/s, ended by stop"
    assert weights == "weights  32.7 GB read for each token of the reply"
    assert re.match(r"memory   ([\d.]+ [kMG]B|unknown) at most", memory)


def test_the_stopwatch_does_not_count_a_step_that_was_not_made(monkeypatch):
    ticking(monkeypatch, 0.0, 1.0, 1.0, 1.0)
    watch = Stopwatch()
    watch.begin()
    watch.read(1)
    watch.wrote(7)
    watch.end("length")
    report = watch.report(model_reading(999))
    assert "reply    1 tokens, too few to time, ended by length" in report
    assert "weights  999.0 bytes" in report


def test_the_stopwatch_adds_up_the_replies_of_an_agent(monkeypatch):
    ticking(monkeypatch, 0.0, 1.0, 2.0, 3.0, 10.0, 14.0, 15.0, 16.0, 20.0, 21.0)
    watch = Stopwatch()
    for n_cached, n, reason in ((0, 30, "tool_calls"), (35, 10, "stop"), (50, 0, None)):
        watch.begin(n_cached)
        if n:
            watch.read(n)
            watch.wrote(1)
            watch.end(reason)
    assert watch.n_begun == 3
    lines = watch.report(model_reading(1)).split("\n")
    assert lines[0] == "prompt   40 tokens, 8.0 tokens/s, and 85 from the cache"
    assert lines[1] == "reply    2 tokens, 0.5 tokens/s, ended by interruption"
    assert lines[4] == "steps    3, 3.000 s each (median), 6.000 s at most"


def test_a_tool_result_stands_under_its_call_and_is_not_endless():
    call = [CallBegin(0, "functions.add:0", "add"), CallArguments(0, "{}"), CallEnd(0)]
    long = ToolResult("functions.add:0", "add", "x" * (terminal.MAX_SHOWN + 5))
    failed = ToolResult("functions.add:0", "add", "Error: no", "tool error")
    text = shown(io.StringIO(), [*call, long, failed, Content("done")])
    assert text == ("tool call: add {}\ntool result: " + "x" * terminal.MAX_SHOWN
                    + " ... and 5 characters more\n"
                    "tool result (tool error): Error: no\n\ndone\n")


def test_thinking_may_come_again_after_a_result():
    events = [Thinking("a"), CallBegin(0, "f", "f"), CallEnd(0), ToolResult("f", "f", "1"),
              Thinking("b"), Content("c")]
    assert shown(io.StringIO(), events) == (
        "<think>\na\n</think>\n\ntool call: f \ntool result: 1\n\n"
        "<think>\nb\n</think>\n\nc\n")
