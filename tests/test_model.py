"""The whole model: one answer to the bit, however the tokens come, and what it refuses."""

import dataclasses

import numpy as np
import pytest
from conftest import COMPILED, assert_same
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import partitions, seeds

import k2ref
from k2ref import attention, model, ops, quant
from k2ref.run import Run
from k2ref.trace import Trace
from scripts.checkpoints.small import LAYOUTS, tiny_config, write_checkpoint

N = 21
IDS = np.random.default_rng(7).integers(0, 512, N)
# The tests of long prompts: past a key block of attention (256) and past a span of them (1,024).
LONG = np.random.default_rng(8).integers(0, 64, 1100)


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """The smallest model with a layer of each kind, for long prompts."""
    config = tiny_config()
    config.update(num_hidden_layers=2, n_routed_experts=4, vocab_size=64, bos_token_id=61,
                  eos_token_id=62, pad_token_id=63)  # fmt: skip
    return k2ref.load(write_checkpoint(tmp_path_factory.mktemp("small"), config), threads=1)


def in_pieces(m, ids, sizes, cache=None):
    cache = k2ref.KVCache(m.config, len(ids)) if cache is None else cache
    ends = np.cumsum(sizes)
    return np.concatenate([k2ref.forward(m, ids[end - size : end], cache)
                           for size, end in zip(sizes, ends, strict=True)])  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_logits_have_one_row_per_token(path, tiny_model, layout):
    logits = k2ref.forward(tiny_model(layout), IDS)
    assert logits.shape == (N, 512) and logits.dtype == np.float32
    assert np.isfinite(logits).all() and 0.3 < logits.std() < 3


@pytest.mark.parametrize("layout", LAYOUTS)
@settings(max_examples=8)
@given(sizes=partitions(N))
def test_cached_is_full_for_every_way_to_cut_a_prompt(path, tiny_model, layout, sizes):
    m = tiny_model(layout)
    assert_same(in_pieces(m, IDS, sizes), k2ref.forward(m, IDS))


@settings(max_examples=4)
@given(sizes=partitions(1100))
def test_cached_is_full_across_blocks_and_spans_of_keys(kernels, small, sizes):
    sizes = merged(sizes, 60)
    assert (in_pieces(small, LONG, sizes) == k2ref.forward(small, LONG)).all()


def merged(sizes, at_least):
    """Join neighbouring pieces until each of them, but the last, has so many tokens."""
    pieces = [0]
    for size in sizes:
        if pieces[-1] >= at_least:
            pieces.append(0)
        pieces[-1] += size
    return pieces


@pytest.mark.parametrize("cut", [255, 256, 257, 1023, 1024, 1025, 1099])
def test_decoding_has_the_bits_of_prefill_at_the_edges(kernels, small, cut):
    cache = k2ref.KVCache(small.config, len(LONG))
    k2ref.forward(small, LONG[:cut], cache, last_only=True)
    one = k2ref.forward(small, LONG[cut : cut + 1], cache)
    assert (one == k2ref.forward(small, LONG[: cut + 1], last_only=True)).all()


@pytest.mark.parametrize("chunk", [1, 5, 20, 21, 1000])
def test_the_size_of_a_chunk_changes_no_bit(path, tiny_model, monkeypatch, chunk):
    expected, trace, trace_too = k2ref.forward(tiny_model(), IDS), Trace(), Trace()
    last = k2ref.forward(tiny_model(), IDS, last_only=True, trace=trace)
    monkeypatch.setattr("k2ref.run.CHUNK", chunk)
    assert_same(k2ref.forward(tiny_model(), IDS), expected)
    assert_same(k2ref.forward(tiny_model(), IDS, last_only=True, trace=trace_too), last)
    assert {n: a.shape for n, a in trace.arrays.items()} == \
           {n: a.shape for n, a in trace_too.arrays.items()}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_last_only_is_the_last_row(path, tiny_model, layout):
    m = tiny_model(layout)
    last = k2ref.forward(m, IDS, last_only=True)
    assert last.shape == (1, 512)
    assert_same(last[0], k2ref.forward(m, IDS)[-1])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("threads", [2, 3])
