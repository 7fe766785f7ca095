"""Multi-head latent attention (MLA): what a token takes from the tokens before it.

A key and a value for each of 64 heads would be 20,480 numbers a token. MLA keeps 576: one latent
`c_kv`, from which `kv_b_proj` makes all keys and values, and one rotary key `k_rope`, which the
heads share. Two forms of the same mathematics stand here:

    attend_expanded   makes every head's keys and values, then attends: the form that teaches
    attend_absorbed   moves `kv_b_proj` to the other side of both products, so that the heads attend
                      to the latents themselves: what `forward` runs, for one token or many

With q.k = q_nope.(W_UK c) + q_rope.k_rope = (W_UK^T q_nope).c + q_rope.k_rope, and sum_s p_s (W_UV
c_s) = W_UV (sum_s p_s c_s), nothing per head is ever stored.

Chapters 07 and 08.
"""

from dataclasses import dataclass

import numpy as np

from k2ref import ops
from k2ref.cache import KEY_BLOCK
from k2ref.quant import Weight, bf16_to_f32
from k2ref.rope import rotate


@dataclass(frozen=True)
class AttentionWeights:
    """One layer's attention: matrices as stored, norms as float32, kv_b_proj also by heads."""

    q_proj: Weight | None  # (H*(N+R), D) where there is no q_lora_rank, else None
    q_a_proj: Weight | None  # (Q, D)
    q_a_layernorm: np.ndarray | None  # (Q,)
    q_b_proj: Weight | None  # (H*(N+R), Q)
    kv_a_proj_with_mqa: Weight  # (C+R, D)
    kv_a_layernorm: np.ndarray  # (C,)
    kv_b_proj: Weight  # (H*(N+V), C)
    o_proj: Weight  # (D, H*V)
    W_UK: list[Weight]  # H views (N, C) of kv_b_proj: latents to keys
    W_UV: list[Weight]  # H views (V, C): latents to values


def queries(h, w, cos, sin, config, threads=None):
    """Project to queries and rotate their rotary part.

    (T, D) -> (T, H, N), (T, H, R)

    Source: modeling_deepseek.py, DeepseekV3Attention.forward.
    """
    if w.q_proj is not None:
        q = ops.linear(h, w.q_proj, threads)
    else:
        # Trap: the latent norms use eps 1e-6 in the official code (vllm#35515).
        q_latent = ops.rms_norm(ops.linear(h, w.q_a_proj, threads), w.q_a_layernorm,
                                config.latent_norm_eps)
        q = ops.linear(q_latent, w.q_b_proj, threads)
    q = q.reshape(len(h), config.num_attention_heads, config.qk_head_dim)
    N = config.qk_nope_head_dim
    return q[..., :N], rotate(q[..., N:], cos, sin)


def latents(h, w, cos, sin, config, threads=None):
    """Project to what the cache keeps: the normalised latent and the rotated shared key.

    (T, D) -> (T, C), (T, R)

    Source: modeling_deepseek.py, DeepseekV3Attention.forward.
    """
    C = config.kv_lora_rank
    both = ops.linear(h, w.kv_a_proj_with_mqa, threads)
    c_kv = ops.rms_norm(np.ascontiguousarray(both[:, :C]), w.kv_a_layernorm, config.latent_norm_eps)
    return c_kv, rotate(both[:, C:], cos, sin)


def attend_expanded(q_nope, q_rope, c_kv, k_rope, w, softmax_scale):
    """Attend with every head's keys and values written out; the last T of S tokens ask.

    (T, H, N), (T, H, R), (S, C), (S, R) -> (T, H, V)

    Source: modeling_deepseek.py, DeepseekV3Attention.forward.
    """
    T, H, _ = q_nope.shape
    S = len(c_kv)
    visible = np.arange(S) <= np.arange(S - T, S)[:, None]  # (T, S): no token sees a later one
    out = np.empty((T, H, w.W_UV[0].shape[0]), np.float32)
    for h in range(H):
        k_nope = c_kv @ w.W_UK[h].dequantize().T  # (S, N)
        v = c_kv @ w.W_UV[h].dequantize().T  # (S, V)
        scores = softmax_scale * (q_nope[:, h] @ k_nope.T + q_rope[:, h] @ k_rope.T)
        scores = np.where(visible, scores, -np.inf).astype(np.float32)
        out[:, h] = ops.softmax(scores) @ v
    return out


def attend_absorbed(q_nope, q_rope, cache_rows, start, w, softmax_scale, threads=None):
    """Attend to the latents themselves; the first of the T tokens stands at position `start`.

    (T, H, N), (T, H, R), (S, C+R) -> (T, H, V)

    `cache_rows` are KVCache.rows of the layer, the T tokens' own included; bf16 is widened, which
    is exact. The bits of a token's result depend on the keys it sees and on nothing else.
    Source: DeepSeek-V2 report, section 2.1; DeepSeek-V3 inference/model.py, MLA.forward "absorb".
    """
    T, H, R = q_rope.shape
    C = w.W_UK[0].shape[1]
    q = np.zeros((T, H, cache_rows.shape[1]), np.float32)
    ops.linear_heads(q_nope, w.W_UK, transposed=True, threads=threads, out=q[..., :C])
    q[..., C:C + R] = q_rope
    if cache_rows.dtype == np.uint16:
        cache_rows = bf16_to_f32(cache_rows[:-(-(start + T) // KEY_BLOCK) * KEY_BLOCK])
    attend = attend_numpy if ops.kernels is None else _attend_kernel
    context = attend(q, cache_rows, start, softmax_scale, C, threads)
    return ops.linear_heads(context, w.W_UV, threads=threads)


def attend_numpy(q, cache_rows, start, softmax_scale, C, threads=None):
    """Weigh the latents by softmax(scale q.k): the plain twin of the kernel.

    (T, H, C+R), (S, C+R) -> (T, H, C)
    """
    T, H, _ = q.shape
    S = start + T
    keys = cache_rows[:S]
    # Trap: without the mask decode is right and prefill is not (mlxcel#998).
    hidden = np.arange(S) > np.arange(start, S)[:, None]
    context = np.empty((T, H, C), np.float32)
    for h in range(H):
        scores = np.float32(softmax_scale) * (q[:, h] @ keys.T)
        # Of -inf, softmax makes 0: NaN, or infinity, must show in the row that it is in.
        doubt = 0 * np.where(hidden, 0, scores).sum(axis=1, keepdims=True)
        scores[hidden] = -np.inf
        context[:, h] = (ops.softmax(scores) + doubt) @ keys[:, :C]
    return context


def _attend_kernel(q, cache_rows, start, softmax_scale, C, threads):
    context = np.empty((*q.shape[:2], C), np.float32)
    ops.kernels.attend(q, cache_rows, context, start, softmax_scale,
                       ops.n_threads(threads))
    return context


def attention(h, w, run):
    """Run one layer's attention on normalised activations, writing the tokens into the cache.

    (T, D) -> (T, D)
    """
    q_nope, q_rope = queries(h, w, run.cos, run.sin, run.config, run.threads)
    c_kv, k_rope = latents(h, w, run.cos, run.sin, run.config, run.threads)
    run.cache.write(run.i, c_kv, k_rope)
    heads = attend_absorbed(q_nope, q_rope, run.cache.rows[run.i], run.cache.length, w,
                            run.config.softmax_scale, run.threads)
    y = ops.linear(heads.reshape(len(h), -1), w.o_proj, run.threads)
    run.record("attn.", h=h, q_nope=q_nope, q_rope=q_rope, c_kv=c_kv, k_rope=k_rope, heads=heads,
               out=y)
    return y
