"""The ways to end: Ctrl-C, a request to terminate, a terminal that was closed.

The first signal unwinds what is being done, as an exception. Those that follow wait until what was
said is kept, and so do all that come while it is written; only a third Ctrl-C ends at once, and as
files are replaced whole (atomic.py), the old one stays. Signals that were ignored when the program
began, as after `nohup`, stay so, and a program that only imports k2ref keeps its own way.

Chapter 00.
"""

import atexit
import os
import signal
import sys
from contextlib import contextmanager

NUMBERS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP")
           if hasattr(signal, name)]  # Windows has no SIGHUP
PATIENCE = 2  # Ctrl-C that are taken as one
NOTE = b"k2ref: keeping what was said; Ctrl-C once more ends at once, without it\n"


class Terminated(BaseException):
    """The end after SIGTERM or SIGHUP, which unwinds as KeyboardInterrupt does after SIGINT."""

    def __init__(self, number):
        self.number = number


def is_command():
    """Say whether this process is `python -m k2ref` or the program k2ref, as opposed to a user."""
    if sys.argv[:1] == ["-m"]:  # the package is imported before the module is run
        return ("-m", "k2ref") in zip(sys.orig_argv, sys.orig_argv[1:], strict=False)
    return os.path.basename(sys.argv[0] if sys.argv else "") in ("k2ref", "k2ref.exe")


def end_quietly():
    """End at a signal without a word, while nothing is done yet that could be lost."""
    def end(number, frame):
        os._exit(128 + number)

    for number in _expected():
        signal.signal(number, end)
    # When Python has run its last callback, this one, the status is known; a signal changes it no
    # more. Threads that do not end have been waited for till then, and that could be interrupted.
    atexit.register(lambda: [signal.signal(number, signal.SIG_IGN) for number in _expected()])


def _expected():
    return [number for number in NUMBERS
            if signal.getsignal(number) not in (signal.SIG_IGN, None)]


class _Signals:
    """A handler of signals: the first raises, those that come meanwhile wait."""

    def __init__(self):
        self.waiting, self.n_held = [], 0
        self.unwinds = False  # since the first, until somebody says that the work goes on
        self.n_interrupts = 0

    def __call__(self, number, frame=None):
        if number == signal.SIGINT:
            self.n_interrupts += 1
            if self.n_interrupts > PATIENCE:
                os._exit(128 + number)
        if not self.unwinds and not self.n_held:
            self.unwinds = True
            raise KeyboardInterrupt if number == signal.SIGINT else Terminated(number)
        self.waiting.append(number)
        if self.n_interrupts == PATIENCE and number == signal.SIGINT:
            try:
                os.write(2, NOTE)  # `print` may be at work below this handler
            except OSError:
                pass

    def go_on(self):
        """Go on with the work after Ctrl-C; whoever wanted the end meanwhile gets it now.

        Raises: Terminated
        """
        ends = [number for number in self.waiting if number != signal.SIGINT]
        self.waiting, self.unwinds, self.n_interrupts = [], False, 0
        if ends:
            self(ends[0])

    @contextmanager
    def held(self):
        """Let signals wait while something is written; then raise what the first one would have.

        Raises: KeyboardInterrupt, Terminated
        """
        self.n_held += 1
        try:
            yield
        finally:
            self.n_held -= 1
        if self.waiting and not self.unwinds and not self.n_held:
            number, self.n_interrupts = self.waiting[0], 0
            self.waiting = self.waiting[1:]
            self(number)


signals = _Signals()


@contextmanager
def unwinding():
    """Let signals unwind what is done here; where others look after signals, leave them to it."""
    signals.__init__()
    before = {}
    try:
        for number in _expected():
            before[number] = signal.signal(number, signals)
    except ValueError:  # not the main thread
        pass
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


if is_command():
    end_quietly()
