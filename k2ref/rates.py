"""How fast this machine is: its memory, its kernels, and the disk that a checkpoint lies on.

A few numbers in a few seconds, which `plan.py` divides by. Each is measured the way it is used: the
kernels on matrices larger than any cache, the disk as the streamer reads a layer's experts, at
random places that are not in memory, so that what happens to be there does not flatter it and stays
there. How much of a checkpoint that is, is counted here too.

Chapter 15.
"""

import mmap
import os
import random
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from k2ref import attention, layout, model, ops, quant
from k2ref.config import Config
from k2ref.pages import MOST_LARGE_PAGE, PAGE, File
from k2ref.residency import READERS
from k2ref.shards import CheckpointError, Shard, open_shards

SIZE = 256 << 20  # bytes that are read in one round: more than the caches of most machines
TIME_S = 0.5  # for each of the rates, at least
PIECE = 25 << 20  # bytes: about an expert, and like one, with edges beside whole large pages
ROUND = 8  # pieces that are asked for together, as a layer's experts for one token
MOST_HELD = 5  # rounds that stay in memory for the time, so that the next one has to fill more
# Like the matrices of K2's experts and of its attention.
SHAPES = {"int4": (2048, 7168), "fp8": (2048, 7168), "bf16": (8192, 7168)}


@dataclass(frozen=True)
class Rates:
    """Hold what was measured, in bytes a second."""

    memory: float  # what the memory gives to `threads` threads that only look at it
    kernels: dict[str, float]  # by format: weights that are multiplied with one token
    disk: float | None  # None: not to be measured
    layer_s: float  # seconds that a layer takes besides: calls, norms, a short attention
    threads: int
    fresh_read_s: float = 0.0  # seconds that a byte takes more to be read into new memory
    fresh_s: float = 0.0  # seconds that a byte of memory takes more when it is first used


def measure(path=None, threads=None, formats=("bf16", "int4")) -> Rates:
    """Measure this machine, and the disk that holds the safetensors files of a directory.

    Raises: OSError where a file cannot be read
    """
    threads = threads or ops.default_threads()
    # Before the others have used much memory.
    rate, *fresh = disk(path, threads) if path else (None, 0.0, 0.0)
    return Rates(memory(threads), {format: kernels(format, threads) for format in formats}, rate,
                 layer(threads), threads, *fresh)


