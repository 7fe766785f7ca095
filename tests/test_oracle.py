"""Live against the oracles: transformers, compressed-tensors and PyTorch (the `oracle` extra)."""

import json
from pathlib import Path

import numpy as np
import pytest

for package in ("torch", "transformers", "compressed_tensors"):
    pytest.importorskip(package, reason="pip install -e '.[oracle]'")

import torch  # noqa: E402
from compressed_tensors.compressors.pack_quantized import helpers  # noqa: E402
from compressed_tensors.quantization import QuantizationArgs  # noqa: E402
from compressed_tensors.quantization.lifecycle.forward import dequantize  # noqa: E402
from hypothesis import given, settings  # noqa: E402
from strategies import int4_matrices, matrix, routings, seeds  # noqa: E402
from transformers.models.deepseek_v3 import modeling_deepseek_v3 as upstream  # noqa: E402

import k2ref  # noqa: E402
from k2ref import moe, quant, rope  # noqa: E402
from k2ref.trace import Trace, stages  # noqa: E402
from scripts import compare_transformers  # noqa: E402
from scripts.checkpoints.oracle import read_weights, reference_model, run  # noqa: E402
from scripts.checkpoints.small import LAYOUTS, tiny_config, write_checkpoint  # noqa: E402

pytestmark = pytest.mark.oracle
U = 2.0**-24  # the unit roundoff of float32
# As in test_golden.py: measured there at most 6.4e-6, on values up to 5.
TOLERANCE = 5e-5
GROUP_32 = QuantizationArgs(num_bits=4, type="int", symmetric=True, strategy="group", group_size=32)
TINY = Path(k2ref.__file__).parent / "tiny"


def compare(directory, ids):
    """Hold k2ref's hidden states and logits against transformers', token by token.

    A token whose experts were chosen by less than 2e-5 may be routed otherwise, and so may those
    that see it: rows from there on are not compared. Returns how many were.
    """
    expected, hidden, router_logits = run(reference_model(directory), ids)
    m, trace = k2ref.load(directory, threads=1), Trace()
    logits = k2ref.forward(m, ids, trace=trace)
    n = first_close_decision(m, router_logits)
    names = ["embed", *(f"layers.{i}.out" for i in range(len(m.layers) - 1)), "norm"]
    for name, values in zip(names, hidden, strict=True):
        assert error(trace.arrays[name][:n], values[:n]) <= TOLERANCE, name
    assert error(logits[:n], expected[:n]) <= TOLERANCE
    return n


def error(found, expected):
    """Return the largest difference, in units of the largest value where that is above 1."""
    size = max(1, np.abs(expected).max(initial=0))
    return np.abs(found - expected).max(initial=0) / size


def first_close_decision(m, router_logits):
    """Return the first token that a router decides by less than 2e-5; all of them, if none is."""
    c, close = m.config, np.zeros(len(router_logits[0]), bool)
    layers = [layer.mlp for layer in m.layers if isinstance(layer.mlp, moe.Moe)]
    for layer, logits in zip(layers, router_logits, strict=True):
        choice = 1 / (1 + np.exp(-logits.astype(np.float64))) + layer.bias
        best_two = np.sort(choice.reshape(len(choice), c.n_group, -1))[..., -2:].sum(axis=-1)
        if c.n_group > 1:  # any two groups, and any two neighbours in the ranking
            close |= np.diff(np.sort(best_two)).min(axis=1) < 2e-5
            close |= np.diff(np.sort(choice)).min(axis=1) < 2e-5
            continue
        ranked = np.sort(choice)[:, ::-1]
        k = c.num_experts_per_tok
        close |= ranked[:, k - 1] - ranked[:, k] < 2e-5
    return int(np.argmax(close)) if close.any() else len(close)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_forward_matches_transformers_on_every_path(path, tmp_path, layout):
    write_checkpoint(tmp_path, layout=layout)
    assert compare(tmp_path, np.random.default_rng(0).integers(0, 512, 300)) > 20


@pytest.mark.parametrize("seed", range(1, 4))
@pytest.mark.parametrize("layout", LAYOUTS)
def test_forward_matches_transformers_on_random_checkpoints(tmp_path, layout, seed):
    write_checkpoint(tmp_path, layout=layout, seed=seed)
    assert compare(tmp_path, np.random.default_rng(seed).integers(0, 512, 300)) > 20


@pytest.mark.parametrize(
    "changes",
    [
        {"beta_fast": 32.0},
        {"mscale": 0.707, "mscale_all_dim": 0.707},
        {"mscale": 1.0, "mscale_all_dim": 0.5},  # cos and sin are scaled, too
        {"factor": 4.0, "original_max_position_embeddings": 64},
    ],
    ids=str,
)
def test_forward_matches_transformers_for_other_yarn(tmp_path, changes):
    config = tiny_config()
    config["rope_scaling"].update(changes)
    write_checkpoint(tmp_path, config)
    assert compare(tmp_path, np.random.default_rng(0).integers(0, 512, 300)) > 20


