"""How fast this machine is: its memory, its kernels, and the disk that a checkpoint lies on.

A few numbers in ten seconds or so, which `plan.py` divides by. Each is measured the way it is used:
the kernels on matrices larger than any cache, the disk as `disk.py` says.

Chapter 15.
"""

import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from k2ref import loading, model, ops, quant
from k2ref.cache import KVCache
from k2ref.planning import disk

SIZE = 256 << 20  # bytes that are read in one round: more than the caches of most machines
TIME_S = 0.5  # for each of the rates, at least
# Like the matrices of K2's experts and of its attention.
SHAPES = {"int4": (2048, 7168), "fp8": (2048, 7168), "bf16": (8192, 7168)}


@dataclass(frozen=True)
class Rates:
    """The rates that were measured, in bytes a second."""

    memory: float  # what the memory gives to `threads` threads that only look at it
    kernels: dict[str, float]  # by format: weights that are multiplied with one token
    disk: float | None  # None: not to be measured
    layer_s: float  # seconds that a layer takes besides: calls, norms, a short attention
    threads: int
    idle: disk.Idle = disk.Idle()  # what memory takes more that lay idle
    rounds: tuple[float, float] | None = None  # the slowest and the quickest reads of the disk


def measure(path=None, threads=None, formats=("bf16", "int4")) -> Rates:
    """Measure this machine, and the disk that holds the safetensors files of a directory.

    Raises: OSError where a file cannot be read
    """
    threads = ops.n_threads(threads)
    # Before the others have used much memory.
    rate, idle, rounds = disk.measure(path, threads) if path else (None, disk.Idle(), None)
    return Rates(memory(threads), {format: kernels(format, threads) for format in formats}, rate,
                 layer(threads), threads, idle, rounds)


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
    small = loading.load(threads=threads)
    cache = KVCache(small.config, small.config.max_position_embeddings)

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


def describe(speed: Rates) -> str:
    """Say in readable text what was measured."""
    kernels = ", ".join(f"{rate / 1e9:.1f} GB/s of {format} weights"
                        for format, rate in speed.kernels.items())
    read = "not measured: there are no files, or too little data in them"
    if speed.disk:
        read = f"{speed.disk / 1e9:.2f} GB/s, read as experts are"
    if speed.rounds:
        read += ", {:.2f} to {:.2f} from one time to the other".format(
            *(rate / 1e9 for rate in speed.rounds))
    lines = [f"measured with {speed.threads} threads", f"  memory    {speed.memory / 1e9:.1f} GB/s",
             f"  kernels   {kernels}; {speed.layer_s * 1e3:.2f} ms a layer besides",
             f"  disk      {read}"]
    if speed.idle.touch_s:
        filled = 1e-9 / (1 / speed.disk + speed.idle.read_s)
        lines.append(f"  new       memory that lay idle fills at {filled:.2f} GB/s and is first "
                     f"touched at {1e-9 / speed.idle.touch_s:.2f} GB/s")
    return "\n".join(lines)
