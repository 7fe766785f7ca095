"""Which tensors a checkpoint holds, and how each is written.

`tensors` lists them as the mathematics sees them: one matrix for each linear layer. On disk a
matrix is one to three arrays, by its format:

    int4    X.weight_packed, X.weight_scale, X.weight_shape   (compressed-tensors, pack-quantized)
    fp8     X.weight, X.weight_scale_inv                      (DeepSeek's 128x128 blocks)
    plain   X.weight                                          (BF16, or F32)

`quantization_config` says which matrices are quantized. `weights.py` holds the files to this
list; `config.py` adds up its sizes.

Chapter 03.
"""

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import NamedTuple

from k2ref.checkpoint.fields import ConfigError
from k2ref.checkpoint.quantization import check_quantization, left_alone
from k2ref.quant import BLOCK, GROUP

BYTES_OF = {"F8_E4M3": 1, "BF16": 2, "F32": 4, "I32": 4, "I64": 8}


class Tensor(NamedTuple):
    """One tensor of the model, in any format."""

    name: str  # of a matrix: without ".weight", which its stored parts add; of a vector: in full
    shape: tuple[int, ...]
    kind: str  # which part of the model it belongs to: "attention", "experts", ...


class Part(NamedTuple):
    """One stored array of a tensor."""

    suffix: str
    dtypes: tuple[str, ...]  # as safetensors names them; the official files use the first
    shape: tuple[int, ...]


def tensors(config) -> Iterator[Tensor]:
    """List the tensors of a model, layer by layer.

    Left out, since the language model does not use them: the vision tower of K2.5 and later, the
    stale `rotary_emb.inv_freq`, and the extra prediction layers of DeepSeek-V3.
    """
    D, W = config.hidden_size, config.vocab_size
    yield Tensor("model.embed_tokens", (W, D), "embedding")
    for i in range(config.num_hidden_layers):
        layer = f"model.layers.{i}."
        yield Tensor(layer + "input_layernorm.weight", (D,), "norms")
        yield from _attention(config, layer + "self_attn.")
        yield Tensor(layer + "post_attention_layernorm.weight", (D,), "norms")
        if config.is_moe_layer(i):
            yield from _moe(config, layer + "mlp.")
        else:
            yield from _mlp(config, layer + "mlp.", config.intermediate_size, "dense_mlp")
    yield Tensor("model.norm.weight", (D,), "norms")
    yield Tensor("lm_head", (W, D), "lm_head")


def _attention(config, at: str) -> Iterator[Tensor]:
    D, H, C, Q = (
        config.hidden_size, config.num_attention_heads, config.kv_lora_rank, config.q_lora_rank
    )  # fmt: skip
    N, R, V = config.qk_nope_head_dim, config.qk_rope_head_dim, config.v_head_dim
    if Q is None:
        yield Tensor(at + "q_proj", (H * (N + R), D), "attention")
    else:
        yield Tensor(at + "q_a_proj", (Q, D), "attention")
        yield Tensor(at + "q_a_layernorm.weight", (Q,), "norms")
        yield Tensor(at + "q_b_proj", (H * (N + R), Q), "attention")
    yield Tensor(at + "kv_a_proj_with_mqa", (C + R, D), "attention")
    yield Tensor(at + "kv_a_layernorm.weight", (C,), "norms")
    yield Tensor(at + "kv_b_proj", (H * (N + V), C), "attention")
    yield Tensor(at + "o_proj", (D, H * V), "attention")


def _moe(config, at: str) -> Iterator[Tensor]:
    D, E = config.hidden_size, config.n_routed_experts
    yield Tensor(at + "gate", (E, D), "router")
    yield Tensor(at + "gate.e_score_correction_bias", (E,), "router")
    # All shared experts of a layer are one MLP, as wide as they are together.
    F = config.n_shared_experts * config.moe_intermediate_size
    yield from _mlp(config, at + "shared_experts.", F, "shared_experts")
    for e in range(E):
        yield from expert(config, at, e)


def expert(config, at: str, e: int) -> tuple[Tensor, ...]:
    """List the matrices of one routed expert of the layer whose names begin with `at`."""
    return _mlp(config, f"{at}experts.{e}.", config.moe_intermediate_size, "experts")


def _mlp(config, at: str, F: int, kind: str) -> tuple[Tensor, ...]:
    D = config.hidden_size
    return (
        Tensor(at + "gate_proj", (F, D), kind),
        Tensor(at + "up_proj", (F, D), kind),
        Tensor(at + "down_proj", (D, F), kind),
    )


@lru_cache
def stored_parts(shape: tuple[int, ...], format: str) -> tuple[Part, ...]:
    """List the arrays in which a tensor of this shape lies on disk, in this format.

    Raises: ConfigError if the format cannot hold the shape
    """
    if format == "vector":
        return (Part("", ("BF16", "F32"), shape),)
    if format == "bias":
        return (Part("", ("F32", "BF16"), shape),)
    if format == "plain":
        return (Part(".weight", ("BF16", "F32"), shape),)
    O, I = shape
    if format == "fp8":
        blocks = (-(-O // BLOCK), -(-I // BLOCK))
        return Part(".weight", ("F8_E4M3",), shape), Part(".weight_scale_inv", ("F32",), blocks)
    if I % GROUP:
        raise ConfigError(
            f"quantization_config: expected INT4 matrices with a multiple of {GROUP} columns, "
            f"found one of shape {shape}"
        )
    return (
        Part(".weight_packed", ("I32",), (O, I // 8)),
        Part(".weight_scale", ("BF16",), (O, I // GROUP)),
        # K2's own files write int32, compressed-tensors today writes int64.
        Part(".weight_shape", ("I32", "I64"), (2,)),
    )


def n_bytes(parts: tuple[Part, ...]) -> int:
    """Add up the bytes of stored parts, in the types that the official files use."""
    total = 0
    for part in parts:
        size = BYTES_OF[part.dtypes[0]]
        for n in part.shape:
            size *= n
        total += size
    return total


def format_finder(quantization: dict | None, prefix: str) -> Callable[[Tensor], str]:
    """Return the function that says in which format `quantization_config` wants a tensor.

    It is a function made once, not one of many arguments, because a checkpoint of 384 experts asks
    70,000 times.

    Raises: ConfigError for a quantization that k2ref does not read
    """
    method = check_quantization(quantization)
    plain = left_alone(quantization, method) if method else None

    def format_of(tensor: Tensor) -> str:
        if len(tensor.shape) == 1:
            return "bias" if tensor.kind == "router" else "vector"
        # The router's matrix and the embeddings are not `nn.Linear` upstream: never quantized.
        if method is None or tensor.kind in ("router", "embedding"):
            return "plain"
        # Regular expressions speak of the full name; some lists leave the prefix out.
        if plain(tensor.name) or (prefix and plain(prefix + tensor.name)):
            return "plain"
        return method

    return format_of
