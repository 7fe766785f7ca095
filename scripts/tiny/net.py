"""The forward pass for training: lessons one behind the other, matrices in BF16.

Products of matrices take BF16 inputs, for speed; the residual stream, norms and the routing stay in
float32. Every token goes through all experts, and those it did not choose weigh nothing: at this
size that is faster than to sort. Weights and rounding are those of `tiny_model`, batches those of
`tiny_batches`.
"""

import torch
import torch.nn.functional as F
from torch.nn.attention.varlen import varlen_attn

from k2ref import rope
from scripts.tiny import weights as tiny_model

LOW = torch.bfloat16
# The loss sees logits half as large as they are, so the model learns them twice as large: sampling
# it at temperature 1 is what sampling at 0.5 would be, and one unlikely digit in a hundred does not
# spoil a sum.
FLATTER = 0.5


def linear(x, w):
    """Multiply by a matrix, both rounded to BF16.

    (..., I), (O, I) -> (..., O)
    """
    return F.linear(x.to(LOW), w.to(LOW))


def rms_norm(x, weight, eps):
    """Divide by the root mean square and scale.

    (N, D), (D,), () -> (N, D)
    """
    return F.rms_norm(x.float(), weight.shape, weight, eps)


def rotate(x, cos, sin):
    """Rotate the interleaved pairs (x[2j], x[2j+1]) of the last axis by their angles.

    (N, H, R), (N, 1, R/2), (N, 1, R/2) -> (N, H, R)
    """
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def tables(config, n, device):
    """Return cos and sin of the first `n` positions: (n, 1, R/2) each."""
    return [torch.from_numpy(t)[:, None].to(device) for t in rope.cos_sin(config, range(n))]


def queries_keys_values(x, weights, numbers, width, cos, sin):
    """Project to queries, keys and values of all heads, filled up to `width`.

    (N, D) -> (N, H, width), (N, H, width), (N, H, width)
    """
    norm, q_a, q_norm, q_b, kv_a, kv_norm, kv_b = weights
    H, N, R, V, C, eps, latent_eps = numbers
    h = rms_norm(x, norm, eps)
    q = linear(rms_norm(linear(h, q_a), q_norm, latent_eps), q_b).view(-1, H, N + R)
    q_nope, q_rope = q.split([N, R], -1)
    c_kv, k_rope = linear(h, kv_a).split([C, R], -1)
    kv = linear(rms_norm(c_kv, kv_norm, latent_eps), kv_b)
    k_nope, v = kv.view(-1, H, N + V).split([N, V], -1)
    k_rope = rotate(k_rope[:, None], cos, sin).to(LOW).expand(-1, H, -1)
    q = torch.cat([q_nope, rotate(q_rope, cos, sin).to(LOW)], -1)
    k = torch.cat([k_nope, k_rope], -1)
    return tuple(F.pad(y, (0, width - y.shape[-1])) for y in (q, k, v))


def attend(q, k, v, batch, scale):
    """Attend causally within each lesson: one kernel on a GPU, else length by length.

    (N, H, C), (N, H, C), (N, H, C) -> (N, H, C)
    """
    if q.is_cuda:
        longest = max(length for _, length in batch.groups)
        return varlen_attn(q, k, v, batch.starts, batch.starts, longest, longest, scale=scale,
                           window_size=(-1, 0))
    out, sizes = [], [rows * length for rows, length in batch.groups]
    parts = (y.split(sizes) for y in (q, k, v))  # not slices: their gradients are one `cat`
    for (rows, length), *group in zip(batch.groups, *parts, strict=True):
        mixed = F.scaled_dot_product_attention(
            *(y.unflatten(0, (rows, length)).transpose(1, 2) for y in group),
            is_causal=True, scale=scale)
        out.append(mixed.transpose(1, 2).flatten(0, 1))
    return torch.cat(out)


