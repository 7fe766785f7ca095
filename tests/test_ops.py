"""The operations: every kernel path and NumPy against float64, and the order of each sum."""

import os
import signal
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import FORMATS, activations, matrix, n_threads, products, seeds

from k2ref import ops, quant

U = 2.0**-24  # the unit roundoff of float32


def exact_linear(x, w):
    """Return x W^T in float64, and the bound for float32 in any order of the sum.

    n terms in any order: each product and each addition rounds once, at most n + 1 times for a
    term; FP8 weights and the scales that some paths apply later add 3 at most. Squares of U are
    covered by the rest of the 8.
    """
    x, matrix = x.astype(np.float64), w.dequantize().astype(np.float64)
    return x @ matrix.T, (matrix.shape[1] + 8) * U * (np.abs(x) @ np.abs(matrix).T)


def assert_within(found, exact, bound):
    assert found.dtype == np.float32 and found.shape == exact.shape
    worst = np.abs(found - exact) - bound
    assert (worst <= 0).all(), f"beyond the bound by {worst.max()}"


@given(products(), n_threads)
def test_linear_is_right_within_rounding(path, product, threads):
    x, w = product
    assert_within(ops.linear(x, w, threads), *exact_linear(x, w))


@given(products())
def test_linear_numpy_is_right_within_rounding(product):
    x, w = product
    assert_within(ops.linear_numpy(x, w), *exact_linear(x, w))


@given(products(), st.data())
def test_linear_has_the_bits_of_one_token(kernels, product, data):
    x, w = product
    y = ops.linear(x, w, threads=1)
    t = data.draw(st.integers(0, len(x) - 1))
    assert (ops.linear(x[t], w, threads=1) == y[t]).all()
    assert (ops.linear(x[t : t + 5], w, threads=1) == y[t : t + 5]).all()


@given(products(), n_threads)
def test_linear_has_the_bits_of_one_thread(kernels, product, threads):
    x, w = product
    assert (ops.linear(x, w, threads) == ops.linear(x, w, threads=1)).all()


@given(products(), st.data())
def test_linear_of_some_rows_has_the_bits_of_all(kernels, product, data):
    x, w = product
    stop = data.draw(st.integers(1, w.shape[0]))
    start = data.draw(st.integers(0, stop - 1))
    part = ops.linear(x, w.rows(start, stop), threads=2)
    assert (part == ops.linear(x, w, threads=1)[:, start:stop]).all()


@given(st.lists(products(), min_size=2, max_size=4), n_threads)
def test_linear_many_has_the_bits_of_each(kernels, many, threads):
    for (x, w), y in zip(many, ops.linear_many(many, threads), strict=True):
        assert (y == ops.linear(x, w, threads=1)).all()


@given(seeds, n_threads)
def test_linear_many_shares_one_input_among_formats(kernels, seed, threads):
    x = activations(seed, 3, 544)  # as gate_proj and up_proj do; INT4 wants x in another order
    many = [(x, matrix(format, 20, 544, seed)) for format in FORMATS for _ in range(2)]
    for (_, w), y in zip(many, ops.linear_many(many, threads), strict=True):
        assert (y == ops.linear(x, w, threads=1)).all()


@pytest.mark.parametrize("format", FORMATS)
def test_linear_takes_one_vector(path, format):
    x, w = activations(1, 64), matrix(format, 5, 64, 2)
    y = ops.linear(x, w)
    assert y.shape == (5,)
    exact, bound = exact_linear(x[None], w)
    assert_within(y, exact[0], bound[0])


@pytest.mark.parametrize("format", FORMATS)
def test_linear_of_no_tokens(path, format):
    y = ops.linear(np.empty((0, 64), np.float32), matrix(format, 5, 64, 0))
    assert y.shape == (0, 5) and y.dtype == np.float32


@pytest.mark.parametrize("format", FORMATS)
def test_linear_takes_activations_that_are_not_contiguous(path, format):
    x, w = activations(1, 6, 128)[::2, ::2], matrix(format, 5, 64, 2)
    assert_within(ops.linear(x, w), *exact_linear(x, w))


@pytest.mark.parametrize("format", FORMATS)
def test_linear_refuses_wrong_activations(path, format):
    w = matrix(format, 5, 64, 0)
    for x in (np.ones((2, 63), np.float32), np.ones((2, 64)), np.ones((1, 2, 64), np.float32),
              np.float32(1), [[1.0] * 64], np.ones((2, 64), np.float16)):  # fmt: skip
        with pytest.raises(ValueError, match=rf"linear: a {format} weight of shape \(5, 64\)"):
            ops.linear(x, w)


