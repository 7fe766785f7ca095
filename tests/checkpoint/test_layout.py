"""The list of tensors against the published counts, and what `quantization_config` says of each."""

import json
import math
from pathlib import Path

import pytest

from k2ref.checkpoint import layout
from k2ref.checkpoint.config import Config
from scripts.checkpoints.small import tiny_config

CONFIGS = Path(__file__).parents[1] / "data" / "configs"


def official(name: str) -> Config:
    return Config.from_dict(json.loads((CONFIGS / f"{name}.json").read_text()))


def test_fp8_parameters_are_counted_in_bytes_and_scales():
    config = official("Kimi-K2-Instruct")
    format_of = layout.format_finder(config.quantization_config, "")
    n_values = {"F8_E4M3": 0, "F32": 0}
    for tensor in layout.tensors(config):
        for part in layout.stored_parts(tensor.shape, format_of(tensor)):
            if part.dtypes[0] in n_values:
                n_values[part.dtypes[0]] += math.prod(part.shape)
    assert n_values == {"F8_E4M3": 1_023_893_241_856, "F32": 62_518_232}


def test_tensors_of_k2_thinking():
    config = official("Kimi-K2-Thinking")
    format_of = layout.format_finder(config.quantization_config, "")
    stored = {
        tensor.name + part.suffix: (part.dtypes[0], part.shape)
        for tensor in layout.tensors(config)
        for part in layout.stored_parts(tensor.shape, format_of(tensor))
    }
    assert len(stored) == 208_276 - 61  # each layer's stale inv_freq is not listed
    first, later = "model.layers.0.", "model.layers.60."
    expected = {
        "model.embed_tokens.weight": ("BF16", (163840, 7168)),
        first + "mlp.down_proj.weight": ("BF16", (7168, 18432)),
        later + "self_attn.q_b_proj.weight": ("BF16", (12288, 1536)),
        later + "self_attn.kv_a_proj_with_mqa.weight": ("BF16", (576, 7168)),
        later + "self_attn.kv_a_layernorm.weight": ("BF16", (512,)),
        later + "self_attn.kv_b_proj.weight": ("BF16", (16384, 512)),
        later + "self_attn.o_proj.weight": ("BF16", (7168, 8192)),
        later + "mlp.gate.weight": ("BF16", (384, 7168)),
        later + "mlp.gate.e_score_correction_bias": ("F32", (384,)),
        later + "mlp.shared_experts.up_proj.weight": ("BF16", (2048, 7168)),
        later + "mlp.experts.383.gate_proj.weight_packed": ("I32", (2048, 896)),
        later + "mlp.experts.383.gate_proj.weight_scale": ("BF16", (2048, 224)),
        later + "mlp.experts.383.down_proj.weight_packed": ("I32", (7168, 256)),
        later + "mlp.experts.383.down_proj.weight_shape": ("I32", (2,)),
        "lm_head.weight": ("BF16", (163840, 7168)),
    }
    assert {name: stored.get(name) for name in expected} == expected


def test_extra_prediction_layers_are_not_tensors_of_the_model():
    config = Config.from_dict(tiny_config("deepseek"))
    assert config.num_nextn_predict_layers == 1
    layers = {t.name.split(".")[2] for t in layout.tensors(config) if "layers" in t.name}
    assert layers == {"0", "1", "2"}


def test_moonlight_has_one_query_projection():
    config = Config.from_dict(tiny_config("moonlight"))
    shapes = {tensor.name: tensor.shape for tensor in layout.tensors(config)}
    assert shapes["model.layers.0.self_attn.q_proj"] == (2 * 24, 64)
    assert not any("q_a_" in name or "q_b_" in name for name in shapes)
    assert shapes["model.layers.1.mlp.shared_experts.up_proj"] == (2 * 32, 64)


@pytest.mark.parametrize(
    ("ignore", "name", "format"),
    [
        ([], "lm_head", "int4"),
        (["lm_head"], "lm_head", "plain"),
        (["lm"], "lm_head", "int4"),  # a whole name
        (["re:lm"], "lm_head", "plain"),  # a pattern, from the name's start
        (["re:head"], "lm_head", "int4"),
        (["re:language_model.lm_head"], "lm_head", "plain"),  # with the prefix, or without it
        (["re:a|b", "re:.*o_proj"], "model.layers.0.self_attn.o_proj", "plain"),
    ],
)
def test_ignore_lists_name_or_match_modules(ignore, name, format):
    quantization = {**tiny_config("thinking")["quantization_config"], "ignore": ignore}
    format_of = layout.format_finder(quantization, "language_model.")
    assert format_of(layout.Tensor(name, (64, 64), "attention")) == format


def test_fp8_leaves_out_what_is_not_converted():
    quantization = {**tiny_config("fp8")["quantization_config"], "modules_to_not_convert": ["o_p"]}
    format_of = layout.format_finder(quantization, "")
    found = {
        name: format_of(layout.Tensor(f"model.layers.0.self_attn.{name}", (64, 64), "attention"))
        for name in ("o_proj", "q_b_proj")
    }
    assert found == {"o_proj": "plain", "q_b_proj": "fp8"}
    assert format_of(layout.Tensor("lm_head", (64, 64), "lm_head")) == "plain"
