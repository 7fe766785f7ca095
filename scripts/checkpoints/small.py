"""Small random checkpoints in the official layouts: the goldens, and what the tests write anew.

    path = write_checkpoint(tmp_path, layout="thinking", seed=1)

Layouts: "thinking" (flat, INT4 experts, stale inv_freq), "k25" (nested, prefixed, int64
weight_shape, vision tensors), "fp8" (K2-Instruct), "moonlight" (BF16, one q_proj, no YaRN), and
"deepseek" (FP8, groups of experts, an extra prediction layer). `tiny_config` gives the dictionary
to change before writing; `write_safetensors` writes any header, right or wrong.
"""

import base64
import json
import math
from pathlib import Path

import numpy as np

from k2ref import quant
from k2ref.checkpoint import layout as tensor_layout
from k2ref.checkpoint.config import Config

LAYOUTS = ("thinking", "k25", "fp8", "moonlight", "deepseek")
STORED_AS = {"BF16": "<u2", "F32": "<f4", "F8_E4M3": "u1", "I32": "<i4", "I64": "<i8"}
N_BASE = 256  # byte tokens; 256 special ids follow, as in the official vocabulary
SPECIALS = {
    0: "[BOS]", 1: "[EOS]", 2: "<|im_end|>", 3: "<|im_user|>", 4: "<|im_assistant|>",
    6: "<|start_header_id|>", 7: "<|end_header_id|>", 9: "[EOT]", 10: "<|im_system|>",
    11: "<|tool_calls_section_begin|>", 12: "<|tool_calls_section_end|>",
    13: "<|tool_call_begin|>", 14: "<|tool_call_argument_begin|>", 15: "<|tool_call_end|>",
    17: "<|im_middle|>", 18: "<|media_begin|>", 19: "<|media_content|>", 20: "<|media_end|>",
    21: "<|media_pad|>", 22: "<think>", 23: "</think>", 254: "[UNK]", 255: "[PAD]",
}  # fmt: skip
INT4 = {
    "quant_method": "compressed-tensors", "format": "pack-quantized",
    "quantization_status": "compressed", "kv_cache_scheme": None,
    "ignore": [
        "lm_head", "re:.*self_attn.*", "re:.*shared_experts.*",
        "re:.*mlp\\.(gate|up|gate_up|down)_proj.*",
    ],
    "config_groups": {"group_0": {
        "targets": ["Linear"], "input_activations": None, "output_activations": None,
        "weights": {
            "num_bits": 4, "type": "int", "symmetric": True, "strategy": "group",
            "group_size": 32, "dynamic": False, "actorder": None,
        },
    }},
}  # fmt: skip
FP8 = {
    "quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic",
    "weight_block_size": [128, 128],
}  # fmt: skip


