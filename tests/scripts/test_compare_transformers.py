"""scripts/compare_transformers.py: its arithmetic, its refusals, and that it finds what is wrong.

`test_oracle.py` runs it on the golden checkpoints of every layout.
"""

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from strategies import routings, seeds

import k2ref
from k2ref import moe, ops
from k2ref.trace import Trace
from scripts import compare_transformers
from scripts.checkpoints.small import LAYOUTS, tiny_config, write_checkpoint

OFFICIAL = Path(__file__).parents[1] / "data" / "configs" / "Kimi-K2-Thinking.json"
GOLDEN = Path(__file__).parents[1] / "data" / "golden"
TINY = Path(k2ref.__file__).parent / "tiny"


@pytest.fixture
def oracle():
    """Give the oracle, where there are transformers, compressed-tensors and PyTorch."""
    for package in ("torch", "transformers", "compressed_tensors"):
        pytest.importorskip(package, reason="pip install -e '.[oracle]'")
    from scripts.checkpoints import oracle

    return oracle


@settings(max_examples=200)
@given(routings(), seeds)
def test_scores_that_move_by_less_than_the_margin_choose_the_same_experts(routing, seed):
    scores, bias, config = routing
    scores, bias = scores.astype(np.float64), bias.astype(np.float64)
    nearest = compare_transformers.margins(scores + bias, config)
    away = np.random.default_rng(seed).choice([-1.0, 1.0], scores.shape)
    away *= 0.24 * np.minimum(nearest, 1)[:, None]  # a group's sum has two of them
    before, _ = moe.choose(scores, bias, config)
    after, _ = moe.choose(scores + away, bias, config)
    same = (np.sort(before) == np.sort(after)).all(axis=-1)
    assert (same | (nearest < 1e-12)).all()


@given(routings())
def test_a_loser_that_gains_the_margin_is_chosen(routing):
    scores, bias, config = routing
    choice = scores.astype(np.float64) + bias
    config.n_group = config.topk_group = 1
    nearest = compare_transformers.margins(choice, config)
    before, _ = moe.choose(choice, 0.0, config)
    for t in range(len(choice)):
        losers = np.setdiff1d(np.arange(choice.shape[1]), before[t])
        if not losers.size:
            assert nearest[t] == np.inf
            continue
        best = losers[np.argmax(choice[t, losers])]
        choice[t, best] += nearest[t] + 1e-9
    after, _ = moe.choose(choice, 0.0, config)
    assert nearest[0] == np.inf or (np.sort(before) != np.sort(after)).any(axis=-1).all()


def test_the_tolerance_grows_but_bf16_does_not_pass_for_float32(tiny_model):
    small, full = tiny_model().config, k2ref.Config.from_dict(json.loads(OFFICIAL.read_text()))
    few = compare_transformers.tolerance(small, 1, 10)
    assert few < compare_transformers.tolerance(small, 3, 10)
    assert few < compare_transformers.tolerance(small, 1, 100)
    assert few < compare_transformers.tolerance(full, 1, 10)
    assert compare_transformers.tolerance(full, full.num_hidden_layers, 1000) < 2.0**-8


@pytest.mark.parametrize("gap", [1e-7, 1e-2])
def test_only_a_choice_closer_than_rounding_is_excused(tiny_model, gap):
    """Two engines that choose otherwise in layer 2 for token 9, which won by `gap`."""
    model, ids, K, at = tiny_model(), list(range(20)), 3, "layers.2.moe.chosen"
    trace = Trace()
    k2ref.forward(model, ids, trace=trace)
    layer = model.layers[2]
    scores = ops.sigmoid(ops.linear(trace.arrays["layers.2.h"], layer.mlp.gate, 1))
    choice = scores + layer.mlp.bias
    ranked, bias = np.argsort(-choice[9]), layer.mlp.bias.astype(np.float64)
    bias[ranked[K]] += choice[9, ranked[K - 1]] - choice[9, ranked[K]] - gap
    mlp = dataclasses.replace(layer.mlp, bias=bias)
    layers = [*model.layers[:2], dataclasses.replace(layer, mlp=mlp)]
    model, trace = dataclasses.replace(model, layers=layers), Trace()
    k2ref.forward(model, ids, trace=trace)
    theirs = {name: array.copy() for name, array in trace.arrays.items()}
    theirs[at][9, K - 1] = ranked[K]
    for name in ("layers.2.moe.out", "layers.2.out", "norm", "logits"):
        theirs[name][9:] += 1
    *lines, status = compare_transformers.report(model, trace.arrays, theirs, 1e-5)
    said = next(line for line in lines if line.startswith("  token 9"))
    assert "layer 2: 1 of 20 tokens routed otherwise" in lines[lines.index(said) - 1]
    assert "tokens from 9 on have seen other experts, and are not compared" in lines
    assert lines[-1].startswith("no difference") and any("(9, 64)" in line for line in lines)
    assert status == (gap > 1e-3) and ("closer than rounding" in said) == (gap < 1e-3)
    theirs["layers.0.out"][4] += 1  # and nothing else is
    *lines, status = compare_transformers.report(model, trace.arrays, theirs, 1e-5)
    assert status == 1 and ": layers.0.out, token 4" in lines[-1]


def refused(capsys, *arguments):
    """Return what compare_transformers says of what it cannot compare."""
    assert compare_transformers.main([str(argument) for argument in arguments]) == 2
    out, err = capsys.readouterr()
    assert not out and err.startswith("compare_transformers: ") and err.count("\n") == 1
    return err


