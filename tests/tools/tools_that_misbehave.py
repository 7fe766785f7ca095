"""A file of tools for `test_tool_process.py`: each does something to its process."""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from math import sqrt  # noqa: F401  not defined here, so not a tool
from typing import Any

N = 0


def _hidden() -> str: ...


def count() -> int:
    """Count the calls."""
    global N
    N += 1
    return N


def where() -> int:
    return os.getpid()


def echo(value: Any) -> Any:
    """Give a value back."""
    return value


# Raises or returns something odd.

class Evil(Exception):
    def __str__(self):
        raise ValueError("no")

    __repr__ = __str__


def evil_exception() -> str:
    raise Evil


def evil_result() -> str:
    return Evil()


def exit_politely() -> str:
    sys.exit("bye")


def interrupt() -> str:
    raise KeyboardInterrupt


def close_generator() -> str:
    raise GeneratorExit


def recurse() -> str:
    return recurse()


def want_memory() -> str:
    return bytes(10**16)


def ask() -> str:
    return input()


def generate() -> str:
    return (i for i in range(3))


def coroutine() -> str:
    async def work(): ...

    made = work()
    try:
        return made
    finally:
        made.close()


def big(n: int) -> str:
    return "x" * n


def endless_json() -> list:
    value = ["x"]
    for _ in range(60):
        value = [value, value]
    return value


def long_error() -> str:
    raise ValueError("y" * 1_000_000)


# Does not end.

def spin() -> str:
    while True:
        pass


def hold_the_interpreter() -> str:
    return 7 ** 1_000_000_000  # in one instruction, which takes hours


def ignore_all_signals() -> str:
    change_handlers()
    while True:
        time.sleep(1)


def never_written() -> str:
    class Endless:
        def __str__(self):
            while True:
                pass

    return Endless()


def stop() -> str:
    os.kill(os.getpid(), signal.SIGSTOP)


# Ends the process, or spoils its pipe.

def leave(status: int = 3) -> str:
    os._exit(status)


def crash() -> str:
    signal.signal(signal.SIGSEGV, signal.SIG_DFL)
    ctypes.string_at(0)


def close_everything() -> str:
    os.closerange(0, 4096)
    return "closed"


def write_garbage() -> str:
    for fd in range(3, 100):
        try:
            os.write(fd, b"garbage " * 10)
        except OSError:
            pass
    return "written"


def open_in_the_place_of_the_pipe(path: str = os.devnull) -> str:
    os.closerange(3, 4096)
    for _ in range(100):
        os.open(path, os.O_RDWR | os.O_CREAT)
    return "opened"


def end_soon() -> str:
    threading.Timer(0.05, os._exit, [0]).start()
    return "soon"


# Starts others.

def _fork(path):
    if pid := os.fork():
        with open(path, "w") as file:
            file.write(str(pid))
    return pid


def fork() -> str:
    return "parent" if os.fork() else "child"


def fork_and_go_on(path: str) -> str:
    if not _fork(path):
        time.sleep(600)
    return "forked"


def fork_and_leave(path: str = os.devnull) -> str:
    if not _fork(path):
        time.sleep(600)
    os._exit(3)


def fork_and_spin(path: str) -> str:
    _fork(path)
    while True:
        pass


def start_a_process(path: str) -> str:
    pid = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]).pid
    with open(path, "w") as file:
        file.write(str(pid))
    return "started"


def start_threads() -> str:
    for _ in range(10):
        threading.Thread(target=time.sleep, args=[600]).start()
    return "started"


# Changes what belongs to the process.

def go_elsewhere(path: str) -> str:
    os.chdir(path)
    return os.getcwd()


def change_handlers() -> str:
    for number in signal.valid_signals():
        try:
            signal.signal(number, signal.SIG_IGN)
        except (OSError, ValueError):
            pass
    return "changed"


def say(text: str) -> str:
    print(text)
    print("to standard error", file=sys.stderr)
    return "said"
