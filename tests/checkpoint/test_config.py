"""config.json: the seven official files give the published numbers; all else is refused by name."""

import copy
import dataclasses
import hashlib
import json
import math
import re
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import k2ref
from k2ref import CheckpointError
from k2ref.checkpoint.config import Config, ConfigError, Yarn
from scripts.checkpoints.small import LAYOUTS, tiny_config, write_checkpoint

CONFIGS = Path(__file__).parents[1] / "data" / "configs"
FP8_MODELS = ("Kimi-K2-Base", "Kimi-K2-Instruct", "Kimi-K2-Instruct-0905")
NESTED_MODELS = ("Kimi-K2.5", "Kimi-K2.6", "Kimi-K2.7-Code")
ALL_MODELS = FP8_MODELS + NESTED_MODELS + ("Kimi-K2-Thinking",)


def official(name: str) -> Config:
    return Config.from_dict(json.loads((CONFIGS / f"{name}.json").read_text()))


def test_committed_configs_are_the_ones_in_their_readme():
    readme = (CONFIGS / "README.md").read_text()
    listed = dict(re.findall(r"`([^`]+\.json)` \| `([0-9a-f]{64})`", readme))
    found = {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in CONFIGS.glob("*.json")}
    assert listed == found
    assert len(found) == 7


@pytest.mark.parametrize("name", ALL_MODELS)
def test_official_configs_give_the_numbers_of_the_model_card(name):
    config = official(name)
    assert config.n_parameters == 1_026_408_232_448
    assert config.kv_bytes_per_token(2) == 70_272
    assert config.qk_head_dim == 192
    assert (config.bos_token_id, config.vocab_size) == (163_584, 163_840)
    assert config.rope_mscale == 1.0
    assert config.latent_norm_eps == 1e-6
    assert [config.is_moe_layer(i) for i in (0, 1, 60)] == [False, True, True]
    assert config.tensor_prefix == ("language_model." if name in NESTED_MODELS else "")
    assert config.model_type == ("kimi_k25" if name in NESTED_MODELS else "kimi_k2")


def test_payload_bytes_are_the_total_sizes_of_the_official_indices():
    assert official("Kimi-K2-Thinking").n_payload_bytes == 594_205_920_512
    assert official("Kimi-K2-Instruct").n_payload_bytes == 1_029_173_256_720
    assert official("Kimi-K2-Instruct-0905").n_payload_bytes == 1_029_173_265_504
    for name in NESTED_MODELS:  # less the 335 vision tensors
        assert official(name).n_payload_bytes == 595_148_192_736 - 942_287_840


def test_bytes_by_kind_add_up_to_the_shards_of_k2_thinking():
    config = official("Kimi-K2-Thinking")
    kinds = config.n_bytes_by_kind
    assert sum(kinds.values()) == config.n_weight_bytes == 594_205_920_512 - 61 * 128 * 2
    # The last shard holds embeddings, final norm and lm_head.
    assert kinds["embedding"] + kinds["lm_head"] + 7168 * 2 == 4_697_634_816
    # 60 layers of 384 experts: three matrices of nibbles, scales and shapes each.
    matrix = 2048 * 7168 // 2 + 2048 * 7168 // 32 * 2 + 8
    assert kinds["experts"] == 60 * 384 * 3 * matrix
    token = config.n_weight_bytes - kinds["experts"] * 376 // 384 - kinds["embedding"] + 7168 * 2
    assert config.n_bytes_per_token == token


def test_yarn_corners():
    assert official("Kimi-K2-Thinking").yarn_corners == (19, 20)
    assert official("Kimi-K2-Instruct").yarn_corners == (19, 20)
    assert official("Kimi-K2.5").yarn_corners == (8, 20)
    assert Config.from_dict(tiny_config("moonlight")).yarn_corners is None


