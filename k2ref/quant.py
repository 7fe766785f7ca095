"""Weight formats: how a number of the checkpoint is written in bits, and how to read it back.

A linear weight is a matrix `(O, I)` stored in one of four ways. Each class below wraps the arrays
as they lie in the checkpoint's memory map, without copying, and says what they mean with
`dequantize`. The kernels read the same `arrays` (data, scale); `ops.linear` is where they multiply.

    Int4   routed experts of K2 Thinking: 8 weights to an int32 word, one bf16 scale per 32 columns
    Fp8    every linear of K2 Instruct: e4m3 bytes, one float32 scale per 128x128 block
    Bf16   everything else: the upper half of a float32
    F32    plain float32

Chapter 04.
"""

import numpy as np

GROUP = 32  # columns that share one INT4 scale
BLOCK = 128  # rows and columns that share one FP8 scale
E4M3_MAX = 448.0


def bf16_to_f32(bits):
    """Widen bf16 bit patterns to float32: exact, since bf16 is float32's upper half.

    (...) -> (...)

    Input uint16, output float32.
    """
    return (np.asarray(bits, np.uint16).astype(np.uint32) << 16).view(np.float32)


def f32_to_bf16(values):
    """Round float32 to bf16 bit patterns, to nearest, ties to even; NaN stays NaN.

    (...) -> (...)

    Output uint16.
    """
    words = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (words + 0x7FFF + ((words >> 16) & 1)) >> 16
    quiet_nan = (words >> 16) | 0x40
    return np.where(np.isnan(values), quiet_nan, rounded).astype(np.uint16)


def pack_int4(q):
    """Pack integers in [-8, 7] eight to a word, column `8k+j` in bits `4j..4j+3` of word `k`.

    (O, I) -> (O, I/8)

    Output int32. A nibble holds q + 8 (offset binary).
    Source: compressed-tensors, pack_quantized/helpers.py, pack_to_int32.
    """
    q = np.asarray(q)
    if q.shape[-1] % 8:
        raise ValueError(f"pack_int4: columns must be a multiple of 8, found {q.shape[-1]}")
    if q.size and (q.min() < -8 or q.max() > 7):
        raise ValueError(f"pack_int4: values must be in [-8, 7], found [{q.min()}, {q.max()}]")
    # Trap: nibbles are offset binary, not two's complement (ktransformers#2067).
    nibbles = (q + 8).astype(np.uint32).reshape(*q.shape[:-1], -1, 8)
    words = np.bitwise_or.reduce(nibbles << (4 * np.arange(8, dtype=np.uint32)), axis=-1)
    return words.astype(np.uint32).view(np.int32)


def unpack_int4(packed):
    """Unpack words of eight nibbles to integers in [-8, 7]; the inverse of `pack_int4`.

    (O, I/8) -> (O, I)

    Input int32, output int8.
    Source: compressed-tensors, pack_quantized/helpers.py, unpack_from_int32.
    """
    # Trap: the first column is in the lowest bits of the word, whatever the byte order in print.
    words = np.ascontiguousarray(packed).view(np.uint32)[..., None]
    nibbles = (words >> (4 * np.arange(8, dtype=np.uint32))) & 15
    return (nibbles.astype(np.int8) - 8).reshape(*packed.shape[:-1], -1)


