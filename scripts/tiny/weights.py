"""The weights of the embedded model: their names and shapes, their first values, their rounding.

Weights are a dict under the checkpoint's own names, in float32; the routed experts of a layer are
stacked into one tensor each. `deployed` rounds them as the checkpoint will hold them (INT4 experts,
BF16 rest); training computes with those, so that it sees the shipped model.
Everything k2ref already knows (sizes, YaRN) comes from k2ref itself.
"""

import torch

from k2ref import quant

EXPERT_PARTS = ("gate_proj", "up_proj", "down_proj")
ROUTER_BIAS = "mlp.gate.e_score_correction_bias"


def shapes(config):
    """Return name -> shape of every weight, as the checkpoint names them; experts stacked."""
    D, H = config.hidden_size, config.num_attention_heads
    Q, C, R = config.q_lora_rank, config.kv_lora_rank, config.qk_rope_head_dim
    N, V = config.qk_nope_head_dim, config.v_head_dim
    E, W = config.n_routed_experts, config.vocab_size
    out = {"model.embed_tokens.weight": (W, D)}

    def mlp(prefix, width):
        for part in EXPERT_PARTS:
            out[f"{prefix}.{part}.weight"] = (D, width) if part == "down_proj" else (width, D)

    for i in range(config.num_hidden_layers):
        layer = f"model.layers.{i}"
        out[f"{layer}.input_layernorm.weight"] = (D,)
        out[f"{layer}.self_attn.q_a_proj.weight"] = (Q, D)
        out[f"{layer}.self_attn.q_a_layernorm.weight"] = (Q,)
        out[f"{layer}.self_attn.q_b_proj.weight"] = (H * (N + R), Q)
        out[f"{layer}.self_attn.kv_a_proj_with_mqa.weight"] = (C + R, D)
        out[f"{layer}.self_attn.kv_a_layernorm.weight"] = (C,)
        out[f"{layer}.self_attn.kv_b_proj.weight"] = (H * (N + V), C)
        out[f"{layer}.self_attn.o_proj.weight"] = (D, H * V)
        out[f"{layer}.post_attention_layernorm.weight"] = (D,)
        if not config.is_moe_layer(i):
            mlp(f"{layer}.mlp", config.intermediate_size)
            continue
        F_ = config.moe_intermediate_size
        out[f"{layer}.mlp.gate.weight"] = (E, D)
        out[f"{layer}.{ROUTER_BIAS}"] = (E,)
        for part in EXPERT_PARTS:
            out[f"{layer}.mlp.experts.{part}"] = (E, D, F_) if part == "down_proj" else (E, F_, D)
        mlp(f"{layer}.mlp.shared_experts", config.n_shared_experts * F_)
    out["model.norm.weight"] = (D,)
    out["lm_head.weight"] = (W, D)
    return out


def initial(config, seed):
    """Draw the weights: norms 1, router bias 0, matrices normal with deviation 1/sqrt(inputs)."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in shapes(config).items():
        if "norm" in name:
            weights[name] = torch.ones(shape)
        elif name.endswith(ROUTER_BIAS):
            weights[name] = torch.zeros(shape)
        else:
            scale = 0.02 if name == "model.embed_tokens.weight" else shape[-1] ** -0.5
            if name.endswith(("o_proj.weight", "down_proj.weight", "down_proj")):
                scale /= (2 * config.num_hidden_layers) ** 0.5  # keeps the residual's size
            weights[name] = torch.randn(shape, generator=generator) * scale
    return weights


def is_expert(name):
    """Say whether the name is a stack of routed experts, which are kept in INT4."""
    return ".mlp.experts." in name


def int4(values):
    """Round to INT4 in groups of 32 as `quant.quantize_int4` does, and read back.

    (..., I) -> (..., I)
    """
    groups = values.unflatten(-1, (-1, quant.GROUP))
    scale = (groups.abs().amax(-1, keepdim=True) / 7).bfloat16().float()
    q = torch.where(scale > 0, groups / scale, 0).round().clamp(-8, 7)
    return (q * scale).flatten(-2)


@torch.no_grad()
def deployed(weights):
    """Round each weight as the checkpoint holds it.

    Their gradients are to be taken for those of the weights: straight through the rounding.
    """
    return {name: w.clone() if name.endswith(ROUTER_BIAS) else int4(w) if is_expert(name)
            else w.bfloat16().float() for name, w in weights.items()}
