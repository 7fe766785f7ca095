"""The KV cache in bf16: half the memory, the same bits however the work is cut; and what fits."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import COMPILED
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import activations, attentions, matrix, n_threads, partitions, seeds

import k2ref
from k2ref import attention
from k2ref.cache import KVCache
from k2ref.checkpoint.config import Config
from k2ref.cli import main as cli
from k2ref.conversation import chat as conversation
from k2ref.quant import bf16_to_f32, f32_to_bf16
from k2ref.streaming import memory

N = 30
IDS = [(7 * i + 3) % 90 for i in range(N)]
SUM = "What is 37+58?"


@pytest.fixture
def config(tiny_model):
    return tiny_model().config


@pytest.fixture(scope="module")
def model():
    return k2ref.load(threads=1)


def bf16_cache(m, n=N):
    return KVCache(m.config, n, "bf16")


def test_a_bf16_cache_keeps_the_nearest_bf16_in_half_the_bytes(config):
    caches = [KVCache(config, 300, dtype) for dtype in ("float32", "bf16")]
    c_kv, k_rope = activations(1, 5, caches[0].C), activations(2, 5, caches[0].R)
    for cache in caches:
        cache.write(2, c_kv, k_rope)
    wide, narrow = caches
    assert (narrow.rows[2] == f32_to_bf16(wide.rows[2])).all() and narrow.rows[2].any()
    assert [2 * rows.nbytes for rows in narrow.rows] == [rows.nbytes for rows in wide.rows]


@given(attentions(), n_threads)
def test_bf16_rows_attend_as_their_values_in_float32_do(path, case, threads):
    S, C, R = *case.c_kv.shape, case.k_rope.shape[1]
    rows = np.zeros((256, -(-(C + R) // 16) * 16), np.float32)
    rows[:S, :C], rows[:S, C : C + R] = case.c_kv, case.k_rope
    bits = f32_to_bf16(rows)
    bits[S:] = 0x7FC0  # NaN, as a truncated cache may hold anything there
    narrow, wide = (attention.attend_absorbed(case.q_nope, case.q_rope, keys, case.start, case,
                                              case.softmax_scale, threads)
                    for keys in (bits, bf16_to_f32(f32_to_bf16(rows))))
    assert (narrow == wide).all() and np.isfinite(narrow).all()


@settings(max_examples=10)
@given(sizes=partitions(N))
def test_with_a_bf16_cache_any_cut_gives_the_same_bits(path, tiny_model, sizes):
    m = tiny_model()
    whole, cache = k2ref.forward(m, IDS, bf16_cache(m)), bf16_cache(m)
    ends = np.cumsum(sizes)
    pieces = [k2ref.forward(m, IDS[end - size : end], cache)
              for size, end in zip(sizes, ends, strict=True)]
    if path == "numpy":  # NumPy promises only to be near
        # Rounding a key to bf16 turns the last bit of its float32 into as much as 2^-9 of it.
        np.testing.assert_allclose(np.concatenate(pieces), whole, rtol=0, atol=2**-6)
    else:
        assert (np.concatenate(pieces) == whole).all()


@pytest.mark.skipif(not COMPILED, reason="the kernels are not compiled, or K2REF_KERNELS=numpy")
@settings(max_examples=5)
@given(st.sampled_from([250, 1020, 2040]), st.integers(1, 7), seeds, n_threads)
def test_with_bf16_rows_threads_and_tokens_change_no_bit(start, T, seed, threads):
    rows = f32_to_bf16(activations(seed, 2304, 32) / 20)
    w = SimpleNamespace(W_UK=[matrix("F32", 16, 16, h) for h in range(3)],
                        W_UV=[matrix("F32", 16, 16, h) for h in range(3, 6)])

    def attend(q, start, threads):
        return attention.attend_absorbed(q[..., :16], q[..., 16:], rows, start, w, 0.3, threads)

    q = activations(seed + 1, T, 3, 32) / 20
    together = attend(q, start, threads)
    assert (attend(q, start, 1) == together).all()
    assert (attend(q[-1:], start + T - 1, threads)[0] == together[-1]).all()


def test_a_bf16_cache_is_near_a_float32_one_and_not_the_same(path, tiny_model):
    m = tiny_model()
    narrow, wide = k2ref.forward(m, IDS, bf16_cache(m)), k2ref.forward(m, IDS)
    # Each key and value is off by 2^-9 of itself; four layers stack such errors.
    assert 0 < np.abs(narrow - wide).max() <= 2**-5 * np.abs(wide).max()


def test_a_truncated_bf16_cache_forgets(path, tiny_model):
    m, cache = tiny_model(), bf16_cache(tiny_model())
    expected = k2ref.forward(m, IDS, cache)[20:]
    cache.truncate(0)
    k2ref.forward(m, IDS[::-1], cache)
    cache.truncate(0)
    k2ref.forward(m, IDS[:20], cache)
    found = k2ref.forward(m, IDS[20:], cache)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2**-6 if path == "numpy" else 0)


def test_generate_makes_the_cache_that_is_asked_for(tiny_model, monkeypatch):
    m, made = tiny_model(), []

    def noted(*args, **kwargs):
        made.append(KVCache(*args, **kwargs))
        return made[-1]

    monkeypatch.setattr(sys.modules["k2ref.generation"], "KVCache", noted)
    for asked in ({}, {"cache_dtype": "bf16"}):
        list(k2ref.generate(m, IDS, max_new_tokens=3, temperature=0, stop_ids=[], **asked))
    assert [(c.dtype, c.capacity) for c in made] == [("float32", N + 3), ("bf16", N + 3)]
    with pytest.raises(ValueError, match="float32 or bf16, found 'fp8'"):
        k2ref.generate(m, IDS, cache_dtype="fp8")


def test_the_command_takes_a_bf16_cache(model, monkeypatch, capsys):
    made = []

    def noted(*args, **kwargs):
        made.append(KVCache(*args, **kwargs))
        return made[-1]

    monkeypatch.setattr(cli, "load", lambda *a, **k: model)
    monkeypatch.setattr(conversation, "KVCache", noted)
    for options in ((), ("--cache", "bf16")):
        assert cli.main([*options, "--max-tokens", "1", SUM]) == 0
    assert [cache.dtype for cache in made] == ["float32", "bf16"]
    assert cli.main(["--cache", "int8", SUM]) == 2
    assert "--cache: invalid choice: 'int8'" in capsys.readouterr().err


def test_the_command_answers_the_same_sum_from_a_bf16_cache(capsys):
    answers = []
    for dtype in ("float32", "bf16"):
        assert cli.main(["--greedy", "--hide-thinking", "--cache", dtype, SUM]) == 0
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1] and answers[0].strip()


def test_the_command_announces_a_large_cache_before_it_is_filled(monkeypatch, capsys):
    monkeypatch.setattr(cli, "LARGE_CACHE", 1)
    assert cli.main(["--greedy", "--max-tokens", "2", "--cache", "bf16", SUM]) == 0
    assert "the KV cache takes 0.0 GB in bf16 when all" in capsys.readouterr().err


@pytest.fixture
def little_memory(monkeypatch):
    """A machine with 18.5e9 bytes left."""
    monkeypatch.setattr(memory, "available", lambda: 18_500_000_000)


def full_size():
    path = Path(__file__).parent / "data" / "configs" / "Kimi-K2-Thinking.json"
    return Config.from_dict(json.loads(path.read_text()))


def test_a_cache_that_cannot_fit_is_refused_with_its_bytes(little_memory):
    with pytest.raises(ValueError, match=r"262144 tokens in float32 take 36\.8 GB \(36842766336 "
                       r"bytes\), and 18\.5 GB.* are available; use fewer.*bf16 cache \(18\.4 GB"):
        KVCache(full_size(), 262_144)
    with pytest.raises(ValueError, match=r"270000 tokens in bf16 take 19\.0 GB.*fewer tokens$"):
        KVCache(full_size(), 270_000, "bf16")
    with pytest.raises(ValueError, match="200000 tokens in float32 take 28.1 GB"):
        KVCache(full_size(), 262_144, expected=200_000)


def test_a_cache_that_fits_is_reserved_and_not_filled(little_memory):
    before = memory.own()
    caches = [KVCache(full_size(), 262_144, "bf16"), KVCache(full_size())]
    assert caches[1].capacity == 262_144
    if before is not None:
        assert memory.own() - before < 2**30  # of 55 GB of addresses


def test_where_nobody_counts_memory_nothing_is_refused(config, monkeypatch):
    monkeypatch.setattr(memory, "available", lambda: None)
    assert KVCache(config, 10**6).capacity == 10**6


def test_generate_refuses_a_prompt_or_a_reply_that_cannot_fit(tiny_model, monkeypatch):
    m = tiny_model()
    per_token = m.config.num_hidden_layers * 48 * 4  # 32 + 8 latents and keys, padded to 48
    monkeypatch.setattr(memory, "available", lambda: per_token * (N + 5))
    assert len(list(k2ref.generate(m, IDS, max_new_tokens=5, stop_ids=[]))) == 5
    k2ref.generate(m, IDS)  # up to the context, which nobody asked for
    with pytest.raises(ValueError, match=f"KVCache: {N + 6} tokens in float32"):
        k2ref.generate(m, IDS, max_new_tokens=6)
    k2ref.generate(m, IDS, max_new_tokens=6, cache_dtype="bf16")
    with pytest.raises(ValueError, match=f"KVCache: {2 * N} tokens in float32"):
        k2ref.generate(m, IDS * 2)


@pytest.mark.parametrize("dtype", ["float16", "BF16", None, np.float32])
def test_a_cache_of_an_unknown_dtype_is_refused(config, dtype):
    with pytest.raises(ValueError, match="KVCache: expected a dtype of float32 or bf16, found"):
        KVCache(config, 10, dtype)
