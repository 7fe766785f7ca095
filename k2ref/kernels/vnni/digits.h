/* Activations as integers, for INT4 weights: what one token and many have in common.
 *
 * A group of 32 activations becomes integers X times one power of two, the group's unit: with M the
 * power of two above the largest |x|, unit = M / 2^30, and X is x / unit rounded to nearest. In
 * base 256, with digits from -128 to 127, X has four digits. A weight is an integer from -8 to 7.
 * So for each digit the sum of a group's 32 products is an integer below 2^15 and exact in any
 * order: that of VNNI, which multiplies vectors of bytes, or that of tiles of bytes. The four sums,
 * c0 the lowest, become 2^16 (256 c3 + c2) + (256 c1 + c0), rounded to a float once: the sum of the
 * group, in units.
 *
 * What is lost: U = 2^-24 is the unit roundoff. A float kernel that adds K products in any order is
 * within (K + 8) U of what it should be, times the sum of all |w x|. Here a product is rounded once
 * in its group, once for each block of 512 columns and four times at the end. That leaves 31/32 K
 * U, and all is well if each x is as near as that to X unit, relative to itself. In a group where
 * one is not (it is small, but not zero, beside the largest), what all 32 are off makes an error of
 * at most E = 8 sum |x - X unit|, and the sum of |w x| is at least |sum of w X| unit - E: all is
 * still well if |sum of w X| is not below some `least`. A row where it is (its large activations
 * meet weights of 0, or cancel) is in doubt and computed once more, in floats. So is every row of a
 * token with infinities or NaN. So the bound holds for any numbers whatever, and what becomes of a
 * row and a token depends on nothing else.
 *
 * Trap: one exponent for many numbers is not as good as float32 for the small ones among them,
 * unless somebody looks.
 */

#define VNNI_TARGET "avx512vnni,avx512f,avx512bw,avx512vl,avx512dq,avx2,fma"
TARGET(VNNI_TARGET)

#define LEAST_EXPONENT 34 /* of a group, as a float has it: units are normal numbers, a 16th too */

/* 512 columns of a token. Four columns make a word of bytes, as a shift and a mask leave the
 * weights: 8 i + {0, 2, 4, 6} are word 2 i of a group, 8 i + {1, 3, 5, 7} word 2 i + 1. */
typedef struct {
    ALIGNED int32_t digit[8][4][16]; /* [word][digit, lowest first][lane]: lane l has GROUP_OF(l) */
    int32_t start[4][16]; /* -8 times each digit's sum, since VNNI takes a weight as 0 to 15 */
    float unit[16], least[16];
} TokenBlock;

