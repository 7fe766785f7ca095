"""Weight formats: literals, round trips, and every bit pattern of the small formats."""

import math
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import int4_matrices, matrix, seeds, weights

from k2ref import quant

COLUMNS = [-8, -7, -1, 0, 1, 2, 6, 7]  # packed: word 0xfea98710, bytes 10 87 a9 fe


def test_pack_int4_of_a_literal():
    packed = quant.pack_int4(np.array([COLUMNS]))
    assert packed.dtype == np.int32 and packed.shape == (1, 1)
    assert packed.view(np.uint32)[0, 0] == 0xFEA98710
    assert packed.astype("<i4").tobytes() == bytes.fromhex("1087a9fe")


def test_trap_nibbles_are_offset_binary():
    zeros = np.zeros((1, 1), np.int32)  # as two's complement these would be eight zeros
    assert quant.unpack_int4(zeros).tolist() == [[-8] * 8]
    assert quant.pack_int4(np.zeros((1, 8), int)).view(np.uint32)[0, 0] == 0x88888888


def test_trap_the_first_column_is_in_the_lowest_nibble():
    on_disk = np.frombuffer(bytes.fromhex("1087a9fe"), "<i4").astype(np.int32)
    assert quant.unpack_int4(on_disk[None]).tolist() == [COLUMNS]


@given(int4_matrices())
def test_unpack_is_the_inverse_of_pack(q):
    unpacked = quant.unpack_int4(quant.pack_int4(q))
    assert unpacked.dtype == np.int8
    assert (unpacked == q).all() and unpacked.shape == q.shape


@given(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=9))
def test_pack_is_the_inverse_of_unpack(words):
    words = np.array([words], np.int32)
    assert (quant.pack_int4(quant.unpack_int4(words)) == words).all()


@pytest.mark.parametrize("q", [[[0] * 7], [[8] + [0] * 7], [[-9] + [0] * 7]])
def test_pack_int4_refuses_what_does_not_fit(q):
    with pytest.raises(ValueError, match="pack_int4"):
        quant.pack_int4(np.array(q))


def test_int4_dequantize_of_a_literal():
    packed = quant.pack_int4(np.array([COLUMNS * 8]))  # two groups of 32
    scale = quant.f32_to_bf16(np.array([[0.5, -2.0]], np.float32))
    w = quant.Int4(packed, scale)
    expected = [q * 0.5 for q in COLUMNS] * 4 + [q * -2.0 for q in COLUMNS] * 4
    assert w.shape == (1, 64) and w.n_bytes == 8 * 4 + 2 * 2
    assert w.dequantize().tolist() == [expected]


