"""How fast this machine is: its memory, its kernels, and the disk that a checkpoint lies on.

A few numbers in a few seconds, which `plan.py` divides by. Each is measured the way it is used: the
kernels on matrices larger than any cache, the disk with several large reads at random places under
way at once, past the page cache, so that what happens to be in memory does not flatter it and stays
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
from pathlib import Path

import numpy as np

from k2ref import attention, layout, model, ops, quant
from k2ref.config import Config
from k2ref.pages import MOST_LARGE_PAGE, PAGE, File
from k2ref.shards import CheckpointError, Shard, open_shards

SIZE = 256 << 20  # bytes that are read in one round: more than the caches of most machines
TIME_S = 0.5  # for each of the rates, at least
DISK_READ = 8 << 20  # bytes: about a third of an expert
DISK_READERS = 4
MOST_HELD = 128  # such reads, held at once to find memory that lay idle
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
    fresh_s: float = 0.0  # seconds that a byte of memory takes more when it is first used


def measure(path=None, threads=None, formats=("bf16", "int4")) -> Rates:
    """Measure this machine, and the disk that holds the safetensors files of a directory.

    Raises: OSError where a file cannot be read
    """
    threads = threads or ops.default_threads()
    fresh_s = fresh(path, threads) if path else 0.0  # before the others have used much memory
    return Rates(memory(threads), {format: kernels(format, threads) for format in formats},
                 disk(path) if path else None, layer(threads), threads, fresh_s)


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
    files = _files(path)
    if not files:
        return None
    rng = random.Random(0)
    end_s = time.perf_counter() + time_s

    def read_on(_):
        """Read one place after another until the time is over; return the bytes."""
        n_bytes, buffer = 0, _buffer()
        while time.perf_counter() < end_s:
            file = rng.choice(files)
            n_bytes += _read_uncached(file, rng.randrange(_n_places(file)), buffer)
        return n_bytes

    start_s = time.perf_counter()
    with ThreadPoolExecutor(DISK_READERS) as pool:
        n_bytes = sum(pool.map(read_on, range(DISK_READERS)))
    return n_bytes / (time.perf_counter() - start_s)


def _buffer():
    """Make memory for one read, in large pages where the system has them, as the streamer's is.

    Into small ones the disk gives two thirds of the rate. Direct reads want it aligned.
    """
    room = np.empty(DISK_READ + MOST_LARGE_PAGE, np.uint8)  # NumPy asks for large pages
    start = -room.ctypes.data % MOST_LARGE_PAGE
    buffer = room[start:start + DISK_READ]
    buffer[::PAGE] = 1  # memory that nobody wrote to has no pages yet
    return buffer


def fresh(path, threads) -> float:
    """Measure how much longer the first touch of what was read takes than another. Seconds a byte.

    0 on most machines. But some virtual machines lend what is free to their host, and have it back
    page by page when it is touched, whoever filled it: that can take longer than the disk.
    """
    files = [File(Shard(file, _map(file))) for file in _files(path)]
    rng, held, end_s = random.Random(1), [], time.perf_counter() + 2 * TIME_S
    for file in files:
        file.use_large_pages()
    while files and len(held) < MOST_HELD and time.perf_counter() < end_s:
        file = rng.choice(files)
        start = rng.randrange(len(file.bytes) // DISK_READ) * DISK_READ
        if not file.in_memory(start, start + DISK_READ):
            file.fetch(start, start + DISK_READ)
            held.append((file, start))
    # Memory that somebody gave back a moment ago is used first; what comes last lay idle.
    last = held[-max(1, len(held) // 4):]

    def touch(offset):
        """Read one line of each page."""
        start_s = time.perf_counter()
        list(pool.map(lambda at: at[0].bytes[at[1] + offset:at[1] + DISK_READ:PAGE].max(), last))
        return time.perf_counter() - start_s

    with ThreadPoolExecutor(threads) as pool:
        first_s, again_s = touch(0), touch(PAGE // 2)
    for file, start in held:
        file.let_go(start, start + DISK_READ)
    is_slow = held and first_s > 10 * again_s  # less is noise; where it is so, it is 100
    return (first_s - again_s) / (len(last) * DISK_READ) if is_slow else 0.0


def _map(file):
    with open(file, "rb") as opened:
        return mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)


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
