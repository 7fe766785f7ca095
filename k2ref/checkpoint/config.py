"""The numbers of one checkpoint: config.json, checked, and everything that follows from it.

`Config` keeps the field names of the published config.json files. Two shapes of file are read: the
flat one (K2-Base, K2-Instruct, K2-Thinking, Moonlight, DeepSeek-V3) and the nested one of K2.5 and
later, whose language model sits under `text_config` and whose tensors are prefixed
`language_model.`. What k2ref does not implement is refused here, by the field's name, so that no
later file has to ask. The list of tensors is in `layout.py`; the sizes it adds up to are properties
of `Config`. This is the only file with literal dimensions of the official checkpoints.

Chapter 03.
"""

import dataclasses
import math
import os
from collections import Counter
from functools import cached_property
from pathlib import Path

from k2ref.checkpoint import layout
from k2ref.checkpoint.fields import ConfigError, build, check_fields, check_token_ids, expect
from k2ref.doors import intake
from k2ref.doors.intake import quoted

# A missing field means the first value; so it is in the official configuration_deepseek.py, too.
SUPPORTED = {
    "scoring_func": ("sigmoid",),
    "topk_method": ("noaux_tc",),
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "tie_word_embeddings": (False,),
    "rope_interleave": (True,),
    "compression_config": (None, {}),  # quantization_config's old name
    "rope_parameters": (None,),  # transformers 5 writes it in place of rope_theta and rope_scaling
    "model_type": ("kimi_k2", "kimi_k25", "deepseek_v3"),
}
MOST_EXPERTS = 2**18  # in all layers together: eleven times those of K2
# Elements of the `rotary_emb.inv_freq` that each layer of the official K2 files carries, by the
# transformers release that saved them. Both are the wrong size for 64 rope channels: nobody reads
# them, but they are counted in the files' `total_size`.
STALE_INV_FREQ = {"4.48.3": 56, "4.51.3": 128}


@dataclasses.dataclass(frozen=True)
class Yarn:
    """The `rope_scaling`: how RoPE is stretched from the pre-training context to a longer one.

    Source: "YaRN: Efficient Context Window Extension of Large Language Models", section 3.
    """

    factor: float
    original_max_position_embeddings: int
    # Trap: engines hard-coded beta_fast = 32 (miles#335); in K2-Thinking it is 1, in K2.5 it is 32.
    beta_fast: float
    beta_slow: float
    mscale: float
    mscale_all_dim: float

    def __post_init__(self):
        check_fields(self, "rope_scaling.")
        if self.factor < 1:
            raise ConfigError(f"rope_scaling.factor: expected at least 1, found {self.factor}")
        if self.beta_fast < self.beta_slow:
            raise ConfigError(
                f"rope_scaling.beta_fast: expected at least beta_slow ({self.beta_slow}), found "
                f"{self.beta_fast}"
            )

    def attention_factor(self, mscale: float) -> float:
        """Return the growth of attention's temperature for a stretch by `factor`."""
        return 0.1 * mscale * math.log(self.factor) + 1.0


