"""Which parts of a checkpoint are in memory, under a budget: the least recently used go first.

A `Unit` is read and let go as a whole: an expert with its nine tensors, or a layer's attention.
Dense units are kept for ever; of the others, those are held that fit into `room`.

Nothing here decides what is computed, only when its bytes are asked for, so that no result can
depend on it.

Chapter 15.
"""

import os
import time
from collections import OrderedDict, deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import NamedTuple

from k2ref.streaming import memory

# How many units are read at once. One leaves the disk idle between two; more than four gained
# nothing on any disk that was measured.
READERS = 4
NEVER = -1


class Extent(NamedTuple):
    """A range of bytes of a file (pages.File)."""

    file: object
    start: int
    stop: int


@dataclass(eq=False)
class Unit:
    """A part of the checkpoint that is needed as a whole."""

    extents: tuple[Extent, ...]  # in the order of the disk
    seen: int = NEVER  # the epoch in which all of it was found in memory
    n_bytes: int = field(init=False)

    def __post_init__(self):
        self.n_bytes = sum(stop - start for _, start, stop in self.extents)

    @property
    def place(self):
        """Where it lies on the disk: to be sorted by."""
        return tuple((str(file.path), start) for file, start, _ in self.extents[:1])


class Residency:
    """The units that are in memory: it brings those that are needed, and lets others go.

    `seen` is a belief: the system may take pages back at any time. It tells by faults, and then a
    new `epoch` begins, in which everything is asked for again before it is used; what is still
    there costs next to nothing.
    """

    def __init__(self, meter, room=0, readers=READERS):
        self.meter, self.room = meter, room
        self.held = 0  # bytes of the units in `recent`, those under way included
        self.recent = OrderedDict()  # units in memory or under way, the oldest first
        self.epoch = 0
        self.reader_faults = 0
        self.n_readers, self._pool, self._pool_of = readers, None, None

    def keep(self, units, on_progress=None):
        """Read units that stay; `on_progress(done, total)` counts bytes.

        Raises: CheckpointError for what the disk does not give.
        """
        units = sorted((u for u in units if u.seen != self.epoch), key=lambda unit: unit.place)
        total, done, arrived = sum(unit.n_bytes for unit in units), 0, SimpleQueue()
        futures = [self.pool.submit(self._read, unit, (), arrived) for unit in units]
        failure = None
        try:
            for _ in units:
                unit, error, n_faults, _ = arrived.get()
                failure = failure or error
                unit.seen = NEVER if error else self.epoch
                self.reader_faults += n_faults
                done += unit.n_bytes
                if on_progress is not None:
                    on_progress(done, total)
        finally:  # also when somebody interrupts
            for future in futures:
                future.cancel()
        if failure:
            raise failure

    def fetch(self, units):
        """Bring these units into memory, all of them before it returns.

        Raises: CheckpointError for what the disk does not give.
        """
        for _ in self.bring(units):
            pass

    def bring(self, units):
        """Yield lists of these units as they come into memory: first those that are there.

        All that are missing are asked for before the first list is given, as far as there is room;
        a unit may be let go once the list after its own is asked for.
        Raises: CheckpointError for what the disk does not give.
        """
        here = [unit for unit in units if unit.seen == self.epoch]
        missing = deque(sorted((u for u in units if u.seen != self.epoch), key=lambda u: u.place))
        for unit in here:
            if unit in self.recent:
                self.recent.move_to_end(unit)
        now = self.meter.now
        hits = sum(unit.n_bytes for unit in here)
        now.hits += hits
        now.wanted += hits + sum(unit.n_bytes for unit in missing)
        if not missing:
            yield here
            return
        busy, arrived, flying = set(units), SimpleQueue(), {}
        begin_s = end_s = time.perf_counter()
        try:
            flying |= self._ask(missing, busy, arrived)
            yield here  # even if there are none: the shared expert has nothing to wait for
            busy.difference_update(here)
            while missing or flying:
                flying |= self._ask(missing, busy, arrived, at_least_one=not flying)
                landed, end_s = self._wait(arrived, now)
                for unit, *_ in landed:
                    del flying[unit]
                flying |= self._ask(missing, busy, arrived)  # before computing: keep the disk busy
                yield self._settle(landed)
                busy.difference_update(unit for unit, *_ in landed)
        finally:  # also when the consumer gave up: what is under way lands before anything else
            self._call_back(flying)
            self._settle([arrived.get() for _ in flying], quiet=True)
            now.reading_s += end_s - begin_s

    def retire(self, unit):
        """Make a unit the first to go."""
        if unit in self.recent:
            self.recent.move_to_end(unit, last=False)

    def doubt(self):
        """Believe no longer that anything is in memory."""
        self.epoch += 1

    def fit(self, room):
        """Set the room, and let go of what does not fit."""
        self.room = room
        for unit in self._victims(0, ()) or ():
            _let_go(unit)

    def close(self):
        """Stop the readers."""
        if self._pool_of == os.getpid():
            self._pool.shutdown(cancel_futures=True)

    @property
    def pool(self):
        """The threads that read; a fork has none of those of before, and gets new ones."""
        if self._pool_of != os.getpid():
            self._pool = ThreadPoolExecutor(self.n_readers, thread_name_prefix="k2ref-reader")
            self._pool_of = os.getpid()
        return self._pool

    def _ask(self, missing, busy, arrived, at_least_one=False):
        """Send the readers for the next missing units, as far as there is room.

        Returns `{unit: (future, units that make room for it)}`.
        """
        asked = {}
        while missing:
            unit = missing[0]
            victims = ()
            if unit in self.recent:
                self.recent.move_to_end(unit)
            else:
                victims = self._victims(unit.n_bytes, busy)
                if victims is None and at_least_one and not asked:
                    # What makes room now may be asked for next, so it goes before anybody reads.
                    for victim in self._victims(unit.n_bytes, busy.difference(missing), True):
                        _let_go(victim)
                    victims = ()
                if victims is None:
                    break
                self.recent[unit] = None
                self.held += unit.n_bytes
            missing.popleft()
            asked[unit] = self.pool.submit(self._read, unit, victims, arrived), victims
        return asked

    def _call_back(self, flying):
        """Take those reads back that no reader has begun, so that giving up takes no time."""
        for unit, (future, victims) in list(flying.items()):
            if future.cancel():
                del flying[unit]
                self._drop(unit)
                for gone in (unit, *victims):  # a doubted one may be in memory still
                    _let_go(gone)

    def _drop(self, unit):
        """Take a unit off the list, and know nothing of it any more."""
        unit.seen = NEVER
        if unit in self.recent:
            del self.recent[unit]
            self.held -= unit.n_bytes

    def _victims(self, n_bytes, busy, by_force=False):
        """Take units off the list until `n_bytes` more fit; None if that cannot be."""
        excess, victims = self.held + n_bytes - self.room, []
        for unit in self.recent:
            if excess <= 0:
                break
            if unit not in busy:
                victims.append(unit)
                excess -= unit.n_bytes
        if excess > 0 and n_bytes and not by_force:
            return None
        for unit in victims:
            self._drop(unit)
        return victims

    @staticmethod
    def _read(unit, victims, arrived):
        """Make room, then read: what a reader does. The answer goes to `arrived`."""
        error, before = None, memory.disk_faults(of_thread=True)
        try:
            for victim in victims:
                _let_go(victim)
            for file, start, stop in unit.extents:
                file.ask(start, stop)
            for file, start, stop in unit.extents:
                file.fetch(start, stop)
        except Exception as failure:
            error = failure
            _let_go(unit)  # the part that came
        n_faults = memory.disk_faults(of_thread=True) - before
        arrived.put((unit, error, n_faults, time.perf_counter()))

    @staticmethod
    def _wait(arrived, now):
        """Wait until something lands; return all that has, and when the last came."""
        start_s = time.perf_counter()
        landed = [arrived.get()]
        now.wait_s += time.perf_counter() - start_s
        try:
            while True:
                landed.append(arrived.get_nowait())
        except Empty:
            return landed, max(end_s for *_, end_s in landed)

    def _settle(self, landed, quiet=False):
        """Note what the readers brought; return the units, or raise what went wrong."""
        failure = None
        for unit, error, n_faults, _ in landed:
            self.reader_faults += n_faults
            unit.seen = self.epoch
            failure = failure or error
            if error:
                self._drop(unit)
        if failure and not quiet:
            raise failure
        return [unit for unit, *_ in landed]


def _let_go(unit):
    for file, start, stop in unit.extents:
        file.let_go(start, stop)
