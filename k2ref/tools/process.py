"""A process of its own for a file of tools, so that a call can be ended whatever it does.

A Python function cannot be stopped from outside: one in C code that holds the interpreter lock even
keeps everybody else from running. A process can be killed. What the tools keep in memory is kept
from call to call; when a call takes too long, the user interrupts it, or the process ends by
itself, it is started anew for the next call, and the result tells the model. `child.py` is what
runs there.

Chapter 02.
"""

import os
import queue
import signal
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path

from k2ref.doors.intake import read_bytes
from k2ref.tools.child import NO_ANSWER, read_frame, write_frame
from k2ref.tools.results import MAX_ERROR, cut
from k2ref.tools.schema import ToolError

LOAD_S = 60.0  # for running the file; a call has the time-out of the toolbox
MAX_FILE = 10_000_000  # bytes
LOOK_S = 0.2  # between looks at whether the process is alive; its end is mostly heard of at once
# What runs first there, with the directory of k2ref and all of sys.path as arguments: an empty
# package stands for k2ref, as the real one imports NumPy and takes a second.
BEGIN = """\
import sys
package = sys.modules["k2ref"] = type(sys)("k2ref")
package.__path__, sys.path[:] = [sys.argv[3]], sys.argv[4:]
from k2ref.tools.child import main
main()
"""
GONE = "What the tools kept in memory is lost; the next call starts them anew."
BEGUN_ANEW = ("[The process of the tools had ended since their last call and was started anew; "
              "what they kept in memory is lost.]")


class FileTool:
    """A function of a file of tools, as the toolbox sees it, with its `declaration`."""

    def __init__(self, process, declaration):
        self.process, self.declaration = process, declaration
        self.__name__ = declaration["function"]["name"]

    def run(self, values, timeout_s):
        """Call the function with checked values; return what failed, or None, and a text."""
        return self.process.call(self.__name__, values, timeout_s)


class ToolProcess:
    """The process in which the functions of a file run; `tools` stand for them here.

    Raises: ToolError for a file that is none, that fails, takes too long, or has no functions
    """

    def __init__(self, path, load_s=LOAD_S):
        self.path, self.load_s = Path(path), load_s
        # Read once: what is started anew is what was started before.
        source = read_bytes(path, MAX_FILE, ToolError, "a Python file with tools")
        self._source = source.decode("latin-1")
        self._lock = threading.Lock()
        self._process = self._end = None
        self.tools = [FileTool(self, one) for one in self._start()]

    def call(self, name, values, timeout_s):
        """Run a function; return what failed, or None, and the result or what is to be said."""
        with self._lock:
            note = ""
            if not self._is_alive():
                note = f"\n{BEGUN_ANEW}" if self._process else ""
                try:
                    self._start()
                except ToolError as error:
                    return "tool error", f"the tools cannot be started anew: {error}"
            answer = self._ask({"name": name, "values": values}, timeout_s)
            if isinstance(answer, dict):
                return answer["failure"], answer["text"] + note
            self._process = None  # what is said now need not be said again
            if answer is None:
                return "time-out", (f"no result after {timeout_s:g} s, so the process of the tools "
                                    f"was ended. {GONE}")
            return "tool error", f"{answer}. {GONE}"

    def _start(self):
        """Start the process and run the file there; return the declarations of its functions.

        Raises: ToolError
        """
        self.end()
        self._word, self._owner = os.urandom(16), os.getpid()
        # Nothing is written to it. That its end here is gone, tells the process that k2ref is.
        life, held = os.pipe() if os.name == "posix" else (-1, -1)
        separate = ({"start_new_session": True, "pass_fds": [life]} if os.name == "posix" else
                    {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP})
        arguments = [self._word.hex(), str(life), str(Path(__file__).parents[1]),
                     *(one for one in sys.path if isinstance(one, str))]
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", BEGIN, *arguments], bufsize=0, stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, **separate)
        except BaseException as error:
            _close(held)
            if not isinstance(error, (OSError, ValueError)):
                raise
            raise ToolError(f"{self.path}: no process can be started for it ({error})") from None
        finally:
            _close(life)
        # Also when nobody needs these tools any more, and when Python ends.
        self._end = weakref.finalize(self, _end, self._process, held, self._owner)
        answer = self._ask({"path": str(self.path.absolute()), "source": self._source}, self.load_s)
        if not isinstance(answer, dict):
            why = f"running it took more than {self.load_s:g} s" if answer is None else answer
            raise ToolError(f"{self.path}: {why}")
        if "error" in answer:
            self.end()
            raise ToolError(f"{self.path}: {cut(answer['error'], MAX_ERROR)}")
        return answer["declarations"]

    def _ask(self, request, timeout_s):
        """Return the answer, a dict; None after the time, or else a sentence; then it is ended."""
        process, word, answers = self._process, self._word, queue.SimpleQueue()

        def exchange():  # in a thread, since a process that is stuck need not read either
            # Ends of its own, as these may be left to it: who escaped may hold the other ones open.
            answer, ends = None, []
            try:
                ends += [os.dup(process.stdin.fileno()), os.dup(process.stdout.fileno())]
                write_frame(ends[0], word, request)
                answer = read_frame(ends[1], word)
            except (OSError, ValueError):  # the process has ended, or was ended meanwhile
                pass
            answers.put(answer)
            for end in ends:
                os.close(end)

        try:
            threading.Thread(target=exchange, name="tools", daemon=True).start()
            answer = self._wait(answers, time.monotonic() + timeout_s)
        except BaseException:  # the user's interruption, most likely
            self.end()
            raise
        if answer is False:
            self.end()
            return None
        return answer if answer else self._obituary()

    def _wait(self, answers, deadline):
        """Return what is put into the queue; False after the deadline, None for a dead process."""
        while True:
            left = deadline - time.monotonic()
            is_alive = self._process.poll() is None
            try:
                return answers.get(timeout=max(0, min(LOOK_S, left)))
            except queue.Empty:
                if not is_alive:  # and something that it has left behind keeps the pipe open
                    return None
                if left <= 0:
                    return False

    def _obituary(self):
        """Say how the process ended, and that it has; one that still lives has spoilt the pipe."""
        try:
            status = self._process.wait(LOOK_S)
        except subprocess.TimeoutExpired:
            status = NO_ANSWER
        self.end()
        if status == NO_ANSWER:
            return "a tool has written into the pipe to k2ref, or closed it"
        if status < 0:
            return f"the process of the tools was ended by {_signal(-status)}"
        return f"the process of the tools ended, with exit status {status}"

    def _is_alive(self):
        # Where this program was forked, the process belongs to the one that was there before.
        ours = self._process and self._end.alive and self._owner == os.getpid()
        return ours and self._process.poll() is None

    def end(self):
        """End the process, and those that it has started; the next call starts it anew."""
        if self._end:
            self._end()


def _end(process, held, owner):
    """End a process with all of its group, unless this is a fork of the program that started it."""
    if os.getpid() != owner:
        return
    try:
        os.killpg(process.pid, signal.SIGKILL) if os.name == "posix" else process.kill()
    except OSError:  # there is none left
        pass
    _close(held)
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:  # it hangs in the system, and goes when that lets it
        return
    for pipe in (process.stdin, process.stdout):
        pipe.close()


def _signal(number):
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _close(fd):
    if fd >= 0:
        os.close(fd)
