"""The terminal: how a reply looks while it comes, the bars of long work, the report of `--stats`.

On a terminal the thinking is dim, then a blank line, then the answer. Where nothing can be dim (a
pipe, a file, NO_COLOR, a dumb terminal) the thinking stands between the lines `<think>` and
`</think>`, so that a person and a program can tell it from the answer.

Chapter 00.
"""

import os
import statistics
import sys
import threading
import time
from contextlib import contextmanager, suppress

from k2ref.conversation.events import (
    CallArguments,
    CallBegin,
    CallEnd,
    Content,
    Held,
    Thinking,
    ToolResult,
)
from k2ref.doors import screen
from k2ref.streaming import memory

DIM, PLAIN = "\x1b[2m", "\x1b[0m"
WAIT_S = 1.0  # what takes no longer than this shows no bar
REDRAW_S = 1.0
MAX_SHOWN = 2000  # characters of a tool's result; the model gets all of it


def may_dim(stream):
    """Tell whether text on this stream may be dimmed: it is a terminal and nobody objects.

    Source: https://no-color.org
    """
    dumb = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return stream.isatty() and not dumb


class Printer:
    """A writer of replies, piece by piece, each visible at once."""

    def __init__(self, stream, hide_thinking=False):
        self.stream = stream
        self.dim = may_dim(stream)
        self.hide_thinking = hide_thinking
        self.is_screen, self.before = stream.isatty(), ""
        self.section = None  # "thinking", "content" or "call" once its first character is out
        # A call and its result are of one section: one belongs under the other.
        self.newlines = 2  # line ends that stand at the end; the start counts as a blank line

    def show(self, events):
        """Write what a reply's events say."""
        for event in events:
            if isinstance(event, Held):
                if not self.hide_thinking:
                    self._continue("held", event.text)
            elif isinstance(event, Thinking | Content) and self.section == "held":
                # What it is, of the same text: it is out already. A pipe gets </think> after it.
                self.section = "thinking" if isinstance(event, Thinking) else "content"
            elif isinstance(event, Thinking):
                if not self.hide_thinking:
                    self._continue("thinking", event.text)
            elif isinstance(event, Content):
                self._continue("content", event.text)
            elif isinstance(event, CallBegin):
                self._begin("call")
                self.write(f"tool call: {event.name or event.id} ")
            elif isinstance(event, CallArguments):
                self.write(event.text)
            elif isinstance(event, CallEnd):
                self._gap(1)
            elif isinstance(event, ToolResult):
                self._begin("call")
                more = len(event.content) - MAX_SHOWN
                rest = f" ... and {more} characters more" if more > 0 else ""
                what = f"tool result ({event.failure})" if event.failure else "tool result"
                self.write(f"{what}: {event.content[:MAX_SHOWN]}{rest}\n")

    def write(self, text, before="", after=""):
        """Write text as it is; on a terminal, as it may be shown."""
        if self.is_screen:
            self.before, text = (self.before + text)[-screen.FLAG:], screen.shown(text, self.before)
        if text:
            # Noted first, so that an interruption while writing leaves a line that `close` ends.
            ends = len(text) - len(text.rstrip("\n"))
            self.newlines = ends if ends < len(text) else self.newlines + ends
            self.stream.write(before + text + after)
            self.stream.flush()

    def close(self):
        """End the last line. That nobody takes it is told by whoever flushes the stream."""
        with suppress(OSError):
            self._gap(1)

    def _continue(self, section, text):
        if self.section != section:
            text = text.lstrip("\n")  # models put blank lines between sections; we do that here
            if not text:
                return
            self._begin(section)
        # Each piece resets the colour, so that no way of ending leaves the terminal dim.
        if section == "thinking" and self.dim:
            self.write(text, DIM, PLAIN)
        else:
            self.write(text)

    def _begin(self, section):
        if self.section == "thinking" and not self.dim:
            self._gap(1)
            self.write("</think>\n")
        self._gap(1 if section == self.section else 2)
        if section == "thinking" and not self.dim:
            self.write("<think>\n")
        self.section = section

    def _gap(self, newlines):
        self.write("\n" * (newlines - self.newlines))


