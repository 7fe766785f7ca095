"""No token comes from a computation in which a number was not finite, wherever it arose."""

from functools import cache

import numpy as np
import pytest
from conftest import choose_path
from hypothesis import given
from hypothesis import strategies as st

import k2ref
from k2ref import attention, moe, ops, quant
from k2ref.checkpoint.config import Config
from k2ref.trace import Trace
from scripts.checkpoints.small import (
    LAYOUTS,
    random_tensors,
    tiny_config,
    write_checkpoint,
    write_shards,
)

PROMPT = list(range(40, 60))
# Where one number of a stored array is not what it was: as bits of its type, or as a float.
BF16 = [0x7FC0, 0x7F80, 0xFF80, 0x7F7F, 0xFF7F, 0x7E00, 0x6000]  # nan, inf, -inf, 3e38, ..., 4e19
F32 = [np.nan, np.inf, -np.inf, 3e38, -3e38, 1e25]
VALUES = {"BF16": BF16, "F32": F32, "F8_E4M3": [0x7F, 0xFF]}  # the two codes that are NaN


def is_sound(trace):
    """Say whether all numbers are finite, after the layers only those that a token comes from."""
    arrays = dict(trace.arrays)
    for name in ("norm", "logits"):
        arrays[name] = arrays[name][-1:]
    return all(np.isfinite(array).all() for array in arrays.values())


def damaged(directory, layout, name, at, value):
    """Write a checkpoint in which one number is another, and load it."""
    values = tiny_config(layout)
    tensors = random_tensors(Config.from_dict(values), seed=0)
    dtype, array = tensors[name]
    array.reshape(-1)[at % array.size] = value
    write_checkpoint(directory, values, layout=layout)
    write_shards(directory, tensors)
    return k2ref.load(directory, threads=1)


@cache
def names_of(layout):
    """List the arrays of a layout in which a number may be damaged, and their types."""
    tensors = random_tensors(Config.from_dict(tiny_config(layout)), seed=0)
    dtypes = {name: dtype for name, (dtype, _) in sorted(tensors.items())}
    return [(name, dtype) for name, dtype in dtypes.items() if dtype in VALUES]


@given(st.data())
def test_every_token_comes_of_finite_numbers(tmp_path_factory, data):
    layout = data.draw(st.sampled_from(LAYOUTS))
    name, dtype = data.draw(st.sampled_from(names_of(layout)))
    directory = tmp_path_factory.mktemp("damaged")
    with np.errstate(all="ignore"):
        at = data.draw(st.integers(0, 100_000))
        model = damaged(directory, layout, name, at, data.draw(st.sampled_from(VALUES[dtype])))
        n_prompt = data.draw(st.sampled_from([1, 3, len(PROMPT)]))
        kept = k2ref.KVCache(model.config, 64)
        try:
            [*_] = k2ref.generate(model, PROMPT[:n_prompt], 1, temperature=0, stop_ids=[],
                                  cache=kept)
        except ValueError as error:
            assert "the logits must be finite" in str(error)
            assert kept.length == 0
        else:
            whole = Trace()
            k2ref.forward(model, PROMPT[:n_prompt], trace=whole)
            assert is_sound(whole)


GATE, BIAS = "model.layers.1.mlp.gate.weight", "model.layers.1.mlp.gate.e_score_correction_bias"
Q = "model.layers.0.self_attn.q_proj.weight"
K = "model.layers.0.self_attn.kv_a_proj_with_mqa.weight"


@pytest.mark.parametrize(("name", "at", "value"), [
    (GATE, 70, 0x7FC0), (GATE, 70, 0x7F80), (GATE, 70, 0xFF80), (BIAS, 3, np.nan),
    (BIAS, 3, -np.inf), (Q, 5, 0x7FC0), (Q, 5, 0x7F80), (Q, 5, 0x7F7F), (K, 5, 0x7FC0),
    (K, 35 * 64, 0x7F80), (K, 5, 0x7E00),
    ("model.layers.2.mlp.shared_experts.up_proj.weight", 0, 0x7FC0),
    ("model.embed_tokens.weight", PROMPT[3] * 64, 0x7FC0), ("model.norm.weight", 3, 0x7F80),
])  # fmt: skip
def test_what_hid_before_is_refused(tmp_path, path, name, at, value):
    """An expert of NaN is never chosen; exp made -87 of NaN; squares that overflow made zeros."""
    with np.errstate(all="ignore"):
        model = damaged(tmp_path, "moonlight", name, at, value)
        with pytest.raises(ValueError, match="the logits must be finite"):
            [*_] = k2ref.generate(model, PROMPT, 3, temperature=0)