@given(seeds)
def test_int4_dequantize_is_exact(seed):
    w = matrix("Int4", 3, 96, seed)
    q, scale = quant.unpack_int4(w.packed), quant.bf16_to_f32(w.scale)
    exact = q.astype(np.float64) * scale.astype(np.float64)[:, np.arange(96) // 32]
    assert (w.dequantize() == exact).all()


@given(seeds)
def test_quantize_int4_is_off_by_half_a_step(seed):
    values = np.random.default_rng(seed).standard_normal((4, 64), dtype=np.float32)
    w = quant.quantize_int4(values)
    step = np.repeat(quant.bf16_to_f32(w.scale), 32, axis=1)
    # The largest of a group is 7 steps before the scale is rounded to bf16, which moves it by at
    # most 2**-9 of itself: 7 * 2**-9 steps, less than half of one. So nothing is clipped.
    assert (np.abs(w.dequantize() - values) <= step * (0.5 + 2**-20)).all()
    assert quant.unpack_int4(w.packed).min() >= -7


def test_quantize_int4_of_zeros_is_zero():
    assert (quant.quantize_int4(np.zeros((2, 32), np.float32)).dequantize() == 0).all()


@given(seeds)
def test_quantize_int4_keeps_what_is_representable(seed):
    w = matrix("Int4", 2, 64, seed)
    q = quant.unpack_int4(w.packed).clip(-7, 7)
    q[:, ::32] = 7  # each group reaches the end of the range, so its scale is found again
    w = quant.Int4(quant.pack_int4(q), quant.f32_to_bf16(np.abs(quant.bf16_to_f32(w.scale))))
    assert (quant.quantize_int4(w.dequantize()).dequantize() == w.dequantize()).all()


def e4m3(code):
    """Decode one e4m3 byte as its definition reads."""
    sign, exponent, mantissa = -1 if code >> 7 else 1, code >> 3 & 15, code & 7
    if exponent == 15 and mantissa == 7:
        return math.nan
    if exponent == 0:
        return sign * mantissa * 2.0**-9
    return sign * (8 + mantissa) * 2.0 ** (exponent - 10)


def test_fp8_literals():
    codes = {0x00: 0.0, 0x01: 2**-9, 0x07: 7 * 2**-9, 0x08: 2**-6, 0x38: 1.0, 0x3C: 1.5,
             0x7E: 448.0, 0xB8: -1.0, 0xFE: -448.0}  # fmt: skip
    found = quant.fp8_to_f32(np.array(list(codes), np.uint8))
    assert found.dtype == np.float32 and found.tolist() == list(codes.values())


def test_fp8_table_is_its_definition():
    found = quant.fp8_to_f32(np.arange(256, dtype=np.uint8))
    expected = np.array([e4m3(code) for code in range(256)])
    assert np.array_equal(found, expected, equal_nan=True)
    assert np.signbit(found[0x80]) and np.isnan(found[[0x7F, 0xFF]]).all()


def test_fp8_scales_belong_to_blocks_of_128():
    bits = np.full((200, 300), 0x38, np.uint8)  # 1.0 everywhere
    scale_inv = np.arange(1, 7, dtype=np.float32).reshape(2, 3)
    w = quant.Fp8(bits, scale_inv)
    expected = np.repeat(np.repeat(scale_inv, 128, 0), 128, 1)[:200, :300]
    assert (w.dequantize() == expected).all()
    assert w.n_bytes == 200 * 300 + 6 * 4


@given(seeds)
def test_quantize_fp8_takes_the_nearest_code(seed):
    values = np.random.default_rng(seed).standard_normal((130, 7), dtype=np.float32)
    w = quant.quantize_fp8(values)
    scale = np.repeat(w.scale_inv, 128, axis=0)[:130].astype(np.float64)
    codes = np.array([e4m3(code) for code in range(256) if code & 0x7F != 0x7F])
    best = np.abs(values[..., None] / scale[..., None] - codes).min(axis=-1)
    found = np.abs(values / scale - quant.fp8_to_f32(w.bits).astype(np.float64))
    # values / scale is rounded to float32 before the code is chosen: 448 * 2**-24 at most.
    assert (found <= best + 2 * 448 * 2.0**-24).all()


def test_quantize_fp8_keeps_zeros_and_signs():
    values = np.zeros((3, 5), np.float32)
    assert (quant.quantize_fp8(values).dequantize() == 0).all()
    values[0, 1], values[2, 2] = 3.0, -3.0
    assert (quant.quantize_fp8(values).dequantize() == values).all()


def test_bf16_to_f32_of_every_pattern():
    bits = np.arange(2**16, dtype=np.uint16)
    expected = np.array([struct.unpack(">f", struct.pack(">HH", b, 0))[0] for b in range(2**16)])
    found = quant.bf16_to_f32(bits)
    assert found.dtype == np.float32 and np.array_equal(found, expected, equal_nan=True)
    finite = ~np.isnan(found)
    assert (quant.f32_to_bf16(found)[finite] == bits[finite]).all()


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        (0x3F808000, 0x3F80),  # a tie goes down to the even neighbour
        (0x3F818000, 0x3F82),  # a tie goes up to the even neighbour
        (0x3F808001, 0x3F81),  # more than half
        (0x3F807FFF, 0x3F80),  # less than half
        (0x7F7FFFFF, 0x7F80),  # the largest float32 rounds to infinity
        (0xFF800000, 0xFF80),  # infinity stays
        (0x00000001, 0x0000),  # the smallest subnormal is lost
        (0x80000000, 0x8000),  # minus zero stays
    ],
)
def test_f32_to_bf16_of_a_literal(word, expected):
    value = np.array([word], np.uint32).view(np.float32)
    assert quant.f32_to_bf16(value).tolist() == [expected]


