"""The meter: what a forward pass wanted, what was there, what the disk gave, and the waiting.

Bytes read are counted by the system, not by us: a cache that reports its own hits can say 100 %
while keeping nothing.

Chapter 15.
"""

import time
from collections import deque
from dataclasses import asdict, dataclass, fields

import numpy as np

from k2ref.streaming import memory

KEPT_PASSES = 1024  # the last passes of which each has its own record


@dataclass
class Traffic:
    """The bytes and seconds of one forward pass, or of several added up."""

    tokens: int = 0  # that went through the layers
    wanted: int = 0  # bytes of the experts chosen, and of dense weights that cannot be kept
    hits: int = 0  # of these, bytes that were known to be in memory
    read: int | None = 0  # bytes that the disk gave, for whatever; None where nobody counts
    wait_s: float = 0.0  # nothing to compute until something arrives
    reading_s: float = 0.0  # at least one read under way
    time_s: float = 0.0  # the whole pass
    lost: int = 0  # pages that the system had taken back when they were needed

    @property
    def missed(self):
        """Bytes that were asked for."""
        return self.wanted - self.hits

    @property
    def rate(self):
        """Bytes a second that came in while any were being read."""
        n_bytes = self.missed if self.read is None else self.read
        return n_bytes / self.reading_s if self.reading_s else 0.0

    def add(self, other):
        """Add the counts of another."""
        for field in fields(self):
            a, b = getattr(self, field.name), getattr(other, field.name)
            setattr(self, field.name, None if a is None or b is None else a + b)

    def line(self):
        """Say it in one line, in all and for each token."""
        read = "" if self.read is None else f", {self._amount(self.read)} read from disk"
        return (f"{self.tokens} tokens: {self._amount(self.wanted)} wanted, "
                f"{self._amount(self.hits)} in memory{read} at {self.rate / 1e9:.2f} GB/s, "
                f"{self.wait_s:.1f} of {self.time_s:.1f} s waited")

    def _amount(self, n_bytes):
        per_token = n_bytes / max(1, self.tokens)
        return f"{n_bytes / 1e9:.2f} GB ({per_token / 1e9:.2f} a token)"

    def trace(self, trace):
        """Record what each token of the pass took: an even share of bytes, and of seconds."""
        for name in ("wanted", "hits", "read", "wait_s", "time_s"):
            share = (getattr(self, name) or 0) / max(1, self.tokens)
            trace.record(f"stream.{name}", np.full(self.tokens, share))

    def record(self):
        """Return the numbers by name, to be written down."""
        return {**asdict(self), "missed": self.missed, "rate": self.rate}


class Meter:
    """The record of each pass, and the sum of all."""

    def __init__(self):
        self.passes = deque(maxlen=KEPT_PASSES)
        self.total = Traffic()
        self.now = Traffic()
        self._read, self._start_s = 0, None

    def begin(self, n_tokens):
        """Start the record of a forward pass."""
        self.now = Traffic(tokens=n_tokens)
        self._read, self._start_s = memory.read_from_disk(), time.perf_counter()

    def end(self, lost=0):
        """Finish it."""
        now, read = self.now, memory.read_from_disk()
        now.time_s = time.perf_counter() - self._start_s
        now.read = None if read is None else read - self._read
        now.lost = lost
        self.passes.append(now)
        self.total.add(now)
        self._start_s = None

    def so_far(self):
        """Return the bytes that the disk has given in the pass under way, and its seconds.

        Any thread may ask. None and 0 where nobody counts, or no pass is under way.
        """
        start_s, read = self._start_s, memory.read_from_disk()
        if start_s is None or read is None:
            return None, 0.0
        return read - self._read, time.perf_counter() - start_s
