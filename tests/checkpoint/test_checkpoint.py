"""Checkpoints: each layout is read as the safetensors library reads it, each wrong tensor named."""

import json
import time

import numpy as np
import pytest
import safetensors
from refusals import open_dir, refused

from k2ref import quant
from k2ref.checkpoint import layout
from k2ref.checkpoint import weights as checkpoint_module
from k2ref.checkpoint.config import Config
from k2ref.checkpoint.weights import Checkpoint, CheckpointError
from scripts.checkpoints.small import (
    LAYOUTS,
    STORED_AS,
    random_tensors,
    tiny_config,
    unused_tensors,
    write_checkpoint,
    write_shards,
)

FORMAT_OF = {"thinking": quant.Int4, "k25": quant.Int4, "fp8": quant.Fp8, "moonlight": quant.Bf16,
             "deepseek": quant.Fp8}  # fmt: skip
EXPERT = "model.layers.1.mlp.experts.5.up_proj"
O_PROJ = "model.layers.2.self_attn.o_proj"
NORM = "model.layers.0.input_layernorm.weight"


def stored_by_safetensors(path) -> dict:
    """Read all shards with the safetensors library: `{name: (dtype, shape, bytes)}`."""
    stored = {}
    for shard in path.glob("*.safetensors"):
        for name, entry in safetensors.deserialize(shard.read_bytes()):
            stored[name] = entry["dtype"], tuple(entry["shape"]), bytes(entry["data"])
    return stored


def arrays_of(weight) -> dict:
    if isinstance(weight, quant.Int4):
        return {".weight_packed": weight.packed, ".weight_scale": weight.scale}
    if isinstance(weight, quant.Fp8):
        return {".weight": weight.bits, ".weight_scale_inv": weight.scale_inv}
    return {".weight": weight.bits if isinstance(weight, quant.Bf16) else weight.values}


@pytest.mark.parametrize("n_shards", [1, 3])
@pytest.mark.parametrize("name", LAYOUTS)
def test_every_tensor_is_read_as_the_safetensors_library_reads_it(tmp_path, name, n_shards):
    write_checkpoint(tmp_path, layout=name, seed=3, n_shards=n_shards)
    config, oracle = Config.from_dir(tmp_path), stored_by_safetensors(tmp_path)
    n_read = 0
    with Checkpoint.open(tmp_path, config) as checkpoint:
        for tensor in layout.tensors(config):
            full = config.tensor_prefix + tensor.name
            if len(tensor.shape) == 1:
                dtype, shape, data = oracle[full]
                values = checkpoint.vector(tensor.name, tensor.shape)
                assert values.dtype == np.float32 and values.shape == shape
                bits = values if dtype == "F32" else values.view(np.uint32) >> 16
                assert bits.astype(STORED_AS[dtype]).tobytes() == data
                n_read += len(data)
                continue
            weight = checkpoint.weight(tensor.name, tensor.shape)
            assert weight.shape == tensor.shape
            assert isinstance(weight, (FORMAT_OF[name], quant.Bf16))
            for suffix, array in arrays_of(weight).items():
                assert array.shape == oracle[full + suffix][1]
                assert array.tobytes() == oracle[full + suffix][2]
                n_read += array.nbytes
        n_shapes = sum(data[0] in ("I32", "I64") and data[1] == (2,) for data in oracle.values())
        shape_bytes = 16 if name == "k25" else 8
        assert checkpoint.n_bytes == n_read + n_shapes * shape_bytes
        assert type(checkpoint.weight(EXPERT, (32, config.hidden_size))) is FORMAT_OF[name]


def test_weights_are_read_only_views_into_the_files(tmp_path):
    write_checkpoint(tmp_path)
    with open_dir(tmp_path) as checkpoint:
        first = checkpoint.weight(EXPERT, (32, 64)).packed
        again = checkpoint.weight(EXPERT, (32, 64)).packed
        assert np.shares_memory(first, again)
        assert not first.flags.writeable
        assert any(first.base is shard.map for shard in checkpoint.shards)


def test_views_outlive_close(tmp_path):
    # Were the file unmapped under the view, this would not fail but crash.
    write_checkpoint(tmp_path)
    checkpoint = open_dir(tmp_path)
    weight = checkpoint.weight(O_PROJ, (64, 32))
    before = weight.dequantize()
    checkpoint.close()
    assert (weight.dequantize() == before).all()
    with pytest.raises(CheckpointError, match="o_proj"):
        checkpoint.weight(O_PROJ, (64, 32))


