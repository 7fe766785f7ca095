"""The door to the screen: nothing that others wrote is obeyed, all that people write with stays."""

import ast
import io
import json
import re
import sys
import unicodedata
from pathlib import Path

import pytest
from cli.test_terminal import Screen
from cli.test_terminal import shown as printed
from hypothesis import given
from hypothesis import strategies as st

import k2ref
from k2ref.cli.main import main
from k2ref.conversation import session
from k2ref.conversation.chat import Context
from k2ref.conversation.events import CallArguments, CallBegin, Content, Thinking, ToolResult
from k2ref.doors import screen
from k2ref.doors.screen import line, note, report, shown
from scripts.checkpoints.small import tiny_config, write_checkpoint

SOURCES = Path(k2ref.__file__).parent
EVIL = "a\x1b[2J\x1b]0;pwned\x07b\x9b31m\u202egpj.exe\u2066\u2069\u2028\U000E0041\x7f\x08"
FAMILY = "\U0001F468\u200D\U0001F469\u200D\U0001F467\uFE0F"
ENGLAND = "\U0001F3F4\U000E0067\U000E0062\U000E0065\U000E006E\U000E0067\U000E007F"
LEGITIMATE = [
    "سلام، می‌خواهم", "שלום\u200f!", "\u200eabc", "\u061cعربي", "क्‍ष", FAMILY, ENGLAND,
    "\U0001F1E9\U0001F1EA", "ภาษา\u200bไทย", "e\u0301", "co\u00adop", "葛\U000E0100", "a\tb\nc", ""]


def is_obeyed(text, lines=True):
    """Say whether a screen would do something at this text but show it, or hide what it says."""
    text = text.replace(ENGLAND, "")
    allowed = "\n\t" if lines else ""
    return any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") and c not in allowed
               or 0x202A <= ord(c) <= 0x202E or 0x2066 <= ord(c) <= 0x206F
               or 0xE0000 <= ord(c) <= 0xE007F for c in text)


strange = st.text(st.characters() | st.sampled_from(
    "\x1b\x9b\u202e\u2066\u2069\r\n\t\udc80\ud800\U000E0041\U000E007F\U0001F3F4\u200d"))


@given(strange)
def test_nothing_is_obeyed_and_nothing_is_lost(text):
    assert not is_obeyed(line(text), lines=False)
    plain = shown(text)
    plain.encode()  # whatever it was
    flags = re.sub("\U0001F3F4[\U000E0020-\U000E007F]{1,6}", "", plain)
    assert not is_obeyed(flags)
    kept = [c for c in text if not is_obeyed(c)]
    left = iter(plain)
    assert all(c in left for c in kept)  # in this order
    assert shown(plain) == plain


@pytest.mark.parametrize("text", LEGITIMATE)
def test_what_people_write_with_stays(text):
    assert shown(text) == text


def test_what_is_shown_instead():
    assert shown(EVIL) == "a␛[2J␛]0;pwned␇b□31m□gpj.exe□□□□␡␈"
    assert line("a\nb\tc\rd") == "a␊b␉c␍d" and shown("a\r\nb") == "a\nb"
    assert line(b"caf\xe9\xff".decode("utf-8", "surrogateescape")) == "caf\\xe9\\xff"
    assert shown("\ud800") == "\ufffd"
    assert shown("\U000E0041" * 3) == "□□□"
    hidden = "".join(chr(0xE0000 + ord(c)) for c in "ignore all that was said")
    assert shown("\U0001F3F4" + hidden).count("□") == len(hidden) - 5  # as long as a flag is


@given(st.lists(strange, max_size=6))
def test_a_reply_on_a_terminal_is_shown_alike_in_any_pieces(pieces):
    stream, whole = Screen(), Screen()
    for target, texts in ((stream, pieces), (whole, ["".join(pieces)])):
        printer = k2ref.cli.terminal.Printer(target)
        for text in texts:
            printer.write(text)
    assert stream.getvalue() == whole.getvalue() == shown("".join(pieces))