def test_a_token_that_only_the_prompt_has_is_not_forgotten(tmp_path, path):
    """NaN in the last layer of an early row reaches no later one; its piece is refused."""
    with np.errstate(all="ignore"):
        expert = "model.layers.2.mlp.experts.5.down_proj.weight"
        model = damaged(tmp_path, "moonlight", expert, 0, 0x7FC0)
        logits = k2ref.forward(model, PROMPT)
        hit = ~np.isfinite(logits).all(axis=1)
        assert hit[:-1].any()
        last = next(t for t in range(1, len(PROMPT)) if hit[:t].any() and not hit[t])
        assert np.isfinite(logits[last]).all()
        with pytest.raises(ValueError, match="the logits must be finite"):
            [*_] = k2ref.generate(model, PROMPT[: last + 1], 1, temperature=0)
        assert np.isnan(k2ref.forward(model, PROMPT[: last + 1], last_only=True)).all()


def test_a_row_is_nan_where_its_squares_overflow(path):
    x, weight = np.ones((3, 40), np.float32), np.ones(40, np.float32)
    x[1, 7] = 1e20
    with np.errstate(all="ignore"):
        y = ops.rms_norm(x, weight, 1e-6)
    assert np.isnan(y[1]).all() and np.isfinite(y[[0, 2]]).all()


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("H", [3, 17])  # for the tiles of `amx` three heads are too few
def test_a_score_that_is_not_finite_makes_its_row_nan(path, wrong, H):
    rng = np.random.default_rng(0)
    attend = attention.attend_numpy if ops.kernels is None else attention._attend_kernel
    sound = rng.standard_normal((5, H, 48), dtype=np.float32), rng.standard_normal(
        (256, 48), dtype=np.float32)
    before = attend(*sound, 0, 0.1, 32, 1)
    with np.errstate(all="ignore"):
        q, rows = sound[0].copy(), sound[1].copy()
        q[2, 1, 40] = wrong
        context = attend(q, rows, 0, 0.1, 32, 1)
        assert np.isnan(context[2, 1]).all()
        context[2, 1] = before[2, 1]
        assert (context == before).all()
        rows[2, 40] = wrong  # of a rotary key: its latents are sound
        assert np.isnan(attend(sound[0], rows, 0, 0.1, 32, 1)[2:]).all()


@pytest.mark.parametrize("where", ["logit", "bias"])
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_an_expert_whose_score_is_no_number_is_not_passed_over(where, wrong):
    config = Config.from_dict(tiny_config("moonlight"))
    h, gate, bias = np.ones((2, 64), np.float32), np.ones((8, 64), np.float32), np.zeros(8)
    bias = bias.astype(np.float32)
    h[1] = 0.5
    if where == "logit":
        gate[3, 5] = wrong
    else:
        bias[3] = wrong
    with np.errstate(all="ignore"):
        _, mix = moe.route(h, quant.F32(gate), bias, config, threads=1)
    assert np.isnan(mix).all()


def test_after_a_refusal_the_cache_is_as_it_was(tmp_path, monkeypatch):
    choose_path("numpy", monkeypatch)
    with np.errstate(all="ignore"):
        model = damaged(tmp_path, "moonlight", "model.embed_tokens.weight", 44 * 64, 0x7FC0)
        cache = k2ref.KVCache(model.config, 64)
        k2ref.forward(model, [1, 2, 3], cache)
        with pytest.raises(ValueError, match="finite"):
            [*_] = k2ref.generate(model, [4, 44, 5], 1, temperature=0, cache=cache)
        assert cache.length == 3
        tokens = list(k2ref.generate(model, [4, 5], 1, temperature=0, cache=cache))
        assert tokens == list(k2ref.generate(model, [1, 2, 3, 4, 5], 1, temperature=0))
