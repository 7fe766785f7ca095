"""The whole context: 262,144 tokens, to the same bits however they are cut, and not one more."""

import numpy as np
import pytest
from conftest import COMPILED

import k2ref
from scripts.checkpoints.small import tiny_config, write_checkpoint

CONTEXT = 262_144
N_LAST = 16  # tokens at the end that are also read one at a time
needs_kernels = pytest.mark.skipif(not COMPILED, reason="NumPy promises only to be near")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """One layer, one head, eight channels of each kind: what is long here is the context."""
    values = tiny_config("moonlight")
    values.update(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1,
        kv_lora_rank=8, qk_nope_head_dim=8, qk_rope_head_dim=8, v_head_dim=8, intermediate_size=32,
        max_position_embeddings=CONTEXT, rope_scaling=tiny_config()["rope_scaling"],
    )  # fmt: skip
    return k2ref.load(write_checkpoint(tmp_path_factory.mktemp("long"), values, n_shards=1))


def rows_at_ends(model, ids, cache, chunk, every):
    """Read the ids in chunks; return the logits of every so-manyeth token."""
    rows = []
    for start in range(0, len(ids), chunk):
        logits = k2ref.forward(model, ids[start : start + chunk], cache)
        first = -(start + 1) % every  # of the chunk's tokens whose number is a multiple of `every`
        rows.append(logits[first::every].copy())
    return np.concatenate(rows)


def check_all_cuts(model, n, monkeypatch):
    """Read n tokens in chunks of 128 and of 2,048, and the last ones one at a time."""
    ids = np.random.default_rng(7).integers(0, model.config.vocab_size, n)
    every, last = 128, {}
    for chunk in (128, 2048):
        monkeypatch.setattr("k2ref.run.CHUNK", chunk)  # forward itself cuts no smaller
        cache = k2ref.KVCache(model.config, n)
        found = rows_at_ends(model, ids, cache, chunk, every)
        assert cache.length == n and np.isfinite(found).all()
        cache.truncate(n - N_LAST)
        singly = np.concatenate([k2ref.forward(model, [i], cache) for i in ids[-N_LAST:]])
        last[chunk] = found, singly, cache.rows[0][:n].copy()
        assert (singly[-1] == found[-1]).all()
    for of_128, of_2048 in zip(last[128], last[2048], strict=True):
        assert of_128.shape == of_2048.shape and (of_128 == of_2048).all()
    # What comes last depends on what came first: its positions are not all alike.
    assert len(np.unique(last[128][0], axis=0)) == len(last[128][0])
    return cache


@needs_kernels
def test_eight_thousand_tokens_have_the_same_bits_however_they_are_cut(model, monkeypatch):
    check_all_cuts(model, 8192, monkeypatch)


@needs_kernels
@pytest.mark.slow
def test_the_whole_context_has_the_same_bits_however_it_is_cut(model, monkeypatch):
    cache = check_all_cuts(model, CONTEXT, monkeypatch)
    with pytest.raises(ValueError, match="the context of 262144 tokens is too short for 1 tokens"):
        k2ref.forward(model, [0], cache)


def test_beyond_the_context_everything_refuses(model):
    """Without reading so much: the cache says how full it is."""
    cache = k2ref.KVCache(model.config)
    assert cache.capacity == CONTEXT
    cache.length = CONTEXT - 1
    with pytest.raises(ValueError, match="262144 tokens is too short for 2 tokens after"):
        k2ref.forward(model, [0, 0], cache)
    with pytest.raises(ValueError, match="leaves no room for an answer in the context of 262144"):
        k2ref.generate(model, [0], cache=cache)
    larger = k2ref.KVCache(model.config, CONTEXT + 10)  # a larger cache makes no longer context
    larger.length = CONTEXT - 1
    with pytest.raises(ValueError, match="the context of 262144 tokens"):
        k2ref.forward(model, [0, 0], larger)
    logits = k2ref.forward(model, [0], larger)
    assert np.isfinite(logits).all() and larger.length == CONTEXT
