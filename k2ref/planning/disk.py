"""How fast the disk is that a checkpoint lies on, read as the streamer reads experts.

Pieces of an expert's size, as many together as a layer chooses, at random places that are not in
memory, so that what happens to be there does not flatter the disk and stays there; into more and
more memory first, as a run begins, and then into the same, as it goes on. How much of a checkpoint
is in memory is counted here too.

Chapter 15.
"""

import mmap
import os
import random
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from k2ref.checkpoint import layout
from k2ref.checkpoint.config import Config
from k2ref.checkpoint.shards import CheckpointError, Shard, open_shards
from k2ref.streaming.pages import MOST_LARGE_PAGE, PAGE, File
from k2ref.streaming.residency import READERS

PIECE = 25 << 20  # bytes: about an expert, and like one, with edges beside whole large pages
ROUND = 8  # pieces that are asked for together, as a layer's experts for one token
GROWN = 10  # rounds that stay in memory for the time, so that each fills more of it
SLOW = 7  # more of them, where memory is slow
FILL_S, SAME_S, DIRECT_S = 8.0, 2.0, 1.5  # seconds for the rounds of each kind, at most


class Idle(NamedTuple):
    """The extra cost of memory that has not been used for a while; zero on most machines.

    But some virtual ones lend what is free to their host, all but a gigabyte or so that was given
    back last, and have it back page by page, whoever fills it: that can take longer than the disk.
    """

    read_s: float = 0.0  # seconds for each byte that is read into it
    touch_s: float = 0.0  # seconds for each byte of it that is touched first
    ready: int = 0  # bytes that are free and take no more


class Round(NamedTuple):
    """The seconds for each byte of pieces that were read together and touched twice."""

    read_s: float
    first_s: float
    again_s: float

    @property
    def is_slow(self):
        """Say whether memory was slow at first. Less is noise; where it is so, it is 200."""
        return self.first_s > 30 * self.again_s


def measure(path, threads) -> tuple[float | None, Idle, tuple[float, float] | None]:
    """Measure how fast the streamer gets experts from the files of a checkpoint.

    Returns bytes a second, or None where the files cannot tell: they are holes, or too small; what
    memory takes more that lay idle; and the bytes a second of the slowest and the quickest round,
    or None. Where these lie far apart, the disk is shared, or has caches, and a run may find
    another one.
    """
    files = _files(path)
    grown, same = _rounds(files, threads)
    if not grown:
        return _past_the_cache(files), Idle(), None
    median, first, later = statistics.median, grown[:GROWN], grown[GROWN:]
    quick = [found.read_s for found in same or grown if not found.is_slow]
    quick = quick or [found.read_s for found in grown]
    read_s, rounds = median(quick), (1 / max(quick), 1 / min(quick))
    if 2 * sum(found.is_slow for found in later) <= len(later):
        return 1 / read_s, Idle(), rounds
    touch_s = median(found.first_s - found.again_s for found in later)
    ready = sum(max(0.0, 1 - found.first_s / touch_s) for found in first) * ROUND * PIECE
    return 1 / read_s, Idle(max(0.0, median(found.read_s for found in later) - read_s), touch_s,
                            int(ready)), rounds