/* 16x16 words, transposed: words, then pairs, then quarters of vectors are interleaved. */
INLINE void transpose16(__m512i w[16]) {
    __m512i t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(w[i], w[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(w[i], w[i + 1]);
    }
    for (int i = 0; i < 16; i += i % 2 ? 3 : 1) {
        int to = i / 4 * 4 + i % 2 * 2;
        w[to] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        w[to + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    }
    for (int i = 0; i < 16; i += i % 4 == 3 ? 5 : 1) {
        t[i] = _mm512_shuffle_i32x4(w[i], w[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(w[i], w[i + 4], 0xdd);
    }
    for (int i = 0; i < 8; i++) {
        w[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
        w[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
    }
}

/* 4x4 bytes, transposed in every lane: byte i of v[j] becomes byte j of v[i]. */
INLINE void turn_bytes(__m512i v[4]) {
    const __mmask64 odd = 0xaaaaaaaaaaaaaaaa; /* bytes; of words, the lower half of it */
    __m512i even01 = _mm512_mask_blend_epi8(odd, v[0], _mm512_slli_epi32(v[1], 8));
    __m512i even23 = _mm512_mask_blend_epi8(odd, v[2], _mm512_slli_epi32(v[3], 8));
    __m512i odd01 = _mm512_mask_blend_epi8(odd, _mm512_srli_epi32(v[0], 8), v[1]);
    __m512i odd23 = _mm512_mask_blend_epi8(odd, _mm512_srli_epi32(v[2], 8), v[3]);
    v[0] = _mm512_mask_blend_epi16((__mmask32)odd, even01, _mm512_slli_epi32(even23, 16));
    v[1] = _mm512_mask_blend_epi16((__mmask32)odd, odd01, _mm512_slli_epi32(odd23, 16));
    v[2] = _mm512_mask_blend_epi16((__mmask32)odd, _mm512_srli_epi32(even01, 16), even23);
    v[3] = _mm512_mask_blend_epi16((__mmask32)odd, _mm512_srli_epi32(odd01, 16), odd23);
}

/* Block b of a token. Returns whether it has a `least` above 0. */
static int integers_of_block(const Job *job, const float *x, long b, TokenBlock *block) {
    const __m512i magnitude = _mm512_set1_epi32(0x7fffffff), infinite = _mm512_set1_epi32(255);
    const __m512i half = _mm512_set1_epi32((int)0x80808080), eight = _mm512_set1_epi8(8);
    const float near = job->columns * (31.0f / 32) * 0x1p-24f;
    const long n_groups = job->columns / 32 - 16 * b;
    __m512i columns[2][16], largest = _mm512_setzero_si512(), sum[4] = {{0}};
    for (int i = 0; i < 2; i++) {
        for (int l = 0; l < 16; l++)
            columns[i][l] = GROUP_OF(l) >= n_groups ? _mm512_setzero_si512()
                : _mm512_loadu_si512(x + 512 * b + 32 * GROUP_OF(l) + 16 * i);
        transpose16(columns[i]);
        for (int c = 0; c < 16; c++)
            largest = _mm512_max_epu32(largest, _mm512_and_si512(columns[i][c], magnitude));
    }
    __m512i exponent = _mm512_srli_epi32(largest, 23); /* 127 + e, for 2^e <= |x| < 2^(e+1) = M */
    __mmask16 endless = _mm512_cmpeq_epi32_mask(exponent, infinite), far = endless;
    exponent = _mm512_max_epi32(exponent, _mm512_set1_epi32(LEAST_EXPONENT));
    __m512 unit = (__m512)_mm512_slli_epi32(_mm512_sub_epi32(exponent, _mm512_set1_epi32(29)), 23);
    __m512i inverse = _mm512_sub_epi32(_mm512_set1_epi32(283), exponent);
    __m512 units = (__m512)_mm512_slli_epi32(inverse, 23);
    __m512 all_off = _mm512_setzero_ps(); /* in units, whose number in 1 is `units` */
    for (int w = 0; w < 8; w++) {
        __m512i digits[4];
        for (int i = 0; i < 4; i++) {
            int c = w / 2 * 8 + w % 2 + 2 * i;
            __m512 values = (__m512)columns[c / 16][c % 16];
            __m512i integers = _mm512_cvtps_epi32(_mm512_mul_ps(values, units));
            __m512 off = _mm512_fnmadd_ps(_mm512_cvtepi32_ps(integers), unit, values); /* exact */
            off = _mm512_abs_ps(off);
            __m512 allowed = _mm512_mul_ps(_mm512_abs_ps(values), _mm512_set1_ps(near));
            far |= _mm512_cmp_ps_mask(off, allowed, _CMP_NLE_UQ);
            all_off = _mm512_fmadd_ps(off, units, all_off);
            /* 128 in each place makes digits of 0 to 255 of -128 to 127: take it away again. */
            digits[i] = _mm512_xor_si512(_mm512_add_epi32(integers, half), half);
        }
        turn_bytes(digits);
        for (int d = 0; d < 4; d++) {
            _mm512_store_si512(block->digit[w][d], digits[d]);
            sum[d] = _mm512_dpbusd_epi32(sum[d], eight, digits[d]);
        }
    }
    for (int d = 0; d < 4; d++)
        _mm512_store_si512(block->start[d], _mm512_sub_epi32(_mm512_setzero_si512(), sum[d]));
    /* E <= near (|sum| - E), and a little more for what is rounded here. */
    __m512 least = _mm512_mul_ps(all_off, _mm512_set1_ps(8 * (1 / near + 1) * 1.001f));
    least = _mm512_mask_mov_ps(least, endless, _mm512_set1_ps(INFINITY));
    _mm512_store_ps(block->unit, unit);
    _mm512_store_ps(block->least, _mm512_maskz_mov_ps(far, least));
    return far != 0;
}

/* The sum of a group, in units, from those of its digits. */
INLINE __m512 group_sum(const __m512i digit[4]) {
    __m512i low = _mm512_add_epi32(_mm512_slli_epi32(digit[1], 8), digit[0]);
    __m512i high = _mm512_add_epi32(_mm512_slli_epi32(digit[3], 8), digit[2]);
    const __m512 base = _mm512_set1_ps(65536);
    return _mm512_fmadd_ps(_mm512_cvtepi32_ps(high), base, _mm512_cvtepi32_ps(low));
}

/* How far sums are above the least that is to be trusted: those below 0 are in doubt. */
INLINE __m512 above(__m512 sum, __m512 least) { return _mm512_sub_ps(_mm512_abs_ps(sum), least); }
INLINE __mmask16 in_doubt(__m512 above) { return _mm512_movepi32_mask((__m512i)above); }

TARGET_END
