"""Compare two traces stage by stage, and say where they part first.

    python -m k2ref "prompt" --trace a.npz
    python scripts/compare_traces.py a.npz b.npz --rtol 1e-4

Either file may come from another engine: an .npz of arrays under k2ref's names, as many of them as
it has, in any float type (bf16 as ml_dtypes saves it), with a leading batch axis of one or without,
heads joined or not, experts of a token in any order. Where one has fewer rows, they are taken to be
those of the last tokens: engines give the logits of the last token only.

Exit status: 0 where all arrays that both hold are equal within rtol, 1 where they are not, 2 for a
file that is no trace.
"""

import argparse
import re
import sys
import zipfile
import zlib
from typing import NamedTuple

import numpy as np

from k2ref import trace
from k2ref.quant import bf16_to_f32

RTOL = 1e-4
ORDER = {name: at for at, (name, *_) in enumerate(trace.STAGES)}
NOT_A_TRACE = (OSError, ValueError, TypeError, AttributeError, EOFError, KeyError,
               zipfile.BadZipFile, zlib.error)  # fmt: skip


class Row(NamedTuple):
    """Hold one line of the table: the largest difference of an array, relative to its row."""

    name: str
    shape: str
    worst: float  # 0.0: the same bits; infinity: integers that differ, or a NaN in one only
    verdict: str  # "same bits", "ok", "DIFFERS"
    where: str  # token, element and both values of the largest difference


class Comparison(NamedTuple):
    """Hold what `compare` found."""

    rows: list  # of Row, in the order of the forward pass
    first: str | None  # where the two part first, or None
    missing_a: list  # names that only B holds
    missing_b: list


def read(path):
    """Read a trace, or what another engine dumped as one: a dict of float and integer arrays.

    Raises: ValueError
    """
    try:
        arrays = trace.load(path)
    except NOT_A_TRACE as error:
        raise ValueError(f"{path}: expected an .npz file of arrays, found something else "
                         f"({error})") from error
    kept = {name: _plain(array) for name, array in arrays.items()
            if not name.startswith(trace.MEASURED)}
    kept = {name: array for name, array in kept.items() if array is not None and array.ndim}
    if not kept:
        raise ValueError(f"{path}: it holds no array that could be compared")
    return kept


def _plain(array):
    """Return numbers as float64 or int64, bf16 patterns widened; None for what is no number."""
    array = np.asarray(array)
    if array.dtype.kind == "V" and array.dtype.itemsize == 2:  # how NumPy stores ml_dtypes' bf16
        array = bf16_to_f32(np.ascontiguousarray(array).view(np.uint16))
    if array.dtype.kind == "f":
        return array.astype(np.float64)
    return array.astype(np.int64) if array.dtype.kind in "iub" else None


def compare(a, b, rtol=RTOL):
    """Compare what two dicts of arrays have in common.

    Raises: ValueError where they have nothing in common.
    """
    a, b = _experts_in_order(a), _experts_in_order(b)
    names = sorted((name for name in a if name in b), key=_depth)
    if not names:
        raise ValueError("the two files have no name in common: nothing can be compared")
    rows, first = [], None
    for name in names:
        row, difference = compare_array(name, a[name], b[name], rtol)
        rows.append(row)
        first = first or difference
    return Comparison(rows, first, [name for name in b if name not in a],
                      [name for name in a if name not in b])


def _depth(name):
    """Sort by the way through the model, whatever the order in a file."""
    layer = re.match(r"layers\.(\d+)\.(.*)", name)
    if layer:
        return int(layer[1]), ORDER.get(f"layers.{{i}}.{layer[2]}", len(ORDER))
    return -1 if name in (*trace.TOKENS, "embed") else np.inf, ORDER.get(name, -1)


def _experts_in_order(arrays):
    """Sort each token's experts by number, and their weights with them.

    k2ref lists the best first, torch.topk need not, and the sum over them is the same.
    """
    arrays = dict(arrays)
    for name in [name for name in arrays if name.endswith(".moe.chosen")]:
        mix = name.removesuffix("chosen") + "mix"
        order = np.argsort(arrays[name], axis=-1, kind="stable")
        if mix in arrays and arrays[mix].size == order.size:
            arrays[mix] = np.take_along_axis(arrays[mix].reshape(order.shape), order, axis=-1)
        arrays[name] = np.take_along_axis(arrays[name], order, axis=-1)
    return arrays


