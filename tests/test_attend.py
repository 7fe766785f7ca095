"""The kernel of attention alone: any heads and widths, each bit of a number, what is not finite."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import activations, seeds
from test_attention import U, assert_within, shapes

from k2ref import attention


def exact_context(q, rows, start, scale, C):
    """Return what a kernel makes of `rows` in float64, and its bound, as in `exact_attention`.

    In tiles a score is rounded 16 + 24 + 1 times and once more for each 128 dims, and what is left
    out of its products counts as a rounding; their terms are larger than they by 2^-6 at most.
    """
    T, H, width = q.shape
    S = start + T
    q, keys = q.astype(np.float64), rows[:S].astype(np.float64)
    visible = np.arange(S) <= np.arange(start, S)[:, None, None]
    scores = np.where(visible, scale * (q @ keys.T), -np.inf)
    sizes = np.where(visible, scale * (np.abs(q) @ np.abs(keys).T), 0)
    p = np.exp(scores - scores.max(axis=2, keepdims=True))
    p /= p.sum(axis=2, keepdims=True)
    spread = 2 * np.where(visible, np.abs(scores), 0).max(axis=2)
    relative = (2 * (width + 44) * sizes.max(axis=2) + 2 * spread + 2 * S + C + 60) * U
    values = np.abs(keys[:, :C])
    return p @ keys[:, :C], relative[..., None] * (p @ values) + math.exp(-87) * values.sum(axis=0)


@given(shapes, st.sampled_from([0, 14, 62, 63, 240, 254, 300, 1023]), st.integers(1, 3), seeds)
def test_attend_is_exact_for_any_heads_and_widths(kernels, shape, start, T, seed):
    H, C, width = shape
    q, rows = activations(seed, T, H, width) / 20, activations(seed + 1, 1280, width) / 20
    context = attention._attend_kernel(q, rows, start, 0.1, C, 1)
    assert_within(context, *exact_context(q, rows, start, 0.1, C))
    rows[start + T :] = np.nan
    assert (attention._attend_kernel(q, rows, start, 0.1, C, 1) == context).all()


@given(shapes, seeds, st.integers(-80, 80))
def test_a_token_that_sees_one_key_gets_its_latents_back(kernels, shape, seed, exponent):
    """Every bit of them: nothing is lost where a number is split into terms."""
    H, C, width = shape
    rows = np.full((256, width), np.nan, np.float32)
    rows[0] = activations(seed, width) * np.float32(2.0**exponent)
    q = activations(seed + 1, 1, H, width)
    context = attention._attend_kernel(q, rows, 0, 0.1, C, 1)
    assert (context == rows[0, :C]).all()


@pytest.mark.parametrize("H", [5, 17])  # for the tiles of `amx` five heads are too few
@pytest.mark.parametrize("wrong", [np.inf, -np.inf, np.nan])
def test_what_is_not_finite_in_a_key_shows(kernels, wrong, H):
    q, rows = activations(1, 9, H, 48) / 20, activations(2, 256, 48) / 20
    before = attention._attend_kernel(q, rows, 60, 0.1, 40, 1)
    rows[64, 7] = wrong
    context = attention._attend_kernel(q, rows, 60, 0.1, 40, 1)
    assert (context[:4] == before[:4]).all()  # they do not see it
    assert not np.isfinite(context[4:, :, 7]).any()
