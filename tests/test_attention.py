"""Attention: the two forms against each other and float64, the mask, the cache."""

import copy
import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import activations, attentions, matrix, n_threads, seeds

from k2ref import attention, ops
from k2ref.cache import KVCache
from k2ref.quant import F32
from k2ref.rope import cos_sin

U = 2.0**-24  # the unit roundoff of float32


def f32(values):
    return F32(np.array(values, np.float32))


def cache_of(case):
    """A KVCache with the case's latents and keys in layer 0."""
    S, C = case.c_kv.shape
    config = SimpleNamespace(num_hidden_layers=1, kv_lora_rank=C, max_position_embeddings=S,
                             qk_rope_head_dim=case.k_rope.shape[1])
    cache = KVCache(config)
    cache.write(0, case.c_kv, case.k_rope)
    return cache


def absorbed(case, rows=None, threads=1):
    rows = cache_of(case).rows[0] if rows is None else rows
    return attention.attend_absorbed(case.q_nope, case.q_rope, rows, case.start, case,
                                     case.softmax_scale, threads)


def expanded(case):
    return attention.attend_expanded(case.q_nope, case.q_rope, case.c_kv, case.k_rope, case,
                                     case.softmax_scale)


def exact_attention(case):
    """Return the attention in float64, and the bound for either form in float32.

    A score is a sum of N C + R products in which no term is rounded more than n = N + C + R + 20
    times, so it is off by `score` = n U times the sum of their sizes. Its exponential is off by
    twice that (a softmax also divides by such a sum), by the rounding of score - largest, by 4 U of
    exp itself, and by those of the S additions and of merging blocks. The mean of the values sums S
    and C products more. Kernels stop exp at -87.
    """
    T, H, N = case.q_nope.shape
    (S, C), R = case.c_kv.shape, case.k_rope.shape[1]
    visible = np.arange(S) <= np.arange(S - T, S)[:, None]
    exact, bound = np.empty((2, T, H, len(case.W_UV[0].dequantize())))
    wide = {name: getattr(case, name).astype(np.float64)
            for name in ("q_nope", "q_rope", "c_kv", "k_rope")}
    c_kv, k_rope = wide["c_kv"], wide["k_rope"]
    for h in range(H):
        W_UK = case.W_UK[h].dequantize().astype(np.float64)
        W_UV = case.W_UV[h].dequantize().astype(np.float64)
        q_nope, q_rope = wide["q_nope"][:, h], wide["q_rope"][:, h]
        scores = case.softmax_scale * (q_nope @ (c_kv @ W_UK.T).T + q_rope @ k_rope.T)
        sizes = case.softmax_scale * (np.abs(q_nope) @ (np.abs(c_kv) @ np.abs(W_UK).T).T
                                      + np.abs(q_rope) @ np.abs(k_rope).T)
        score_error = (N + C + R + 20) * U * np.where(visible, sizes, 0).max(axis=1)
        scores = np.where(visible, scores, -np.inf)
        p = np.exp(scores - scores.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        spread = 2 * np.where(visible, np.abs(scores), 0).max(axis=1)
        relative = 2 * score_error + (2 * spread + S + 40) * U + (S + C + 20) * U
        exact[:, h] = p @ (c_kv @ W_UV.T)
        values = np.abs(c_kv) @ np.abs(W_UV).T
        bound[:, h] = relative[:, None] * (p @ values) + math.exp(-87) * values.sum(axis=0)
    return exact, bound


def assert_within(found, exact, bound):
    assert found.dtype == np.float32 and found.shape == exact.shape
    worst = np.abs(found - exact) - bound
    assert (worst <= 0).all(), f"beyond the bound by {worst.max()}"


@given(attentions(), n_threads)
def test_expanded_and_absorbed_are_the_same_attention(path, case, threads):
    exact, bound = exact_attention(case)
    assert_within(expanded(case), exact, bound)
    assert_within(absorbed(case, threads=threads), exact, bound)


@settings(max_examples=5)
@given(attentions(max_start=2300, max_tokens=3), n_threads)
def test_expanded_and_absorbed_are_the_same_over_many_blocks_of_keys(path, case, threads):
    exact, bound = exact_attention(case)
    assert_within(expanded(case), exact, bound)
    assert_within(absorbed(case, threads=threads), exact, bound)


def test_the_bound_is_small():
    """One key in a hundred that is missing goes far beyond the bound above."""
    rng = np.random.default_rng(0)
    case = SimpleNamespace(
        q_nope=activations(1, 1, 2, 16), q_rope=activations(2, 1, 2, 8), start=99,
        c_kv=rng.standard_normal((100, 16), np.float32), softmax_scale=0.01,
        k_rope=rng.standard_normal((100, 8), np.float32),
        W_UK=[matrix("F32", 16, 16, h) for h in range(2)],
        W_UV=[matrix("F32", 16, 16, h) for h in range(2)],
    )  # fmt: skip
    exact, bound = exact_attention(case)
    fewer = SimpleNamespace(**vars(case))
    fewer.c_kv, fewer.k_rope, fewer.start = case.c_kv[1:], case.k_rope[1:], 98
    assert np.median(np.abs(exact_attention(fewer)[0] - exact) / bound) > 20


@given(attentions(), n_threads)
def test_absorbed_has_the_bits_of_one_token(kernels, case, threads):
    rows = cache_of(case).rows[0]
    together = absorbed(case, rows, threads)
    for t in range(len(together)):
        alone = attention.attend_absorbed(case.q_nope[t : t + 1], case.q_rope[t : t + 1], rows,
                                          case.start + t, case, case.softmax_scale, threads=1)
        assert (alone[0] == together[t]).all()


# Heads, latents and width: tiles of 16 heads, halves of 32; widths of half a tile and a whole one.
shapes = st.sampled_from([(1, 9, 16), (3, 24, 32), (17, 48, 48), (33, 33, 80), (64, 512, 576)])


@settings(max_examples=12)
@given(shapes, st.sampled_from([0, 250, 700, 1020, 2040, 3100]), st.integers(1, 12), seeds,
       n_threads)
def test_absorbed_has_the_bits_of_one_thread_over_spans(kernels, shape, start, T, seed, threads):
    H, C, width = shape
    q, rows = activations(seed, T, H, width) / 20, activations(seed + 1, 3328, width) / 20
    context = attention._attend_kernel(q, rows, start, 0.3, C, threads)
    assert (attention._attend_kernel(q, rows, start, 0.3, C, 1) == context).all()
    one = attention._attend_kernel(q[-1:].copy(), rows, start + T - 1, 0.3, C, threads)
    assert (one[0] == context[-1]).all()


@given(seeds, st.sampled_from([1, 63, 64, 65, 130]))
def test_attend_takes_any_number_of_heads(kernels, seed, H):
    q, rows = activations(seed, 2, H, 32) / 20, activations(seed + 1, 256, 32) / 20
    context = attention._attend_kernel(q, rows, 20, 0.3, 17, 2)
    for h in (0, H // 2, H - 1):  # in any place, with any neighbours
        alike = attention._attend_kernel(np.tile(q[:, h : h + 1], (1, H, 1)), rows, 20, 0.3, 17, 1)
        assert (alike == context[:, h : h + 1]).all()


@given(attentions())
def test_trap_no_token_sees_a_later_one(path, case):
    T, S = len(case.q_nope), len(case.c_kv)
    before, before_expanded = absorbed(case), expanded(case)
    for t in range(T - 1):  # what comes after token t becomes something else, and large
        changed = copy.deepcopy(case)
        changed.c_kv[S - T + t + 1 :] = 1e3
        changed.k_rope[S - T + t + 1 :] = -1e3
        assert (absorbed(changed)[: t + 1] == before[: t + 1]).all()
        assert (expanded(changed)[: t + 1] == before_expanded[: t + 1]).all()


@given(attentions())
def test_rows_after_the_last_token_are_never_read(kernels, case):
    cache = cache_of(case)
    before = absorbed(case, cache.rows[0])
    cache.rows[0][len(case.c_kv) :] = np.nan  # as a truncated cache may hold anything there
    assert (absorbed(case, cache.rows[0]) == before).all()


def test_attention_to_equal_keys_is_the_mean(path):
    case = SimpleNamespace(
        q_nope=np.ones((3, 1, 1), np.float32), q_rope=np.zeros((3, 1, 2), np.float32), start=0,
        c_kv=np.array([[1.0, 3.0], [1.0, 5.0], [1.0, 10.0]], np.float32), softmax_scale=1.0,
        k_rope=np.zeros((3, 2), np.float32), W_UK=[f32([[1.0, 0.0]])],
        W_UV=[f32([[0.0, 1.0]])],
    )  # fmt: skip
    for heads in (absorbed(case), expanded(case)):  # all keys are 1, the values 3, 5, 10
        np.testing.assert_allclose(heads[:, 0, 0], [3, 4, 6], rtol=10 * U)


def test_scores_of_any_size_stay_finite(path):
    case = SimpleNamespace(
        q_nope=np.full((2, 1, 1), 1e4, np.float32), q_rope=np.zeros((2, 1, 2), np.float32),
        start=0, c_kv=np.array([[-1e3], [1e3]], np.float32), softmax_scale=1.0,
        k_rope=np.zeros((2, 2), np.float32), W_UK=[f32([[1.0]])], W_UV=[f32([[1.0]])],
    )  # fmt: skip
    for heads in (absorbed(case), expanded(case)):
        assert heads.ravel().tolist() == [-1e3, 1e3]


def test_attend_refuses_what_does_not_fit(kernels):
    q, rows = np.zeros((2, 3, 32), np.float32), np.zeros((256, 32), np.float32)
    out = np.empty((2, 3, 16), np.float32)
    wrong = [
        (q, rows[:200].copy(), out, 0), (q, rows, out, 255), (q, rows, out, -1),
        (q[:, :2].copy(), rows, out, 0), (q[..., :20].copy(), rows[:, :20].copy(), out, 0),
        (q, rows, np.empty((2, 3, 33), np.float32), 0), (q[:, ::2], rows, out[:, :2], 0),
    ]  # fmt: skip
    for q_, rows_, out_, start in wrong:
        with pytest.raises(ValueError, match="attend"):
            kernels.attend(q_, rows_, out_, start, 1.0, 1)
    with pytest.raises(TypeError, match="float32"):
        kernels.attend(q.astype(np.float64), rows, out, 0, 1.0, 1)
    kernels.attend(q, rows, out, 254, 1.0, 1)  # the last place that fits


def a_layer(tiny_model, layout="thinking", T=6):
    """The first layer's weights, activations for it, their angles, and a cache."""
    model = tiny_model(layout)
    h = activations(3, T, model.config.hidden_size) / 10
    return h, model.layers[0].attention, *cos_sin(model.config, range(T)), model.config


def in_float64(layout_args):
    """Compute the latents of `a_layer` in float64, with eps as the official code has it."""
    h, w, cos, sin, config = layout_args
    C = config.kv_lora_rank
    both = h.astype(np.float64) @ w.kv_a_proj_with_mqa.dequantize().astype(np.float64).T
    mean_square = (both[:, :C] ** 2).mean(axis=1, keepdims=True)
    c_kv = w.kv_a_layernorm * both[:, :C] / np.sqrt(mean_square + 1e-6)
    a, b = both[:, C::2], both[:, C + 1 :: 2]
    return c_kv, np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=1)


def test_latents_are_the_normed_projection_and_the_rotated_key(path, tiny_model):
    args = a_layer(tiny_model)
    for found, exact in zip(attention.latents(*args, threads=1), in_float64(args), strict=True):
        # One product of 64 terms, a norm and a rotation: 100 roundings at most.
        np.testing.assert_allclose(found, exact, rtol=100 * U, atol=100 * U)


def test_trap_latent_norms_use_eps_of_their_own(path, tiny_model):
    h, w, cos, sin, config = a_layer(tiny_model)
    assert config.rms_norm_eps == 1e-5
    args = h * np.float32(1e-3), w, cos, sin, config  # so small that eps decides
    np.testing.assert_allclose(attention.latents(*args, threads=1)[0], in_float64(args)[0],
                               rtol=100 * U, atol=100 * U)
    q, _ = attention.queries(*args, threads=1)
    wrong = dataclasses.replace(config, latent_norm_eps=1e-5)
    other, _ = attention.queries(*args[:-1], wrong, threads=1)
    assert np.abs(other - q).max() > 0.1 * np.abs(q).max()


@pytest.mark.parametrize("layout", ["thinking", "moonlight"])  # with and without q_lora_rank
def test_queries_are_split_by_head_into_nope_and_rope(path, tiny_model, layout):
    h, w, cos, sin, config = a_layer(tiny_model, layout)
    q_nope, q_rope = attention.queries(h, w, cos, sin, config, threads=1)
    if layout == "moonlight":
        q = ops.linear(h, w.q_proj)
    else:
        q_latent = ops.rms_norm(ops.linear(h, w.q_a_proj), w.q_a_layernorm, 1e-6)
        q = ops.linear(q_latent, w.q_b_proj)
    H, N, R = config.num_attention_heads, config.qk_nope_head_dim, config.qk_rope_head_dim
    for head in range(H):
        first = head * (N + R)
        np.testing.assert_allclose(q_nope[:, head], q[:, first : first + N], rtol=0, atol=1e-5)
        a, b = q[:, first + N : first + N + R : 2], q[:, first + N + 1 : first + N + R : 2]
        turned = np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=1)
        np.testing.assert_allclose(q_rope[:, head], turned, rtol=0, atol=1e-5)
