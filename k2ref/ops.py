"""The operations that the model is made of: linear, rms_norm, silu, softmax.

Everything that multiplies by a weight goes through `linear` (or `linear_many`, several products in
one parallel region). They call the compiled kernels where there are any, and otherwise the plain
NumPy twins that stand beside them. `K2REF_KERNELS` chooses: `numpy`, or one of the kernels' paths
(`amx`, `vnni`, `avx512`, `avx2`, `neon`, `portable`). In the kernels each sum has one fixed order,
so a row of the result has the same bits whatever else is computed with it; NumPy's own products do
not promise that, and agree within a bound.

Chapter 05.
"""

import operator
import os
from pathlib import Path

import numpy as np

from k2ref.doors.intake import quoted

MOST_THREADS = 4096  # more than any machine has cores; a hundred thousand end most of them


class _Unavailable:
    """A stand-in for kernels that cannot be had: the first use of it says why."""

    def __init__(self, reason):
        self.reason = reason

    def __getattr__(self, name):
        raise ValueError(self.reason)


def _load_kernels(wanted):
    if wanted == "numpy":
        return None
    try:
        from k2ref import _kernels
    except ImportError as error:
        if wanted is None:
            return None
        return _Unavailable(f"K2REF_KERNELS={wanted}: the compiled kernels cannot be imported "
                            f"({error}); reinstall with a C compiler, or use numpy")
    try:
        _kernels.use_path(wanted)
    except ValueError as error:
        return _Unavailable(str(error))
    return _kernels


kernels = _load_kernels(os.environ.get("K2REF_KERNELS") or None)


def kernels_name():
    """Say which kernels run: the name of the instruction set, or "numpy".

    Raises: ValueError when K2REF_KERNELS asks for what this machine cannot run.
    """
    return kernels.path_name() if kernels else "numpy"


def missing_kernels():
    """Return a warning if the kernels were not compiled though nobody asked for NumPy, else ""."""
    if kernels is None and os.environ.get("K2REF_KERNELS") != "numpy":
        return ("warning: the compiled kernels are missing, so NumPy runs instead, slowly; "
                "reinstall with a C compiler, or set K2REF_KERNELS=numpy")
    return ""


def default_threads():
    """Return the number of physical cores that this process may run on."""
    try:
        cpus = os.sched_getaffinity(0)
    except AttributeError:  # not on this system
        return os.cpu_count() or 1
    siblings = Path("/sys/devices/system/cpu")
    cores = set()
    for cpu in cpus:
        try:
            cores.add((siblings / f"cpu{cpu}/topology/thread_siblings_list").read_text())
        except OSError:
            cores.add(cpu)
    return len(cores)


def n_threads(threads=None):
    """Return how many threads to use: as many as were asked for, or one for each core.

    Raises: ValueError for a number that is none, or that no system would start.
    """
    if threads is None:
        return default_threads()
    try:
        n = operator.index(threads)
    except TypeError:
        n = 0
    if not 0 < n <= MOST_THREADS:
        raise ValueError(f"threads: expected a positive whole number, at most {MOST_THREADS}, "
                         f"found {quoted(threads)}")
    return n


def linear(x, w, threads=None):
    """Multiply activations by a weight as it is stored: y = x W^T.

    (T, I), (O, I) -> (T, O)

    x float32, also (I,) -> (O,); w an Int4, Fp8, Bf16 or F32; y float32, newly made.
    Source: torch.nn.functional.linear.
    Raises: ValueError for a shape or dtype that does not fit.
    """
    x = _activations(x, w.shape[1], w)
    rows = x if x.ndim == 2 else x[None]
    y = linear_many([(rows, w)], threads)[0]
    return y if x.ndim == 2 else y[0]


def linear_many(products, threads=None):
    """Compute several products (x, w), each as `linear` does, in one parallel region.

    Each x float32 (T, I), each result float32 (T, O). One start of the threads for all the chosen
    experts of a layer, instead of one for each matrix.
    """
    if kernels is None:
        return [linear_numpy(x, w) for x, w in products]
    jobs = [(x, w, np.empty((len(x), w.shape[0]), np.float32), False) for x, w in products]
    kernels.linear(jobs, n_threads(threads))
    return [y for _, _, y, _ in jobs]


