"""The command with a file of tools: what the model calls runs elsewhere, and ends with it."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command_line import command, environment, run

from k2ref.tools.agent import BEGUN

QUESTION = "What is 4821 * 377?"
LONG_S = 60  # a bound against a hang
linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
DECLARED = '''
import os, sys
def calculator(expression: str) -> str:
    """Evaluate an arithmetic expression.

    expression: numbers, + - * / // % ** and parentheses
    """
'''


def tools(tmp_path, *lines):
    """Write a file with a calculator that does this; it is declared as the model has learnt it."""
    file = tmp_path / "mine.py"
    file.write_text(DECLARED + "".join(f"    {line}\n" for line in lines))
    return str(file)


def results(transcript):
    """The tool results of a transcript, in which every call has one."""
    messages = [json.loads(line) for line in transcript.read_text(encoding="utf-8").splitlines()]
    calls = [call["id"] for message in messages for call in message.get("tool_calls", [])]
    found = [message for message in messages if message["role"] == "tool"]
    assert calls == [message["tool_call_id"] for message in found]
    return [message["content"] for message in found]


def left_behind(tmp_path):
    """List the processes that have MARK in their environment."""
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            if f"MARK={tmp_path}".encode() in (directory / "environ").read_bytes().split(b"\0"):
                yield directory
        except OSError:  # it has ended, or is somebody else's
            pass


def until(condition):
    deadline = time.monotonic() + LONG_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_file_of_tools_answers_and_what_it_prints_is_no_part_of_the_answer(tmp_path):
    file = tools(tmp_path, "print('working', os.getcwd())", "return str(eval(expression))")
    out, err = run("--greedy", "--tools", file, QUESTION)
    assert "tool result: 1817517\n" in out and "working" not in out
    assert err == f"working {os.getcwd()}\n"


def test_a_time_out_is_kept_in_c_code_that_holds_the_interpreter(tmp_path):
    file = tools(tmp_path, "return str(7 ** 1_000_000_000)")
    out, err = run("--greedy", "--tools", file, "--tool-timeout", "0.5", QUESTION)
    assert "tool result (time-out): Error: no result after 0.5 s, so the process of the" in out
    assert err == ""


def start(tmp_path, file, *args):
    return subprocess.Popen(
        command("--greedy", "--tools", file, "--transcript", str(tmp_path / "t.jsonl"), *args,
                QUESTION), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=environment(MARK=str(tmp_path)), stdin=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))


@linux
@pytest.mark.parametrize("number", [
    signal.SIGINT, *(pytest.param(number, marks=pytest.mark.slow)
                     for number in (signal.SIGTERM, signal.SIGKILL))])
def test_a_signal_while_a_tool_runs_ends_it_too(tmp_path, number):
    file = tools(tmp_path, "os.fork()", f"open({str(tmp_path / 'began')!r}, 'w')",
                 "while True: pass")
    with start(tmp_path, file) as process:
        until((tmp_path / "began").exists)
        process.send_signal(number)
        out, err = process.communicate(timeout=LONG_S)
    assert out.decode().rstrip("\n").endswith('tool call: calculator {"expression": "4821 * 377"}')
    until(lambda: not any(left_behind(tmp_path)))
    if number != signal.SIGKILL:
        assert (process.returncode, err) == (128 + number, b"")
        assert results(tmp_path / "t.jsonl") == [BEGUN]


@pytest.mark.slow
@linux
def test_signals_at_random_moments_leave_a_whole_history_and_no_process(tmp_path):
    rng = random.Random(1)
    file = tools(tmp_path, "import time", "for i in range(10**6): time.sleep(1e-4)")
    n_begun = 0
    for _ in range(30):
        numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGKILL]
        with start(tmp_path, file, "--tool-timeout", "0.3") as process:
            time.sleep(0.5 + 2.5 * rng.random())
            process.send_signal(number := rng.choice(numbers))
            process.communicate(timeout=LONG_S)
        until(lambda: not any(left_behind(tmp_path)))
        if number != signal.SIGKILL and (tmp_path / "t.jsonl").exists():
            n_begun += bool(results(tmp_path / "t.jsonl"))
        (tmp_path / "t.jsonl").unlink(missing_ok=True)
    assert n_begun > 2
