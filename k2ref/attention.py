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
from k2ref.quant import bf16_to_f32, f32_to_bf16
from k2ref.rope import rotate
from k2ref.streaming import memory

KEY_BLOCK = 256  # the kernel takes keys in blocks at multiples of this position
LANES = 16  # a cache row is padded with zeros to whole vectors
CACHE_DTYPES = {"float32": np.float32, "bf16": np.uint16}


class KVCache:
    """Remember each layer's latents and rotary keys: a row [c_kv | k_rope | zeros] per token.

    `rows[i]` is (capacity, C + R rounded up to 16) in float32, or with `dtype` "bf16" in bf16 bit
    patterns, half the memory, each number rounded to nearest once. Address space for the whole
    capacity, by default the context, is reserved at once and the system gives memory as rows are
    written, so growing copies nothing. `expected` is how many tokens will surely come: by default
    the capacity if it was asked for, else none.
    Raises: ValueError for an unknown dtype, a capacity that is not positive, or tokens expected
    that need more memory than there is.
    """

    def __init__(self, config, capacity=None, dtype="float32", expected=None):
        if dtype not in CACHE_DTYPES:
            raise ValueError(f"KVCache: expected a dtype of {' or '.join(CACHE_DTYPES)}, "
                             f"found {dtype!r}")
        self.capacity = config.max_position_embeddings if capacity is None else capacity
        if self.capacity < 1:
            raise ValueError(f"KVCache: expected a capacity of at least 1, found {self.capacity}")
        require_memory(config, (capacity or 0) if expected is None else expected, dtype)
        self.dtype = dtype
        self.C, self.R = config.kv_lora_rank, config.qk_rope_head_dim
        n_rows = -(-self.capacity // KEY_BLOCK) * KEY_BLOCK
        try:
            self.rows = [np.zeros((n_rows, _row_width(config)), CACHE_DTYPES[dtype])
                         for _ in range(config.num_hidden_layers)]
        except (MemoryError, ValueError) as error:  # NumPy's own limit is a ValueError
            raise ValueError(f"KVCache: the system does not reserve address space for "
                             f"{self.capacity} tokens ({error}); give a smaller capacity, or "
                             "fewer new tokens") from None
        self.length = 0

    def write(self, i, c_kv, k_rope):
        """Put layer i's rows for the next tokens after the `length` known ones.

        int, (T, C), (T, R) -> None

        `length` is moved by `forward` once every layer has written.
        """
        stop = self.length + len(c_kv)
        if stop > self.capacity:
            raise ValueError(f"the cache holds {self.capacity} tokens; {self.length} are in it and "
                             f"{len(c_kv)} more do not fit: make a KVCache with a larger capacity")
        if self.dtype == "bf16":
            c_kv, k_rope = f32_to_bf16(c_kv), f32_to_bf16(k_rope)
        self.rows[i][self.length:stop, :self.C] = c_kv
        self.rows[i][self.length:stop, self.C:self.C + self.R] = k_rope

    def truncate(self, n):
        """Forget all tokens after the first n."""
        if not 0 <= n <= self.length:
            raise ValueError(f"truncate: expected 0 to {self.length} tokens to keep, found {n}")
        self.length = n


def require_memory(config, n_tokens, dtype):
    """Refuse what cannot end well: tokens for a cache that need more memory than there is.

    Raises: ValueError
    """
    per_token = config.num_hidden_layers * _row_width(config)
    needed = n_tokens * per_token * np.dtype(CACHE_DTYPES[dtype]).itemsize
    available = memory.available()
    if available is not None and needed > available:
        less = n_tokens * per_token * 2
        instead = f", or a bf16 cache ({less / 1e9:.1f} GB)" if less < needed else ""
        raise ValueError(f"KVCache: {n_tokens} tokens in {dtype} take {needed / 1e9:.1f} GB "
                         f"({needed} bytes), and {available / 1e9:.1f} GB of memory are available; "
                         f"use fewer tokens{instead}")


def _row_width(config):
    return -(-(config.kv_lora_rank + config.qk_rope_head_dim) // LANES) * LANES


@dataclass(frozen=True)
class AttentionWeights:
    """Hold one layer's attention: matrices as stored, norms as float32, kv_b_proj also by heads."""

    q_proj: object  # (H*(N+R), D) where there is no q_lora_rank, else None
    q_a_proj: object  # (Q, D)
    q_a_layernorm: np.ndarray  # (Q,)
    q_b_proj: object  # (H*(N+R), Q)
    kv_a_proj_with_mqa: object  # (C+R, D)
    kv_a_layernorm: np.ndarray  # (C,)
    kv_b_proj: object  # (H*(N+V), C)
    o_proj: object  # (D, H*V)
    W_UK: list  # H views (N, C) of kv_b_proj: latents to keys
    W_UV: list  # H views (V, C): latents to values


def bind(checkpoint, config, at):
    """Find the weights of the attention whose names begin with `at`; views, no copies.

    Raises: CheckpointError
    """
    D, H, C, Q = (config.hidden_size, config.num_attention_heads, config.kv_lora_rank,
                  config.q_lora_rank)
    N, R, V = config.qk_nope_head_dim, config.qk_rope_head_dim, config.v_head_dim
    direct = Q is None
    kv_b = checkpoint.weight(at + "kv_b_proj", (H * (N + V), C))
    starts = range(0, H * (N + V), N + V)
    return AttentionWeights(
        q_proj=checkpoint.weight(at + "q_proj", (H * (N + R), D)) if direct else None,
        q_a_proj=None if direct else checkpoint.weight(at + "q_a_proj", (Q, D)),
        q_a_layernorm=None if direct else checkpoint.vector(at + "q_a_layernorm.weight", (Q,)),
        q_b_proj=None if direct else checkpoint.weight(at + "q_b_proj", (H * (N + R), Q)),
        kv_a_proj_with_mqa=checkpoint.weight(at + "kv_a_proj_with_mqa", (C + R, D)),
        kv_a_layernorm=checkpoint.vector(at + "kv_a_layernorm.weight", (C,)),
        kv_b_proj=kv_b,
        o_proj=checkpoint.weight(at + "o_proj", (D, H * V)),
        W_UK=[kv_b.rows(r, r + N) for r in starts],
        W_UV=[kv_b.rows(r + N, r + N + V) for r in starts],
    )


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


def attention(h, w, cache, i, cos, sin, config, threads=None, trace=None):
    """Run layer i's attention on normalised activations, writing the tokens into the cache.

    (T, D) -> (T, D)
    """
    q_nope, q_rope = queries(h, w, cos, sin, config, threads)
    c_kv, k_rope = latents(h, w, cos, sin, config, threads)
    cache.write(i, c_kv, k_rope)
    heads = attend_absorbed(q_nope, q_rope, cache.rows[i], cache.length, w, config.softmax_scale,
                            threads)
    y = ops.linear(heads.reshape(len(h), -1), w.o_proj, threads)
    if trace is not None:
        trace.record_all(f"layers.{i}.attn.", h=h, q_nope=q_nope, q_rope=q_rope, c_kv=c_kv,
                         k_rope=k_rope, heads=heads, out=y)
    return y
