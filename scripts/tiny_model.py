"""The architecture of K2 in PyTorch, for training: one function from weights and ids to logits.

Weights are a dict under the checkpoint's own names, in float32; the routed experts of a layer are
stacked into one tensor each. `deployed` rounds them as the checkpoint will hold them (INT4 experts,
BF16 rest) and lets gradients pass straight through, so that training sees the shipped model.
Everything k2ref already knows (sizes, YaRN) comes from k2ref itself.
"""

import torch
import torch.nn.functional as F

from k2ref import quant, rope

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


def deployed(weights):
    """Round each weight as the checkpoint holds it; gradients go straight through the rounding."""
    out = {}
    for name, w in weights.items():
        if name.endswith(ROUTER_BIAS):
            out[name] = w  # F32
            continue
        rounded = int4(w.detach()) if is_expert(name) else w.detach().bfloat16().float()
        out[name] = w + (rounded - w.detach()) if w.requires_grad else rounded
    return out


def rms_norm(x, weight, eps):
    """Divide by the root mean square of the last axis and scale."""
    return F.rms_norm(x, (x.shape[-1],), weight, eps)


def rotate(x, cos, sin):
    """Rotate the interleaved pairs (x[2j], x[2j+1]) of the last axis by their angles.

    (B, T, H, R), (T, 1, R/2), (T, 1, R/2) -> (B, T, H, R)
    """
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def attention(w, layer, config, h, cos, sin):
    """Attend causally with expanded keys and values: MLA as the paper writes it.

    (B, T, D) -> (B, T, D)
    """
    B, T, _ = h.shape
    H, N, R = config.num_attention_heads, config.qk_nope_head_dim, config.qk_rope_head_dim
    eps = config.latent_norm_eps

    def at(name):
        return w[f"{layer}.self_attn.{name}.weight"]

    q = F.linear(rms_norm(F.linear(h, at("q_a_proj")), at("q_a_layernorm"), eps), at("q_b_proj"))
    q_nope, q_rope = q.view(B, T, H, N + R).split([N, R], -1)
    c_kv, k_rope = F.linear(h, at("kv_a_proj_with_mqa")).split([config.kv_lora_rank, R], -1)
    kv = F.linear(rms_norm(c_kv, at("kv_a_layernorm"), eps), at("kv_b_proj"))
    k_nope, v = kv.view(B, T, H, -1).split([N, config.v_head_dim], -1)
    k_rope = rotate(k_rope[:, :, None], cos, sin).expand(-1, -1, H, -1)
    q = torch.cat([q_nope, rotate(q_rope, cos, sin)], -1).transpose(1, 2)
    k = torch.cat([k_nope, k_rope], -1).transpose(1, 2)
    out = F.scaled_dot_product_attention(q, k, v.transpose(1, 2), is_causal=True,
                                         scale=config.softmax_scale)
    return F.linear(out.transpose(1, 2).flatten(2), at("o_proj"))


def mlp(w, prefix, h):
    """Apply a gated MLP: down(silu(gate(h)) * up(h))."""
    gate, up, down = (w[f"{prefix}.{part}.weight"] for part in EXPERT_PARTS)
    return F.linear(F.silu(F.linear(h, gate)) * F.linear(h, up), down)


def mixture(w, layer, config, h):
    """Mix the chosen experts; every expert is computed, since that is fastest at this size.

    (B, T, D) -> (B, T, D), (E,)

    Also returns how many tokens chose each expert, for the balance.
    """
    E, K = config.n_routed_experts, config.num_experts_per_tok
    scores = torch.sigmoid(F.linear(h, w[f"{layer}.mlp.gate.weight"]))
    chosen = (scores + w[f"{layer}.{ROUTER_BIAS}"]).topk(K, -1).indices
    mask = torch.zeros_like(scores).scatter(-1, chosen, 1)
    mix = scores * mask  # the bias chooses, it does not weigh
    mix = mix / (mix.sum(-1, keepdim=True) + 1e-20) * config.routed_scaling_factor
    gate, up, down = (w[f"{layer}.mlp.experts.{part}"] for part in EXPERT_PARTS)
    hidden = F.silu(F.linear(h, gate.flatten(0, 1))) * F.linear(h, up.flatten(0, 1))
    hidden = hidden.unflatten(-1, (E, -1)) * mix[..., None]
    routed = F.linear(hidden.flatten(-2), down.transpose(0, 1).flatten(1))
    return routed + mlp(w, f"{layer}.mlp.shared_experts", h), mask.flatten(0, -2).sum(0)


def forward(w, config, ids):
    """Compute logits and, by layer, how many tokens chose each expert.

    (B, T) -> (B, T, W), {layer: (E,)}
    """
    cos, sin = (torch.from_numpy(table)[:, None] for table in
                rope.cos_sin(config, range(ids.shape[1])))
    eps, loads = config.rms_norm_eps, {}
    x = F.embedding(ids, w["model.embed_tokens.weight"])
    for i in range(config.num_hidden_layers):
        layer = f"model.layers.{i}"
        h = rms_norm(x, w[f"{layer}.input_layernorm.weight"], eps)
        x = x + attention(w, layer, config, h, cos, sin)
        h = rms_norm(x, w[f"{layer}.post_attention_layernorm.weight"], eps)
        if config.is_moe_layer(i):
            routed, loads[layer] = mixture(w, layer, config, h)
            x = x + routed
        else:
            x = x + mlp(w, f"{layer}.mlp", h)
    return F.linear(rms_norm(x, w["model.norm.weight"], eps), w["lm_head.weight"]), loads