@dataclasses.dataclass(frozen=True)
class Config:
    """The hyperparameters of one checkpoint, under the names they have in config.json."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    q_lora_rank: int | None  # None: one q_proj in place of q_a_proj and q_b_proj (Moonlight)
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    intermediate_size: int  # hidden width of the dense layers' MLP
    moe_intermediate_size: int  # hidden width of one expert
    n_routed_experts: int
    n_shared_experts: int
    num_experts_per_tok: int
    n_group: int
    topk_group: int
    norm_topk_prob: bool
    routed_scaling_factor: float
    first_k_dense_replace: int  # layers before this one have a dense MLP
    rms_norm_eps: float
    rope_theta: float
    max_position_embeddings: int
    vocab_size: int
    rope_scaling: Yarn | None = None
    moe_layer_freq: int = 1
    num_nextn_predict_layers: int = 0  # layers beyond the last that k2ref skips (DeepSeek-V3's MTP)
    num_key_value_heads: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | tuple | None = None  # a list of ids in the file is a tuple here
    pad_token_id: int | None = None
    model_type: str = "kimi_k2"  # of the outer file: "kimi_k25" for K2.5 and later
    transformers_version: str | None = None
    quantization_config: dict | None = dataclasses.field(default=None, hash=False)
    # Trap: the official code builds q_a_layernorm and kv_a_layernorm with their default eps 1e-6
    # and uses rms_norm_eps for all other norms; vLLM and SGLang use rms_norm_eps for all. To run as
    # they do: dataclasses.replace(config, latent_norm_eps=config.rms_norm_eps).
    latent_norm_eps: float = 1e-6
    tensor_prefix: str = ""  # "language_model." in nested checkpoints

    @classmethod
    def from_dir(cls, path) -> "Config":
        """Read config.json in the checkpoint's directory.

        Raises: ConfigError if it is missing, not a JSON object, or not a model k2ref can run.
        """
        file = Path(path) / "config.json"
        expected = "the directory of a checkpoint as downloaded from the hub"
        if not os.path.lexists(file):
            raise ConfigError(f"{file} cannot be read (there is none); expected {expected}")
        values = intake.read_json(file, intake.MOST_CONFIG, ConfigError)
        try:
            return cls.from_dict(values)
        except ConfigError as error:
            raise ConfigError(f"{file}: {error}") from error

    @classmethod
    def from_dict(cls, values: dict) -> "Config":
        """Build the configuration from the parsed config.json, flat or nested.

        Raises: ConfigError naming the field that is missing, malformed or not supported.
        """
        if not isinstance(values, dict):
            raise ConfigError(f"config.json: expected an object, found {quoted(values)}")
        text = values.get("text_config", values)
        if not isinstance(text, dict):
            raise ConfigError(f"text_config: expected an object, found {quoted(text)}")
        merged = {**values, **text, "model_type": values.get("model_type", "kimi_k2")}
        for name, allowed in SUPPORTED.items():
            expect(name, merged.get(name, allowed[0]), *allowed)
        for name in ("torch_dtype", "dtype"):  # the newer files write `dtype`
            expect(name, merged.get(name, "bfloat16"), "bfloat16", "float32")
        merged["rope_scaling"] = _read_rope_scaling(merged.get("rope_scaling"))
        merged["tensor_prefix"] = "" if text is values else "language_model."
        merged["latent_norm_eps"] = cls.latent_norm_eps
        return build(cls, merged)

    def __post_init__(self):
        check_fields(self)
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            found, many = getattr(self, name), name == "eos_token_id"
            object.__setattr__(self, name, check_token_ids(name, found, self.vocab_size, many))
        if self.num_hidden_layers * self.n_routed_experts > MOST_EXPERTS:
            raise ConfigError(
                f"num_hidden_layers and n_routed_experts: expected at most {MOST_EXPERTS} experts "
                f"in all layers, found {self.num_hidden_layers} times {self.n_routed_experts}"
            )
        format_of = layout.format_finder(self.quantization_config, self.tensor_prefix)
        for tensor in layout.expert(self, f"model.layers.{self.first_k_dense_replace}.mlp.", 0):
            layout.stored_parts(tensor.shape, format_of(tensor))  # refuses columns it cannot group
        heads = self.num_attention_heads
        expect("num_key_value_heads", self.num_key_value_heads, None, heads)
        if self.rope_theta <= 1:
            raise ConfigError(f"rope_theta: expected more than 1, found {self.rope_theta}")
        if self.qk_rope_head_dim % 2:
            raise ConfigError(f"qk_rope_head_dim: expected even, found {self.qk_rope_head_dim}")
        if self.n_routed_experts % self.n_group:
            raise ConfigError(
                f"n_group: expected a divisor of n_routed_experts ({self.n_routed_experts}), found "
                f"{self.n_group}"
            )
        per_group = self.n_routed_experts // self.n_group
        if self.n_group > 1 and per_group < 2:  # a group is judged by its two best experts
            raise ConfigError(f"n_group: expected 2 or more experts a group, found {per_group}")
        for name, most in (
            ("topk_group", self.n_group),
            ("num_experts_per_tok", per_group * self.topk_group),
            ("first_k_dense_replace", self.num_hidden_layers),
        ):
            if getattr(self, name) > most:
                raise ConfigError(f"{name}: expected at most {most}, found {getattr(self, name)}")

    def is_moe_layer(self, i: int) -> bool:
        """Say whether layer `i` has experts, rather than one dense MLP."""
        return i >= self.first_k_dense_replace and i % self.moe_layer_freq == 0

    @property
    def qk_head_dim(self) -> int:
        """Channels of one query or key head: those without position, then those rotated."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def softmax_scale(self) -> float:
        """What the attention scores are multiplied by."""
        scale = self.qk_head_dim**-0.5
        if self.rope_scaling is None:
            return scale
        # Trap: this factor comes from mscale_all_dim, not from mscale (Megatron-LM#1429).
        return scale * self.rope_scaling.attention_factor(self.rope_scaling.mscale_all_dim) ** 2

    @property
    def rope_mscale(self) -> float:
        """What cos and sin are multiplied by: 1.0 in every published checkpoint."""
        yarn = self.rope_scaling
        if yarn is None:
            return 1.0
        return yarn.attention_factor(yarn.mscale) / yarn.attention_factor(yarn.mscale_all_dim)

    @property
    def yarn_corners(self) -> tuple[int, int] | None:
        """The channel pairs between which YaRN goes from not stretched to fully stretched.

        A pair that turns more than `beta_fast` times within the original context keeps its
        frequency; one that turns fewer than `beta_slow` times has it divided by `factor`.

        Source: official modeling_deepseek.py, `yarn_find_correction_range`.
        """
        yarn = self.rope_scaling
        if yarn is None:
            return None
        dim, log_theta = self.qk_rope_head_dim, math.log(self.rope_theta)
        log_turns = math.log(yarn.original_max_position_embeddings) - math.log(2 * math.pi)

        def pair_turning(n_turns):
            return dim * (log_turns - math.log(n_turns)) / (2 * log_theta)

        low, high = pair_turning(yarn.beta_fast), pair_turning(yarn.beta_slow)
        return max(math.floor(low), 0), min(math.ceil(high), dim - 1)

    def kv_bytes_per_token(self, bytes_per_value: int) -> int:
        """Return the bytes that one token adds to the cache, over all layers.

        MLA keeps one latent and one rotated key per layer, shared by all heads.
        """
        values = self.kv_lora_rank + self.qk_rope_head_dim
        return self.num_hidden_layers * values * bytes_per_value

    @cached_property
    def n_parameters(self) -> int:
        """The weights of the language model, each INT4 weight counted as one."""
        return sum(math.prod(tensor.shape) for tensor in layout.tensors(self))

    @cached_property
    def n_bytes_by_kind(self) -> dict[str, int]:
        """The bytes on disk of each part of the model: "attention", "experts", and so on."""
        format_of = layout.format_finder(self.quantization_config, self.tensor_prefix)
        total = Counter()
        for tensor in layout.tensors(self):
            parts = layout.stored_parts(tensor.shape, format_of(tensor))
            total[tensor.kind] += layout.n_bytes(parts)
        return dict(total)

    @property
    def n_weight_bytes(self) -> int:
        """The bytes on disk of all tensors that k2ref reads."""
        return sum(self.n_bytes_by_kind.values())

    @property
    def n_payload_bytes(self) -> int:
        """The bytes of tensor data in the official files of this language model.

        That is `n_weight_bytes` and the stale `inv_freq` buffers. The vision tower and projector of
        K2.5 and later, 942,287,840 bytes there, are not counted.
        """
        elements = STALE_INV_FREQ.get(self.transformers_version, 0)
        stale = elements * layout.BYTES_OF["BF16"] if self.model_type == "kimi_k2" else 0
        return self.n_weight_bytes + self.num_hidden_layers * stale

    @property
    def n_bytes_per_token(self) -> int:
        """The bytes of weights that one token is multiplied by.

        All matrices but the embeddings, of which it takes one row, and the experts, of which the
        router chooses `num_experts_per_tok`.
        """
        kinds = dict(self.n_bytes_by_kind)
        chosen = kinds.pop("experts", 0) * self.num_experts_per_tok // self.n_routed_experts
        row = kinds.pop("embedding") // self.vocab_size
        return sum(kinds.values()) + chosen + row


def _read_rope_scaling(found) -> Yarn | None:
    """Return the YaRN parameters, or None where RoPE is not stretched."""
    if found is None:
        return None
    if not isinstance(found, dict):
        raise ConfigError(f"rope_scaling: expected an object or null, found {quoted(found)}")
    kind = found.get("type", found.get("rope_type"))  # newer files may write `rope_type`
    expect("rope_scaling.type", kind, "yarn", "default")
    for name, nothing in (("attention_factor", None), ("truncate", True)):  # of transformers
        expect(f"rope_scaling.{name}", found.get(name, nothing), nothing, None)
    return build(Yarn, found, "rope_scaling.") if kind == "yarn" else None