def test_trap_mscale_all_dim_is_what_scales_softmax():
    assert official("Kimi-K2-Thinking").softmax_scale == pytest.approx(0.144679625803, abs=1e-12)
    assert official("Kimi-K2-Instruct").softmax_scale == pytest.approx(0.130860799963, abs=1e-12)
    config = Config.from_dict(tiny_config("moonlight"))
    assert config.softmax_scale == config.qk_head_dim**-0.5
    # With the two values told apart, mscale must not matter, and mscale_all_dim = 0 means none.
    values = tiny_config("thinking")
    values["rope_scaling"].update(mscale=0.5, mscale_all_dim=0.0)
    config = Config.from_dict(values)
    assert config.softmax_scale == config.qk_head_dim**-0.5
    assert config.rope_mscale == 0.1 * 0.5 * math.log(64) + 1


def test_trap_latent_norms_have_an_eps_of_their_own():
    config = official("Kimi-K2-Thinking")
    assert (config.rms_norm_eps, config.latent_norm_eps) == (1e-5, 1e-6)
    as_served = dataclasses.replace(config, latent_norm_eps=config.rms_norm_eps)
    assert as_served.latent_norm_eps == 1e-5
    # The switch is k2ref's own: a file cannot turn it.
    assert Config.from_dict({**tiny_config(), "latent_norm_eps": 0.5}).latent_norm_eps == 1e-6


def test_nested_values_come_from_text_config_before_the_outer_file():
    values = tiny_config("k25")
    values["text_config"]["eos_token_id"], values["eos_token_id"] = 258, 257
    assert Config.from_dict(values).eos_token_id == 258
    del values["text_config"]["eos_token_id"]
    assert Config.from_dict(values).eos_token_id == 257


def test_moe_layers_follow_first_and_frequency():
    values = {**tiny_config(), "num_hidden_layers": 6, "first_k_dense_replace": 2}
    config = Config.from_dict({**values, "moe_layer_freq": 2})
    assert [config.is_moe_layer(i) for i in range(6)] == [False, False, True, False, True, False]


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_loads_and_a_whole_number_passes_for_a_float(name):
    values = tiny_config(name)
    config = Config.from_dict(values)
    values.get("text_config", values)["rope_theta"] = int(config.rope_theta)
    assert Config.from_dict(values) == config
    assert type(Config.from_dict(values).rope_theta) is float
    assert hash(config) == hash(Config.from_dict(values))


UNSUPPORTED = {
    "scoring_func": "softmax", "topk_method": "greedy", "hidden_act": "gelu",
    "attention_bias": True, "tie_word_embeddings": True, "model_type": "llama",
    "rope_interleave": False, "rope_parameters": {"rope_type": "yarn"}, "torch_dtype": "float16",
}  # fmt: skip


@pytest.mark.parametrize("field", UNSUPPORTED)
def test_unsupported_values_are_named_with_what_is_supported(field):
    with pytest.raises(ConfigError) as error:
        Config.from_dict({**tiny_config(), field: UNSUPPORTED[field]})
    assert str(error.value).startswith(f"{field}: k2ref supports ")
    assert repr(UNSUPPORTED[field]) in str(error.value)


MALFORMED = [
    ("hidden_size", 0), ("hidden_size", -64), ("hidden_size", 64.0), ("hidden_size", "64"),
    ("hidden_size", True), ("hidden_size", None), ("num_hidden_layers", []),
    ("rms_norm_eps", 0), ("rms_norm_eps", math.nan), ("rope_theta", -1.0), ("rope_theta", 10**400),
    ("rope_theta", 1.0), ("norm_topk_prob", 1), ("qk_rope_head_dim", 7),
    ("num_key_value_heads", 1), ("n_group", 3), ("n_group", 8), ("topk_group", 2),
    ("num_experts_per_tok", 9), ("first_k_dense_replace", 4), ("eos_token_id", 512),
    ("bos_token_id", -1), ("q_lora_rank", "null"), ("rope_scaling", 4.0),
    ("quantization_config", "int4"), ("text_config", None),
]  # fmt: skip