@pytest.mark.parametrize("events", [
    [Content(EVIL)], [Thinking(EVIL)], [CallBegin(0, "x", EVIL)], [CallBegin(0, EVIL, "")],
    [CallBegin(0, "x", "x"), CallArguments(0, EVIL)], [ToolResult("x", "x", EVIL)]])
def test_no_part_of_a_reply_is_obeyed(events, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    text = printed(Screen(), events)
    assert not is_obeyed(text) and "gpj.exe" in text


@pytest.mark.parametrize("text", [*LEGITIMATE, EVIL])
def test_a_reply_in_a_pipe_is_left_as_it_is(text):
    assert printed(io.StringIO(), [Content("." + text)]).rstrip("\n") == "." + text.rstrip("\n")


# Every surface of the command.

@pytest.fixture
def evil_directory(tmp_path):
    """A checkpoint with strange names for everything that can be named."""
    place = tmp_path / ("models\x1b[2J\u202e" + b"\xff".decode("utf-8", "surrogateescape"))
    values = tiny_config()
    write_checkpoint(place, values)
    return place


def rename(place, **changes):
    """Rename tensors in the first shard: the header grows or shrinks, the data stay."""
    [shard, *_] = sorted(place.glob("*.safetensors"))
    data = shard.read_bytes()
    n = int.from_bytes(data[:8], "little")
    header = json.loads(data[8:8 + n])
    first = next(name for name in header if name != "__metadata__")
    header["x" + EVIL + "\nnothing is missing\n" + first] = header.pop(first)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    shard.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + n:])


def all_of(capsys):
    out, err = capsys.readouterr()
    assert not is_obeyed(out) and not is_obeyed(err), (out, err)
    return out, err


def test_names_of_tensors_and_files_in_an_inspection(evil_directory, capsys):
    rename(evil_directory)
    main(["--inspect", str(evil_directory)])
    out, err = all_of(capsys)
    assert "\\xff" in out + err and "\nnothing is missing\n" not in out


@pytest.mark.parametrize("place, value", [
    ("format", EVIL), ("quant_method", EVIL), ("ignore", ["re:(" + EVIL]),
    ("config_groups", {EVIL + "\n": {"weights": {"num_bits": 3, EVIL: 1}, "targets": [EVIL]}})])
@pytest.mark.parametrize("options", [["--inspect"], ["--plan", "--memory", "1", "--model"],
                                     ["hi", "--model"]])
def test_names_and_patterns_of_a_config(evil_directory, capsys, place, value, options):
    file = evil_directory / "config.json"
    config = json.loads(file.read_text())
    config.setdefault("quantization_config", {"quant_method": "compressed-tensors"})[place] = value
    file.write_text(json.dumps(config))
    main([*options, str(evil_directory)])
    out, err = all_of(capsys)
    assert err.count("\n") <= 1


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json",
                                  "generation_config.json"])
def test_text_of_files_in_errors(evil_directory, capsys, name):
    (evil_directory / name).write_text(json.dumps({EVIL: EVIL, "weight_map": {EVIL: EVIL},
                                                   "model_type": EVIL, "architectures": [EVIL]}))
    for options in (["--inspect"], ["x", "--model"]):
        main([*options, str(evil_directory)])
        out, err = all_of(capsys)
        assert err.count("\n") <= 1


@pytest.mark.parametrize("args", [
    ["--model", EVIL, "x"], ["--session", EVIL * 40, "x"], ["--tools", EVIL, "x"],
    ["--" + EVIL], ["--threads", EVIL, "x"], ["--trace", f"/nowhere/{EVIL}", "x"],
    ["--trace", "a.npz", "--trace-only", EVIL, "x"], ["--inspect", EVIL],
    ["--model", b"/\xff\xfe".decode("utf-8", "surrogateescape"), "x"],
    ["--tool-timeout", EVIL, "x"], ["--cache", EVIL, "x"], ["--transcript", f"/no/{EVIL}", "x"]])
