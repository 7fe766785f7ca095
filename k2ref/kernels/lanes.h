/* Sixteen lanes: the vectors that every kernel is written in, for one instruction set.
 *
 * Included once per path by paths.h, which sets NAME(x), ISA and the target. A v16 is sixteen floats in
 * as many registers as the machine needs (one on AVX-512, two on AVX2, four on SSE2 and NEON), so
 * that the order of every sum is the same whatever the width of a register.
 */

#if ISA == 512
#define WIDTH 16
#define TILE_ROWS 8 /* 8 rows x 3 tokens of sums fill 24 of 32 registers */
#elif ISA == 256
#define WIDTH 8
#define TILE_ROWS 4 /* 4 x 3 fill 12 of 16 */
#elif defined(__aarch64__)
#define WIDTH 4
#define TILE_ROWS 8
#else
#define WIDTH 4
#define TILE_ROWS 4
#endif
#define PARTS (16 / WIDTH)
/* IN_REGISTER: a value that is loaded once, not folded into each operation. FETCH: ask for bytes, into
 * the second cache (the activations of one token fill the first), wherever they are: there may be
 * none. As a builtin, which the compiler may move, it was worth less: docs/kernel-notes.md. */
#if defined(__x86_64__)
#define IN_REGISTER(v) __asm__("" : "+v"(v))
#define FETCH(at) __asm__ volatile("prefetcht1 %0" : : "m"(*(const char *)(at)))
#elif defined(__aarch64__)
#define IN_REGISTER(v) __asm__("" : "+w"(v))
#define FETCH(at) __builtin_prefetch((const void *)(at), 0, 2)
#else
#define IN_REGISTER(v) (void)0
#define FETCH(at) __builtin_prefetch((const void *)(at), 0, 2)
#endif

typedef float NAME(vf) __attribute__((vector_size(4 * WIDTH)));
typedef int32_t NAME(vi) __attribute__((vector_size(4 * WIDTH)));
typedef float NAME(vf_at) __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));
typedef int32_t NAME(vi_at) __attribute__((vector_size(4 * WIDTH), aligned(1), may_alias));
typedef uint16_t NAME(vh_at) __attribute__((vector_size(2 * WIDTH), aligned(1), may_alias));
typedef uint8_t NAME(vb_at) __attribute__((vector_size(WIDTH), aligned(1), may_alias));
typedef struct { NAME(vf) part[PARTS]; } NAME(v16);
#define vf NAME(vf)
#define vi NAME(vi)
#define v16 NAME(v16)
#define EACH_PART for (int p = 0; p < PARTS; p++)

INLINE vf NAME(load)(const float *a) { return *(const NAME(vf_at) *)a; }
INLINE void NAME(store)(float *a, vf v) { *(NAME(vf_at) *)a = v; }
#if WIDTH == 16 /* spelled out: `zero + a` is an addition, since -0 + 0 is +0 */
INLINE vf NAME(splat)(float a) { return (vf)_mm512_set1_ps(a); }
#elif WIDTH == 8
INLINE vf NAME(splat)(float a) { return (vf)_mm256_set1_ps(a); }
#else
INLINE vf NAME(splat)(float a) { return (vf){a, a, a, a}; }
#endif
/* One rounding where the target has FMA (the compiler contracts this expression), two elsewhere. */
INLINE vf NAME(fma)(vf a, vf b, vf c) { return a * b + c; }
INLINE vf NAME(as_float)(vi bits) { return (vf)bits; }
INLINE vf NAME(pick)(vi mask, vf yes, vf no) { return (vf)((mask & (vi)yes) | (~mask & (vi)no)); }
INLINE vf NAME(larger)(vf a, vf b) { return NAME(pick)(a > b, a, b); }

/* The one way to add sixteen lanes: l + (l+8), then + 4, + 2, + 1. */
INLINE float NAME(add_lanes)(const float *lanes) {
    float t[8];
    for (int l = 0; l < 8; l++) t[l] = lanes[l] + lanes[l + 8];
    for (int l = 0; l < 4; l++) t[l] += t[l + 4];
    return (t[0] + t[2]) + (t[1] + t[3]);
}

/* The same for four sets of lanes, `stride` floats apart: the last two steps are transposed, so that
 * one vector addition serves all four. */