def linear_heads(x, weights, transposed=False, threads=None, out=None):
    """Multiply each head's activations by that head's weight: y[:, h] = x[:, h] W[h]^T.

    (T, H, I) -> (T, H, O)

    `weights` holds one weight (O, I) per head; with `transposed` it is y[:, h] = x[:, h] W[h].
    y is `out`, if given.
    """
    T, H, _ = x.shape
    if out is None:
        out = np.empty((T, H, weights[0].shape[1 if transposed else 0]), np.float32)
    if kernels is None:
        for h, w in enumerate(weights):
            matrix = w.dequantize()
            out[:, h] = x[:, h] @ (matrix if transposed else matrix.T)
    else:
        jobs = [(x[:, h], w, out[:, h], transposed) for h, w in enumerate(weights)]
        kernels.linear(jobs, n_threads(threads))
    return out


def linear_numpy(x, w):
    """Multiply as `linear` does, by unpacking the whole weight first.

    (T, I), (O, I) -> (T, O)
    """
    return x @ w.dequantize().T


def _activations(x, n_columns, w):
    x = np.asarray(x)
    if x.dtype != np.float32 or x.ndim not in (1, 2) or x.shape[-1] != n_columns:
        raise ValueError(f"linear: a {type(w).__name__} weight of shape {w.shape} takes float32 "
                         f"(T, {n_columns}) or ({n_columns},), found {x.dtype} {x.shape}")
    return np.ascontiguousarray(x)


def rms_norm(x, weight, eps):
    """Scale each row to unit root mean square, then by the learned weight.

    (T, D), (D,) -> (T, D)

    float32. eps keeps a row of zeros finite; a row whose squares overflow becomes NaN, and not 0.
    Source: modeling_deepseek.py, DeepseekV3RMSNorm.
    """
    if kernels is None:
        return rms_norm_numpy(x, weight, eps)
    y = np.empty(x.shape, np.float32)
    kernels.rms_norm(x, weight, y, eps)
    return y


def rms_norm_numpy(x, weight, eps):
    """Compute `rms_norm` in NumPy.

    (T, D), (D,) -> (T, D)
    """
    mean_square = np.mean(x * x, axis=-1, keepdims=True, dtype=np.float32)
    return weight * (x / np.sqrt(mean_square + np.float32(eps) + 0 * mean_square))


def silu(x):
    """Apply x * sigmoid(x), elementwise.

    (...) -> (...)
    """
    return x * sigmoid(x)


def silu_mul(gate, up):
    """Gate one half of an MLP by the other: silu(gate) * up.

    (T, F), (T, F) -> (T, F)
    """
    if kernels is None:
        return silu(gate) * up
    out = np.empty(gate.shape, np.float32)
    kernels.silu_mul(gate, up, out)
    return out


def weighted_sum(weights, rows, D):
    """Add up each token's K rows by its weights, one after the other.

    (T, K) -> (T, D)

    `rows` lists the K rows (D,) of the first token, then those of the second, and so on.
    """
    if kernels is None:
        return weighted_sum_numpy(weights, rows, D)
    y = np.empty((len(weights), D), np.float32)
    kernels.weighted_sum(weights, rows, y)
    return y


def weighted_sum_numpy(weights, rows, D):
    """Compute `weighted_sum` in NumPy.

    (T, K) -> (T, D)
    """
    T, K = weights.shape
    rows = np.asarray(rows, np.float32).reshape(T, K, D)
    y = weights[:, 0, None] * rows[:, 0]
    for k in range(1, K):
        y += weights[:, k, None] * rows[:, k]
    return y


def sigmoid(x):
    """Map scores to (0, 1): 1 / (1 + exp(-x)), elementwise, without overflow.

    (...) -> (...)
    """
    # 1 / (1 + exp(-x)) for positive x, exp(x) / (exp(x) + 1) for the others
    return np.exp(np.minimum(x, 0)) / (1 + np.exp(-np.abs(x)))


def softmax(x):
    """Turn each row of scores into weights that are positive and sum to one; -inf gives zero.

    (..., S) -> (..., S)
    """
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)