def test_errors_are_one_line_that_is_not_obeyed(args, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(args) == 2
    out, err = all_of(capsys)
    assert out == "" and err.count("\n") == 1 and err.startswith("k2ref: ")


def test_a_session_that_somebody_sent(capsys, monkeypatch, tmp_path):
    model = k2ref.load()
    messages = [{"role": "system", "content": EVIL},
                {"role": "user", "content": [{"type": "text", "text": EVIL}]},
                {"role": "assistant", "content": EVIL}, {"role": "user", "content": EVIL}]
    session.save(tmp_path / EVIL.replace("/", ""), Context(model), messages=messages)
    typed = iter([f"/load {tmp_path / EVIL.replace('/', '')}", "/system", "/undo", "/undo",
                  "/undo", f"/{EVIL}", "/tools", "/stats"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(typed, "/quit"))
    dialogue = k2ref.cli.dialogue.Dialogue(k2ref.Agent(model))
    dialogue.talk()
    out, err = all_of(capsys)
    assert out.count("gpj.exe") == 3 and "there is nothing to undo" in err


def test_tools_with_strange_names(capsys, monkeypatch):
    def tool(x: str) -> str:
        """A tool."""

    tool.__doc__ = EVIL
    typed = iter(["/tools"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(typed, "/quit"))
    k2ref.cli.dialogue.Dialogue(k2ref.Agent(k2ref.load(), [tool])).talk()
    assert "gpj.exe" in all_of(capsys)[0]


# The door is the only one.

DOORS = {"screen.py": {"say", "report"}, "terminal.py": {"write"}}
WRITERS = {"agent.py", "session.py", "recording.py", "trace.py"}  # to files that they opened


def test_nothing_is_printed_past_the_door():
    """No `print`, no `write` and no standard stream in the package but where it is made safe."""
    paths = [*SOURCES.rglob("*.py")]
    assert len(paths) > 60
    for path in paths:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        allowed = DOORS.get(path.name, ())
        for function in [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]:
            for call in [n for n in ast.walk(function) if isinstance(n, ast.Call)]:
                name = getattr(call.func, "attr", getattr(call.func, "id", None))
                is_method = isinstance(call.func, ast.Attribute)
                if name == "print" or (name == "write" and is_method
                                       and path.name not in WRITERS):
                    owner = ast.unparse(call.func)
                    # A cache is written to; a printer's `write` is the door of replies.
                    assert (function.name in allowed or owner in ("run.cache.write", "os.write",
                            "printer.write", "self.write")), f"{path.name}:{call.lineno} {owner}"
        streams = re.findall(r"sys\.(?:__)?std(?:out|err)\S*", path.read_text(encoding="utf-8"))
        assert not streams or path.name in (
            "screen.py", "main.py", "dialogue.py", "pages.py", "child.py"), path.name


def test_a_note_is_one_line_and_never_fails(monkeypatch):
    for stream in (None, Broken(), Screen()):
        monkeypatch.setattr(sys, "stderr", stream)
        note("a\n\nb \x1b[2J")
        report("c")
    assert stream.getvalue() == "k2ref: a b ␛[2J\nc\n"


def test_a_note_has_an_end(capsys):
    assert main(["--model", "/" + "a" * 5000, "x"]) == main(["--session", "b" * 5000, "x"]) == 2
    for text in capsys.readouterr().err.splitlines():
        assert len(text) < 1600 and " ... " in text and text.startswith("k2ref: ")


class Broken(io.StringIO):
    """A stream that nobody takes anything from."""

    def write(self, text):
        raise BrokenPipeError


def test_the_pictures_are_of_what_they_stand_for():
    for code, picture in screen.ON_ONE_LINE.items():
        if isinstance(picture, int) and code < 32:
            name = unicodedata.name(chr(picture))
            assert name.startswith("SYMBOL FOR ") and picture == 0x2400 + code
