"""The other process: it runs the functions of a file of tools, one call after another.

It reads requests from a pipe that came as its standard input and writes answers to one that came as
its standard output, then leaves both names to the tools: what they print goes to standard error,
and there is nothing to read. A frame is the word that both sides know, a length, and JSON, which
can hold no code. Whatever a tool does to this process, the other side sees an answer, or its end.
`process.py` is the other side. Of k2ref only what is imported here is loaded, so that it starts
quickly.

Chapter 02.
"""

import importlib.util
import inspect
import json
import os
import queue
import signal
import sys
import threading
import traceback

from k2ref.tools.results import as_text, described
from k2ref.tools.schema import ToolError, declaration

MAX_FRAME = 32_000_000  # bytes; a character takes up to 12 of them
NO_ANSWER = 70  # the exit status of one whose pipe is gone


def write_frame(fd, word, message):
    """Write a message, a dict, to a pipe.

    Raises: OSError
    """
    data = json.dumps(message).encode()
    data = memoryview(word + len(data).to_bytes(4, "big") + data)
    while data:
        data = data[os.write(fd, data):]


def read_frame(fd, word):
    """Read a message from a pipe; None at its end, or where something else is in it.

    Raises: OSError
    """
    head = _read(fd, len(word) + 4)
    n_bytes = int.from_bytes(head[len(word):], "big")
    if len(head) < len(word) + 4 or head[: len(word)] != word or n_bytes > MAX_FRAME:
        return None
    try:
        return json.loads(_read(fd, n_bytes))
    except (ValueError, RecursionError):
        return None


def _read(fd, n_bytes):
    data = bytearray()
    while len(data) < n_bytes and (piece := os.read(fd, min(n_bytes - len(data), 1 << 20))):
        data += piece
    return bytes(data)


def functions_of(path, source):
    """Run a file of tools and return its functions, those aside whose names begin with _.

    Raises: ToolError for a file that fails in any way, or has no function
    """
    name = f"tools_of_{os.path.splitext(os.path.basename(path))[0]}"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses, for one, look there
    try:
        exec(compile(source, path, "exec", dont_inherit=True), vars(module))
    except BaseException as error:  # the user's own code can fail in every way, sys.exit among them
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__)
                 if frame.filename == path]
        where = f", at line {lines[-1]}" if lines else ""
        raise ToolError(f"running it failed ({described(error)}{where})") from None
    found = {id(value): value for name, value in vars(module).items() if inspect.isfunction(value)
             and value.__module__ == module.__name__ and not name.startswith("_")}
    if not found:
        raise ToolError("expected functions with type hints and docstrings, found none")
    return list(found.values())


def main():
    """Serve until the pipe ends. Arguments: the word, a descriptor that ends with k2ref, or -1."""
    word, life = bytes.fromhex(sys.argv[1]), int(sys.argv[2])
    requests, answers = _private_pipes()
    process, pipe = os.getpid(), _identity(answers)
    incoming = queue.SimpleQueue()

    def listen():  # in a thread, so that the end is noticed while a tool runs
        while (request := read_frame(requests, word)) is not None:
            incoming.put(request)
        _end_all()

    def answer(message):
        if os.getpid() != process:  # a tool has forked, and came back twice
            os._exit(0)
        try:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
        except Exception:  # a tool may have closed or replaced them
            pass
        try:
            if _identity(answers) == pipe:  # and not a file that a tool has opened since
                write_frame(answers, word, message)
                return
        except OSError:
            pass
        os._exit(NO_ANSWER)

    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=lambda: [_close(fd) for fd in (requests, answers)])
    _end_with(life)
    threading.Thread(target=listen, daemon=True).start()
    # The real k2ref is there for a file of tools that imports it.
    for name in [name for name in sys.modules if name.partition(".")[0] == "k2ref"]:
        del sys.modules[name]
    functions = _load(incoming.get(), answer)
    while True:
        request = incoming.get()
        answer(_call(functions[request["name"]], request["values"]))


def _load(request, answer):
    path = request["path"]
    sys.argv = [path]
    if os.path.dirname(path) not in sys.path:
        sys.path.append(os.path.dirname(path))  # after all that was there: it shadows nothing
    try:
        functions = functions_of(path, request["source"].encode("latin-1"))
        declared = [declaration(function) for function in functions]
    except ToolError as error:
        answer({"error": str(error)})
        os._exit(0)
    answer({"declarations": declared})
    return {function["function"]["name"]: value
            for function, value in zip(declared, functions, strict=True)}


def _call(function, values):
    """Run a function; whatever it raises is an answer."""
    try:
        return {"failure": None, "text": as_text(function(**values))}
    except BaseException as error:
        return {"failure": "tool error", "text": described(error)}


def _private_pipes():
    """Take the pipes from where the tools would find them."""
    null = os.open(os.devnull, os.O_RDWR)  # if there was no standard error, this may be it
    requests, answers = os.dup(0), os.dup(1)
    try:
        os.fstat(2)
    except OSError:
        os.dup2(null, 2)
    os.dup2(null, 0)
    os.dup2(2, 1)
    if null > 2:
        os.close(null)
    sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")
    return requests, answers


def _end_with(life):
    """Ask Linux to end this group of processes with k2ref, also where C code holds the interpreter.

    A signal for a pipe whose other end is gone: fcntl(2), F_SETOWN, F_SETSIG and O_ASYNC.
    """
    try:
        import fcntl

        fcntl.fcntl(life, fcntl.F_SETOWN, -os.getpgrp())
        fcntl.fcntl(life, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(life, fcntl.F_SETFL, fcntl.fcntl(life, fcntl.F_GETFL) | os.O_ASYNC)
    except (ImportError, AttributeError, OSError, ValueError):
        pass  # elsewhere `listen` notices it, as soon as the interpreter lets it


def _end_all():
    if hasattr(os, "killpg") and os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(0)


def _identity(fd):
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def _close(fd):
    try:
        os.close(fd)
    except OSError:
        pass