@pytest.mark.parametrize(("field", "value"), MALFORMED)
def test_malformed_values_are_named(field, value):
    with pytest.raises(ConfigError) as error:
        Config.from_dict({**tiny_config(), field: value})
    assert str(error.value).startswith(f"{field}: ")


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(Yarn)] + ["type"])
def test_missing_and_malformed_yarn_fields_are_named(field):
    for change in ({}, {field: "x"}, {field: -1}):
        values = tiny_config()
        del values["rope_scaling"][field]
        values["rope_scaling"].update(change)
        with pytest.raises(ConfigError, match=f"^rope_scaling.{field}: "):
            Config.from_dict(values)


def test_missing_fields_are_named():
    required = [f.name for f in dataclasses.fields(Config) if f.default is dataclasses.MISSING]
    for field in required:
        values = tiny_config()
        del values[field]
        with pytest.raises(ConfigError, match=f"^{field}: missing"):
            Config.from_dict(values)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("quant_method",), "gptq"), (("format",), "marlin-24"), (("kv_cache_scheme",), {}),
        (("config_groups",), {}), (("config_groups", "group_0", "targets"), ["Conv"]),
        (("config_groups", "group_0", "weights", "num_bits"), 8),
        (("config_groups", "group_0", "weights", "group_size"), 128),
        (("config_groups", "group_0", "weights", "symmetric"), False),
        (("config_groups", "group_0", "weights", "actorder"), "group"),
        (("ignore",), "lm_head"), (("ignore",), ["re:("]),
    ],
)  # fmt: skip
def test_other_int4_quantizations_are_named(path, value):
    values = tiny_config("thinking")
    at = values["quantization_config"]
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    with pytest.raises(ConfigError) as error:
        Config.from_dict(values)
    assert str(error.value).startswith(".".join(("quantization_config", *path)))


@pytest.mark.parametrize(
    ("key", "value"),
    [("weight_block_size", [64, 64]), ("fmt", "e5m2"), ("activation_scheme", "static")],
)
def test_other_fp8_quantizations_are_named(key, value):
    values = tiny_config("fp8")
    values["quantization_config"][key] = value
    with pytest.raises(ConfigError, match=f"^quantization_config.{key}: "):
        Config.from_dict(values)


def test_int4_needs_whole_groups_of_columns():
    with pytest.raises(ConfigError, match="multiple of 32 columns"):
        Config.from_dict({**tiny_config("thinking"), "moe_intermediate_size": 40})


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"text_config": 1}', "[" * 100_000, "\ufeff{}"])
def test_files_that_are_no_config_are_refused_by_path(tmp_path, text):
    with pytest.raises(ConfigError, match="config.json cannot be read"):
        Config.from_dir(tmp_path)
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match="config.json: "):
        Config.from_dir(tmp_path)


COUNTS = [f.name for f in dataclasses.fields(Config) if f.type in (int, int | None)
          and not f.name.endswith("_token_id")]  # fmt: skip
FLOATS = [f.name for f in dataclasses.fields(Config) if f.type is float]


@pytest.mark.parametrize("value", [10**5, 10**9, 2**53, 2**62, 10**400])
@pytest.mark.parametrize("field", COUNTS)
def test_no_count_makes_it_hang_or_swell(tmp_path, field, value):
    begin, values = time.process_time(), {**tiny_config(), field: value}
    write_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(values))
    try:
        model = k2ref.load(tmp_path, threads=1)
    except (ConfigError, CheckpointError) as error:
        assert any(word in str(error) for word in (field, "tensor", "num_key_value_heads"))
        assert len(str(error)) < 600
    else:
        assert field in ("max_position_embeddings", "moe_layer_freq", "num_nextn_predict_layers")
        assert len(list(k2ref.generate(model, [1, 2], 2, stop_ids=[]))) == 2
    assert time.process_time() - begin < 5


@pytest.mark.parametrize("value", [1e160, 1.7e308, 1e30, 5e-324, 1e-40, math.inf, math.nan])
@pytest.mark.parametrize("field", [*FLOATS, *(f.name for f in dataclasses.fields(Yarn))])
def test_no_number_overflows(field, value):
    values = tiny_config()
    at = values["rope_scaling"] if field in values["rope_scaling"] else values
    at[field] = value
    if field == "latent_norm_eps":  # not the file's
        with pytest.raises(ConfigError, match=field):
            dataclasses.replace(Config.from_dict(tiny_config()), latent_norm_eps=value)
    else:
        with pytest.raises(ConfigError, match=field):
            Config.from_dict(values)