@pytest.mark.parametrize(
    "changes",
    [
        {"norm_topk_prob": False},
        {"first_k_dense_replace": 0},
        {"first_k_dense_replace": 3},  # no experts at all
        {"num_experts_per_tok": 8},
        {"v_head_dim": 24, "qk_nope_head_dim": 8, "num_attention_heads": 3,
         "num_key_value_heads": 3},
        {"rms_norm_eps": 0.1},  # the latent norms must not follow
    ],
    ids=str,
)  # fmt: skip
def test_forward_matches_transformers_for_other_sizes(tmp_path, changes):
    write_checkpoint(tmp_path, {**tiny_config(), **changes})
    ids = np.random.default_rng(1).integers(0, 512, 100)
    if changes.get("first_k_dense_replace") == 3 or changes.get("num_experts_per_tok") == 8:
        assert compare_without_choices(tmp_path, ids)
    else:
        assert compare(tmp_path, ids) > 20


def compare_without_choices(directory, ids):
    """Compare where no router chooses: every token is used by all experts, or there are none."""
    expected, _, _ = run(reference_model(directory), ids)
    logits = k2ref.forward(k2ref.load(directory, threads=1), ids)
    return error(logits, expected) <= TOLERANCE


def test_the_embedded_model_matches_transformers(path):
    tokenizer = k2ref.load().tokenizer
    ids = k2ref.render(tokenizer, [{"role": "user", "content": "37+58="}])
    ids += tokenizer.encode("95. And then? 12+30=42, 8+1=9.", allow_special=False)
    assert compare(TINY, ids) > 20


@settings(max_examples=50)
@given(routings())
def test_the_router_matches_that_of_transformers(routing):
    scores, bias, config = routing
    config.num_local_experts, config.hidden_size = len(bias), len(bias)
    router = upstream.DeepseekV3TopkRouter(config)
    with torch.no_grad():
        router.weight.copy_(torch.eye(len(bias)))
        router.e_score_correction_bias.copy_(torch.tensor(bias))
        h = np.log(scores / (1 - scores)).astype(np.float32)  # sigmoid of it is near the scores
        _, mix, chosen = router(torch.tensor(h))
    found, weights = moe.route(h, quant.F32(np.eye(len(bias), dtype=np.float32)), bias, config, 1)
    for t in range(len(h)):
        if far_apart(1 / (1 + np.exp(-h[t].astype(np.float64))) + bias, config):
            expected = dict(zip(chosen[t].tolist(), mix[t].tolist(), strict=True))
            assert set(found[t].tolist()) == set(expected)
            if config.num_experts_per_tok == 1:
                continue  # transformers makes its weight 1; the official code leaves it as it is
            # Both take sigmoid with exp, divide by a sum of K and multiply: 4 U for each exp.
            bound = (2 * config.num_experts_per_tok + 30) * U
            for e, weight in zip(found[t].tolist(), weights[t].tolist(), strict=True):
                assert weight == pytest.approx(expected[e], rel=bound)


def far_apart(choice, config):
    """Say whether no two experts or groups are so near that rounding could swap them."""
    groups = choice.reshape(config.n_group, -1)
    best_two = np.sort(groups)[:, -2:].sum(axis=1)
    apart = [np.diff(np.sort(choice)).min(initial=1), np.diff(np.sort(best_two)).min(initial=1)]
    return min(apart) > 1e-5


@given(int4_matrices().filter(lambda q: q.size))  # the library cannot unpack nothing
def test_pack_int4_matches_compressed_tensors(q):
    packed = helpers.pack_to_int32(torch.tensor(q, dtype=torch.int8), 4).numpy()
    assert packed.dtype == np.int32 and (quant.pack_int4(q) == packed).all()
    unpacked = helpers.unpack_from_int32(torch.tensor(packed), 4, torch.Size(q.shape)).numpy()
    assert (quant.unpack_int4(packed) == unpacked).all()


@given(seeds)
def test_int4_dequantize_matches_compressed_tensors(seed):
    w = matrix("Int4", 5, 96, seed)
    q = helpers.unpack_from_int32(torch.tensor(w.packed), 4, torch.Size(w.shape))
    scale = torch.tensor(quant.bf16_to_f32(w.scale))
    expected = dequantize(q, scale, args=GROUP_32, dtype=torch.float32).numpy()
    assert (w.dequantize() == expected).all()
    # In the scale's own type, bf16, the library rounds the same products once.
    rounded = dequantize(q, scale.to(torch.bfloat16), args=GROUP_32).view(torch.uint16).numpy()
    assert (quant.f32_to_bf16(w.dequantize()) == rounded).all()


def test_fp8_matches_torch_for_every_code():
    codes = np.arange(256, dtype=np.uint8)
    expected = torch.tensor(codes).view(torch.float8_e4m3fn).to(torch.float32).numpy()
    assert np.array_equal(quant.fp8_to_f32(codes), expected, equal_nan=True)