def tiny_config(layout: str = "thinking") -> dict:
    """Make a new config.json dictionary of the layout; 200,000 to 600,000 parameters."""
    config = {
        "architectures": ["DeepseekV3ForCausalLM"], "model_type": "kimi_k2",
        "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2,
        "num_key_value_heads": 2, "q_lora_rank": 24, "kv_lora_rank": 32, "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 8, "v_head_dim": 16, "intermediate_size": 96,
        "moe_intermediate_size": 32, "n_routed_experts": 8, "n_shared_experts": 1,
        "num_experts_per_tok": 3, "n_group": 1, "topk_group": 1, "topk_method": "noaux_tc",
        "scoring_func": "sigmoid", "norm_topk_prob": True, "routed_scaling_factor": 2.827,
        "first_k_dense_replace": 1, "moe_layer_freq": 1, "num_nextn_predict_layers": 0,
        "hidden_act": "silu", "attention_bias": False, "tie_word_embeddings": False,
        "rms_norm_eps": 1e-05, "rope_theta": 50000.0, "max_position_embeddings": 262144,
        "rope_scaling": {
            "type": "yarn", "factor": 64.0, "beta_fast": 1.0, "beta_slow": 1.0, "mscale": 1.0,
            "mscale_all_dim": 1.0, "original_max_position_embeddings": 4096,
        },
        "vocab_size": 2 * N_BASE, "bos_token_id": N_BASE, "eos_token_id": N_BASE + 2,
        "pad_token_id": N_BASE + 255, "torch_dtype": "bfloat16",
    }  # fmt: skip
    if layout == "thinking":
        config["quantization_config"] = json.loads(json.dumps(INT4))
    elif layout == "k25":
        config["rope_scaling"]["beta_fast"] = 32.0
        config["quantization_config"] = json.loads(json.dumps(INT4))
        config["quantization_config"]["ignore"][0] = "re:.*lm_head.*"
        config["dtype"] = config.pop("torch_dtype")
        config = {
            "architectures": ["KimiK25ForConditionalGeneration"], "model_type": "kimi_k25",
            "text_config": config, "vision_config": {"patch_size": 14},
            "eos_token_id": N_BASE + 2, "tie_word_embeddings": False,
        }  # fmt: skip
    elif layout == "fp8":  # wide enough that the last block of 128 is a partial one
        config.update(hidden_size=160, quantization_config=dict(FP8), rms_norm_eps=1e-06)
    elif layout == "moonlight":
        config.update(
            model_type="deepseek_v3", q_lora_rank=None, rope_scaling=None, n_shared_experts=2,
            routed_scaling_factor=2.446, max_position_embeddings=8192,
        )  # fmt: skip
    elif layout == "deepseek":
        config.update(
            model_type="deepseek_v3", n_group=4, topk_group=2, routed_scaling_factor=2.5,
            num_nextn_predict_layers=1, rope_theta=10000.0, quantization_config=dict(FP8),
        )  # fmt: skip
        config["rope_scaling"].update(factor=40.0, beta_fast=32.0)
    else:
        raise ValueError(f"layout: expected one of {LAYOUTS}, found {layout!r}")
    return config


def random_tensors(config: Config, seed: int, shape_dtype: str = "I32") -> dict:
    """Draw all stored tensors of a model, `{full name: (dtype, array)}`.

    Matrices keep the variance of what they multiply, so activations stay near 1 in any depth.
    """
    rng = np.random.default_rng(seed)
    format_of = tensor_layout.format_finder(config.quantization_config, config.tensor_prefix)
    stored = {}
    for tensor in tensor_layout.tensors(config):
        name, format = config.tensor_prefix + tensor.name, format_of(tensor)
        values = rng.standard_normal(tensor.shape, dtype=np.float32)
        if format == "bias":
            stored[name] = "F32", values / 10
        elif format == "vector":
            stored[name] = "BF16", quant.f32_to_bf16(1 + values / 10)
        else:
            scale = 1.0 if tensor.kind == "embedding" else 1 / math.sqrt(tensor.shape[1])
            for suffix, part in _store(values * np.float32(scale), format, shape_dtype).items():
                stored[name + suffix] = part
    return stored


def _store(values, format, shape_dtype) -> dict:
    if format == "plain":
        return {".weight": ("BF16", quant.f32_to_bf16(values))}
    if format == "fp8":
        weight = quant.quantize_fp8(values)
        return {
            ".weight": ("F8_E4M3", weight.bits),
            ".weight_scale_inv": ("F32", weight.scale_inv),
        }
    weight = quant.quantize_int4(values)
    shape = np.array(values.shape, STORED_AS[shape_dtype])
    return {
        ".weight_packed": ("I32", weight.packed),
        ".weight_scale": ("BF16", weight.scale),
        ".weight_shape": (shape_dtype, shape),
    }


def unused_tensors(config: Config, layout: str) -> dict:
    """Make the tensors that the official files of a layout carry and k2ref must skip."""
    noise = np.arange(128, dtype=STORED_AS["BF16"])
    n_layers = config.num_hidden_layers
    if layout == "thinking":
        names = [f"model.layers.{i}.self_attn.rotary_emb.inv_freq" for i in range(n_layers)]
    elif layout == "k25":
        names = ["vision_tower.encoder.blocks.0.wqkv.weight", "mm_projector.proj.0.bias"]
    elif layout == "deepseek":
        names = [f"model.layers.{n_layers}.{name}.weight" for name in ("eh_proj", "enorm")]
    else:
        names = []
    return {name: ("BF16", noise) for name in names}