def attention(w, layer, config, x, batch, angles):
    """Attend causally within each lesson.

    (N, D) -> (N, D)
    """
    H, N, R = config.num_attention_heads, config.qk_nope_head_dim, config.qk_rope_head_dim
    V = config.v_head_dim
    width = max(N + R, V)  # the fused kernel wants keys and values of one size
    names = ["q_a_proj", "q_a_layernorm", "q_b_proj", "kv_a_proj_with_mqa", "kv_a_layernorm",
             "kv_b_proj"]
    weights = [w[f"{layer}.input_layernorm.weight"],
               *(w[f"{layer}.self_attn.{name}.weight"] for name in names)]
    numbers = (H, N, R, V, config.kv_lora_rank, config.rms_norm_eps, config.latent_norm_eps)
    q, k, v = queries_keys_values(x, weights, numbers, width, *angles)
    mixed = attend(q, k, v, batch, config.softmax_scale)[..., :V].flatten(1)
    return linear(mixed, w[f"{layer}.self_attn.o_proj.weight"])


def gated(h, gate, up, down):
    """Apply a gated MLP: down(silu(gate(h)) * up(h))."""
    return linear(F.silu(linear(h, gate)) * linear(h, up), down)


def routed(h, real, router, bias, experts, K, scaling):
    """Mix the chosen experts: all are computed, and those not chosen weigh 0.

    (N, D), (N,), (E, D), (E,) -> (N, D), (E,)

    Also returns how many of the `real` tokens chose each expert, for the balance.
    """
    gate, up, down = experts
    E, width, _ = gate.shape
    scores = torch.sigmoid(F.linear(h, router))
    chosen = (scores + bias).topk(K, -1).indices
    mix = scores.gather(-1, chosen)  # the bias chooses, it does not weigh
    mix = mix / (mix.sum(-1, keepdim=True) + 1e-20) * scaling
    mix = torch.zeros_like(scores).scatter(-1, chosen, mix)
    inner = F.silu(linear(h, gate.flatten(0, 1))) * linear(h, up.flatten(0, 1))
    inner = inner.unflatten(1, (E, width)) * mix[..., None]
    out = linear(inner.flatten(1), down.transpose(0, 1).flatten(1))
    return out, ((mix > 0) & real[:, None]).sum(0)


def mixture(w, layer, config, h, real):
    """Add the chosen experts and the shared one.

    (N, D), (N,) -> (N, D), (E,)
    """
    experts = [w[f"{layer}.mlp.experts.{part}"] for part in tiny_model.EXPERT_PARTS]
    out, load = routed(h, real, w[f"{layer}.mlp.gate.weight"],
                       w[f"{layer}.{tiny_model.ROUTER_BIAS}"], experts,
                       config.num_experts_per_tok, config.routed_scaling_factor)
    return out + mlp(w, f"{layer}.mlp.shared_experts", h), load


def mlp(w, prefix, h):
    """Apply the gated MLP of this name."""
    return gated(h, *(w[f"{prefix}.{part}.weight"] for part in tiny_model.EXPERT_PARTS))


def hidden(w, config, batch, angles):
    """Compute the last hidden states of all tokens and the experts' loads by layer.

    Batch, tables of cos and sin -> (N, D), {layer: (E,)}
    """
    angles = [table[batch.positions] for table in angles]
    eps, loads, real = config.rms_norm_eps, {}, batch.ids != config.pad_token_id
    x = F.embedding(batch.ids, w["model.embed_tokens.weight"])
    for i in range(config.num_hidden_layers):
        layer = f"model.layers.{i}"
        x = x + attention(w, layer, config, x, batch, angles)
        h = rms_norm(x, w[f"{layer}.post_attention_layernorm.weight"], eps)
        if config.is_moe_layer(i):
            y, loads[layer] = mixture(w, layer, config, h, real)
            x = x + y
        else:
            x = x + mlp(w, f"{layer}.mlp", h)
    return rms_norm(x, w["model.norm.weight"], eps), loads


def logits(w, config, batch, angles):
    """Compute the logits where something is learned, as the loss sees them, and the loads.

    Batch, tables of cos and sin -> (n, W), {layer: (E,)}
    """
    x, loads = hidden(w, config, batch, angles)
    return linear(FLATTER * x[batch.here], w["lm_head.weight"]), loads


def cross_entropy(y, targets, weights):
    """Add up the weighted cross-entropies.

    (n, W), (n,), (n,) -> ()
    """
    return (F.cross_entropy(y.float(), targets, reduction="none") * weights).sum()