@contextmanager
def progress(stream, label, total=None, unit="token", note=lambda: ""):
    """Show a bar on a terminal once the work has taken a second; yield `update(done, total)`.

    The bar goes away when the work is done. As long as no total is known it is a label with the
    elapsed time; what `note` returns stands at its end, asked anew every second.
    """
    if stream is None or not stream.isatty():
        yield lambda done, total=None: None
        return
    from tqdm import tqdm  # not needed, so not imported, where nobody watches

    bar = tqdm(desc=label, total=total, file=stream, delay=WAIT_S, mininterval=0, leave=False,
               bar_format=None if total else "{desc} [{elapsed}]", unit=unit,
               unit_scale=unit == "B")
    over = threading.Event()

    def redraw():  # tqdm draws on updates only, and the first may be minutes away
        wait_s = WAIT_S
        while not over.wait(wait_s):
            bar.set_postfix_str(note(), refresh=True)
            wait_s = REDRAW_S

    clock = threading.Thread(target=redraw, daemon=True)
    clock.start()

    def update(done, total=None):
        if total is not None:
            bar.total, bar.bar_format = total, None
        bar.update(done - bar.n)
        if done == bar.total:
            end()

    def end():
        over.set()
        clock.join()
        bar.close()

    try:
        yield update
    finally:
        end()


def streamed(model):
    """Return a function that says which layer it is and what the disk gives, while it works."""
    return model.stream.status if model.stream else str


class Stopwatch:
    """The times of the two halves of replies, reading and writing, and their tokens."""

    def __init__(self):
        self.n_read = self.n_cached = self.n_written = self.n_steps = 0
        self.read_s = self.write_s = 0.0
        self.replies_s = []
        self.reason = "interruption"
        self._n = None  # tokens of the present reply; None between replies

    def begin(self, n_cached=0):
        """Note that a prompt is to be read, but for the tokens that the cache has."""
        self._settle()
        self.n_cached += n_cached
        self.reason, self._n, self._n_prompt = "interruption", 0, 0
        self._start = self._read = self._end = time.perf_counter()

    @property
    def n_begun(self):
        """Count the replies that were begun, the present one included."""
        return len(self.replies_s) + (self._n is not None)

    def read(self, done):
        """Note that `done` tokens of the prompt are read."""
        self._n_prompt = done
        self._read = self._end = time.perf_counter()

    def wrote(self, token):
        """Note that a token is written."""
        self._n += 1
        self._end = time.perf_counter()

    def end(self, reason):
        """Note that the reply has ended, and why."""
        self.reason, self._end = reason, time.perf_counter()

    def _settle(self):
        """Add the present reply to the sums."""
        if self._n is None:
            return
        self.n_read += self._n_prompt
        self.n_written += self._n
        # The prompt's logits give the first token, each token the next one or the stop.
        self.n_steps += max(0, self._n - (self.reason not in ("stop", "tool_calls")))
        self.read_s += self._read - self._start
        self.write_s += self._end - self._read
        self.replies_s.append(self._end - self._start)
        self._n = None

    def report(self, model):
        """Say in a few lines how fast it was and what it took."""
        self._settle()
        cached = f", and {self.n_cached} from the cache" if self.n_cached else ""
        lines = [
            f"prompt   {self.n_read} tokens, {_rate(self.n_read, self.read_s)}{cached}",
            f"reply    {self.n_written} tokens, {_rate(self.n_steps, self.write_s)}, "
            f"ended by {self.reason}",
            f"weights  {memory.size(model.config.n_bytes_per_token)} read for each token of the "
            "reply",
            f"memory   {_peak_memory()} at most, with the parts of the checkpoint in memory",
        ]
        if len(self.replies_s) > 1:
            lines.append(f"steps    {len(self.replies_s)}, {statistics.median(self.replies_s):.3f} "
                         f"s each (median), {max(self.replies_s):.3f} s at most")
        if model.stream:
            meter = model.stream.meter
            lines += [f"streamed {meter.total.line()}", f"  last   {meter.passes[-1].line()}"]
        return "\n".join(lines)


def _rate(n, time_s):
    return f"{n / time_s:.1f} tokens/s" if n > 0 and time_s > 0 else "too few to time"


def _peak_memory():
    try:
        import resource
    except ImportError:  # Windows
        return "unknown"
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return memory.size(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
