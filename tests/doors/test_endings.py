"""The ways to end: signals at every moment, streams that are closed or full, and what is kept."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest
from command_line import command, environment

import k2ref
from k2ref.conversation import session
from k2ref.doors.endings import NUMBERS, Terminated, signals, unwinding

posix = pytest.mark.skipif(os.name != "posix", reason="signals and streams of POSIX")
SUM = "37+58="
TINY = os.path.join(os.path.dirname(k2ref.__file__), "tiny")


each_signal = pytest.mark.parametrize("number, times", [
    (signal.SIGINT, 2), (NUMBERS[-1], 1),
    *(pytest.param(number, times, marks=pytest.mark.thorough) for number in NUMBERS
      for times in (1, 2) if (number, times) not in ((signal.SIGINT, 2), (NUMBERS[-1], 1)))])


def begin(args, **options):
    """Start a process in which the signals are not ignored, whatever a shell did."""
    def as_usual():
        for number in NUMBERS:
            signal.signal(number, signal.SIG_DFL)

    process = subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               stdin=subprocess.DEVNULL, preexec_fn=as_usual,
                               env=environment(**options.pop("env", {})), **options)
    if sys.platform == "linux":
        import fcntl

        fcntl.fcntl(process.stdout, 1031, 4096)  # F_SETPIPE_SZ: a long reply waits for its reader
    return process


@pytest.fixture(scope="module")
def model():
    return k2ref.load()


TALKER = """
import sys, time
sys.path.insert(0, sys.argv.pop(1))
from scripted import GENERATE, Script
import k2ref
from k2ref.cli import main as cli
from k2ref.doors import endings
endings.end_quietly()  # as the command does, which this program is not
script = Script(k2ref.load().tokenizer)
script.say("<think>hm</think>" + "word " * 300)
inner = script.sample
def sample(*args, **settings):
    time.sleep(0.002)
    return inner(*args, **settings)
GENERATE.sample = sample
sys.exit(cli.main(sys.argv[1:]))
"""


def talker(*args):
    """The command, with a model that says 300 words, one after the other."""
    return [sys.executable, "-c", TALKER, os.path.dirname(os.path.dirname(__file__)), *args, SUM]


def talk(*args):
    """Begin an answer; return the process when the first word of it has come."""
    process = begin(talker(*args))
    said = b""
    while b"word" not in said:
        said += process.stdout.read(1)
    return process


def said_in(path, model):
    question, answer = session.load(path, model)[1]["messages"]
    assert question["content"] == SUM and answer["content"].startswith("word")
    return True


# While Python imports, and when it ends.

@posix
@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("way", ["module", "program"])
def test_a_signal_during_the_imports_ends_without_a_word(tmp_path, number, way):
    """NumPy is the first large one; this one in its place takes long enough to be hit."""
    (tmp_path / "numpy.py").write_text("import time\nprint('here', flush=True)\n"
                                       "for _ in range(6000): time.sleep(0.01)\n")
    (tmp_path / "k2ref").write_text("import sys\nfrom k2ref.cli.main import main\n"
                                     "sys.exit(main())\n")
    args = command(SUM) if way == "module" else [sys.executable, str(tmp_path / "k2ref"), SUM]
    root = os.path.dirname(os.path.dirname(k2ref.__file__))
    process = begin(args, env={"PYTHONPATH": f"{tmp_path}{os.pathsep}{root}"})
    assert process.stdout.readline() == b"here\n"
    process.send_signal(number)
    assert process.communicate(timeout=60) == (b"", b"") and process.returncode == 128 + number


@posix
def test_a_signal_when_all_is_done_is_no_traceback(tmp_path):
    # In the place of a module that the command needs little of: what it registers runs at the end.
    (tmp_path / "statistics.py").write_text("""