def write_safetensors(path, tensors: dict, header: dict | bytes | None = None):
    """Write `{name: (dtype, array)}` as one safetensors file, in the order given.

    With `header`, that is written in place of the right one: an object, or raw bytes.
    """
    if header is None:
        header = make_header(tensors)
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for dtype, array in tensors.values():
            file.write(np.ascontiguousarray(array, STORED_AS[dtype]).tobytes())


def make_header(tensors: dict) -> dict:
    """Return the header object that fits the tensors in their order."""
    header, start = {"__metadata__": {"format": "pt"}}, 0
    for name, (dtype, array) in tensors.items():
        stop = start + array.size * np.dtype(STORED_AS[dtype]).itemsize
        header[name] = {
            "dtype": dtype, "shape": list(array.shape), "data_offsets": [start, stop],
        }  # fmt: skip
        start = stop
    return header


def write_checkpoint(
    directory, config: dict | None = None, seed: int = 0, layout: str = "thinking",
    n_shards: int = 2, tokenizer: bool = False,
) -> Path:  # fmt: skip
    """Write a random checkpoint and return its directory.

    `config` is a config.json dictionary, `tiny_config(layout)` by default. With one shard there is
    no index. `tokenizer` adds a vocabulary of single bytes.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    values = tiny_config(layout) if config is None else config
    parsed = Config.from_dict(values)
    (directory / "config.json").write_text(json.dumps(values, indent=2))
    (directory / "generation_config.json").write_text(
        json.dumps({"max_length": 262144, "eos_token_id": parsed.eos_token_id})
    )
    tensors = random_tensors(parsed, seed, "I64" if layout == "k25" else "I32")
    tensors.update(unused_tensors(parsed, layout))
    write_shards(directory, tensors, n_shards, seed)
    if tokenizer:
        write_tokenizer(directory)
    return directory


def write_shards(directory, tensors: dict, n_shards: int = 2, seed: int = 0):
    """Write tensors as shards with an index in shuffled order, or as one file without."""
    # The widest types first, as the safetensors library orders them: that keeps the data aligned.
    names = sorted(tensors, key=lambda name: -np.dtype(STORED_AS[tensors[name][0]]).itemsize)
    if n_shards == 1:
        write_safetensors(directory / "model.safetensors", {n: tensors[n] for n in names})
        return
    weight_map = {}
    for i in range(n_shards):
        shard = f"model-{i + 1:05d}-of-{n_shards:06d}.safetensors"
        part = names[i::n_shards]
        write_safetensors(directory / shard, {name: tensors[name] for name in part})
        weight_map.update(dict.fromkeys(part, shard))
    shuffled = np.random.default_rng(seed).permutation(sorted(weight_map))
    index = {
        "metadata": {"total_size": sum(array.nbytes for _, array in tensors.values())},
        "weight_map": {str(name): weight_map[str(name)] for name in shuffled},
    }
    (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def write_tokenizer(directory):
    """Write a vocabulary of the 256 single bytes, and the special names behind it."""
    lines = [base64.b64encode(bytes([i])).decode() + f" {i}\n" for i in range(N_BASE)]
    (directory / "tiktoken.model").write_text("".join(lines))
    added = {
        str(N_BASE + i): {
            "content": name, "special": not 11 <= i <= 15 and i not in (22, 23),
            "lstrip": False, "rstrip": False, "normalized": False, "single_word": False,
        }
        for i, name in SPECIALS.items()
    }  # fmt: skip
    (directory / "tokenizer_config.json").write_text(
        json.dumps({
            "added_tokens_decoder": added, "bos_token": "[BOS]", "eos_token": "[EOS]",
            "pad_token": "[PAD]", "unk_token": "[UNK]", "tokenizer_class": "TikTokenTokenizer",
        })
    )  # fmt: skip