def test_what_cannot_be_compared_gives_status_2(capsys, monkeypatch, tmp_path):
    assert "nowhere" in refused(capsys, tmp_path / "nowhere")
    write_checkpoint(tmp_path, layout="moonlight")
    assert "'1,x'" in refused(capsys, tmp_path, "--ids", "1,x")
    assert "found 600" in refused(capsys, tmp_path, "--ids", "600")
    assert "no ids" in refused(capsys, tmp_path, "--ids", ",")
    assert "1 to 3, found 4" in refused(capsys, tmp_path, "--layers", "4")
    (tmp_path / "tiktoken.model").unlink(missing_ok=True)
    assert "give --ids" in refused(capsys, tmp_path, "--text", "hello")
    monkeypatch.setitem(sys.modules, "oracle", None)
    assert "pip install -e '.[oracle]'" in refused(capsys, tmp_path)
    monkeypatch.setattr(compare_transformers.memory, "available", lambda: 1000)
    assert "2 layers take" in refused(capsys, tmp_path, "--layers", "2")


@pytest.mark.parametrize(("n_layers", "files"), [(1, "0e"), (2, "01e"), (3, "012e")])
def test_the_first_layers_are_linked_and_no_more(tmp_path, n_layers, files):
    whole, part = tmp_path / "whole", tmp_path / "part"
    whole.mkdir()
    part.mkdir()
    config = tiny_config("k25")
    (whole / "config.json").write_text(json.dumps(config))
    at = "language_model.model."
    where = {f"{at}layers.{i}.self_attn.o_proj.weight": f"{i}.safetensors" for i in range(3)}
    where |= {f"{at}layers.1.mlp.gate.weight": "1.safetensors", f"{at}norm.weight": "e.safetensors"}
    for name in where.values():
        (whole / name).write_text(name)
    index = whole / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": where}))
    compare_transformers.first_layers(whole, n_layers, part)
    found = {file.name for file in part.iterdir()} - {"config.json"}
    assert found == {f"{file}.safetensors" for file in files}
    assert all((part / name).read_text() == name for name in found)
    assert k2ref.Config.from_dir(part).num_hidden_layers == n_layers
    index.unlink()  # without one, every file may be needed
    other = tmp_path / "other"
    other.mkdir()
    compare_transformers.first_layers(whole, n_layers, other)
    assert len(list(other.iterdir())) == len(set(where.values())) + 1


def compared(capsys, *arguments):
    """Run the command; return its status and the lines it prints."""
    status = compare_transformers.main([*map(str, arguments), "--threads", "1"])
    return status, capsys.readouterr().out.splitlines()


@pytest.mark.oracle
@pytest.mark.parametrize("arguments", [[], ["--text", "12 + 30 ="], ["--layers", "2"]])
def test_the_embedded_model_agrees(oracle, capsys, arguments):
    status, lines = compared(capsys, TINY, *arguments)
    n_layers = 2 if "--layers" in arguments else k2ref.Config.from_dir(TINY).num_hidden_layers
    outs = [line.split()[0] for line in lines if line.split()[0].endswith(".out")]
    assert status == 0 and outs == [f"layers.{i}.out" for i in range(n_layers)]


@pytest.mark.oracle
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_first_layers_of_every_layout_agree(oracle, capsys, tmp_path, layout):
    write_checkpoint(tmp_path, layout=layout)
    status, lines = compared(capsys, tmp_path, "--layers", "1")
    assert status == 0 and not any(line.startswith("layers.1") for line in lines)


def wrong_scale(layer):
    layer.self_attn.scaling *= 1.001


def wrong_latent_eps(layer):  # as vLLM has it, but larger, for the effect to show
    layer.self_attn.kv_a_layernorm.variance_epsilon = 1e-2


def rounded_expert(layer):
    layer.mlp.experts.down_proj.data = layer.mlp.experts.down_proj.bfloat16().float() * 1.001


def wrong_mixing_factor(layer):
    layer.mlp.gate.routed_scaling_factor *= 1.001


def no_bias(layer):
    layer.mlp.gate.e_score_correction_bias.zero_()


def half_split_pairs(layer):
    weight = layer.self_attn.kv_a_proj_with_mqa.weight.data[-8:]
    weight[:] = weight[[*range(0, 8, 2), *range(1, 8, 2)]].clone()


@pytest.mark.oracle
@pytest.mark.parametrize(("wrong", "stage"), [
    (wrong_scale, "attn.heads"), (wrong_latent_eps, "attn.c_kv"), (rounded_expert, "moe.out"),
    (wrong_mixing_factor, "moe.mix"), (no_bias, "moe.chosen"), (half_split_pairs, "attn.k_rope"),
])  # fmt: skip
def test_the_stage_that_is_wrong_is_named(oracle, capsys, monkeypatch, tmp_path, wrong, stage):
    write_checkpoint(tmp_path)
    reference_model = oracle.reference_model

    def with_a_fault(directory):
        model = reference_model(directory)
        wrong(model.model.layers[1])
        return model

    monkeypatch.setattr(oracle, "reference_model", with_a_fault)
    status, lines = compared(capsys, tmp_path)
    assert status == 1
    if stage == "moe.chosen":
        assert any(line.startswith("  token ") and "NOT a matter" in line for line in lines)
    else:
        assert f": layers.1.{stage}, token " in lines[-1]