def test_linear_reads_each_int4_code_in_each_column(path):
    # One weight of 1 at a time: the identity finds a column that is out of place, code by code.
    columns = np.arange(64)
    q = np.tile((columns * 7 + 3) % 16 - 8, (1, 1))
    w = quant.Int4(quant.pack_int4(q), quant.f32_to_bf16(np.array([[1.0, 0.5]], np.float32)))
    y = ops.linear(np.eye(64, dtype=np.float32), w)
    assert y[:, 0].tolist() == (q[0] * np.where(columns < 32, 1.0, 0.5)).tolist()


def test_linear_reads_every_fp8_code(path):
    codes = np.arange(256, dtype=np.uint8)
    w = quant.Fp8(codes[:, None].copy(), np.full((2, 1), 0.5, np.float32))
    y = ops.linear(np.full((1, 1), 2.0, np.float32), w)
    assert np.array_equal(y[0], quant.fp8_to_f32(codes), equal_nan=True)


@given(seeds)
def test_linear_with_scales_of_zero_gives_zero(path, seed):
    w = matrix("Int4", 7, 64, seed)
    w = quant.Int4(w.packed, np.zeros_like(w.scale))
    assert (ops.linear(activations(seed, 4, 64), w) == 0).all()


def heads_case(seed, format, T, H, O, I):
    """H views of O rows of one weight, as kv_b_proj is cut, and activations for either side."""
    whole = matrix(format, H * (O + 3), I, seed)
    weights = [whole.rows(r, r + O) for r in range(0, H * (O + 3), O + 3)]
    return weights, activations(seed, T, H, I), activations(seed + 1, T, H, O)


heads_cases = st.builds(
    heads_case, seeds, st.sampled_from(FORMATS[1:]), st.sampled_from([1, 2, 64, 70]),
    st.integers(1, 4), st.integers(1, 140), st.sampled_from([1, 16, 33, 128, 140]),
)  # fmt: skip


@given(heads_cases, n_threads)
def test_linear_heads_multiplies_each_head(path, case, threads):
    weights, x, _ = case
    y = ops.linear_heads(x, weights, threads=threads)
    for h, w in enumerate(weights):
        assert_within(y[:, h], *exact_linear(x[:, h], w))


@given(heads_cases, n_threads)
def test_linear_heads_transposed_multiplies_from_the_other_side(path, case, threads):
    weights, _, x = case
    y = ops.linear_heads(x, weights, transposed=True, threads=threads)
    for h, w in enumerate(weights):
        turned = quant.F32(np.ascontiguousarray(w.dequantize().T))
        assert_within(y[:, h], *exact_linear(x[:, h], turned))


@given(heads_cases, n_threads, st.booleans())
def test_linear_heads_fills_a_given_view_and_nothing_else(path, case, threads, transposed):
    weights, x = case[0], case[2 if transposed else 1]
    y = ops.linear_heads(x, weights, transposed, threads)
    T, H, O = y.shape
    wide = np.full((T, H, O + 16), 7, np.float32)
    assert ops.linear_heads(x, weights, transposed, threads, out=wide[..., :O]).base is wide
    assert (wide[..., :O] == y).all() and (wide[..., O:] == 7).all()


