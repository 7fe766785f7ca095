"""`quantization_config`: what k2ref does not do is refused by name; no pattern runs for ever."""

import copy
import json
import re
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from k2ref.checkpoint import layout, quantization
from k2ref.checkpoint.config import Config, ConfigError
from scripts.checkpoints.small import FP8, INT4, tiny_config

CONFIGS = Path(__file__).parents[1] / "data" / "configs"
ARGS = {"num_bits": 8, "type": "float", "dynamic": True, "strategy": "token"}
WHERE = {"": (), "group": ("config_groups", "group_0"),
         "weights": ("config_groups", "group_0", "weights")}  # fmt: skip


def changed(where, name, value, layout="thinking"):
    values = copy.deepcopy(tiny_config(layout))
    at = values["quantization_config"]
    for key in WHERE[where]:
        at = at[key]
    at[name] = value
    return values


# Fields of compressed-tensors 0.20.1 and before it, of transformers, and of nobody yet.
CHANGE_NUMBERS = [
    ("", "transform_config", {"config_groups": {"R1": {"type": "hadamard", "apply": []}}}),
    ("", "sparsity_config", {"format": "sparse-24-bitmask", "sparsity_structure": "2:4"}),
    ("", "sparsity_config", {"sparsity_structure": "2:4"}), ("", "sparsity_config", "dense"),
    ("", "moe_sparsity_config", {"method": "novice"}), ("", "kv_cache_scheme", ARGS),
    ("", "kv_cache_scheme", {}), ("", "format", "mixed-precision"), ("", "format", None),
    ("", "rotation", "hadamard"), ("", "input_activations", ARGS), ("", "quant_method", "awq"),
    ("group", "input_activations", ARGS), ("group", "output_activations", ARGS),
    ("group", "format", "int-quantized"), ("group", "format", "marlin-24"),
    ("group", "targets", ["re:.*down_proj"]), ("group", "targets", ["Linear", "Attention"]),
    ("group", "new_thing", 1), ("weights", "num_bits", 8), ("weights", "num_bits", 4.0),
    ("weights", "type", "float"), ("weights", "symmetric", False), ("weights", "symmetric", 1),
    ("weights", "strategy", "channel"), ("weights", "group_size", 128),
    ("weights", "dynamic", True), ("weights", "dynamic", "local"), ("weights", "actorder", "group"),
    ("weights", "actorder", "dynamic"), ("weights", "block_structure", [128, 128]),
    ("weights", "scale_dtype", "torch.float8_e4m3fn"), ("weights", "global_scale", 0.5),
]  # fmt: skip


@pytest.mark.parametrize(("where", "name", "value"), CHANGE_NUMBERS)
def test_what_would_change_numbers_is_refused_by_name(where, name, value):
    with pytest.raises(ConfigError) as error:
        Config.from_dict(changed(where, name, value))
    message = str(error.value)
    assert message.startswith(".".join(("quantization_config", *WHERE[where], name)))
    assert "found" in message and len(message) < 400


@pytest.mark.parametrize(("where", "name", "values"), [
    ("", "transform_config", [{"config_groups": {}}]),
    ("", "sparsity_config", [{"format": "dense", "global_sparsity": 0.1}]),
    ("", "moe_sparsity_config", []), ("", "global_compression_ratio", [1.5]),
    ("", "quantization_status", ["compressed", "frozen"]), ("", "version", ["0.20.1"]),
    ("", "run_compressed", [True]), ("", "new_thing", []),
    ("group", "input_activations", []), ("group", "output_activations", []),
    ("group", "format", ["pack-quantized"]), ("weights", "dynamic", [False]),
    ("weights", "actorder", [False, "weight", "static"]), ("weights", "block_structure", []),
    ("weights", "observer", ["minmax"]), ("weights", "observer_kwargs", [{"a": 1}]),
    ("weights", "scale_dtype", ["torch.bfloat16"]), ("weights", "zp_dtype", ["torch.int8"]),
])  # fmt: skip
def test_what_says_nothing_is_allowed(where, name, values):
    before = Config.from_dict(tiny_config("thinking"))
    for value in (None, {}, *values):
        config = Config.from_dict(changed(where, name, value))
        assert config.n_bytes_by_kind == before.n_bytes_by_kind


@pytest.mark.parametrize(("name", "value"), [
    ("activation_scheme", "static"), ("weight_block_size", [64, 64]), ("weight_block_size", None),
    ("fmt", "e5m2"), ("scale_fmt", "e3m0"), ("ignored_layers", ["lm_head"]),
    ("kv_cache_scheme", ARGS), ("transform_config", {"a": 1}), ("new_thing", True),
])  # fmt: skip
def test_other_fp8_is_refused_by_name(name, value):
    with pytest.raises(ConfigError, match=f"^quantization_config.{name}: .*found"):
        Config.from_dict(changed("", name, value, "fp8"))


def test_fp8_fields_that_say_nothing_are_allowed():
    for name, value in (("scale_fmt", "ue8m0"), ("dequantize", False), ("new_thing", None),
                        ("modules_to_not_convert", ["lm_head"]), ("kv_cache_scheme", None)):
        Config.from_dict(changed("", name, value, "fp8"))


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.json")))
def test_official_configs_are_read_with_a_field_that_is_not_theirs_refused(file):
    values = json.loads(file.read_text())
    Config.from_dict(values)
    values.get("text_config", values)["quantization_config"]["transform_config"] = {"a": {}}
    with pytest.raises(ConfigError, match="^quantization_config.transform_config: "):
        Config.from_dict(values)


def test_compression_config_is_not_overlooked():
    """Its old name, which other engines still read."""
    values = tiny_config("moonlight")
    with pytest.raises(ConfigError, match="^compression_config: "):
        Config.from_dict({**values, "compression_config": INT4})
    Config.from_dict({**values, "compression_config": None})