INLINE void NAME(add_lanes4)(const float *lanes, long stride, float *sums) {
    typedef float v4 __attribute__((vector_size(16), aligned(4), may_alias));
    typedef int32_t i4 __attribute__((vector_size(16)));
    v4 t[4];
    for (int i = 0; i < 4; i++) {
        const v4 *q = (const v4 *)(lanes + i * stride);
        t[i] = (q[0] + q[2]) + (q[1] + q[3]);
    }
#if defined(__clang__)
#define SHUFFLE4(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#else
#define SHUFFLE4(a, b, i, j, k, l) __builtin_shuffle(a, b, (i4){i, j, k, l})
#endif
    v4 low01 = SHUFFLE4(t[0], t[1], 0, 4, 1, 5), low23 = SHUFFLE4(t[2], t[3], 0, 4, 1, 5);
    v4 high01 = SHUFFLE4(t[0], t[1], 2, 6, 3, 7), high23 = SHUFFLE4(t[2], t[3], 2, 6, 3, 7);
    v4 t0 = SHUFFLE4(low01, low23, 0, 1, 4, 5), t1 = SHUFFLE4(low01, low23, 2, 3, 6, 7);
    v4 t2 = SHUFFLE4(high01, high23, 0, 1, 4, 5), t3 = SHUFFLE4(high01, high23, 2, 3, 6, 7);
    *(v4 *)sums = (t0 + t2) + (t1 + t3);
#undef SHUFFLE4
}

/* exp(x) for x in [-87, 88] (clamped): 2^n times a polynomial in the remainder, within 2 ulp.
 * Our own, so that every element of every array goes through the same operations. */
INLINE vf NAME(exp)(vf x) {
    const vf shift = NAME(splat)(12582912.0f); /* 1.5 * 2^23: adding it rounds to an integer */
    x = NAME(larger)(x, NAME(splat)(-87.0f));
    x = NAME(pick)(x < 88.0f, x, NAME(splat)(88.0f));
    vf t = NAME(fma)(x, NAME(splat)(1.44269504f), shift);
    vf n = t - shift;
    vf r = NAME(fma)(n, NAME(splat)(-0.693359375f), x); /* ln 2 in two parts */
    r = NAME(fma)(n, NAME(splat)(2.12194440e-4f), r);
    vf y = NAME(splat)(1.9875691500e-4f); /* Cephes expf */
    y = NAME(fma)(y, r, NAME(splat)(1.3981999507e-3f));
    y = NAME(fma)(y, r, NAME(splat)(8.3334519073e-3f));
    y = NAME(fma)(y, r, NAME(splat)(4.1665795894e-2f));
    y = NAME(fma)(y, r, NAME(splat)(1.6666665459e-1f));
    y = NAME(fma)(y, r, NAME(splat)(5.0000001201e-1f));
    y = NAME(fma)(y, r * r, r + 1.0f);
    vi exponent = ((vi)t - (vi)shift + 127) << 23;
    return y * (vf)exponent;
}

/* bf16 -> float: the bits are the upper half. */
INLINE vf NAME(from_bf16)(const uint16_t *a) {
    vi wide = __builtin_convertvector(*(const NAME(vh_at) *)a, vi);
    return (vf)(wide << 16);
}

/* e4m3 -> float: exponent rebased by integer addition; exponent 0 is m * 2^-9; 0x7f is NaN. */
INLINE vf NAME(from_fp8)(const uint8_t *a) {
    vi code = __builtin_convertvector(*(const NAME(vb_at) *)a, vi), magnitude = code & 0x7f;
    vf normal = (vf)((magnitude << 20) + (120 << 23));
    vf small = __builtin_convertvector(magnitude, vf) * 0.001953125f;
    vf value = NAME(pick)(magnitude < 8, small, normal);
    return (vf)((vi)value | ((code & 0x80) << 24) | (magnitude == 0x7f));
}

/* Nibble j of each word, less 8: an INT4 weight before its scale. */
INLINE vf NAME(nibble)(vi words, int j) {
#if ISA == 512
    /* The permutation looks only at the low 4 bits of each lane: mask, -8 and conversion in one. */
    const __m512 table = _mm512_set_ps(7, 6, 5, 4, 3, 2, 1, 0, -1, -2, -3, -4, -5, -6, -7, -8);
    return _mm512_permutexvar_ps(_mm512_srli_epi32((__m512i)words, 4 * j), table);
#else
    /* Flipping the top bit of a nibble turns q + 8 into two's complement; the arithmetic shift
     * then extends its sign. */
    vi flipped = words ^ (int32_t)0x88888888;
    return __builtin_convertvector((flipped << (28 - 4 * j)) >> 28, vf);
#endif
}

