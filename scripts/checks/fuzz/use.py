"""Hostile use for `run.py`: calls of tools, sessions that somebody sent, and commands.

Sessions and commands run on a small checkpoint, before what looks like a terminal.
"""

import contextlib
import copy
import functools
import io
import json
import os
import sys
import tempfile
import zlib
from pathlib import Path

import k2ref
from k2ref.cli import main as cli
from k2ref.cli.dialogue import Dialogue
from k2ref.conversation import session
from k2ref.tools import toolbox as tools
from scripts.checks.fuzz.damage import (
    Failure,
    Kind,
    damage,
    damage_bytes,
    damage_json,
    is_clean,
    sentence,
)
from scripts.checks.fuzz.files import SPECIAL, begin, write
from scripts.checks.fuzz.talk import ARGUMENTS, FUNCTIONS, IDS, OBJECTS, RESULTS, TEXTS

# Tools: whatever is asked of them and whatever they do, there is a text for the model.

def begin_tool(base):
    arguments = {"add": {"a": 1, "b": 2}, "remove": {"path": "x"}, "odd": {"which": 7},
                 "calculator": {"expression": "1+2"}}[base]
    return {"name": base, "arguments": json.dumps(arguments)}


def arguments(state, rng):
    """Change the arguments as JSON."""
    state["arguments"] = damage_json(state["arguments"].encode(errors="replace"), rng).decode(
        errors="replace")


def other_arguments(state, rng):
    state["arguments"] = rng.choice(ARGUMENTS + TEXTS)


def name(state, rng):
    state["name"] = rng.choice(("add", *IDS, *TEXTS))


def which(state, rng):
    state.update(name="odd", arguments=json.dumps({"which": rng.randrange(len(RESULTS))}))


def expression(state, rng):
    """Write something like an expression."""
    pieces = ("9" * 300, "**", "//", "%", "(", ")", "-", "+", "*", "/", "1e308", "0", "1_0", "0x9",
              "2", "if 1 else", " is ", "1 1", "'a'", ".real", "7(3)", "9**9", "10**308", ",000",
              "^", "÷")
    text = "".join(rng.choice(pieces) for _ in range(rng.randint(1, 8)))
    state.update(name="calculator", arguments=json.dumps({"expression": text}))


def call_tool(state, where):
    """Call a tool; there is a result in time, it is a text, and nothing is printed."""
    box = tools.Toolbox(FUNCTIONS, timeout_s=3)
    out = where.with_suffix(".out")
    result = box.call("functions.x:0", state["name"], state["arguments"])
    result.content.encode()
    if result.failure not in (None, *tools.FAILURES):
        raise Failure("wrong", "a failure without a name", result.failure)
    if result.failure == "time-out":
        raise Failure("wrong", "a tool that ends counts as a time-out", repr(state))
    if result.failure not in (None, "tool error") and len(result.content) > 5000:
        raise Failure("wrong", "an error of no end", result.content[:200])
    sys.stderr.flush()
    if out.exists() and out.stat().st_size:
        raise Failure("wrong", "a tool that prints", out.read_text(errors="replace")[:300])
    return "works" if result.failure is None else "refused"


# Sessions and commands.

class Screen(io.StringIO):
    """Seem to be a terminal."""

    def isatty(self):
        return True

    def check(self):
        """Hold what was printed to obeying nobody but k2ref."""
        for line in self.getvalue().replace("\t", " ").split("\n"):
            if not is_clean(line):
                raise Failure("wrong", "control characters on the terminal", f"{line!r:.300}")


@functools.cache
def small():
    """Make a directory with a small checkpoint that can talk, and a session of it."""
    home = tempfile.TemporaryDirectory(prefix="fuzz-small-")
    path = Path(home.name, "model")
    write(begin("new-thinking"), path)
    pid = os.fork()  # what computes must not be forked again
    if not pid:
        with contextlib.redirect_stdout(io.StringIO()):
            _dialogue(k2ref.load(path, threads=1), Path(home.name, "s")).ask("hello")
        os._exit(0)
    os.waitpid(pid, 0)
    return home, path, Path(home.name, "s").read_bytes(), k2ref.load(path, threads=1)


def _dialogue(model, path):
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"},
                {"role": "assistant", "content": "", "tool_calls": [
                    {"id": "functions.add:0", "type": "function",
                     "function": {"name": "add", "arguments": '{"a": 1}'}}]},
                {"role": "tool", "tool_call_id": "functions.add:0", "name": "add", "content": "2"},
                {"role": "assistant", "content": "2", "reasoning_content": "r"}]
    agent = k2ref.Agent(model, FUNCTIONS, messages, max_new_tokens=2, seed=0, n_hidden=1)
    return Dialogue(agent, session=path)


def begin_session(base):
    return {"s": small()[2]}


def _header(files):
    """Split a session into the object of its header and its rows; what is none has no rows."""
    content = files["s"] if isinstance(files["s"], bytes) else b""
    first, _, rest = content.partition(b"\n")
    try:
        n = int(first.split()[3])
    except (IndexError, ValueError):
        return content, b""
    return rest[:n], rest[n:]


def _sealed(files, text, rows):
    """Put a session together again, with a checksum that is right."""
    start = len(session.FIRST_LINE % (session.VERSION, 0, 0))
    text += b" " * (-(start + len(text)) % session.ALIGN)
    files["s"] = session.FIRST_LINE % (session.VERSION, len(text), zlib.crc32(text)) + text + rows


