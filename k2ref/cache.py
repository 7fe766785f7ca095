"""The cache: of every token that was seen, the latent and the rotary key of each layer.

Chapter 08.
"""

import numpy as np

from k2ref.quant import f32_to_bf16
from k2ref.streaming import memory

KEY_BLOCK = 256  # the kernel takes keys in blocks at multiples of this position
LANES = 16  # a cache row is padded with zeros to whole vectors
CACHE_DTYPES = {"float32": np.float32, "bf16": np.uint16}


class KVCache:
    """The latents and rotary keys of each layer: a row [c_kv | k_rope | zeros] for each token.

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
            self.rows = [np.zeros((n_rows, row_width(config)), CACHE_DTYPES[dtype])
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
    needed = n_tokens * bytes_per_token(config, dtype)
    available = memory.available()
    if available is not None and needed > available:
        less = n_tokens * bytes_per_token(config, "bf16")
        instead = f", or a bf16 cache ({less / 1e9:.1f} GB)" if less < needed else ""
        raise ValueError(f"KVCache: {n_tokens} tokens in {dtype} take {needed / 1e9:.1f} GB "
                         f"({needed} bytes), and {available / 1e9:.1f} GB of memory are available; "
                         f"use fewer tokens{instead}")


def row_width(config):
    """Count the numbers of a row of the cache: C + R rounded up to 16."""
    return -(-(config.kv_lora_rank + config.qk_rope_head_dim) // LANES) * LANES


def bytes_per_token(config, dtype):
    """Count the bytes of one token in all layers of a cache."""
    return config.num_hidden_layers * row_width(config) * np.dtype(CACHE_DTYPES[dtype]).itemsize
