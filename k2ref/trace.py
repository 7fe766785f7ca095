"""Named intermediates of a forward pass: record them, save them, and find the first difference.

    trace = Trace(only="layers.3.*")
    forward(model, ids, trace=trace)
    trace.save("a.npz")
    first_difference(load("a.npz"), load("b.npz"), rtol=1e-4)

Names follow the way through the model: embed, layers.0.attn.q_nope, ..., layers.0.out, norm,
logits. Row t of each array belongs to token t. What two engines disagree on first is where the bug
is.
"""

from fnmatch import fnmatchcase
from typing import NamedTuple

import numpy as np


class Difference(NamedTuple):
    """Say where two traces part: which array, which token, which element, and both values."""

    name: str
    token: int
    element: tuple[int, ...]
    a: float
    b: float


class Trace:
    """Collect arrays by name, in the order in which they were computed."""

    def __init__(self, only="*"):
        self.only = only
        self._pieces = {}

    def record(self, name, array):
        """Keep a copy of an array (T, ...) under this name; later tokens are appended."""
        if fnmatchcase(name, self.only):
            self._pieces.setdefault(name, []).append(np.array(array))

    def record_all(self, prefix, **arrays):
        """Keep several arrays whose names share a prefix."""
        for name, array in arrays.items():
            self.record(prefix + name, array)

    @property
    def arrays(self):
        """The recorded arrays by name, all tokens of each joined: dict of (T, ...)."""
        return {name: np.concatenate(pieces) for name, pieces in self._pieces.items()}

    def save(self, path):
        """Write the arrays to a NumPy .npz file."""
        with open(path, "wb") as file:
            np.savez(file, **self.arrays)


def load(path):
    """Read what `Trace.save` wrote: dict of arrays, in order."""
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def first_difference(a, b, rtol=0.0):
    """Return the first Difference between two dicts of arrays, or None if there is none.

    Arrays are compared in a's order. Elements differ when |a - b| > rtol * the largest finite |a|
    of their row, or when only one of them is NaN; integers differ when they are not equal.
    Raises: ValueError when the traces do not hold the same names and shapes.
    """
    if a.keys() != b.keys():
        raise ValueError(f"the traces hold different names: {sorted(a.keys() ^ b.keys())}")
    for name, left in a.items():
        right = b[name]
        if left.shape != right.shape:
            raise ValueError(f"{name}: one trace holds shape {left.shape}, the other {right.shape}")
        if left.dtype.kind == "f":
            size = np.abs(np.where(np.isfinite(left), left, 0))
            size = size.max(axis=tuple(range(1, left.ndim)), keepdims=True, initial=0)
            with np.errstate(invalid="ignore"):  # inf - inf
                near = np.abs(left - right) <= rtol * size
            equal = near | (left == right) | (np.isnan(left) & np.isnan(right))
        else:
            equal = left == right
        if not equal.all():
            token, *element = (int(i) for i in np.argwhere(~equal)[0])
            where = (token, *element)
            return Difference(name, token, tuple(element), left[where].item(), right[where].item())
    return None
