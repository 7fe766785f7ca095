"""The forward pass for training: conversations grouped by length, matrices in BF16.

Every operation but attention runs once over all tokens of a step; attention runs once per group of
rows of one length. Products of matrices take BF16 inputs, for speed; the residual stream, norms and
the routing stay in float32. Weights and rounding are those of `tiny_model`.
"""

import os

os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "20000")  # before torch is loaded
import tiny_model
import torch
import torch.nn.functional as F

from k2ref import rope

LOW = torch.bfloat16
SHORT = 1500
# For each new shape the library makes a kernel, which takes longer than to run it. So shapes stay
# few (8,600 tokens/s instead of 4,300): what is counted is filled up to a multiple of these, the
# tokens of a step, those of an expert, the rows of logits, the length of a row.
MANY, FEW, BLOCK, LENGTH = 1024, 128, 512, 16
# The loss sees logits half as large as they are, so the model learns them twice as large: sampling
# it at temperature 1 is what sampling at 0.5 would be, and one unlikely digit in a hundred does not
# spoil a sum.
FLATTER = 0.5
# What stands between two products of matrices runs as one loop, forward and backward: a step takes
# a quarter less time.
fused = torch.compile(dynamic=True, fullgraph=True)


def up_to(n, size):
    """Round up to a multiple."""
    return -(-n // size) * size


def linear(x, w):
    """Multiply by a matrix, both rounded to BF16.

    (..., I), (O, I) -> (..., O)
    """
    return F.linear(x.to(LOW), w.to(LOW))


class CrossEntropy(torch.autograd.Function):
    """Weighted cross-entropy of x W^T: logits and their gradients live for one block of rows only.

    (N, D), (W, D), (N,), (N,) -> ()
    """

    @staticmethod
    def forward(ctx, x, w, targets, weights):
        """Return the sum; the gradients are known at once, and kept."""
        dx, dw, total = torch.empty_like(x), torch.zeros_like(w, dtype=torch.float32), 0.0
        for xs, ts, ms, out in zip(*(part.split(BLOCK) for part in (x, targets, weights, dx)),
                                   strict=True):
            logits = F.linear(xs, w).float()
            rows = torch.arange(len(ts))
            p = logits.log_softmax(-1)
            total -= (p[rows, ts] * ms).sum()
            p.exp_()
            p[rows, ts] -= 1
            p = p.mul_(ms[:, None]).to(LOW)
            torch.mm(p, w, out=out)
            dw += p.mT @ xs
        ctx.save_for_backward(dx, dw)
        return total

    @staticmethod
    def backward(ctx, by):
        """Scale the gradients that `forward` found."""
        dx, dw = ctx.saved_tensors
        return dx * by, dw * by, None, None


def rms_norm(x, weight, eps):
    """Divide by the root mean square and scale.

    (N, D), (D,), () -> (N, D)
    """
    x = x.float()
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


normalised = fused(rms_norm)


def rotate(x, cos, sin):
    """Rotate the interleaved pairs (x[2j], x[2j+1]) of the last axis by their angles.

    (B, T, H, R), (T, 1, R/2), (T, 1, R/2) -> (B, T, H, R)
    """
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


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


@fused
def queries_keys_values(x, weights, config, width, cos, sin):
    """Project to queries, keys and values of all heads, filled up to `width`.

    (N, D) -> (N, H, width), (N, H, width), (N, H, width)
    """
    norm, q_a, q_norm, q_b, kv_a, kv_norm, kv_b = weights
    H, N, R, V, C, eps, latent_eps = config
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


def attention(w, layer, config, x, shapes, tables):
    """Attend causally within each row; rows of one group have one length.

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
    q, k, v = queries_keys_values(x, weights, numbers, width, *tables)
    out, sizes = [], [rows * length for rows, length in shapes]
    sizes.append(len(x) - sum(sizes))  # what fills up the step attends to nothing
    parts = (y.split(sizes) for y in (q, k, v))  # not slices: their gradients are one `cat`
    for (rows, length), *group in zip(shapes, *parts, strict=False):
        mixed = attend(*(y.view(rows, length, H, width).transpose(1, 2) for y in group),
                       config.softmax_scale)
        out.append(mixed.transpose(1, 2)[..., :V].reshape(rows * length, H * V))
    out.append(torch.zeros(sizes[-1], H * V, dtype=LOW))
    return linear(torch.cat(out), w[f"{layer}.self_attn.o_proj.weight"])


@fused
def gated(h, gate, up, down):
    """Apply a gated MLP: down(silu(gate(h)) * up(h))."""
    return linear(F.silu(linear(h, gate)) * linear(h, up), down)


def mlp(w, prefix, h):
    """Apply the gated MLP of this name."""
    return gated(h, *(w[f"{prefix}.{part}.weight"] for part in tiny_model.EXPERT_PARTS))


def mixture(w, layer, config, h, real):
    """Mix the chosen experts; each expert sees its tokens only.

    (N, D), (N,) -> (N, D), (E,)

    Also returns how many of the `real` tokens chose each expert, for the balance.
    """
    E, K = config.n_routed_experts, config.num_experts_per_tok
    scores = torch.sigmoid(F.linear(h, w[f"{layer}.mlp.gate.weight"]))
    chosen = (scores + w[f"{layer}.{tiny_model.ROUTER_BIAS}"]).topk(K, -1).indices
    mix = scores.gather(-1, chosen)  # the bias chooses, it does not weigh
    mix = mix / (mix.sum(-1, keepdim=True) + 1e-20) * config.routed_scaling_factor
    expert = chosen.flatten()
    order = expert.argsort(stable=True)
    load = torch.bincount(expert, minlength=E)
    # Each expert's tokens begin at a multiple of FEW: what fills up to it is computed and dropped.
    room = (load + FEW - 1) // FEW * FEW
    shift = (room.cumsum(0) - room) - (load.cumsum(0) - load)
    place = torch.arange(len(order)) + shift[expert[order]]
    source = torch.zeros(int(room.sum()), dtype=torch.long).scatter_(0, place, order // K)
    low = h.to(LOW)
    inputs = low.index_select(0, source)
    gate, up, down = (w[f"{layer}.mlp.experts.{part}"].to(LOW).unbind()
                      for part in tiny_model.EXPERT_PARTS)
    parts = [F.linear(F.silu(F.linear(x, gate[e])) * F.linear(x, up[e]), down[e])
             for e, x in enumerate(inputs.split(room.tolist()))]
    back = torch.empty_like(order).scatter_(0, order, place)
    outputs = torch.cat(parts).index_select(0, back).view(-1, K, h.shape[-1])
    routed = torch.bmm(mix.to(LOW)[:, None], outputs)[:, 0]
    load = torch.bincount(chosen[real].flatten(), minlength=E)
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
    n_filled = up_to(len(ids) + 1, MANY) - len(ids)  # one at least, for `loss`
    ids = F.pad(ids, (0, n_filled), value=config.pad_token_id)
    tables = [F.pad(table, (0, 0, 0, 0, 0, n_filled)) for table in tables]
    x = F.embedding(ids, w["model.embed_tokens.weight"])
    for i in range(config.num_hidden_layers):
        layer = f"model.layers.{i}"
        x = x + attention(w, layer, config, x, shapes, tables)
        h = normalised(x, w[f"{layer}.post_attention_layernorm.weight"], eps)
        if config.is_moe_layer(i):
            routed, loads[layer] = mixture(w, layer, config, h, ids != config.pad_token_id)
            x = x + routed
        else:
            x = x + mlp(w, f"{layer}.mlp", h)
    return normalised(x, w["model.norm.weight"], eps), loads


def loss(w, config, groups, targets, weights):
    """Sum the weighted cross-entropies; only where a weight is above 0 are logits computed.

    list of (B, T), list of (B, T), list of (B, T) -> (), {layer: (E,)}
    """
    x, loads = hidden(w, config, groups)
    targets = torch.cat([part.flatten() for part in targets])
    weights = torch.cat([part.flatten() for part in weights])
    here = weights.nonzero()[:, 0]
    here = F.pad(here, (0, up_to(len(here), BLOCK) - len(here)), value=len(weights))
    targets, weights = (F.pad(part, (0, len(x) - len(part))) for part in (targets, weights))
    x = (FLATTER * x.index_select(0, here)).to(LOW)
    return CrossEntropy.apply(x, w["lm_head.weight"].to(LOW),
                              targets[here], weights[here]), loads