import atexit, sys, time
atexit.register(lambda: (print("ending", file=sys.stderr, flush=True), time.sleep(60)))
""")
    process = begin(command("--greedy", SUM), env={"PYTHONPATH": str(tmp_path)})
    assert process.stderr.readline() == b"ending\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[1] == b"" and process.returncode == 130


USER = """
import signal, sys
before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
import k2ref
list(k2ref.generate(k2ref.load(), [1, 2], 3))
assert before == [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
print("as before")
"""


@posix
@pytest.mark.parametrize("way", ["-c", "file", "-m"])
def test_a_program_that_uses_k2ref_keeps_its_own_way_to_end(tmp_path, way):
    (tmp_path / "user").mkdir()
    (tmp_path / "user" / "__init__.py").write_text(USER)
    (tmp_path / "user" / "__main__.py").write_text("")
    args = {"-c": ["-c", USER], "file": [str(tmp_path / "user" / "__init__.py")],
            "-m": ["-m", "user", "k2ref"]}[way]
    root = os.path.dirname(os.path.dirname(k2ref.__file__))
    done = subprocess.run([sys.executable, *args], capture_output=True, timeout=120,
                          env=environment(PYTHONPATH=f"{tmp_path}{os.pathsep}{root}"))
    assert done.stdout == b"as before\n", done.stderr.decode()


@posix
def test_an_ignored_signal_stays_ignored(tmp_path):
    """As after `nohup`, or for a job in the background of a script."""
    code = ("import signal, time; from k2ref.doors import endings\n"
            "for n in endings.NUMBERS: signal.signal(n, signal.SIG_IGN)\n"
            "endings.end_quietly()\n"
            "with endings.unwinding():\n"
            "    for n in endings.NUMBERS: signal.raise_signal(n)\n"
            "print('still here')")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=120)
    assert done.stdout == b"still here\n"


# While something is said or kept.

SLOW_SAVE = """
import sys, time
from k2ref.cli import main as cli
from k2ref.doors import endings
from k2ref.conversation import session
endings.end_quietly()
inner, seconds = session.save, float(sys.argv[1])
def save(*args, **state):
    print("saving", file=sys.stderr, flush=True)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.01)
    inner(*args, **state)