def _rounds(files, threads):
    """Read pieces that are not in memory, a round at a time: into more memory, into the same.

    Returns the rounds of both ways. What was given back last is used first, so that only the last
    rounds of the first way, `SLOW` more where any was slow, are all in memory that lay idle. At
    most half of the pieces is read in that way.
    """
    places = [(file, at * PIECE) for file in map(_opened, files)
              for at in range(len(file.bytes) // PIECE)]
    random.shuffle(places)
    cold = (place for place in places if not place[0].in_memory(place[1], place[1] + PIECE))
    grown, same, held = [], [], []
    with ThreadPoolExecutor(READERS) as readers, ThreadPoolExecutor(threads) as pool:
        def time_of(pool, do):
            """Do it with each piece of the round; return the seconds for a byte."""
            start_s = time.perf_counter()
            list(pool.map(lambda place: do(*place), held[-1]))
            return (time.perf_counter() - start_s) / (len(held[-1]) * PIECE)

        def read(pieces):
            held.append(pieces)
            return Round(
                time_of(readers, lambda file, at: file.fetch(at, at + PIECE)),
                # One line of each page.
                time_of(pool, lambda file, at: file.bytes[at:at + PIECE:PAGE].max()),
                time_of(pool, lambda file, at: file.bytes[at + PAGE // 2:at + PIECE:PAGE].max()))

        end_s, most = time.perf_counter() + FILL_S, max(1, len(places) // (2 * ROUND))
        while (len(grown) < min(most, GROWN + SLOW * any(found.is_slow for found in grown))
               and time.perf_counter() < end_s and (pieces := list(islice(cold, ROUND)))):
            grown.append(read(pieces))
        end_s = time.perf_counter() + SAME_S
        while time.perf_counter() < end_s and (pieces := list(islice(cold, ROUND))):
            _let_go(held.pop())
            same.append(read(pieces))
    for pieces in held:
        _let_go(pieces)
    return grown, same


def _opened(path):
    with open(path, "rb") as opened:
        file = File(Shard(path, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)))
    file.use_large_pages()
    return file


def _let_go(pieces):
    for file, at in pieces:
        file.let_go(at, at + PIECE)


def _past_the_cache(files) -> float | None:
    """Measure the disk by direct reads, in bytes a second: where the page cache has all of it."""
    if not files:
        return None
    end_s = time.perf_counter() + DIRECT_S

    def read_on(_):
        """Read one place after another until the time is over; return the bytes."""
        n_bytes, buffer = 0, _buffer()
        while time.perf_counter() < end_s:
            file = random.choice(files)
            place = random.randrange(os.stat(file).st_size // PIECE)
            n_bytes += _read_uncached(file, place, buffer)
        return n_bytes

    start_s = time.perf_counter()
    with ThreadPoolExecutor(READERS) as pool:
        n_bytes = sum(pool.map(read_on, range(READERS)))
    return n_bytes / (time.perf_counter() - start_s)


def _buffer():
    """Make memory for one read, in large pages where the system has them, as the streamer's is.

    Into small ones the disk gives two thirds of the rate. Direct reads want it aligned.
    """
    room = np.empty(PIECE + MOST_LARGE_PAGE, np.uint8)  # NumPy asks for large pages
    start = -room.ctypes.data % MOST_LARGE_PAGE
    buffer = room[start:start + PIECE]
    buffer[::PAGE] = 1  # memory that nobody wrote to has no pages yet
    return buffer


def _files(path):
    """List the files of a checkpoint that can be timed."""
    return [file for file in sorted(Path(path).glob("*.safetensors")) if _has_data(file)]


def in_page_cache(path, config: Config) -> tuple[int, int]:
    """Count the bytes of dense weights and of experts that are in memory, whoever read them."""
    try:
        shards, found = open_shards(path)
        files = [File(shard) for shard in shards]
    except CheckpointError:  # a directory without its files can be planned for, too
        return 0, 0
    format_of = layout.format_finder(config.quantization_config, config.tensor_prefix)
    dense, rest = 0, sum(file.in_memory(0, len(file.bytes)) or 0 for file in files)
    for tensor in layout.tensors(config):
        if tensor.kind == "experts":
            continue
        for suffix, *_ in layout.stored_parts(tensor.shape, format_of(tensor)):
            stored = found.get(config.tensor_prefix + tensor.name + suffix)
            if stored is not None:
                n_bytes = files[stored.shard].in_memory(stored.start, stored.stop) or 0
                n_bytes = min(n_bytes, stored.stop - stored.start)  # and not all of whole pages
                dense += n_bytes if tensor.kind != "embedding" else 0
                rest -= n_bytes
    return dense, min(max(0, rest), config.n_bytes_by_kind.get("experts", 0))


def _has_data(file) -> bool:
    """Say whether a file is large enough for the test, and not mostly holes."""
    status = os.stat(file)
    blocks = getattr(status, "st_blocks", None)  # of 512 bytes; Windows does not count them
    is_written = blocks is None or blocks * 512 > status.st_size // 2
    return is_written and status.st_size >= PIECE


def _read_uncached(file, place, buffer) -> int:
    """Read one piece of a file past the page cache, or after it was dropped from there."""
    direct = getattr(os, "O_DIRECT", 0)
    try:
        return _read_place(file, place * PIECE, buffer, direct)
    except OSError:  # this file system has no direct reads, and some say so only when they read
        return _read_place(file, place * PIECE, buffer, 0)


def _read_place(file, start, buffer, direct) -> int:
    fd = os.open(file, os.O_RDONLY | getattr(os, "O_BINARY", 0) | direct)
    try:
        if sys.platform == "darwin":
            import fcntl

            fcntl.fcntl(fd, fcntl.F_NOCACHE, 1)
        elif not direct and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(fd, start, PIECE, os.POSIX_FADV_DONTNEED)
        if hasattr(os, "preadv"):
            return os.preadv(fd, [buffer], start)
        os.lseek(fd, start, os.SEEK_SET)
        return len(os.read(fd, PIECE))
    finally:
        os.close(fd)