def quantize_int4(values):
    """Quantize to INT4 with one scale per 32 columns: scale = absmax / 7 in bf16, q = round(w / s).

    (O, I) -> Int4

    Source: the symmetric min-max observer of compressed-tensors; K2 Thinking used codes -7..7.
    """
    O, I = values.shape
    groups = np.asarray(values, np.float32).reshape(O, I // GROUP, GROUP)
    scale = f32_to_bf16(np.abs(groups).max(axis=-1) / 7)
    step = bf16_to_f32(scale)[..., None]
    q = np.rint(np.divide(groups, step, out=np.zeros_like(groups), where=step != 0))
    return Int4(pack_int4(np.clip(q, -8, 7).astype(np.int8).reshape(O, I)), scale)


def fp8_to_f32(bits):
    """Decode FP8 e4m3 bytes: a sign, 4 bits of exponent (bias 7), 3 bits of mantissa.

    (...) -> (...)

    Input uint8, output float32, exact. 0x7f and 0xff are NaN; there is no infinity.
    """
    return E4M3[np.asarray(bits, np.uint8)]


def _e4m3_table():
    codes = np.arange(256)
    sign = np.where(codes & 0x80, -1.0, 1.0)
    exponent, mantissa = (codes >> 3) & 15, codes & 7
    normal = (1 + mantissa / 8) * 2.0 ** (exponent - 7.0)
    subnormal = mantissa / 8 * 2.0**-6
    values = sign * np.where(exponent == 0, subnormal, normal)
    values[[0x7F, 0xFF]] = np.nan  # e4m3fn has no infinities: these two codes are its only NaNs
    return values.astype(np.float32)


E4M3 = _e4m3_table()


def quantize_fp8(values):
    """Quantize to FP8 e4m3 with one float32 scale per 128x128 block: scale = absmax / 448.

    (O, I) -> Fp8
    """
    O, I = values.shape
    shape = (-(-O // BLOCK), -(-I // BLOCK))
    padded = np.zeros((shape[0] * BLOCK, shape[1] * BLOCK), np.float32)
    padded[:O, :I] = values
    absmax = np.abs(padded.reshape(shape[0], BLOCK, shape[1], BLOCK)).max(axis=(1, 3))
    scale_inv = np.where(absmax > 0, absmax / E4M3_MAX, 1).astype(np.float32)
    scaled = values / _spread(scale_inv, np.arange(O), I)
    # Nearest code: among the non-negative finite codes, which are in increasing order.
    positive = E4M3[:0x7F].astype(np.float64)
    middle = (positive[1:] + positive[:-1]) / 2
    code = np.searchsorted(middle, np.abs(scaled)).astype(np.uint8)
    return Fp8(code | np.where(np.signbit(scaled), 0x80, 0).astype(np.uint8), scale_inv)


def _spread(scale_inv, rows, I):
    """Repeat one scale per block to one per element of these rows: (O, I)."""
    return scale_inv[rows // BLOCK][:, np.arange(I) // BLOCK]


def _expect(ok, what, expected, found):
    if not ok:
        raise ValueError(f"{what}: expected {expected}, found {found}")


def _check_array(what, array, dtype, ndim=2):
    _expect(isinstance(array, np.ndarray) and array.dtype == dtype and array.ndim == ndim, what,
            f"a {ndim}-d array of {np.dtype(dtype).name}",
            f"{getattr(array, 'dtype', type(array).__name__)} of shape {np.shape(array)}")
    _expect(array.flags.c_contiguous and array.flags.aligned, what,
            "contiguous, aligned rows", f"strides {array.strides}")


class Weight:
    """A matrix (O, I) as the checkpoint stores it; each format below is one.

    `arrays` are its numbers and its scales, or None; `shape` is (O, I).
    """

    arrays: tuple[np.ndarray, np.ndarray | None]
    shape: tuple[int, int]

    @property
    def n_bytes(self):
        """Bytes that one read of the whole matrix moves."""
        return sum(array.nbytes for array in self.arrays if array is not None)

    def dequantize(self):
        """Return the weights as float32 (O, I)."""
        raise NotImplementedError

    def rows(self, start, stop):
        """View the output rows `start` to `stop` as a weight of their own."""
        return type(self)(*(array[start:stop] for array in self.arrays if array is not None))

    def take(self, ids):
        """Return the rows of these ids as float32.

        (O, I), (T,) -> (T, I)
        """
        return type(self)(*(array[ids] for array in self.arrays if array is not None)).dequantize()


class Int4(Weight):
    """A matrix of INT4 weights in groups of 32 columns: w = (nibble - 8) * scale.

    packed int32 (O, I/8), scale uint16 bf16 bits (O, I/32).
    Source: compressed-tensors, format "pack-quantized".
    """

    def __init__(self, packed, scale):
        _check_array("Int4 packed", packed, np.int32)
        _check_array("Int4 scale", scale, np.uint16)
        O, n_words = packed.shape
        _expect(n_words % 4 == 0, "Int4 packed", "whole groups of 32 columns (4 words)",
                f"{n_words} words a row")
        _expect(scale.shape == (O, n_words // 4), "Int4 scale", f"shape {(O, n_words // 4)}",
                f"{scale.shape}")
        self.packed, self.scale, self.shape = packed, scale, (O, n_words * 8)
        self.arrays = packed, scale

    def dequantize(self):
        """Return the weights as float32 (O, I): exact, a 4-bit integer times an 8-bit mantissa."""
        q = unpack_int4(self.packed).astype(np.float32)
        return q * np.repeat(bf16_to_f32(self.scale), GROUP, axis=1)


class Fp8(Weight):
    """A matrix of FP8 e4m3 weights in blocks of 128x128: w = e4m3(byte) * scale_inv.

    bits uint8 (O, I), scale_inv float32 (ceil(O/128), ceil(I/128)). `first_row` is the row of the
    stored matrix at which this view begins: it decides which row of scales applies.
    Source: DeepSeek-V3 inference/kernel.py, weight_dequant.
    """

    def __init__(self, bits, scale_inv, first_row=0):
        _check_array("Fp8 bits", bits, np.uint8)
        _check_array("Fp8 scale_inv", scale_inv, np.float32)
        O, I = bits.shape
        last = -(-(first_row + O) // BLOCK)
        _expect(scale_inv.shape[0] >= last and scale_inv.shape[1] == -(-I // BLOCK),
                "Fp8 scale_inv", f"shape ({last}, {-(-I // BLOCK)})", f"{scale_inv.shape}")
        self.bits, self.scale_inv, self.first_row, self.shape = bits, scale_inv, first_row, (O, I)
        self.arrays = bits, scale_inv

    def dequantize(self):
        """Return the weights as float32 (O, I), each rounded once."""
        return self.take(np.arange(self.shape[0]))

    def take(self, ids):
        scales = _spread(self.scale_inv, self.first_row + np.asarray(ids), self.shape[1])
        return fp8_to_f32(self.bits[ids]) * scales

    def rows(self, start, stop):
        return Fp8(self.bits[start:stop], self.scale_inv, self.first_row + start)


class Bf16(Weight):
    """A matrix of bf16 weights: bits uint16 (O, I)."""

    def __init__(self, bits):
        _check_array("Bf16 bits", bits, np.uint16)
        self.bits, self.shape, self.arrays = bits, bits.shape, (bits, None)

    def dequantize(self):
        """Return the weights as float32 (O, I), exact."""
        return bf16_to_f32(self.bits)

    def take(self, ids):  # without the checks of a new weight: the embedding of every token
        return bf16_to_f32(self.bits[ids])


class F32(Weight):
    """A matrix of float32 weights: values (O, I)."""

    def __init__(self, values):
        _check_array("F32 values", values, np.float32)
        self.values, self.shape, self.arrays = values, values.shape, (values, None)

    def dequantize(self):
        """Return the weights themselves, float32 (O, I)."""
        return self.values