def memory(threads) -> float:
    """Measure how fast `threads` threads can read memory, in bytes a second."""
    words = np.ones(SIZE // 8, np.uint64)  # written once: pages never touched would all be one
    parts = np.array_split(words, threads)
    with ThreadPoolExecutor(threads) as pool:
        return _typical_rate(lambda: list(pool.map(np.bitwise_or.reduce, parts)), words.nbytes)


def kernels(format, threads) -> float:
    """Measure how fast weights of a format go through `ops.linear_many`, in bytes a second.

    On the NumPy path this is far below the memory's rate.
    """
    O, I = SHAPES[format]
    x = np.ones((1, I), np.float32)
    n_bytes = _any_weight(format, O, I).n_bytes
    is_slow = ops.kernels is None  # then one matrix takes long enough, and no cache matters
    n_matrices = 1 if is_slow else -(-SIZE // n_bytes)
    products = [(x, _any_weight(format, O, I)) for _ in range(n_matrices)]
    return _typical_rate(lambda: ops.linear_many(products, threads), n_matrices * n_bytes)


def _any_weight(format, O, I):
    """Make a matrix in memory of its own; what is in it makes no difference to the time."""
    if format == "bf16":
        return quant.Bf16(np.full((O, I), 0x3F80, np.uint16))
    if format == "fp8":
        blocks = -(-O // quant.BLOCK), -(-I // quant.BLOCK)
        return quant.Fp8(np.full((O, I), 0x38, np.uint8), np.ones(blocks, np.float32))
    scale = np.full((O, I // quant.GROUP), 0x3F80, np.uint16)
    return quant.Int4(np.full((O, I // 8), 0x76543210, np.int32), scale)


def layer(threads) -> float:
    """Measure what a layer takes where the weights take nothing: in the embedded model. Seconds."""
    small = model.load(threads=threads)
    cache = attention.KVCache(small.config, small.config.max_position_embeddings)

    def step():
        cache.truncate(0)
        model.forward(small, [0], cache)

    return 1 / _typical_rate(step, small.config.num_hidden_layers)


def _typical_rate(work, n_bytes) -> float:
    """Run `work` for a while and return the rate of its median round."""
    work()
    rounds_s, end_s = [], time.perf_counter() + TIME_S
    while time.perf_counter() < end_s or not rounds_s:
        start_s = time.perf_counter()
        work()
        rounds_s.append(time.perf_counter() - start_s)
    return n_bytes / statistics.median(rounds_s)


class Round(NamedTuple):
    """Hold the seconds for each byte of pieces that were read together and touched twice."""

    read_s: float
    first_s: float
    again_s: float

    @property
    def is_slow(self):
        """Say whether memory was slow at first. Less is noise; where it is so, it is 100."""
        return self.first_s > 10 * self.again_s


def disk(path, threads) -> tuple[float | None, float, float]:
    """Measure how fast the streamer gets experts from the files of a checkpoint.

    Returns bytes a second, or None where the files cannot tell: they are holes, or too small. Then
    the seconds that a byte takes more to be read into memory that lay idle, and to be touched
    there. Both are 0 on most machines. But some virtual machines lend what is free to their host,
    and have it back page by page, whoever fills it: that can take longer than the disk.
    """
    files = _files(path)
    rounds = _rounds(files, threads)
    if not rounds:
        return _past_the_cache(files), 0.0, 0.0
    median, slow = statistics.median, [found for found in rounds if found.is_slow]
    read_s = median(found.read_s for found in rounds if not found.is_slow or slow == rounds)
    if len(slow) < 2:
        return 1 / read_s, 0.0, 0.0
    # Memory that was given back a moment ago is used first, so that some have little of the other.
    most_s = max(found.first_s for found in slow)
    slow = [found for found in slow if found.first_s > most_s / 2]
    return (1 / read_s, max(0.0, median(found.read_s for found in slow) - read_s),
            median(found.first_s - found.again_s for found in slow))


def _rounds(files, threads):
    """Read pieces that are not in memory, a round at a time: into more memory, into the same."""
    places = [(file, at * PIECE) for file in map(_opened, files)
              for at in range(len(file.bytes) // PIECE)]
    random.shuffle(places)
    rounds, held, end_s = [], [], time.perf_counter() + 8 * TIME_S
    cold = (place for place in places if not place[0].in_memory(place[1], place[1] + PIECE))
    with ThreadPoolExecutor(READERS) as readers, ThreadPoolExecutor(threads) as pool:
        def time_of(pool, do):
            """Do it with each piece of the round; return the seconds for a byte."""
            start_s = time.perf_counter()
            list(pool.map(lambda place: do(*place), held[-1]))
            return (time.perf_counter() - start_s) / (len(held[-1]) * PIECE)

        while time.perf_counter() < end_s and (pieces := list(islice(cold, ROUND))):
            if len(rounds) % 2 or len(held) == MOST_HELD:
                _let_go(held.pop())
            held.append(pieces)
            rounds.append(Round(
                time_of(readers, lambda file, at: file.fetch(at, at + PIECE)),
                # One line of each page.
                time_of(pool, lambda file, at: file.bytes[at:at + PIECE:PAGE].max()),
                time_of(pool, lambda file, at: file.bytes[at + PAGE // 2:at + PIECE:PAGE].max())))
    for pieces in held:
        _let_go(pieces)
    return rounds


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
    end_s = time.perf_counter() + 3 * TIME_S

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
