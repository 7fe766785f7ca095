"""All hypothesis strategies of the tests of the core, in one place.

Arrays are drawn as a seed and a shape, which hypothesis can shrink, and filled by NumPy: the
interesting cases of a kernel are its shapes and its edge values, not the single numbers.
"""

from types import SimpleNamespace

import numpy as np
from hypothesis import strategies as st

from k2ref import quant

FORMATS = ("Int4", "Fp8", "Bf16", "F32")
UNIT = {"Int4": 32, "Fp8": 1, "Bf16": 1, "F32": 1}  # what the columns are a multiple of

seeds = st.integers(0, 2**32 - 1)
n_threads = st.integers(1, 5)
# Around the edges of the kernels: tiles of 4, 8 and 16 rows, 3 and 63 tokens, vectors of 16
# columns, blocks of 128 and 512.
n_rows = st.sampled_from([1, 2, 7, 8, 9, 15, 16, 17, 33, 127, 128, 129, 260])
n_tokens = st.sampled_from([1, 2, 3, 4, 5, 7, 62, 63, 64, 65, 130])
n_columns = st.sampled_from([1, 5, 16, 31, 32, 64, 127, 128, 129, 256, 500, 512, 513, 544, 1056])


def activations(seed, *shape):
    """Draw activations as a network has them: normal, with a few large channels."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape, dtype=np.float32)
    x[..., :: max(1, shape[-1] // 3)] *= 30
    return x


def matrix(format, O, I, seed):
    """Draw a weight (O, I) of any codes that its format has, NaN and infinities aside."""
    rng = np.random.default_rng(seed)
    if format == "Int4":
        scale = quant.f32_to_bf16(rng.standard_normal((O, I // 32), dtype=np.float32) / 8)
        scale[rng.random(scale.shape) < 0.1] = 0
        return quant.Int4(quant.pack_int4(rng.integers(-8, 8, (O, I))), scale)
    if format == "Fp8":
        blocks = -(-O // quant.BLOCK), -(-I // quant.BLOCK)
        codes = rng.integers(0, 256, (O, I)).astype(np.uint8)
        codes[codes & 0x7F == 0x7F] = 0
        return quant.Fp8(codes, rng.random(blocks, dtype=np.float32) + np.float32(0.01))
    values = rng.standard_normal((O, I), dtype=np.float32)
    return quant.Bf16(quant.f32_to_bf16(values)) if format == "Bf16" else quant.F32(values)


@st.composite
def weights(draw, formats=FORMATS):
    """A weight of any format and any shape that its format allows."""
    format = draw(st.sampled_from(formats))
    I = draw(n_columns)
    return matrix(format, draw(n_rows), -(-I // UNIT[format]) * UNIT[format], draw(seeds))


@st.composite
def products(draw, formats=FORMATS):
    """Activations (T, I) and a weight (O, I)."""
    w = draw(weights(formats))
    return activations(draw(seeds), draw(n_tokens), w.shape[1]), w


@st.composite
def int4_matrices(draw):
    """Integers in [-8, 7] of shape (O, I), I a multiple of 8."""
    shape = draw(st.integers(1, 5)), 8 * draw(st.integers(0, 9))
    low, high = draw(st.sampled_from([(-8, 8), (-8, -7), (7, 8), (-1, 1)]))
    return np.random.default_rng(draw(seeds)).integers(low, high, shape)


@st.composite
def partitions(draw, n):
    """A way to cut n tokens into calls: sizes that add up to n."""
    cuts = draw(st.sets(st.integers(1, n - 1), max_size=n - 1)) if n > 1 else set()
    edges = [0, *sorted(cuts), n]
    return [b - a for a, b in zip(edges, edges[1:], strict=False)]


@st.composite
def routings(draw, max_groups=4):
    """What `moe.choose` takes: scores (T, E), bias (E,), and the router's part of a Config."""
    n_group = draw(st.integers(1, max_groups))
    topk_group = draw(st.integers(1, n_group))
    per_group = draw(st.integers(2, 6))
    E = n_group * per_group
    rng = np.random.default_rng(draw(seeds))
    # Few different values make ties; sigmoid's range is open, so none is 0 or 1.
    levels = draw(st.sampled_from([3, 50, 2**20]))
    scores = (rng.integers(1, levels, (draw(st.integers(1, 6)), E)) / levels).astype(np.float32)
    bias = (rng.integers(-4, 5, E) / 8 * draw(st.sampled_from([0, 1, 8]))).astype(np.float32)
    config = SimpleNamespace(
        n_group=n_group, topk_group=topk_group, norm_topk_prob=True,
        num_experts_per_tok=draw(st.integers(1, per_group * topk_group)),
        routed_scaling_factor=draw(st.sampled_from([1.0, 2.5, 2.827])),
    )  # fmt: skip
    return scores, bias, config


@st.composite
def attentions(draw, max_start=40, max_tokens=20):
    """Queries, latents, keys and weights of one attention: the fields of a SimpleNamespace.

    q_nope (T, H, N), q_rope (T, H, R), c_kv (S, C), k_rope (S, R), W_UK and W_UV as views of one
    kv_b_proj in a format that can be transposed; `start` is S - T.
    """
    H, N, V = draw(st.integers(1, 5)), draw(st.integers(1, 20)), draw(st.integers(1, 20))
    C, R = draw(st.sampled_from([8, 16, 24, 33])), 2 * draw(st.integers(1, 8))
    T, start = draw(st.integers(1, max_tokens)), draw(st.integers(0, max_start))
    rng = np.random.default_rng(draw(seeds))

    def normal(*shape):
        return rng.standard_normal(shape, dtype=np.float32)

    kv_b = matrix(draw(st.sampled_from(FORMATS[1:])), H * (N + V), C, draw(seeds))
    rows = range(0, H * (N + V), N + V)
    return SimpleNamespace(
        q_nope=normal(T, H, N), q_rope=normal(T, H, R), start=start,
        c_kv=normal(start + T, C), k_rope=normal(start + T, R),
        W_UK=[kv_b.rows(r, r + N) for r in rows], W_UV=[kv_b.rows(r + N, r + N + V) for r in rows],
        softmax_scale=draw(st.sampled_from([0.05, 0.3])),
    )  # fmt: skip
