"""Where a token stands: rotary position embedding, stretched by YaRN.

Of each query and key head, `qk_rope_head_dim` channels are rotated in pairs, pair `j` by the angle
`position * inv_freq[j]`. The product of a rotated query and a rotated key then depends on their
distance only. YaRN divides the frequencies of the slow pairs by `factor`, so that a model trained
on 4,096 positions tells 262,144 apart; the corners between fast and slow are in `config.py`, with
the factor that softmax gets in return.

Chapter 06.
"""

import numpy as np

from k2ref import ops
from k2ref.checkpoint.config import Config


def inv_freq(config: Config) -> np.ndarray:
    """Compute the angle in radians by which each pair of channels turns per position.

    -> (R/2,)

    float64, fastest pair first. The table is static: short prompts use it, too.

    Source: official modeling_deepseek.py, `DeepseekV3YarnRotaryEmbedding`.
    """
    n_pairs = config.qk_rope_head_dim // 2
    pair = np.arange(n_pairs, dtype=np.float64)
    fast = config.rope_theta ** (-pair / n_pairs)
    if config.rope_scaling is None:
        return fast
    low, high = config.yarn_corners
    # Upstream avoids a division by zero in this way when the corners coincide.
    width = high - low if high != low else 0.001
    stretched = np.clip((pair - low) / width, 0.0, 1.0)
    return fast * (1.0 - stretched) + fast / config.rope_scaling.factor * stretched


def cos_sin(config: Config, positions) -> tuple[np.ndarray, np.ndarray]:
    """Compute cos and sin of each pair's angle at each position.

    (T,) -> (T, R/2), (T, R/2)

    float32, of angles in float64: near 262,143 radians, neighbouring float32 values are 1/64 apart.
    """
    angle = np.asarray(positions, np.float64)[:, None] * inv_freq(config)
    mscale = config.rope_mscale
    return (np.cos(angle) * mscale).astype(np.float32), (np.sin(angle) * mscale).astype(np.float32)


def rotate(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """Rotate each pair of the last axis by its token's angle.

    (T, ..., R), (T, R/2), (T, R/2) -> (T, ..., R)

    float32. The first components of all pairs come out first, then the second ones, as upstream has
    them; attention only needs that queries and keys agree.

    Source: official modeling_deepseek.py, `apply_rotary_pos_emb`.
    """
    if ops.kernels is None:
        return rotate_numpy(x, cos, sin)
    y = np.empty(x.shape, np.float32)
    ops.kernels.rotate(x, cos, sin, y)
    return y


def rotate_numpy(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """Compute `rotate` in NumPy.

    (T, ..., R), (T, R/2), (T, R/2) -> (T, ..., R)
    """
    # Trap: a pair is two neighbours, x[2j] and x[2j+1], not x[j] and x[R/2+j]
    # (text-generation-inference#2224).
    a, b = x[..., 0::2], x[..., 1::2]
    per_token = (len(cos),) + (1,) * (x.ndim - 2) + (cos.shape[-1],)
    cos, sin = cos.reshape(per_token), sin.reshape(per_token)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
