"""The forward pass for training: conversations grouped by length, matrices in BF16.

Every operation but attention runs once over all tokens of a step; attention runs once per group of
rows of one length. Products of matrices take BF16 inputs, for speed; the residual stream, norms and
the routing stay in float32. Weights and rounding are those of `tiny_model`.
"""

import tiny_model
import torch
import torch.nn.functional as F

from k2ref import rope

LOW = torch.bfloat16
SHORT = 1500


def linear(x, w):
    """Multiply by a matrix, both rounded to BF16.

    (..., I), (O, I) -> (..., O)
    """
    return F.linear(x.to(LOW), w.to(LOW))


def attend(q, k, v, scale):
    """Attend causally; up to `SHORT` tokens by plain products, which are faster there.

    (B, H, T, C), (B, H, T, C), (B, H, T, C) -> (B, H, T, C)
    """
    B, H, T, C = q.shape
    if T > SHORT:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
    q, k, v = (x.reshape(B * H, T, C) for x in (q, k, v))
    mask = torch.full((T, T), float("-inf"), dtype=q.dtype).triu(1).expand(B * H, T, T)
    return (torch.baddbmm(mask, q, k.mT, alpha=scale).softmax(-1) @ v).view(B, H, T, C)


def attention(w, layer, config, h, shapes, tables):
    """Attend causally within each row; rows of one group have one length.

    (N, D) -> (N, D)
    """
    H, N, R = config.num_attention_heads, config.qk_nope_head_dim, config.qk_rope_head_dim
    V, eps = config.v_head_dim, config.latent_norm_eps
    width = max(N + R, V)  # the fused kernel wants keys and values of one size
    cos, sin = tables

    def at(name):
        return w[f"{layer}.self_attn.{name}.weight"]

    def normed(x, name):
        return tiny_model.rms_norm(x.float(), at(name), eps)

    q = linear(normed(linear(h, at("q_a_proj")), "q_a_layernorm"), at("q_b_proj"))
    q_nope, q_rope = q.view(-1, H, N + R).split([N, R], -1)
    c_kv, k_rope = linear(h, at("kv_a_proj_with_mqa")).split([config.kv_lora_rank, R], -1)
    kv = linear(normed(c_kv, "kv_a_layernorm"), at("kv_b_proj"))
    k_nope, v = kv.view(-1, H, N + V).split([N, V], -1)
    k_rope = tiny_model.rotate(k_rope[:, None], cos, sin).to(LOW).expand(-1, H, -1)
    q = torch.cat([q_nope, tiny_model.rotate(q_rope, cos, sin).to(LOW)], -1)
    k = torch.cat([k_nope, k_rope], -1)
    q, k, v = (F.pad(x, (0, width - x.shape[-1])) if x.shape[-1] < width else x for x in (q, k, v))
    out, at_row = [], 0
    for rows, length in shapes:
        end = at_row + rows * length
        parts = (x[at_row:end].view(rows, length, H, width).transpose(1, 2) for x in (q, k, v))
        mixed = attend(*parts, config.softmax_scale)
        out.append(mixed.transpose(1, 2)[..., :V].reshape(rows * length, H * V))
        at_row = end
    return linear(torch.cat(out), at("o_proj"))


def mlp(w, prefix, h):
    """Apply a gated MLP: down(silu(gate(h)) * up(h))."""
    gate, up, down = (w[f"{prefix}.{part}.weight"] for part in tiny_model.EXPERT_PARTS)
    return linear(F.silu(linear(h, gate)) * linear(h, up), down)


def mixture(w, layer, config, h):
    """Mix the chosen experts; each expert sees its tokens only.

    (N, D) -> (N, D), (E,)
    """
    E, K = config.n_routed_experts, config.num_experts_per_tok
    scores = torch.sigmoid(F.linear(h, w[f"{layer}.mlp.gate.weight"]))
    chosen = (scores + w[f"{layer}.{tiny_model.ROUTER_BIAS}"]).topk(K, -1).indices
    mix = scores.gather(-1, chosen)  # the bias chooses, it does not weigh
    mix = mix / (mix.sum(-1, keepdim=True) + 1e-20) * config.routed_scaling_factor
    expert = chosen.flatten()
    order = expert.argsort(stable=True)
    load = torch.bincount(expert, minlength=E)
    low = h.to(LOW)
    inputs = low.index_select(0, order // K)
    gate, up, down = (w[f"{layer}.mlp.experts.{part}"].to(LOW)
                      for part in tiny_model.EXPERT_PARTS)
    parts = [F.linear(F.silu(F.linear(x, gate[e])) * F.linear(x, up[e]), down[e])
             for e, x in enumerate(inputs.split(load.tolist()))]
    outputs = torch.cat(parts).index_select(0, order.argsort()).view(-1, K, h.shape[-1])
    routed = torch.bmm(mix.to(LOW)[:, None], outputs)[:, 0]
    return routed + mlp(w, f"{layer}.mlp.shared_experts", low), load


def hidden(w, config, groups):
    """Compute the last hidden states of all tokens and the experts' loads by layer.

    list of (B, T) -> (N, D), {layer: (E,)}
    """
    shapes = [tuple(ids.shape) for ids in groups]
    longest = max(length for _, length in shapes)
    tables = [torch.from_numpy(table) for table in rope.cos_sin(config, range(longest))]
    tables = [torch.cat([table[:length].repeat(rows, 1) for rows, length in shapes])[:, None]
              for table in tables]
    eps, loads = config.rms_norm_eps, {}
    ids = torch.cat([ids.flatten() for ids in groups])
    x = F.embedding(ids, w["model.embed_tokens.weight"])
    for i in range(config.num_hidden_layers):
        layer = f"model.layers.{i}"
        h = tiny_model.rms_norm(x, w[f"{layer}.input_layernorm.weight"], eps)
        x = x + attention(w, layer, config, h, shapes, tables)
        h = tiny_model.rms_norm(x, w[f"{layer}.post_attention_layernorm.weight"], eps)
        if config.is_moe_layer(i):
            routed, loads[layer] = mixture(w, layer, config, h)
            x = x + routed
        else:
            x = x + mlp(w, f"{layer}.mlp", h)
    return tiny_model.rms_norm(x, w["model.norm.weight"], eps), loads


def loss(w, config, groups, targets, weights):
    """Sum the weighted cross-entropies; only where a weight is above 0 are logits computed.

    list of (B, T), list of (B, T), list of (B, T) -> (), {layer: (E,)}
    """
    x, loads = hidden(w, config, groups)
    targets = torch.cat([part.flatten() for part in targets])
    weights = torch.cat([part.flatten() for part in weights])
    here = weights.nonzero()[:, 0]
    logits = linear(x.index_select(0, here), w["lm_head.weight"]).float()
    each = F.cross_entropy(logits, targets[here], reduction="none")
    return (each * weights[here]).sum(), loads