@pytest.mark.parametrize("name", ["attention_factor", "truncate"])
def test_other_yarn_is_refused_by_name(name):
    values = tiny_config()
    values["rope_scaling"][name] = {"attention_factor": 1.5, "truncate": False}[name]
    with pytest.raises(ConfigError, match=f"^rope_scaling.{name}: "):
        Config.from_dict(values)


def test_end_ids_may_be_a_list():
    for ids, found in (([258, 257], (258, 257)), ([], ()), (258, 258), (None, None)):
        config = Config.from_dict({**tiny_config(), "eos_token_id": ids})
        assert config.eos_token_id == found and hash(config)


WRONG_IDS = [{}, [[2]], math.inf, math.nan, True, [True], 1.5, [1.5], "2", ["2"], -1, [-1], 512,
             [258, 512], [None], 10**400, [{}], [1] * 257, [0] * 10**6]  # fmt: skip


@pytest.mark.parametrize("ids", WRONG_IDS)
@pytest.mark.parametrize("name", ["bos_token_id", "eos_token_id", "pad_token_id"])
def test_what_is_no_token_id_is_refused(tmp_path, name, ids):
    with pytest.raises(ConfigError, match=f"^{name}: expected") as error:
        Config.from_dict({**tiny_config(), name: ids})
    assert len(str(error.value)) < 400
    write_checkpoint(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({name: ids}))
    with pytest.raises(ConfigError, match="generation_config.json: "):
        k2ref.load(tmp_path)


@pytest.mark.parametrize("name", ["bos_token_id", "pad_token_id"])
def test_only_the_end_may_be_a_list(name):
    with pytest.raises(ConfigError, match=f"^{name}: expected the id of a token, less"):
        Config.from_dict({**tiny_config(), name: [1]})


@pytest.mark.parametrize(("name", "value"), [
    ("temperature", "hot"), ("temperature", True), ("temperature", -1), ("temperature", [1]),
    ("top_p", {}), ("top_p", 0), ("top_p", "0.9"), ("top_k", 1.5), ("top_k", True), ("top_k", "5"),
    ("top_k", -5), ("min_p", 2), ("repetition_penalty", 0), ("temperature", 10**400),
])
def test_settings_of_the_wrong_kind_are_refused_at_load(tmp_path, name, value):
    write_checkpoint(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({name: value}))
    with pytest.raises(ConfigError, match=f"generation_config.json: {name} must be"):
        k2ref.load(tmp_path)


@pytest.mark.parametrize("text", ['{"a": 1, "a": 2}', '{"hidden_size": 1e999}', '{"a": NaN}'])
def test_files_that_python_alone_would_read_are_refused(tmp_path, text):
    write_checkpoint(tmp_path, tokenizer=True)
    for name in ("generation_config.json", "tokenizer_config.json", "config.json"):
        before = (tmp_path / name).read_text()
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=f"{name}: expected"):
            k2ref.load(tmp_path)
        (tmp_path / name).write_text(before)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    | st.sampled_from([10**400, 2**62, 5e-324, 1.7e308, 1.0000000000000002]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)  # fmt: skip


@given(st.data())
def test_any_json_value_in_any_field_loads_or_is_a_config_error(data):
    values = copy.deepcopy(tiny_config(data.draw(st.sampled_from(LAYOUTS))))
    at = values
    while True:
        key = data.draw(st.sampled_from(sorted(at)))
        if not (isinstance(at[key], dict) and at[key] and data.draw(st.booleans())):
            break
        at = at[key]
    at[key] = data.draw(json_values)
    try:
        config = Config.from_dict(values)
    except ConfigError as error:
        assert str(error)
    else:
        assert config.softmax_scale > 0
        assert config.yarn_corners is None or len(config.yarn_corners) == 2