/* 4x4 transposition of words inside every 128-bit quarter (the first four: lanes 0..3, and so on):
 * words are interleaved, then pairs of words. */
typedef int64_t NAME(vp) __attribute__((vector_size(4 * WIDTH)));
#if WIDTH == 16
#define LOW_WORDS 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29
#define HIGH_WORDS 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31
#define LOW_PAIRS 0, 8, 2, 10, 4, 12, 6, 14
#define HIGH_PAIRS 1, 9, 3, 11, 5, 13, 7, 15
#elif WIDTH == 8
#define LOW_WORDS 0, 8, 1, 9, 4, 12, 5, 13
#define HIGH_WORDS 2, 10, 3, 11, 6, 14, 7, 15
#define LOW_PAIRS 0, 4, 2, 6
#define HIGH_PAIRS 1, 5, 3, 7
#else
#define LOW_WORDS 0, 4, 1, 5
#define HIGH_WORDS 2, 6, 3, 7
#define LOW_PAIRS 0, 2
#define HIGH_PAIRS 1, 3
#endif
#if defined(__clang__)
#define WORDS(x, y, ...) __builtin_shufflevector(x, y, __VA_ARGS__)
#define PAIRS(x, y, ...) (vi) __builtin_shufflevector((NAME(vp))(x), (NAME(vp))(y), __VA_ARGS__)
#else
#define WORDS(x, y, ...) __builtin_shuffle(x, y, (vi){__VA_ARGS__})
#define PAIRS(x, y, ...) \
    (vi) __builtin_shuffle((NAME(vp))(x), (NAME(vp))(y), (NAME(vp)){__VA_ARGS__})
#endif

INLINE void NAME(transpose4)(vi w[4]) {
    vi a = WORDS(w[0], w[1], LOW_WORDS), b = WORDS(w[2], w[3], LOW_WORDS);
    vi c = WORDS(w[0], w[1], HIGH_WORDS), d = WORDS(w[2], w[3], HIGH_WORDS);
    w[0] = PAIRS(a, b, LOW_PAIRS), w[1] = PAIRS(a, b, HIGH_PAIRS);
    w[2] = PAIRS(c, d, LOW_PAIRS), w[3] = PAIRS(c, d, HIGH_PAIRS);
}

/* Add the lanes of eight vectors, `stride` floats apart, in the one order: each step halves the lanes
 * of all of them at once. */
INLINE void NAME(add_lanes8)(const float *lanes, long stride, float *sums) {
#if WIDTH == 16
#define HALVES(x, y) (WORDS(x, y, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) + \
                      WORDS(x, y, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31))
#define QUARTERS(x, y) (WORDS(x, y, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) + \
                        WORDS(x, y, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31))
#define EIGHTHS(x, y) (WORDS(x, y, 0, 1, 4, 5, 8, 9, 12, 13, 16, 17, 20, 21, 24, 25, 28, 29) + \
                       WORDS(x, y, 2, 3, 6, 7, 10, 11, 14, 15, 18, 19, 22, 23, 26, 27, 30, 31))
    vf t[8];
    for (int i = 0; i < 8; i++) t[i] = NAME(load)(lanes + i * stride);
    for (int i = 0; i < 4; i++) t[i] = HALVES(t[2 * i], t[2 * i + 1]);
    for (int i = 0; i < 2; i++) t[i] = QUARTERS(t[2 * i], t[2 * i + 1]);
    t[0] = EIGHTHS(t[0], t[1]);
    t[0] = WORDS(t[0], t[0], 0, 2, 4, 6, 8, 10, 12, 14, 0, 2, 4, 6, 8, 10, 12, 14) +
           WORDS(t[0], t[0], 1, 3, 5, 7, 9, 11, 13, 15, 1, 3, 5, 7, 9, 11, 13, 15);
    memcpy(sums, &t[0], 8 * sizeof *sums);
#undef HALVES
#undef QUARTERS
#undef EIGHTHS
#else
    NAME(add_lanes4)(lanes, stride, sums);
    NAME(add_lanes4)(lanes + 4 * stride, stride, sums + 4);
#endif
}