def header(files, rng):
    """Change something in the header, and seal it."""
    text, rows = _header(files)
    _sealed(files, damage_json(text, rng), rows)


def messages(files, rng):
    """Change something in the messages, and seal it."""
    text, rows = _header(files)
    with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
        state = json.loads(text)
        state["messages"] = damage(state["messages"], rng, lambda rng: copy.deepcopy(
            rng.choice((*OBJECTS, *(text[:999] for text in TEXTS)))))
        _sealed(files, json.dumps(state).encode(), rows)


def session_bytes(files, rng):
    """Change bytes, and say so or not."""
    text, rows = _header(files)
    if rng.random() < 0.5 and isinstance(files["s"], bytes):
        files["s"] = damage_bytes(files["s"], rng)
    else:
        text, rows = rng.choice(((damage_bytes(text, rng), rows), (text, damage_bytes(rows, rng))))
        _sealed(files, text, rows)


def no_session(files, rng):
    files["s"] = rng.choice((*SPECIAL, b"", b"k2ref session 2 1 1\n", b"hello\n"))


def go_on(files, where):
    """Go on with a session, and do with it what can be done on a terminal."""
    write(files, where)
    os.environ["NO_COLOR"] = "1"
    model, screen = small()[3], Screen()
    sys.stdout = sys.stderr = screen
    dialogue = _dialogue(model, where / "s")
    try:
        dialogue.load(where / "s")
    except OSError as error:  # of a file that cannot be read
        sentence(f"{error.filename}: {error.strerror}")
        return "refused"
    dialogue.ask("hello")
    sys.stdin = io.StringIO(
        f"/system\n/tools\n/stats\n/undo\nhello\n/retry\n/save {where}/t\n/undo\n/undo\n/undo\n"
        f"/load {where}/t\n/system x\n/undo\n")
    dialogue.talk()
    screen.check()
    return "works"


NUMBERS = ("0", "-1", "1", "2", "3.5", "1e5", "1e999", "nan", "-inf", "", "x", "9" * 20, "9" * 5000,
           "2147483648", "١٢", "²", "1_0", " 1", "0x10", "100000", "\x1b[31m", "\ud800")
FILES = ("new", "", ".", "/dev/full", "/dev/null", "/dev/zero", "none/x", "a" * 5000, "\x1b[31m",
         "s", "tools.py", "bad.py", "calculator", "\udcff", "model")
OPTIONS = {
    **dict.fromkeys(("--max-tokens", "--temperature", "--top-p", "--top-k", "--min-p", "--seed",
                     "--threads", "--memory", "--max-steps", "--keep-turns", "--tool-timeout"),
                    NUMBERS),
    **dict.fromkeys(("--transcript", "--trace", "--show"), FILES),
    **dict.fromkeys(("--model", "--session", "--tools", "--inspect"), (*FILES, "fifo")),
    **dict.fromkeys(("--system", "--trace-only", "--cache", "--no-such"),
                    (*(text[:999] for text in TEXTS), "bf16", "*")),
    **dict.fromkeys(("--raw", "--greedy", "--lock", "--stats", "--hide-thinking", "--version"), ()),
}


def begin_command(base):
    return {"argv": ["--max-tokens", "2", base]}


def option(state, rng):
    """Give an option, with a value if it takes one, or without."""
    name = rng.choice(sorted(OPTIONS))
    values = [rng.choice(OPTIONS[name])] if OPTIONS[name] and rng.random() < 0.95 else []
    state["argv"][:0] = [name, *values]  # what comes later counts, so an answer is always short


def question(state, rng):
    state["argv"][-1:] = [rng.choice(TEXTS)[:1000]]


def command(state, where):
    """Run a command: an answer, or one clean sentence and the status 2."""
    where.mkdir(exist_ok=True)
    os.chdir(where)
    os.mkfifo("fifo")
    os.symlink(small()[1], "model")
    Path("s").write_bytes(small()[2])
    Path("tools.py").write_text('def f(a: int):\n    """F."""\n')
    Path("bad.py").write_text("raise SystemExit(3)\n")
    os.environ.update(K2REF_MODEL="model", NO_COLOR="1")
    sys.stdin, sys.stdout, sys.stderr = open(os.devnull), Screen(), Screen()
    status = cli.main(state["argv"])
    said = sys.stderr.getvalue()
    if status not in (0, 2) or "Traceback" in said:
        raise Failure("wrong", "a status that says nothing", f"{status}, {said}")
    sys.stdout.check()
    sys.stderr.check()
    if status == 2:
        sentence(said.rstrip("\n").split("\n")[-1])
    return "works" if status == 0 else "refused"


KINDS = {
    "tool": Kind(tuple(f.__name__ for f in FUNCTIONS), {
        "arguments": arguments, "others": other_arguments, "name": name, "odd": which,
        "expression": expression}, begin_tool, call_tool),
    "session": Kind(("s",), {
        "header": header, "messages": messages, "bytes": session_bytes, "none": no_session},
        begin_session, go_on),
    "command": Kind(("hello", "--inspect=model", "--version", "--help"), {
        "option": option, "question": question}, begin_command, command),
}
