"""How fast this machine is: its memory, its kernels, and the disk that a checkpoint lies on.

Three numbers in about three seconds, which `plan.py` divides by. Each is measured the way it is
used: the kernels on matrices larger than any cache, the disk with several large reads at random
places under way at once, past the page cache, so that what happens to be in memory does not flatter
it and stays there.

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
from pathlib import Path

import numpy as np

from k2ref import attention, model, ops, quant

SIZE = 256 << 20  # bytes that are read in one round: more than the caches of most machines
TIME_S = 0.5  # for each of the rates, at least
DISK_READ = 8 << 20  # bytes: about a third of an expert
DISK_READERS = 4
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


def measure(path=None, threads=None, formats=("bf16", "int4")) -> Rates:
    """Measure this machine, and the disk that holds the safetensors files of a directory.

    Raises: OSError where a file cannot be read
    """
    threads = threads or ops.default_threads()
    return Rates(memory(threads), {format: kernels(format, threads) for format in formats},
                 disk(path) if path else None, layer(threads), threads)


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


def disk(path, time_s=3 * TIME_S) -> float | None:
    """Measure how fast the files of a checkpoint can be read at random places, in bytes a second.

    None where they cannot tell: they are holes, or too small to wait for.
    """
    files = [file for file in sorted(Path(path).glob("*.safetensors")) if _has_data(file)]
    if not files:
        return None
    rng = random.Random(0)
    end_s = time.perf_counter() + time_s

    def read_on(_):
        """Read one place after another until the time is over; return the bytes."""
        n_bytes, buffer = 0, mmap.mmap(-1, DISK_READ)  # O_DIRECT wants aligned memory
        with buffer:
            while time.perf_counter() < end_s:
                file = rng.choice(files)
                n_bytes += _read_uncached(file, rng.randrange(_n_places(file)), buffer)
        return n_bytes

    start_s = time.perf_counter()
    with ThreadPoolExecutor(DISK_READERS) as pool:
        n_bytes = sum(pool.map(read_on, range(DISK_READERS)))
    return n_bytes / (time.perf_counter() - start_s)


def _n_places(file):
    return os.stat(file).st_size // DISK_READ


def _has_data(file) -> bool:
    """Say whether a file is large enough for the test, and not mostly holes."""
    status = os.stat(file)
    blocks = getattr(status, "st_blocks", None)  # of 512 bytes; Windows does not count them
    is_written = blocks is None or blocks * 512 > status.st_size // 2
    return is_written and status.st_size >= DISK_READ


def _read_uncached(file, place, buffer) -> int:
    """Read one piece of a file past the page cache, or after it was dropped from there."""
    direct = getattr(os, "O_DIRECT", 0)
    try:
        return _read_place(file, place * DISK_READ, buffer, direct)
    except OSError:  # this file system has no direct reads, and some say so only when they read
        return _read_place(file, place * DISK_READ, buffer, 0)


def _read_place(file, start, buffer, direct) -> int:
    fd = os.open(file, os.O_RDONLY | getattr(os, "O_BINARY", 0) | direct)
    try:
        if sys.platform == "darwin":
            import fcntl

            fcntl.fcntl(fd, fcntl.F_NOCACHE, 1)
        elif not direct and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(fd, start, DISK_READ, os.POSIX_FADV_DONTNEED)
        if hasattr(os, "preadv"):
            return os.preadv(fd, [buffer], start)
        os.lseek(fd, start, os.SEEK_SET)
        return len(os.read(fd, DISK_READ))
    finally:
        os.close(fd)