@given(seeds)
def test_quantize_fp8_matches_torch(seed):
    values = matrix("F32", 130, 140, seed).values
    w = quant.quantize_fp8(values)
    scale = np.repeat(np.repeat(w.scale_inv, 128, 0), 128, 1)[:130, :140]
    expected = torch.tensor(values / scale).to(torch.float8_e4m3fn).view(torch.uint8).numpy()
    differ = w.bits != expected
    # Both take the nearest; of two that are as near, torch takes the even one.
    middle = np.abs(values / scale).astype(np.float64)
    low, high = (np.abs(quant.fp8_to_f32(c).astype(np.float64)) for c in (w.bits, expected))
    assert (np.abs(middle - low)[differ] == np.abs(middle - high)[differ]).all()


@given(seeds)
def test_bf16_matches_torch(seed):
    words = np.random.default_rng(seed).integers(0, 2**32, 4096, dtype=np.uint64).astype(np.uint32)
    words[::2] = words[::2] & 0xFFFF0000 | 0x8000  # ties
    values = words.view(np.float32)
    expected = torch.tensor(values).to(torch.bfloat16).view(torch.uint16).numpy()
    numbers = ~np.isnan(values)
    assert (quant.f32_to_bf16(values)[numbers] == expected[numbers]).all()
    widened = torch.tensor(expected).view(torch.bfloat16).to(torch.float32).numpy()
    assert np.array_equal(quant.bf16_to_f32(expected), widened, equal_nan=True)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_dequantised_weights_are_those_of_the_libraries(tmp_path, layout):
    m = k2ref.load(write_checkpoint(tmp_path, layout=layout), threads=1)
    weights = read_weights(tmp_path)
    attention, expert = m.layers[1].attention, m.layers[1].mlp.expert(3)
    for name, w in {
        "self_attn.kv_b_proj": attention.kv_b_proj, "self_attn.o_proj": attention.o_proj,
        "mlp.gate": m.layers[1].mlp.gate, "mlp.experts.3.up_proj": expert.up_proj,
        "mlp.experts.3.down_proj": expert.down_proj,
        "mlp.shared_experts.gate_proj": m.layers[1].mlp.shared.gate_proj,
    }.items():  # fmt: skip
        assert (w.dequantize() == weights[f"model.layers.1.{name}.weight"].numpy()).all(), name


@pytest.mark.parametrize("layout", LAYOUTS)
def test_frequencies_match_transformers(tmp_path, layout):
    directory = write_checkpoint(tmp_path, layout=layout)
    rotary = reference_model(directory).model.rotary_emb
    config = k2ref.Config.from_dir(directory)
    # transformers computes them in float32: a power, a division, a ramp.
    np.testing.assert_allclose(rope.inv_freq(config), rotary.inv_freq.numpy(), rtol=20 * U)
    assert config.rope_mscale == pytest.approx(rotary.attention_scaling, rel=1e-12)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_softmax_scale_matches_transformers(tmp_path, layout):
    directory = write_checkpoint(tmp_path, layout=layout)
    expected = reference_model(directory).model.layers[0].self_attn.scaling
    assert k2ref.Config.from_dir(directory).softmax_scale == pytest.approx(expected, rel=1e-12)


def test_the_goldens_know_their_oracle():
    golden = Path(__file__).parent / "data" / "golden"
    versions = json.loads((golden / "provenance.json").read_text())["versions"]
    name = "thinking"
    with np.load(golden / name / "reference.npz") as reference:
        logits, hidden, _ = run(reference_model(golden / name), reference["ids"])
        rows = reference["positions"]
        # Another machine or release may sum in another order.
        np.testing.assert_allclose(logits[rows], reference["logits"], rtol=0, atol=1e-5)
        np.testing.assert_allclose(hidden[:, rows], reference["hidden"], rtol=0, atol=1e-5)
    assert {"torch", "transformers", "compressed-tensors"} <= versions.keys()


@pytest.mark.parametrize("name", ["thinking", "k25", "instruct_fp8", "moonlight", "deepseek"])
def test_compare_transformers_finds_no_difference_in_any_layout(capsys, name):
    directory = Path(__file__).parent / "data" / "golden" / name
    with np.load(directory / "reference.npz") as reference:
        ids = reference["ids"].tolist()
    status = compare_transformers.main([str(directory), "--ids", str(ids)[1:-1], "--stages"])
    lines = capsys.readouterr().out.splitlines()
    expected = list(stages(k2ref.Config.from_dir(directory)))
    assert status == 0 and lines[-1].endswith(f"in {len(expected)} arrays")
    table = [line for line in lines if line.endswith("same bits") or "  ok  " in line]
    assert [line.split()[0] for line in table] == expected  # transformers gives every one
    routers = [line for line in lines if f"0 of {len(ids)} tokens routed otherwise" in line]
    assert len(routers) == sum(name.endswith(".moe.chosen") for name in expected)