def test_float32_weights_and_bf16_bias_are_read_too(tmp_path):
    config = Config.from_dict(tiny_config("moonlight"))
    write_checkpoint(tmp_path, layout="moonlight")
    tensors = random_tensors(config, seed=5)
    values = np.linspace(-1, 1, 64 * 32, dtype=np.float32).reshape(64, 32)
    bias = "model.layers.1.mlp.gate.e_score_correction_bias"
    tensors[O_PROJ + ".weight"] = "F32", values
    tensors[bias] = "BF16", quant.f32_to_bf16(np.arange(8))
    tensors[NORM] = "F32", values[0, :32].repeat(2)
    write_shards(tmp_path, tensors)
    with open_dir(tmp_path) as checkpoint:
        assert (checkpoint.weight(O_PROJ, (64, 32)).values == values).all()
        assert (checkpoint.vector(bias, (8,)) == np.arange(8)).all()
        assert (checkpoint.vector(NORM, (64,)) == tensors[NORM][1]).all()


def test_asking_for_another_name_or_shape_is_an_error(tmp_path):
    write_checkpoint(tmp_path)
    with open_dir(tmp_path) as checkpoint:
        for name, shape in ((O_PROJ, (32, 64)), (EXPERT, (64, 32)), ("model.o_proj", (64, 32))):
            with pytest.raises(CheckpointError, match=name):
                checkpoint.weight(name, shape)
        for name, shape in ((NORM, (63,)), ("model.norm", (64,))):
            with pytest.raises(CheckpointError, match=name):
                checkpoint.vector(name, shape)


def test_trap_shard_names_are_followed_not_made_up(tmp_path):
    write_checkpoint(tmp_path)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {
        "model-00001-of-000002.safetensors", "model-00002-of-000002.safetensors",
    }  # fmt: skip
    (tmp_path / "model-00001-of-000002.safetensors").rename(tmp_path / "other.bin")
    index["weight_map"] = {
        name: "other.bin" if shard.startswith("model-00001") else shard
        for name, shard in index["weight_map"].items()
    }
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    open_dir(tmp_path).close()


def test_trap_stale_inv_freq_and_other_unused_tensors_are_skipped(tmp_path):
    for name in ("thinking", "k25", "deepseek"):
        write_checkpoint(tmp_path / name, layout=name)
        skipped = unused_tensors(Config.from_dir(tmp_path / name), name)
        assert skipped.keys() <= stored_by_safetensors(tmp_path / name).keys()
        with open_dir(tmp_path / name) as checkpoint:
            assert not skipped.keys() & checkpoint.tensors.keys()


def write_changed(path, change, name="thinking"):
    """Write a sound checkpoint whose dictionary of tensors was changed first."""
    config = Config.from_dict(tiny_config(name))
    write_checkpoint(path, layout=name)
    tensors = random_tensors(config, seed=0)
    change(tensors)
    write_shards(path, tensors)


@pytest.mark.parametrize(
    "name",
    [NORM, O_PROJ + ".weight", EXPERT + ".weight_packed", EXPERT + ".weight_scale",
     EXPERT + ".weight_shape", "lm_head.weight"],
)  # fmt: skip
def test_missing_misnamed_mistyped_and_misshapen_tensors_are_named(tmp_path, name):
    def rename(tensors):
        tensors[name + "s"] = tensors.pop(name)

    def mistype(tensors):
        tensors[name] = "F8_E4M3", tensors[name][1].astype("u1")

    def reshape(tensors):
        dtype, array = tensors[name]
        tensors[name] = dtype, array.reshape(1, -1)

    write_changed(tmp_path, lambda tensors: tensors.pop(name))
    refused(tmp_path, repr(name), "none of this name")
    write_changed(tmp_path, rename)
    refused(tmp_path, repr(name))
    write_changed(tmp_path, mistype)
    refused(tmp_path, repr(name), "F8_E4M3", ".safetensors")
    write_changed(tmp_path, reshape)
    refused(tmp_path, repr(name), "[1, ", ".safetensors")


@pytest.mark.parametrize("n_predict", [None, 0, 1])
def test_layers_that_predict_further_tokens_are_skipped(tmp_path, n_predict):
    """Whether or not config.json counts them: not all of DeepSeek's kind do."""
    values = tiny_config("deepseek")
    values.pop("num_nextn_predict_layers")
    if n_predict is not None:
        values["num_nextn_predict_layers"] = n_predict
    write_checkpoint(tmp_path, values, layout="deepseek")
    with open_dir(tmp_path) as checkpoint:
        assert not any(".layers.3." in name for name in checkpoint.tensors)