def test_f32_to_bf16_keeps_nan():
    words = np.array([0x7F800001, 0x7FFFFFFF, 0xFF800001], np.uint32)  # the first two round badly
    assert np.isnan(quant.bf16_to_f32(quant.f32_to_bf16(words.view(np.float32)))).all()


@given(st.integers(0, 0x7F7F7FFF))
def test_f32_to_bf16_takes_the_nearest(word):
    value = np.array([word], np.uint32).view(np.float32)
    bits = int(quant.f32_to_bf16(value)[0])
    near = np.array([max(bits - 1, 0), bits, bits + 1], np.uint16)
    distance = np.abs(quant.bf16_to_f32(near).astype(np.float64) - value.astype(np.float64))
    assert distance[1] == distance.min()
    if (distance == distance[1]).sum() == 2 and bits:
        assert bits % 2 == 0


@given(weights(), st.data())
def test_rows_are_a_view_that_dequantizes_the_same(w, data):
    stop = data.draw(st.integers(1, w.shape[0]))
    start = data.draw(st.integers(0, stop - 1))
    part = w.rows(start, stop)
    assert part.shape == (stop - start, w.shape[1])
    assert np.shares_memory(part.arrays[0], w.arrays[0])
    assert (part.dequantize() == w.dequantize()[start:stop]).all()
    middle = (stop - start) // 2
    assert (part.rows(middle, stop - start).dequantize() == part.dequantize()[middle:]).all()


def test_a_view_of_fp8_rows_knows_where_it_begins():
    w = quant.Fp8(np.full((200, 4), 0x38, np.uint8), np.array([[1], [2]], np.float32))
    part = w.rows(100, 190).rows(30, 90)
    assert (part.dequantize() == 2).all() and (w.rows(100, 190).dequantize()[:28] == 1).all()


def ones(dtype, *shape):
    return np.ones(shape, dtype)


@pytest.mark.parametrize(
    "make",
    [
        lambda: quant.Int4(ones(np.int64, 2, 4), ones(np.uint16, 2, 1)),
        lambda: quant.Int4(ones(np.int32, 2, 4), ones(np.float32, 2, 1)),
        lambda: quant.Int4(ones(np.int32, 2, 3), ones(np.uint16, 2, 1)),
        lambda: quant.Int4(ones(np.int32, 2, 4), ones(np.uint16, 2, 2)),
        lambda: quant.Int4(ones(np.int32, 8), ones(np.uint16, 2)),
        lambda: quant.Int4(ones(np.int32, 2, 8)[:, ::2], ones(np.uint16, 2, 1)),
        lambda: quant.Fp8(ones(np.int8, 2, 4), ones(np.float32, 1, 1)),
        lambda: quant.Fp8(ones(np.uint8, 130, 4), ones(np.float32, 1, 1)),
        lambda: quant.Fp8(ones(np.uint8, 2, 130), ones(np.float32, 1, 1)),
        lambda: quant.Bf16(ones(np.float32, 2, 2)),
        lambda: quant.Bf16(ones(np.uint16, 4, 2).T),
        lambda: quant.Bf16([[1, 2]]),
        lambda: quant.F32(ones(np.float64, 2, 2)),
        lambda: quant.F32(ones(np.uint8, 17)[1:].view(np.float32).reshape(2, 2)),  # misaligned
    ],
)
def test_wrong_arrays_are_refused_by_name(make):
    with pytest.raises(ValueError, match=r"(Int4|Fp8|Bf16|F32).*: expected .*, found"):
        make()


def test_int4_scales_may_be_negative():
    scale = quant.f32_to_bf16(np.array([[-0.5]], np.float32))
    w = quant.Int4(quant.pack_int4(np.full((1, 32), 3)), scale)
    assert (w.dequantize() == -1.5).all()