@given(heads_cases, n_threads)
def test_linear_heads_has_the_bits_of_one_token(kernels, case, threads):
    weights, x, turned = case
    for x_, transposed in ((x, False), (turned, True)):
        y = ops.linear_heads(x_, weights, transposed, threads)
        for t in {0, len(x_) // 2, len(x_) - 1}:
            one = ops.linear_heads(x_[t : t + 1], weights, transposed, threads=1)
            assert (one[0] == y[t]).all()


def test_rms_norm_of_a_literal(path):
    x = np.array([[3.0, 4.0], [0.0, 0.0]], np.float32)  # mean square 12.5; a row of zeros
    y = ops.rms_norm(x, np.array([1.0, 2.0], np.float32), 1e-6)
    expected = [[3 / np.sqrt(12.5 + 1e-6), 8 / np.sqrt(12.5 + 1e-6)], [0, 0]]
    np.testing.assert_allclose(y, expected, rtol=6 * U)


def test_rms_norm_adds_eps_to_the_mean_square(path):
    x = np.full((1, 4), 1e-3, np.float32)  # mean square 1e-6
    y = ops.rms_norm(x, np.ones(4, np.float32), 3e-6)
    np.testing.assert_allclose(y, 0.5, rtol=12 * U)


@given(seeds, st.integers(1, 9), st.integers(1, 600))
def test_rms_norm_is_right_within_rounding(path, seed, T, D):
    x, weight = activations(seed, T, D), activations(seed + 1, D)
    y = ops.rms_norm(x, weight, 1e-5)
    wide = x.astype(np.float64)
    exact = weight * wide / np.sqrt(np.mean(wide**2, axis=-1, keepdims=True) + 1e-5)
    # The mean square is off by (D + 3) U, its root by half of that; four more roundings follow.
    assert_within(y, exact, ((D + 3) / 2 + 6) * U * np.abs(exact))


@given(seeds, st.integers(1, 600))
def test_rms_norm_has_the_bits_of_one_row(kernels, seed, D):
    x, weight = activations(seed, 5, D), activations(seed + 1, D)
    y = ops.rms_norm(x, weight, 1e-5)
    for t in range(5):
        assert (ops.rms_norm(x[t : t + 1], weight, 1e-5) == y[t]).all()


@given(seeds, st.integers(0, 5), st.integers(1, 9), st.integers(1, 70))
def test_weighted_sum_is_right_within_rounding(path, seed, T, K, D):
    weights, rows = activations(seed, T, K), activations(seed + 1, T * K, D)
    y = ops.weighted_sum(weights, list(rows), D)
    wide, terms = weights.astype(np.float64)[..., None], rows.reshape(T, K, D)
    assert y.shape == (T, D) and y.dtype == np.float32
    bound = (K + 1) * U * np.abs(wide * terms).sum(axis=1)
    assert_within(y, (wide * terms).sum(axis=1), bound)


@given(seeds, st.integers(1, 9), st.integers(1, 70))
def test_weighted_sum_has_the_bits_of_one_row(kernels, seed, K, D):
    weights, rows = activations(seed, 5, K), list(activations(seed + 1, 5 * K, D))
    y = ops.weighted_sum(weights, rows, D)
    for t in range(5):
        one = ops.weighted_sum(weights[t : t + 1], rows[t * K : t * K + K], D)
        assert (one[0] == y[t]).all()


# exp is off by 2 ulp (4 U) at most, and so are 1 + exp and the quotient, by U each; NumPy's own exp
# rounds its argument's product besides. Ten cover it, with the product with `up`.
SILU_ERROR = 10 * U


@given(seeds, st.integers(1, 4), st.integers(1, 70))
def test_silu_mul_is_right_within_rounding(path, seed, T, F):
    gate, up = activations(seed, T, F).clip(-80, 80), activations(seed + 1, T, F)
    exact = gate / (1 + np.exp(-gate.astype(np.float64))) * up
    assert_within(ops.silu_mul(gate, up), exact, SILU_ERROR * np.abs(exact))


@given(seeds, st.integers(1, 70))
def test_silu_mul_has_the_bits_of_one_row(kernels, seed, F):
    gate, up = activations(seed, 5, F), activations(seed + 1, 5, F)
    y = ops.silu_mul(gate, up)
    for t in range(5):
        assert (ops.silu_mul(gate[t : t + 1], up[t : t + 1]) == y[t]).all()


@pytest.mark.filterwarnings("error")
def test_silu_of_large_numbers(path):
    gate = np.array([[-1e30, -1e4, -100.0, 0.0, 100.0, 1e4, 1e30]], np.float32)
    expected = [[0, 0, 0, 0, 100, 1e4, 1e30]]
    for y in (ops.silu_mul(gate, np.ones_like(gate)), ops.silu(gate)):
        # The kernels' exp stops at 88: of -1e30 is left 1e30 * exp(-88), 6e-9.
        np.testing.assert_allclose(y, expected, rtol=2 * U, atol=1e-8)


@pytest.mark.filterwarnings("error")
def test_sigmoid_neither_overflows_nor_leaves_float32():
    x = np.array([-1e30, -100.0, -1.0, 0.0, 1.0, 100.0, 1e30], np.float32)
    y = ops.sigmoid(x)
    assert y.dtype == np.float32
    exact = 1 / (1 + np.exp(-x.astype(np.float64).clip(-700, 700)))
    np.testing.assert_allclose(y, exact, rtol=8 * U, atol=2.0**-149)


@given(seeds, st.integers(1, 50))
def test_softmax_sums_to_one_and_gives_nothing_to_minus_infinity(seed, S):
    x = activations(seed, 3, S)
    x[:, : S // 2] = -np.inf
    p = ops.softmax(x)
    wide = np.exp(x.astype(np.float64) - x.max(axis=-1, keepdims=True))
    assert (p[:, : S // 2] == 0).all()
    # The argument of exp is rounded: an absolute error of U * |x - max|, relative in exp.
    spread = np.ptp(np.where(np.isinf(x), x.max(), x))
    exact = wide / wide.sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(p, exact, rtol=(S + 10 + 2 * spread) * U, atol=2.0**-126)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_trap_a_fork_after_products_makes_products_too(kernels):
    x, w = activations(3, 5, 1024), matrix("Int4", 2048, 1024, 3)  # a small one takes one thread
    expected = ops.linear(x, w, threads=4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer Pythons warn of it
        child = os.fork()
    if child == 0:
        signal.alarm(30)
        os._exit(0 if (ops.linear(x, w, threads=4) == expected).all() else 1)
    assert (ops.linear(x, w, threads=4) == expected).all()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