def test_layers_beyond_the_last_are_not_skipped_for_nothing(tmp_path):
    values = {**tiny_config(), "num_hidden_layers": 2}
    write_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(values))
    refused(tmp_path, "model.layers.2.", "layers 0 to 1, as num_hidden_layers says", "eh_proj")


@pytest.mark.parametrize(("n_layers", "n_experts"), [(4096, 64), (400, 600)])
def test_a_model_of_far_more_tensors_than_there_are_is_refused_at_once(
    tmp_path, n_layers, n_experts
):
    write_checkpoint(tmp_path)
    values = {**tiny_config(), "num_hidden_layers": n_layers, "n_routed_experts": n_experts}
    (tmp_path / "config.json").write_text(json.dumps(values))
    begin = time.process_time()
    refused(tmp_path, f"{n_layers} num_hidden_layers", f"{n_experts} n_routed_experts")
    assert time.process_time() - begin < 1


def test_tensors_that_the_model_does_not_have_are_named(tmp_path):
    extra = "model.layers.3.input_layernorm.weight"
    write_changed(tmp_path, lambda tensors: tensors.update({extra: tensors[NORM]}))
    refused(tmp_path, repr(extra), ".safetensors")


@pytest.mark.parametrize("shape", [[64, 32], [32, 65], [0, 0], [-1, 64]])
def test_weight_shape_must_say_the_shape(tmp_path, shape, monkeypatch):
    def change(tensors):
        tensors[EXPERT + ".weight_shape"] = "I32", np.array(shape, "<i4")

    write_changed(tmp_path, change)
    refused(tmp_path, EXPERT + ".weight_shape", "[32, 64]", shape)
    # Where there are too many to read at once, the same is found when the weight is asked for.
    monkeypatch.setattr(checkpoint_module, "MAX_SHAPES_READ_AT_OPEN", 0)
    with open_dir(tmp_path) as checkpoint:
        with pytest.raises(CheckpointError, match="experts.5.up_proj.weight_shape"):
            checkpoint.weight(EXPERT, (32, 64))


def set_quantization(path, quantization):
    values = json.loads((path / "config.json").read_text())
    if quantization is None:
        del values["quantization_config"]
    else:
        values["quantization_config"].update(quantization)
    (path / "config.json").write_text(json.dumps(values))


def test_int4_and_quantization_config_must_agree(tmp_path):
    write_checkpoint(tmp_path / "a")
    set_quantization(tmp_path / "a", None)
    refused(tmp_path / "a", "experts.0.gate_proj", "expected it plain", "weight_packed", "int4")

    def quantize_attention(tensors):
        values = quant.bf16_to_f32(tensors.pop(O_PROJ + ".weight")[1])
        weight = quant.quantize_int4(values)
        tensors[O_PROJ + ".weight_packed"] = "I32", weight.packed
        tensors[O_PROJ + ".weight_scale"] = "BF16", weight.scale
        tensors[O_PROJ + ".weight_shape"] = "I32", np.array(values.shape, "<i4")

    write_changed(tmp_path / "b", quantize_attention)
    refused(tmp_path / "b", O_PROJ, "expected it plain", "int4")
    # The same file is right if the list leaves out this one matrix.
    patterns = [r"re:.*self_attn\.(?!o_proj).*", r"re:model\.layers\.[01]\.self_attn.*",
                "re:.*shared_experts.*", r"re:.*mlp\.(gate|up|down)_proj", "lm_head"]  # fmt: skip
    set_quantization(tmp_path / "b", {"ignore": patterns})
    with open_dir(tmp_path / "b") as checkpoint:
        assert isinstance(checkpoint.weight(O_PROJ, (64, 32)), quant.Int4)


def test_plain_experts_are_read_where_the_config_leaves_them_plain(tmp_path):
    def unpack(tensors):
        for name in [name for name in tensors if name.endswith(".weight_packed")]:
            base = name[: -len("_packed")]
            weight = quant.Int4(tensors.pop(name)[1], tensors.pop(base + "_scale")[1])
            del tensors[base + "_shape"]
            tensors[base] = "BF16", quant.f32_to_bf16(weight.dequantize())

    write_changed(tmp_path, unpack)
    refused(tmp_path, "experts.0.gate_proj", "expected it int4", "plain")
    set_quantization(tmp_path, {"ignore": ["re:.*"]})
    with open_dir(tmp_path) as checkpoint:
        assert isinstance(checkpoint.weight(EXPERT, (32, 64)), quant.Bf16)