def compare_array(name, a, b, rtol):
    """Compare one array of two traces: a Row, and where they part first or None."""
    a, b = _fit(a, b)
    if a.shape[1:] != b.shape[1:]:
        text = f"shape {a.shape} in A, {b.shape} in B"
        return Row(name, str(a.shape), np.inf, "DIFFERS", text), f"{name}: {text}"
    n = min(len(a), len(b))
    shape = str(a.shape) if len(a) == len(b) else f"{a.shape}, the last {n} rows"
    skipped = max(len(a), len(b)) - n
    a, b = a[len(a) - n:], b[len(b) - n:]
    exact = "f" not in a.dtype.kind + b.dtype.kind or a.dtype != b.dtype
    relative = _relative(a, b, exact)
    found = trace.first_difference({name: a}, {name: b}, 0.0 if exact else rtol)
    first = None
    if found is not None:
        first = str(found._replace(token=found.token + skipped))
        first += _share(relative[(found.token, *found.element)])
    if not relative.any():
        return Row(name, shape, 0.0, "same bits", ""), first
    at = np.unravel_index(np.argmax(relative), relative.shape)
    token, *element = (int(i) for i in at)
    element = f", element {', '.join(map(str, element))}" if element else ""
    where = f"token {token + skipped}{element}: {a[at]:.6g} against {b[at]:.6g}"
    verdict = "ok" if found is None else "DIFFERS"
    return Row(name, shape, float(relative[at]), verdict, where), first


def _fit(a, b):
    """Drop a batch axis of one, and split heads that are joined, where that makes the two alike."""
    def per_token(array):
        return int(np.prod(array.shape[1:]))

    def unbatched(array):
        return array[0] if array.ndim > 1 and len(array) == 1 else array

    for x, y in ((a, b), (a, unbatched(b)), (unbatched(a), b)):
        if per_token(x) == per_token(y):
            axes = max(x.shape[1:], y.shape[1:], key=len)
            return x.reshape(len(x), *axes), y.reshape(len(y), *axes)
    return a, b


def _relative(a, b, exact):
    """Return |a - b| over the largest finite |a| of the row; infinity where nothing is near."""
    if exact:
        return np.where(a == b, 0.0, np.inf)
    size = np.abs(np.where(np.isfinite(a), a, 0))
    size = size.max(axis=tuple(range(1, a.ndim)), keepdims=True, initial=0)
    with np.errstate(invalid="ignore", divide="ignore"):  # inf - inf, x / 0
        relative = np.abs(a - b) / size
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    return np.where(same, 0.0, np.where(np.isnan(relative), np.inf, relative))


def _share(away):
    return f", {away:.2g} of the row's largest" if np.isfinite(away) else ""


def lines(comparison, rtol, wanted=lambda name: True):
    """Yield the table, then where the two part first, then the names that one of them lacks."""
    rows = [row for row in comparison.rows if wanted(row.name)]
    wide = max([len(row.name) for row in rows] + [5])
    deep = max([len(row.shape) for row in rows] + [5])
    yield f"{'stage':{wide}}  {'shape':{deep}}  {'largest':>8}  verdict    where"
    for row in rows:
        worst = "0" if row.worst == 0 else f"{row.worst:.1e}" if row.worst < np.inf else "-"
        yield (f"{row.name:{wide}}  {row.shape:{deep}}  {worst:>8}  {row.verdict:9}  "
               f"{row.where}").rstrip()
    for which, names in (("A", comparison.missing_a), ("B", comparison.missing_b)):
        if names:
            yield f"not in {which}: {_shortened(names)}"
    if comparison.first is None:
        yield f"no difference beyond {rtol:g} of a row's largest, in {len(comparison.rows)} arrays"
    else:
        yield f"first difference beyond {rtol:g}: {comparison.first}"


def _shortened(names, most=6):
    """List names, each layer's number left out where all that is told is the kind."""
    kinds = list(dict.fromkeys(re.sub(r"^layers\.\d+\.", "layers.*.", name) for name in names))
    more = f" and {len(kinds) - most} more kinds" if len(kinds) > most else ""
    return f"{len(names)} arrays: {', '.join(kinds[:most])}{more}"


def main(argv=None):
    """Print the comparison of two files; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("a", metavar="A", help="a trace: k2ref's, or an .npz under its names")
    parser.add_argument("b", metavar="B", help="another of the same ids")
    parser.add_argument("--rtol", metavar="R", type=float, default=RTOL,
                        help=f"what two floats may differ by, over the row's largest ({RTOL:g})")
    args = parser.parse_args(argv)
    try:
        comparison = compare(read(args.a), read(args.b), args.rtol)
    except ValueError as error:
        print(f"compare_traces: {error}", file=sys.stderr)
        return 2
    print("\n".join(lines(comparison, args.rtol)))
    return 0 if comparison.first is None else 1


if __name__ == "__main__":
    sys.exit(main())
