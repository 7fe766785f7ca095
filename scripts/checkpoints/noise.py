"""Random weights for make_checkpoint.py: fast to make, and sane in any depth."""

import math

import numpy as np

from k2ref import quant
from k2ref.checkpoint import layout

BLOCK = 1 << 22  # values in a block of noise


class Noise:
    """Give each array its bytes: blocks drawn once, and begun at a different place each time.

    Drawing 30 GB of random numbers would take longer than writing them.
    """

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)
        self.blocks = {}

    def pieces(self, stored):
        """Yield the bytes of an array, in pieces."""
        if stored.suffix == ".weight_shape":
            yield np.array(stored.tensor.shape, "<i4").tobytes()
            return
        block = self._block(stored)
        width, missing = layout.BYTES_OF[stored.dtype], stored.n_bytes
        while missing:
            # A start among the first half leaves pieces worth a write.
            start = int(self.rng.integers(len(block) // 2 // width)) * width
            piece = block[start:start + missing]
            missing -= len(piece)
            yield piece

    def _block(self, stored):
        """Return the noise for one kind of array: its spread keeps the variance of activations."""
        tensor = stored.tensor
        is_matrix = len(tensor.shape) == 2 and tensor.kind != "embedding"
        spread = 1 / math.sqrt(tensor.shape[1]) if is_matrix else 1.0
        key = stored.suffix, stored.dtype, len(stored.shape), spread
        if key not in self.blocks:
            values = self._draw(stored, spread)
            self.blocks[key] = memoryview(np.ascontiguousarray(values)).cast("B")
        return self.blocks[key]

    def _draw(self, stored, spread):
        if stored.suffix == ".weight_packed":
            # Codes 1 to 15, which stand for -7 to 7: with a 0 among them the mean would not be 0,
            # and after some layers all activations would point the same way.
            low, high = self.rng.integers(1, 16, (2, 4 * BLOCK), dtype=np.uint8)
            return low | high << 4
        if stored.suffix == ".weight_scale":
            codes = math.sqrt((15**2 - 1) / 12)  # standard deviation of -7 to 7
            return quant.f32_to_bf16(self._around(spread / codes))
        if stored.dtype == "F8_E4M3":
            return _fp8_noise(self.rng).bits
        if stored.suffix == ".weight_scale_inv":
            values = _fp8_noise(self.rng)
            return self._around(spread / float(quant.fp8_to_f32(values.bits).std()))
        values = self.rng.standard_normal(BLOCK, dtype=np.float32)
        if len(stored.shape) == 2:
            values *= np.float32(spread)
        elif stored.tensor.kind == "router":
            values /= 100  # the bias: against scores between 0 and 1
        else:
            values = 1 + values / 10
        return values if stored.dtype == "F32" else quant.f32_to_bf16(values)

    def _around(self, value):
        """Draw scales with this root mean square, up to a third apart."""
        factors = self.rng.uniform(0.85, 1.15, BLOCK).astype(np.float32)
        return factors * np.float32(value / math.sqrt(np.mean(factors**2)))


def _fp8_noise(rng):
    return quant.quantize_fp8(rng.standard_normal((BLOCK >> 7, 128), dtype=np.float32))
