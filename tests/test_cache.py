"""The KV cache: what it keeps for a token, how much it holds, and forgetting."""

import numpy as np
import pytest

from k2ref.cache import KVCache


@pytest.fixture
def config(tiny_model):
    return tiny_model().config


def fill(cache, n):
    for i in range(len(cache.rows)):
        cache.write(i, np.full((n, cache.C), i + 1.0), np.full((n, cache.R), -i - 1.0))
    cache.length += n


def test_cache_keeps_one_padded_row_per_token(config):
    cache = KVCache(config, 300)
    assert (cache.capacity, cache.length) == (300, 0)
    assert len(cache.rows) == config.num_hidden_layers
    assert {rows.shape for rows in cache.rows} == {(512, 48)}  # 32 + 8 latents and keys, padded
    fill(cache, 5)
    for i, rows in enumerate(cache.rows):
        assert (rows[:5, :32] == i + 1).all() and (rows[:5, 32:40] == -i - 1).all()
        assert (rows[:5, 40:] == 0).all() and (rows[5:] == 0).all()


def test_cache_holds_the_context_by_default(config):
    assert KVCache(config).capacity == config.max_position_embeddings


def test_cache_refuses_more_than_its_capacity(config):
    cache = KVCache(config, 10)
    fill(cache, 7)
    with pytest.raises(ValueError, match="holds 10 tokens; 7 are in it and 4 more do not fit"):
        cache.write(0, np.ones((4, 32)), np.ones((4, 8)))
    cache.write(0, np.ones((3, 32)), np.ones((3, 8)))


@pytest.mark.parametrize("capacity", [2**50, 2**60, 2**62])
def test_a_capacity_beyond_all_address_space_is_refused(config, capacity):
    with pytest.raises(ValueError, match=f"KVCache: the system does not reserve .*{capacity}"):
        KVCache(config, capacity, expected=0)


@pytest.mark.parametrize("capacity", [0, -1])
def test_cache_refuses_no_capacity(config, capacity):
    with pytest.raises(ValueError, match="capacity of at least 1"):
        KVCache(config, capacity)


def test_cache_truncates_to_what_it_has(config):
    cache = KVCache(config, 10)
    fill(cache, 7)
    cache.truncate(7)
    cache.truncate(3)
    assert cache.length == 3
    for n in (-1, 4):
        with pytest.raises(ValueError, match="expected 0 to 3 tokens"):
            cache.truncate(n)
    assert cache.length == 3
