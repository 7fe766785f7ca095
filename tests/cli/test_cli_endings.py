"""The command's endings and its terminal: interrupted, left by its reader, on a pseudo-terminal."""

import errno
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
from command_line import command, environment, line, run

import k2ref
from k2ref.cli.main import main
from k2ref.generation import default_stop_ids

SUM = "37+58="
posix = pytest.mark.skipif(os.name != "posix", reason="signals and terminals of POSIX")


@pytest.fixture(scope="module")
def model():
    return k2ref.load()


@pytest.fixture(scope="module")
def babble(model):
    """Options with which the model does not end for 1500 tokens, and the first 100 of them.

    At this temperature all tokens are equally likely, so the seed alone decides what comes, and a
    seed that draws no stop id can be known beforehand.
    """
    stop = list(default_stop_ids(model))

    def draws(seed):
        numbers = np.random.Generator(np.random.PCG64(seed)).random(1500)
        return (numbers * model.config.vocab_size).astype(int)

    seed = next(seed for seed in range(1_000_000) if not np.isin(draws(seed), stop).any())
    tokens = list(k2ref.generate(model, model.tokenizer.encode("1"), 100, 1e300, seed=seed))
    assert tokens == draws(seed)[:100].tolist()
    options = ["--temperature", "1e300", "--seed", str(seed), "--raw", "1"]
    return options, tokens


def test_half_a_character_at_the_end_is_not_swallowed(babble, model, capsys):
    options, tokens = babble
    decoder = k2ref.Decoder(model.tokenizer)
    pieces = [decoder.feed(token) for token in tokens]
    n = next(n for n in range(1, 100)
             if len("".join(pieces[:n])) < len(model.tokenizer.decode(tokens[:n])))
    assert main(["--max-tokens", str(n), *options]) == 0
    out = capsys.readouterr().out
    assert out == model.tokenizer.decode(tokens[:n]) + "\n" and out.endswith("\ufffd\n")


def start(*args, **options):
    """Run the command with a pipe so short that a reply of 1500 tokens blocks it, if not read."""
    # A shell may have started the tests with SIGINT ignored, which a child would inherit.
    process = subprocess.Popen(command(*args), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               env=environment(), **options,
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    if sys.platform == "linux":
        import fcntl

        fcntl.fcntl(process.stdout, 1031, 4096)  # F_SETPIPE_SZ, which Python 3.10 does not name
    return process


@posix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_cleanly_with_what_was_said_so_far(number, babble, model):
    options, tokens = babble
    text = model.tokenizer.decode(tokens)
    process = start(*options)
    begin = process.stdout.read(1)
    process.send_signal(number)
    rest, err = process.communicate(timeout=300)
    assert process.returncode == 128 + number and err == b""
    said = (begin + rest).decode()
    assert said.endswith("\n")
    # Half a character at the end is shown as the replacement character.
    said = said.removesuffix("\n").rstrip("\ufffd")
    n = min(len(said), len(text.rstrip("\ufffd")))
    assert said[:n] == text[:n]


@posix
def test_stats_come_also_after_an_interruption(babble):
    process = start("--stats", *babble[0])
    process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130
    assert b"ended by interruption" in err and err.count(b"\n") == 4


@posix
def test_an_interruption_while_waiting_for_the_prompt():
    process = start(stdin=subprocess.PIPE)
    process.stdin.write(b"x" * 1_000_000)  # more than a pipe holds: now it is reading
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=300)
    assert (process.returncode, out, err) == (130, b"", b"")


@posix
def test_a_reader_who_left_ends_it_quietly(babble):
    process = start(*babble[0])
    process.stdout.read(1)
    process.stdout.close()
    assert process.wait(timeout=300) == 141
    assert process.stderr.read() == b""


@posix
def test_text_comes_while_it_is_written(babble):
    # The first character is there while the reply, too long for the pipe, is still being written.
    process = start(*babble[0])
    assert process.stdout.read(1)
    assert process.poll() is None
    process.kill()
    process.communicate()


@posix
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_a_full_disk_is_one_sentence():
    with open("/dev/full", "wb") as full:
        done = subprocess.run(command("--greedy", SUM), stdout=full, stderr=subprocess.PIPE,
                              timeout=300, env=environment())
    assert done.returncode == 2
    assert done.stderr == b"k2ref: the standard output: No space left on device\n"


def test_a_stdout_that_cannot_say_a_character_says_a_question_mark(babble, model):
    options, tokens = babble
    text = model.tokenizer.decode(tokens)
    out, err = run("--max-tokens", "100", *options, PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert out == line(text).encode("ascii", "replace").decode() and err == ""
    assert not text.isascii()


# On a terminal.


def on_a_terminal(*args, stdin=None, **changes):
    """Run the command with its output on a pseudo-terminal; return what appears and the status."""
    import pty

    parent, child = pty.openpty()
    process = subprocess.Popen(command(*args), stdin=stdin or child, stdout=child, stderr=child,
                               env=environment(**changes), start_new_session=True)
    os.close(child)
    shown = b""
    while True:
        try:
            data = os.read(parent, 65536)
        except OSError as error:
            if error.errno != errno.EIO:  # Linux's way to say that the other end is closed
                raise
            break
        if not data:
            break
        shown += data
    os.close(parent)
    return shown.decode().replace("\r\n", "\n"), process.wait(timeout=300)


@posix
def test_a_terminal_dims_the_thinking_and_not_the_answer(model):
    ids = k2ref.render(model.tokenizer, [{"role": "user", "content": SUM}])
    answered = k2ref.parse(model.tokenizer, list(k2ref.generate(model, ids, temperature=0)))
    text, status = on_a_terminal("--greedy", SUM)
    assert status == 0
    text = re.sub(r"^.*\r", "", text)  # a bar, if the machine was slow, and gone again
    *dim, answer = text.split("\x1b[0m")
    assert all(piece.startswith("\x1b[2m") for piece in dim)
    assert "".join(piece.removeprefix("\x1b[2m") for piece in dim) == answered.thinking
    assert answer == f"\n\n{answered.content}\n"


@posix
def test_no_color_is_respected_on_a_terminal():
    text, status = on_a_terminal("--greedy", SUM, NO_COLOR="1")
    assert status == 0 and "\x1b[2m" not in text
    assert text.endswith(run("--greedy", SUM)[0])


@posix
def test_a_terminal_whose_output_goes_elsewhere_is_told_to_give_a_prompt():
    import pty

    parent, child = pty.openpty()
    done = subprocess.run(command(), stdin=child, capture_output=True, timeout=300,
                          env=environment())
    os.close(child)
    os.close(parent)
    assert done.returncode == 2 and done.stdout == b""
    assert done.stderr.startswith(b"k2ref: there is no prompt; give one: python -m k2ref ")