session.save = save
sys.exit(cli.main(sys.argv[2:]))
"""


def save_slowly(path, seconds):
    """Begin an answer that is kept slowly; return the process when it is about to be kept."""
    process = begin([sys.executable, "-c", SLOW_SAVE, str(seconds), "--greedy", "--session",
                     str(path), SUM])
    assert process.stderr.readline() == b"saving\n"
    return process


@posix
@each_signal
def test_a_signal_while_an_answer_is_kept_waits_for_it(model, tmp_path, number, times):
    process = save_slowly(tmp_path / "s", 0.5)
    for _ in range(times):
        process.send_signal(number)
        time.sleep(0.1)  # two at once are one
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert (b"keeping what was said" in err) == (number == signal.SIGINT and times == 2)
    assert b"Traceback" not in err and err.count(b"\n") <= 1
    _, state, _ = session.load(tmp_path / "s", model)
    assert len(state["messages"]) == 2 and os.listdir(tmp_path) == ["s"]


@posix
def test_a_third_ctrl_c_ends_at_once_and_the_old_session_stays(model, tmp_path):
    context = k2ref.Context(model)
    session.save(tmp_path / "s", context, messages=[], n_hidden=0)
    before = (tmp_path / "s").read_bytes()
    process = save_slowly(tmp_path / "s", 60)
    for _ in range(3):
        process.send_signal(signal.SIGINT)
        time.sleep(0.1)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130 and err.count(b"\n") == 1
    assert (tmp_path / "s").read_bytes() == before


@posix
@each_signal
def test_what_was_said_is_kept_whatever_comes(model, tmp_path, number, times):
    path = tmp_path / "s"
    process = talk("--session", str(path), "--transcript", f"{path}.jsonl")
    for _ in range(times):
        process.send_signal(number)
        time.sleep(0.01)
    _, err = process.communicate(timeout=60)
    assert process.returncode in (128 + number, 0) and b"Traceback" not in err
    assert said_in(path, model)
    assert (tmp_path / "s.jsonl").read_text(encoding="utf-8").count("\n") == 2


@posix
def test_what_was_said_is_kept_when_nobody_reads_it(model, tmp_path):
    process = talk("--session", str(tmp_path / "s"))
    process.stdout.close()
    assert process.wait(timeout=60) == 141 and process.stderr.read() == b""
    assert said_in(tmp_path / "s", model)


@posix
def test_a_terminal_that_is_closed_keeps_what_was_said(model, tmp_path):
    import pty

    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(sys.executable, talker("--session", str(tmp_path / "s")), environment())
    said = b""
    while b"word" not in said:
        said += os.read(terminal, 100)
    os.close(terminal)  # and SIGHUP comes
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 129
    assert said_in(tmp_path / "s", model)


@posix
@pytest.mark.slow
@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("times", [1, 2])
def test_signals_at_random_moments(model, tmp_path, number, times):
    """From the first token on: saying, keeping and ending. Before, there is nothing to keep."""
    chance = random.Random(number * times)
    for i in range(12):
        path = tmp_path / f"s{i}"
        process = talk("--session", str(path))
        time.sleep(chance.random() * 1.0)
        for _ in range(times):
            process.send_signal(number)
            time.sleep(chance.random() * 0.02)
        _, err = process.communicate(timeout=60)
        assert process.returncode in (128 + number, 0) and b"Traceback" not in err, err
        assert said_in(path, model)


def test_the_order_of_signals():
    """The first raises, others wait; who goes on learns what he missed."""
    signals.__init__()
    with pytest.raises(KeyboardInterrupt):
        signals(signal.SIGINT)
    signals(signal.SIGTERM)
    with pytest.raises(Terminated) as end:
        signals.go_on()
    assert end.value.number == signal.SIGTERM
    signals.__init__()
    with pytest.raises(Terminated), signals.held(), signals.held():
        signals(signal.SIGTERM)
        signals(signal.SIGTERM)
    signals.__init__()
    with signals.held():
        pass
    signals.go_on()


def test_handlers_are_put_back():
    before = [signal.getsignal(number) for number in NUMBERS]
    with unwinding():
        assert signal.getsignal(signal.SIGTERM) is signals
    assert [signal.getsignal(number) for number in NUMBERS] == before


# Streams that are closed, full or not for writing.

QUICK = [["--help"], ["--greedy", SUM]]
OTHERS = [["--version"], ["--nonsense"], ["--inspect", TINY], ["--plan", "--memory", "4"],
          ["--greedy", "--max-tokens", "8", "--raw", "The fox"], ["--stats", "--greedy", SUM],
          ["--inspect", "/nowhere"]]
ALL = [*QUICK, *(pytest.param(args, marks=pytest.mark.thorough) for args in OTHERS)]


def with_streams(args, redirection):
    done = subprocess.run(["sh", "-c", f'exec "$@" {redirection}', "sh", *command(*args)],
                          capture_output=True, timeout=120, env=environment())
    assert b"Traceback" not in done.stderr and b"Exception ignored" not in done.stderr
    return done


def works(args):
    return args not in (["--nonsense"], ["--inspect", "/nowhere"])


@posix
@pytest.mark.parametrize("args", ALL, ids=" ".join)
@pytest.mark.parametrize("redirection", [
    ">&-", "> /dev/full",
    *(pytest.param(r, marks=pytest.mark.thorough) for r in (
        "1< /dev/null", ">&- <&-", ">&- 2> /dev/null", "> /dev/full <&-"))])
def test_an_output_that_takes_nothing_is_one_sentence(args, redirection):
    done = with_streams(args, redirection)
    assert done.returncode == 2 and done.stdout == b""
    said = done.stderr.splitlines()
    said = [line for line in said if line.startswith(b"k2ref: ")]
    assert len(said) == ("2>" not in redirection)


@posix
@pytest.mark.parametrize("args", ALL, ids=" ".join)
@pytest.mark.parametrize("redirection", [
    "2>&-", "2> /dev/full",
    *(pytest.param(r, marks=pytest.mark.thorough) for r in ("2>&- <&-", "2< /dev/null"))])
def test_notes_that_nobody_takes_do_not_stop_the_work(args, redirection):
    done = with_streams(args, redirection)
    assert done.returncode == (0 if works(args) else 2) and done.stderr == b""
    assert bool(done.stdout) == works(args)
    if args == ["--greedy", SUM]:
        assert done.stdout == with_streams(args, "").stdout


@posix
@pytest.mark.parametrize("args", ALL, ids=" ".join)
@pytest.mark.parametrize("redirection", [
    "<&- >&- 2>&-",
    *(pytest.param(r, marks=pytest.mark.thorough) for r in (
        ">&- 2>&-", "> /dev/full 2> /dev/full"))])
def test_without_any_output_the_status_tells(args, redirection):
    assert with_streams(args, redirection).returncode == 2


@posix
def test_a_file_does_not_take_the_place_of_a_closed_stream(tmp_path):
    """Python writes its own messages to 2, whatever was opened there."""
    done = with_streams(["--greedy", "--session", str(tmp_path / "s"), SUM], "2>&- <&-")
    assert done.returncode == 0 and (tmp_path / "s").read_bytes().startswith(session.MAGIC)
    session.load(tmp_path / "s", k2ref.load())
