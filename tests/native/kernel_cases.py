"""Write cases for kernel_driver.c, and hold two files of its results together, bit by bit.

    python tests/native/kernel_cases.py write CASES EXPECTED.npz
    python tests/native/kernel_cases.py compare EXPECTED.npz RESULTS

What is expected is what k2ref's own kernels make of the cases, on the path of K2REF_KERNELS.
"""

import struct
import sys
from pathlib import Path

import numpy as np
from strategies import FORMATS, activations, matrix

from k2ref import ops

LINEAR, ATTEND, SILU_MUL, RMS_NORM = range(4)
KEYS = 256  # a cache is whole blocks of keys
# Whole and broken vectors, blocks of 128 and 512 columns, tiles of 4, 8 and 16 rows, 3, 16
# and 66 tokens.
SHAPES = [(1, 1, 32), (1, 9, 544), (2, 33, 1056), (3, 17, 512), (5, 7, 96), (67, 130, 576),
          (34, 20, 160)]
ODD_SHAPES = [(1, 5, 1), (4, 129, 129), (1, 130, 500), (2, 3, 513)]  # not for whole groups of 32
# Queries, heads, latents, first position, width of a cache row: one block, many, and many spans.
ATTENTIONS = [(1, 1, 8, 0, 16), (5, 3, 33, 254, 48), (2, 65, 24, 1020, 32), (20, 4, 64, 5, 80),
              (1, 5, 512, 2500, 576)]  # fmt: skip


class Cases:
    """Collect the bytes of the cases and, by name, what k2ref makes of each."""

    def __init__(self):
        self.data, self.results = bytearray(), {}

    def add(self, name, sizes, arrays, result):
        self.data += struct.pack("<8q", *sizes, *[0] * (8 - len(sizes)))
        for array in arrays:
            self.data += np.ascontiguousarray(array).tobytes()
        assert name not in self.results
        self.results[name] = result


def linear_case(cases, format, T, O, I, transposed=False, first_row=0):
    whole = matrix(format, first_row + O, I, seed=T * O + I)
    w = whole.rows(first_row, first_row + O)
    data, scale = w.arrays
    x = activations(O + I, T, O if transposed else I)
    y = np.empty((T, I if transposed else O), np.float32)
    ops.kernels.linear([(x, w, y, transposed)], 2)
    scale_row = 0 if scale is None else scale.strides[0]
    cases.add(f"{format} {O}x{I}{' transposed' * transposed}, {T} tokens, from row {first_row}",
              (LINEAR, FORMATS.index(format), transposed, O, I, T, first_row, scale_row),
              (data, x) if scale is None else (data, scale, x), y)


def attend_case(cases, T, H, C, start, width):
    q, rows = activations(T, T, H, width) / 8, activations(H, start + T, width) / 8
    cache = np.zeros((-(-(start + T) // KEYS) * KEYS, width), np.float32)
    cache[: start + T] = rows
    out = np.empty((T, H, C), np.float32)
    ops.kernels.attend(q, cache, out, start, 100 / 1024, 2)
    cases.add(f"attention of {T} tokens and {H} heads at {start}, C = {C}",
              (ATTEND, T, H, C, start, width, 100), (q, cache), out)


def rows_cases(cases, T, D):
    x, up, weight = activations(D, T, D), activations(T, T, D), activations(T + D, D)
    cases.add(f"silu_mul {T}x{D}", (SILU_MUL, T, D), (x, up), ops.silu_mul(x, up))
    cases.add(f"rms_norm {T}x{D}", (RMS_NORM, T, D), (x, weight), ops.rms_norm(x, weight, 1e-5))


def all_cases():
    cases = Cases()
    for format in FORMATS:
        for shape in SHAPES + ODD_SHAPES * (format != "Int4"):
            linear_case(cases, format, *shape)
            if format != "Int4":
                linear_case(cases, format, *shape, transposed=True)
        linear_case(cases, format, 4, 140, 288, first_row=120)
    for sizes in ATTENTIONS:
        attend_case(cases, *sizes)
    for shape in ((1, 1), (3, 130), (2, 576)):
        rows_cases(cases, *shape)
    return cases


def write(cases_file, expected_file):
    """Write the cases and what is expected of them."""
    if ops.kernels is None:
        sys.exit("kernel_cases: k2ref's kernels are not compiled; pip install -e .")
    cases = all_cases()
    Path(cases_file).write_bytes(cases.data)
    np.savez(expected_file, **cases.results)
    print(f"{len(cases.results)} cases; expected is what {ops.kernels_name()} gives")


def compare(expected_file, results_file):
    """Exit with 1, and say which cases differ, unless every result has the expected bits."""
    expected = dict(np.load(expected_file))
    found = np.fromfile(results_file, "<u4")
    n_expected = sum(values.size for values in expected.values())
    if len(found) != n_expected:
        sys.exit(f"kernel_cases: expected {n_expected} numbers, found {len(found)}")
    end, n_wrong = 0, 0
    for name, values in expected.items():
        start, end = end, end + values.size
        bits, wanted = found[start:end], values.ravel().view(np.uint32)
        if (bits != wanted).any():
            at, n = np.flatnonzero(bits != wanted)[0], np.count_nonzero(bits != wanted)
            print(f"{name}: {n} of {values.size} numbers differ; number {at} is "
                  f"{bits.view('<f4')[at]!r}, expected {values.ravel()[at]!r}")
            n_wrong += 1
    if n_wrong:
        sys.exit(f"kernel_cases: {n_wrong} of {len(expected)} cases differ")
    print(f"the same bits in {len(expected)} cases")


if __name__ == "__main__":
    {"write": write, "compare": compare}[sys.argv[1]](*sys.argv[2:])
