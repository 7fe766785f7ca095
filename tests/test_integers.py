"""INT4 products in integers (vnni/digits.h): digits, rows in doubt, and the error they may make.

The bounds hold on every path; what is said of digits and doubt, where bytes are multiplied.
"""

import numpy as np
import pytest
from conftest import COMPILED
from hypothesis import given
from hypothesis import strategies as st
from strategies import activations, matrix, n_threads, seeds
from test_ops import assert_within, exact_linear

from k2ref import ops, quant

GROUP_OF = [4 * (lane % 4) + lane // 4 for lane in range(16)]


@pytest.fixture(params=["amx", "vnni"])
def integers(request):
    """Run a test on each path that multiplies in integers; the name of the path."""
    if request.param not in COMPILED:
        pytest.skip(f"this machine has no {request.param}")
    ops.kernels.use_path(request.param)
    yield request.param
    ops.kernels.use_path(COMPILED[0])


def integers_of_group(x, near):
    """Return Python's integers for 32 activations, their unit, and the least sum to be trusted."""
    largest = float(np.abs(x).max())
    unit = 2.0 ** (np.frexp(largest)[1] - 30)
    integers = [round(value / unit) for value in x.tolist()]
    off = [abs(X * unit - value) for X, value in zip(integers, x.tolist(), strict=True)]
    far = any(o > near * abs(value) for o, value in zip(off, x.tolist(), strict=True))
    return integers, unit, 8 * sum(off) / unit * (1 / near + 1) * 1.001 if far else 0


def one_row(q, scale, x):
    """Multiply as vnni/digits.h says, in Python's integers; None for a row in doubt."""
    lanes, near = np.zeros(16, np.float32), len(x) * 31 / 32 * 2.0**-24
    for g in range(len(x) // 32):
        columns = slice(32 * g, 32 * g + 32)
        integers, unit, least = integers_of_group(x[columns], near)
        total = sum(X * w for X, w in zip(integers, q[columns].tolist(), strict=True))
        if abs(total) < least:
            return None
        lanes[GROUP_OF[g % 16]] += np.float32(total) * np.float32(unit) * scale[g]
    for half in (8, 4, 2, 1):
        lanes = lanes[:half] + lanes[half:]
    return lanes[0]


def powers_of_two(seed, O, I):
    """Return codes (O, I), scales (O, I/32) that are powers of two, and both as a weight."""
    rng = np.random.default_rng(seed)
    q = rng.integers(-8, 8, (O, I))
    scale = (2.0 ** rng.integers(-6, 3, (O, I // 32))).astype(np.float32)
    return q, scale, quant.Int4(quant.pack_int4(q), quant.f32_to_bf16(scale))


def with_small_ones(seed, I, n):
    """Draw activations of which n are tiny beside the largest of their group."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((I // 32, 32), np.float32)
    x += np.copysign(np.float32(0.5), x)
    x *= np.float32(2) ** rng.integers(-20, 20, (I // 32, 1))
    x.reshape(-1)[rng.choice(I, n, replace=False)] *= np.float32(2.0**-31)
    return x.reshape(-1)


@given(seeds, st.sampled_from([32, 96, 512, 544, 1120]), st.sampled_from([0, 1, 3, 20]))
def test_sums_are_those_of_pythons_integers(integers, seed, I, n):
    # Scales are powers of two, so that the products are exact; `q` has rows that see little of x.
    q, scale, w = powers_of_two(seed, 5, I)
    x = with_small_ones(seed, I, n)
    expected = [one_row(q[r], scale[r], x) for r in range(5)]
    ops.kernels.use_path("avx512")
    floats = ops.linear(x, w)
    ops.kernels.use_path(integers)
    expected = np.array([floats[r] if y is None else y for r, y in enumerate(expected)])
    for T in (1, 3, 4, 18):
        assert (ops.linear(np.tile(x, (T, 1)), w) == expected).all()


@pytest.mark.parametrize("T", [1, 2, 5, 40])
def test_only_a_row_in_doubt_is_computed_in_floats(integers, T):
    I, t, r = 1056, T // 2, 20
    q, scale, _ = powers_of_two(1, 33, I)
    q[r, 64:96] = 0
    q[r, 70] = 1  # meets the only small one: all that this row sees of the group
    w = quant.Int4(quant.pack_int4(q), quant.f32_to_bf16(scale))
    x = activations(2, T, I)
    x[t, 70] = 2.0**-30 * np.abs(x[t, 64:96]).max()
    in_doubt = [one_row(q[i], scale[i], x[t]) is None for i in range(33)]
    assert in_doubt == [i == r for i in range(33)]
    y = ops.linear(x, w)
    ops.kernels.use_path("avx512")
    floats = ops.linear(x, w)
    assert y[t, r] == floats[t, r]
    assert np.count_nonzero(y[t] != floats[t]) > 5
    q[r, 64:96] = 1
    w = quant.Int4(quant.pack_int4(q), quant.f32_to_bf16(scale))
    ops.kernels.use_path(integers)
    assert ops.linear(x, w)[t, r] == ops.linear(x[t], w)[r]


def hard_tokens(seed, T, I):
    """Draw tokens of every kind: plain, some tiny, zeros, heavy tails, NaN and infinity."""
    rng = np.random.default_rng(seed)
    x = activations(seed, T, I)
    for t in range(T):
        kind = rng.integers(8)
        if kind in (1, 2, 3):
            x[t] = with_small_ones(seed + t, I, [1, 5, I // 4][kind - 1])
        elif kind == 4:
            x[t] *= rng.random(I) < 0.1
        elif kind == 5:
            x[t, rng.integers(I)] = [np.nan, np.inf, -np.inf][rng.integers(3)]
        elif kind == 6:
            x[t] = np.ldexp(x[t], int(rng.integers(-150, 100)))
        elif kind == 7:
            x[t] = np.exp(rng.standard_normal(I) * 6)
    return x


@given(seeds, st.sampled_from([(5, 32), (33, 544), (65, 1056)]), n_threads)
def test_bits_do_not_depend_on_the_company(kernels, seed, shape, threads):
    w = matrix("Int4", *shape, seed)
    x = hard_tokens(seed, 70, shape[1])
    alone = np.stack([ops.linear(row, w, threads=1) for row in x])
    for start, T in ((0, 70), (3, 64), (5, 1), (6, 2), (9, 3), (20, 4), (31, 17), (40, 5)):
        y = ops.linear(x[start : start + T], w, threads)
        assert np.array_equal(y, alone[start : start + T], equal_nan=True)
    y = ops.linear(x, w.rows(2, shape[0]), threads)
    assert np.array_equal(y, alone[:, 2:], equal_nan=True)


@pytest.mark.parametrize("T", [1, 4, 19])
@pytest.mark.parametrize("n", [1, 2, 15, 16, 17, 31])
@pytest.mark.parametrize("size", [2.0**-40, 2.0**-32, 2.0**-31, 2.0**-30, 2.0**-24, 2.0**-12])
def test_one_huge_activation_does_not_drown_the_small_ones(path, T, n, size):
    # The huge one meets weights of 0, so that the error may be no larger than the small ones allow.
    for I in (32, 544):
        rng = np.random.default_rng(n)
        q = rng.integers(-8, 8, (9, I))
        q[:, 5] = 0
        w = quant.Int4(quant.pack_int4(q), quant.f32_to_bf16(np.ones((9, I // 32), np.float32)))
        x = np.zeros((T, I), np.float32)
        x[:, 5] = 1.9e30
        x[:, 32 - n : 32] = rng.standard_normal((T, n)) * 1.9e30 * size
        x[:, 5] = 1.9e30
        assert_within(ops.linear(x, w), *exact_linear(x, w))


@given(seeds, st.sampled_from([1, 3, 6, 20]), st.sampled_from([32, 64, 544]))
def test_heavy_tails_stay_within_rounding(path, seed, T, I):
    rng = np.random.default_rng(seed)
    q = rng.integers(-8, 8, (6, I)) * (rng.random((6, I)) < rng.choice([0.1, 1]))
    scale = quant.f32_to_bf16(np.exp(rng.standard_normal((6, I // 32))).astype(np.float32))
    w = quant.Int4(quant.pack_int4(q), scale)
    x = np.exp(rng.standard_normal((T, I)) * rng.choice([3, 6, 9])).astype(np.float32)
    x *= rng.choice([-1, 1], (T, I))
    assert_within(ops.linear(x, w), *exact_linear(x, w))


@pytest.mark.parametrize("T", [1, 4, 20])
def test_zeros_of_either_sign_and_denormal_numbers(path, T):
    w = matrix("Int4", 5, 64, 4)
    assert (ops.linear(np.full((T, 64), -0.0, np.float32), w) == 0).all()
    x = activations(5, T, 64)
    x[:, 3::5] = -0.0
    x[:, 7] = 1e-42  # as good as nothing, in its group
    assert_within(ops.linear(x, w), *exact_linear(x, w))
    x = np.full((T, 64), 1e-42, np.float32)  # each product may lose half of the least number
    exact, bound = exact_linear(x, w)
    assert_within(ops.linear(x, w), exact, bound + 200 * 2.0**-149)