def test_names_of_groups_and_fields_are_made_harmless():
    values = tiny_config("thinking")
    [group] = values["quantization_config"]["config_groups"].values()
    group["targets"] = []
    values["quantization_config"]["config_groups"] = {"\x1b[31m\u202e" + "x" * 10**6: group}
    with pytest.raises(ConfigError) as error:
        Config.from_dict(values)
    assert str(error.value).isprintable() and len(str(error.value)) < 500
    with pytest.raises(ConfigError) as error:
        Config.from_dict(changed("", "\x07" * 10**6, "\x07" * 10**6))
    assert str(error.value).isprintable() and len(str(error.value)) < 500


def ignoring(names, layout_name="thinking", key="ignore"):
    given = INT4 if layout_name == "thinking" else FP8
    return layout.format_finder({**given, key: names}, "language_model.")


SIMPLE = [
    "lm_head", "re:.*self_attn.*", "re:.*shared_experts.*", "re:.*lm_head.*", "re:vision_tower.*",
    r"re:.*mlp\.(gate|up|gate_up|down)_proj.*", r"re:.*mlp\.gate$", "re:^model.embed_tokens$",
    r"re:.*self_attn\.(?!o_proj).*", r"re:model\.layers\.\d+\.mlp\.experts\.\d+\.(gate|up)_proj$",
    r"re:.*\.layers\.(?:[0-9]|[1-5][0-9]|60)\.self_attn\..*", "re:.*(gate|router)", "re:a|b",
    "re:(?!.*experts).*proj", "re:.*layers.(" + "|".join(map(str, range(61))) + ").mlp.*",
    "re:.*", "re:", "re:.*[vV]is(ion)?_tower", "Linear", "",
]  # fmt: skip
NAMES = [
    "model.layers.0.self_attn.o_proj", "model.layers.59.self_attn.q_b_proj", "lm_head",
    "model.layers.1.mlp.experts.383.gate_proj", "model.layers.1.mlp.shared_experts.down_proj",
    "model.layers.0.mlp.gate_up_proj", "model.layers.60.mlp.gate", "model.embed_tokens", "a", "",
]  # fmt: skip


@pytest.mark.parametrize("pattern", SIMPLE)
def test_simple_patterns_are_what_re_makes_of_them(pattern):
    format_of = ignoring([pattern])
    for name in NAMES:
        full = ("language_model." + name, name)
        expected = (any(re.match(pattern[3:], n) for n in full) if pattern.startswith("re:")
                    else pattern in full)
        found = format_of(layout.Tensor(name, (32, 32), "attention"))
        assert found == ("plain" if expected else "int4"), name


@pytest.mark.parametrize("pattern", [
    "(a*)*b", "(a|a)*b", "(.*)+x", "(?:.+)*$", ".*.*.*.*x", "(.*a){20}", "(a?){30}", "a{3}{3}",
    ".?" * 30 + "x", "(.|.)" * 20 + "x", r"(a)\1", "(?P<n>a)", "(?<=a)b", "(?i)a", "[[a]]", "a**",
    "(", ")", "[", "*", "a{999}", "\\", r"\k", "[z-a]", "(" * 50 + "a" + ")" * 50, "a\\8",
])  # fmt: skip
def test_other_patterns_are_refused_at_once(pattern):
    begin = time.process_time()
    with pytest.raises(ConfigError, match="^quantization_config.ignore: expected"):
        ignoring(["re:" + pattern])
    assert time.process_time() - begin < 1


pieces = st.sampled_from([".*", ".+", ".?", r"\d+", "[a-z]*", "a", r"\.", "proj", "(a|b)", "(.|a)?",
                          "(?!a)", "|", "$", "x", "(", ")", "{2}", "*"])  # fmt: skip


@given(st.lists(st.lists(pieces, max_size=12).map("".join), max_size=5))
def test_no_pattern_that_is_taken_runs_for_long(patterns):
    try:
        format_of = ignoring(["re:" + pattern for pattern in patterns])
    except ConfigError:
        return
    begin = time.process_time()
    for name in ("a" * 60, "model.layers.60.mlp.experts.383.gate_proj.", "1.2." * 15):
        format_of(layout.Tensor(name, (32, 32), "attention"))
    assert time.process_time() - begin < 1  # not a matter of speed: a hang is hours


def test_lists_of_names_are_looked_up_and_bounded():
    names = [f"model.layers.{i}.mlp.experts.{e}.gate_proj" for i in range(61) for e in range(384)]
    format_of, begin = ignoring(names), time.process_time()
    for name in names:
        assert format_of(layout.Tensor(name, (32, 32), "experts")) == "plain"
    assert time.process_time() - begin < 5  # one by one, it was an hour
    for layout_name, key, most in (("thinking", "ignore", 100_000),
                                   ("fp8", "modules_to_not_convert", 2_000)):
        with pytest.raises(ConfigError, match=f"{key}: expected at most {most} names, found"):
            ignoring([str(i) for i in range(most + 1)], layout_name, key)
    begin = time.process_time()
    for patterns in (["re:.*a.*b"] * 3, ["re:model.layers.1.mlp"] * 3_000, ["re:" + "x" * 10**7]):
        with pytest.raises(ConfigError, match="at most 10000 ways"):
            ignoring(patterns)
    assert time.process_time() - begin < 5  # to compile the last one takes half a minute


def test_tries_are_the_product_of_the_choices():
    assert quantization.n_tries(r".*a\d+(x|y|z)?b.*") == 60 * 4 * 4
    assert quantization.n_tries("a|b.*c") == 120 and quantization.n_tries(".*") == 1