def test_threads_change_no_bit(kernels, tiny_model, layout, threads):
    m = tiny_model(layout)
    many = dataclasses.replace(m, threads=threads)
    assert (k2ref.forward(many, IDS) == k2ref.forward(m, IDS)).all()
    assert (in_pieces(many, IDS, [10, 1, 10]) == k2ref.forward(m, IDS)).all()


@pytest.mark.parametrize("layout", LAYOUTS)
@settings(max_examples=8)
@given(t=st.integers(1, N - 1), seed=seeds)
def test_trap_no_future_token_matters(path, tiny_model, layout, t, seed):
    m = tiny_model(layout)
    other = IDS.copy()
    other[t:] = np.random.default_rng(seed).integers(0, 512, N - t)
    logits, others = k2ref.forward(m, IDS), k2ref.forward(m, other)
    assert_same(others[:t], logits[:t])
    if other[t] != IDS[t]:
        assert (others[t] != logits[t]).any()


def test_every_earlier_token_matters(path, tiny_model):
    expected = k2ref.forward(tiny_model(), IDS)[-1]
    for t in range(N):
        other = IDS.copy()
        other[t] ^= 1
        assert (k2ref.forward(tiny_model(), other)[-1] != expected).any()


@settings(max_examples=8)
@given(st.integers(0, N), st.integers(1, N))
def test_a_truncated_cache_forgets(path, tiny_model, keep, n_other):
    m, cache = tiny_model(), k2ref.KVCache(tiny_model().config, 2 * N)
    expected = k2ref.forward(m, IDS, cache)
    cache.truncate(keep)
    k2ref.forward(m, IDS[::-1][:n_other], cache)  # something else, over the old rows
    cache.truncate(keep)
    assert_same(k2ref.forward(m, IDS[keep:], cache), expected[keep:])
    assert cache.length == N


def test_no_ids_give_no_rows(path, tiny_model):
    m, cache, trace = tiny_model(), k2ref.KVCache(tiny_model().config, N), Trace()
    for ids in ([], np.empty(0, np.int64)):
        for last_only in (False, True):
            logits = k2ref.forward(m, ids, cache, trace, last_only)
            assert logits.shape == (0, 512) and logits.dtype == np.float32
    assert cache.length == 0 and trace.arrays == {}


def test_ids_may_be_any_whole_numbers(tiny_model):
    expected = k2ref.forward(tiny_model(), IDS)
    for ids in (IDS.tolist(), tuple(IDS.tolist()), IDS.astype(np.uint16), IDS.astype(np.int32)):
        assert (k2ref.forward(tiny_model(), ids) == expected).all()


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([[1, 2]], "1-d sequence of whole numbers, found 2-d"),
        (3, "1-d sequence of whole numbers, found 0-d"),
        ([1.0], "whole numbers, found 1-d float64"),
        ([True], "whole numbers, found 1-d bool"),
        (["a"], "whole numbers"),
        ([0, 512], "expected 0 to 511, found 0 to 512"),
        ([-1], "expected 0 to 511, found -1"),
        ([2**63], "found"),
    ],
)
def test_ids_that_are_none_are_refused(tiny_model, ids, message):
    cache = k2ref.KVCache(tiny_model().config, 4)
    with pytest.raises(ValueError, match=message):
        k2ref.forward(tiny_model(), ids, cache)
    assert cache.length == 0


def test_a_prompt_must_fit_the_cache(tiny_model):
    m, cache = tiny_model(), k2ref.KVCache(tiny_model().config, N)
    k2ref.forward(m, IDS[:10], cache)
    with pytest.raises(ValueError, match="context of 21 tokens .* 12 tokens after the 10 in"):
        k2ref.forward(m, IDS[:12], cache)
    assert cache.length == 10
    k2ref.forward(m, IDS[:11], cache)


def test_a_prompt_must_fit_the_context(tmp_path):
    config = tiny_config()
    config["max_position_embeddings"] = 8
    m = k2ref.load(write_checkpoint(tmp_path, config), threads=1)
    assert k2ref.forward(m, IDS[:8]).shape == (8, 512)
    with pytest.raises(ValueError, match="context of 8 tokens"):
        k2ref.forward(m, IDS[:9])
    with pytest.raises(ValueError, match="context of 8 tokens"):
        k2ref.forward(m, IDS[:9], k2ref.KVCache(m.config, 20))


@pytest.mark.parametrize("fail_at", [1, 5, 9, "lm_head"])
def test_a_failure_in_the_middle_leaves_the_cache_as_it_was(
    path, tiny_model, monkeypatch, fail_at
):
    m, cache, calls = tiny_model(), k2ref.KVCache(tiny_model().config, N), []
    expected = k2ref.forward(m, IDS)
    k2ref.forward(m, IDS[:6], cache)
    block, linear = model.block, ops.linear

    def failing_block(x, layer, run):
        calls.append(1)
        if len(calls) == fail_at:
            raise KeyboardInterrupt
        return block(x, layer, run)

    def failing_linear(x, w, threads=None):
        if w is m.lm_head and fail_at == "lm_head":
            raise KeyboardInterrupt
        return linear(x, w, threads)

    with monkeypatch.context() as patch:
        patch.setattr("k2ref.run.CHUNK", 5)  # three chunks of three layers follow
        patch.setattr(model, "block", failing_block)
        patch.setattr(ops, "linear", failing_linear)
        with pytest.raises(KeyboardInterrupt):
            k2ref.forward(m, IDS[6:], cache)
    assert cache.length == 6
    assert_same(k2ref.forward(m, IDS[6:], cache), expected[6:])


def test_embed_looks_up_rows_of_any_format():
    values = np.random.default_rng(0).standard_normal((9, 64), dtype=np.float32)
    ids = np.array([3, 0, 8, 3])
    for w in (quant.F32(values), quant.Bf16(quant.f32_to_bf16(values)),
              quant.quantize_int4(values), quant.quantize_fp8(values)):  # fmt: skip
        m = dataclasses.make_dataclass("M", ["embed_tokens"])(w)
        found = model.embed(m, ids)
        assert found.dtype == np.float32 and (found == w.dequantize()[ids]).all()


def test_block_adds_attention_and_mlp_to_the_residual(tiny_model):
    m, trace = tiny_model(), Trace()
    k2ref.forward(m, IDS, trace=trace)
    a, layer = trace.arrays, m.layers[1]
    x = a["layers.0.out"]
    h = ops.rms_norm(x, layer.input_layernorm, m.config.rms_norm_eps)
    run = Run(m.config, k2ref.KVCache(m.config, N), threads=1)
    run.stand_before(N, i=1)
    x = x + attention.attention(h, layer.attention, run)
    h = ops.rms_norm(x, layer.post_attention_layernorm, m.config.rms_norm_eps)
    assert (a["layers.1.out"] == x + model.moe(h, layer.mlp, run)).all()
    assert (a["norm"] == ops.rms_norm(a["layers.2.out"], m.norm, m.config.rms_norm_eps)).all()
    assert (a["logits"] == ops.linear(a["norm"], m.lm_head, 1)).all()


@pytest.mark.skipif(len(COMPILED) < 2, reason="one kernel path, or none")
def test_kernel_paths_agree_within_rounding(tiny_model):
    everywhere = []
    for name in COMPILED:
        ops.kernels.use_path(name)
        everywhere.append(k2ref.forward(tiny_model(), IDS))
    ops.kernels.use_path(COMPILED[0])
    for logits in everywhere[1:]:
        np.testing.assert_allclose(logits, everywhere[0], rtol=0, atol=5e-5)
