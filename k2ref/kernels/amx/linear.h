/* y = W x with tiles, for BF16 weights. INT4 is in vnni/linear.h; FP8 and F32 are those of the
 * AVX-512 path.
 *
 * The weights are A, sixteen rows at a time, read as they lie; the activations are B, split into
 * three terms (amx/tiles.h). The order of every sum, for one token or many: for each term a row goes
 * from left to right in steps of 32 columns; a step's sum is the processor's own, begun at zero,
 * and is added to the row's total for that term. At the end the totals are added, those of the
 * largest terms first. How many rows or tokens stand in a tile does not matter to any of them.
 *
 * An infinite weight gives NaN: it meets the zeros among the terms.
 *
 * One token: a column of B for each term. Many: B is one term of sixteen tokens.
 */

#define STEP_COLUMNS 32 /* columns in a step */
/* Of many tokens: a block of their terms, 16 steps of 64 tokens, stays in the second-level cache
 * while the rows go by. */
#define MANY_ROWS 128
#define MANY_TOKENS 64
#define STEPS 16

INLINE long steps_of(const Job *job) { return (job->columns + STEP_COLUMNS - 1) / STEP_COLUMNS; }

/* [step][pair of columns][three terms, 0], or [16 tokens][step][term][pair of columns][token]. */
static long arranged_floats_amx(const Job *job) {
    if (job->format == INT4) return arranged_floats_tiles(job);
    if (job->format != BF16) return arranged_floats_avx512(job);
    long step_floats = job->T == 1 ? TILE * 4 : 3 * TILE * TILE;
    return (job->T + TILE - 1) / TILE * steps_of(job) * step_floats;
}

TARGET(TILES_TARGET)

/* The terms of 32 columns of one token, of which `n` exist. */
INLINE void split_step(const float *x, long n, __m512i terms[3]) {
    uint32_t exist = n < STEP_COLUMNS ? (1u << n) - 1 : ~0u;
    __m512 a[3], b[3];
    split(_mm512_maskz_loadu_ps(exist, x), a);
    split(_mm512_maskz_loadu_ps(exist >> 16, x + 16), b);
    for (int i = 0; i < 3; i++)
        terms[i] = _mm512_inserti64x4(_mm512_castsi256_si512(halves(a[i])), halves(b[i]), 1);
}

/* Four columns of words, 16 bytes of each of sixteen rows, as four vectors of sixteen. */
INLINE void turn(const char *rows, long stride, __m512i words[4]) {
    __m512i v[4];
#define ROW(i) _mm_loadu_si128((const __m128i *)(rows + (i) * stride))
    for (int i = 0; i < 4; i++) {
        v[i] = _mm512_castsi128_si512(ROW(i));
        v[i] = _mm512_mask_broadcast_i32x4(v[i], 0x00f0, ROW(i + 4));
        v[i] = _mm512_mask_broadcast_i32x4(v[i], 0x0f00, ROW(i + 8));
        v[i] = _mm512_mask_broadcast_i32x4(v[i], 0xf000, ROW(i + 12));
    }
#undef ROW
    __m512i a = _mm512_unpacklo_epi32(v[0], v[1]), b = _mm512_unpacklo_epi32(v[2], v[3]);
    __m512i c = _mm512_unpackhi_epi32(v[0], v[1]), d = _mm512_unpackhi_epi32(v[2], v[3]);
    words[0] = _mm512_unpacklo_epi64(a, b), words[1] = _mm512_unpackhi_epi64(a, b);
    words[2] = _mm512_unpacklo_epi64(c, d), words[3] = _mm512_unpackhi_epi64(c, d);
}

/* The terms of sixteen tokens, from t on; of one alone if there is no other. */
static void arrange_amx(const Job *job, long t) {
    if (job->format == INT4) { arrange_tiles(job, t); return; }
    if (job->format != BF16) { arrange_avx512(job, t); return; }
    if (t % TILE) return; /* done with the first of its tile */
    ALIGNED char tokens[3][TILE][64];
    long n_steps = steps_of(job), n = job->T - t < TILE ? job->T - t : TILE;
    char *out = (char *)job->arranged + t / TILE * n_steps * 3 * TILE_BYTES;
    memset(tokens, 0, sizeof tokens);
    for (long s = 0; s < n_steps; s++) {
        const float *x = job->x + t * job->x_stride + s * STEP_COLUMNS;
        for (long i = 0; i < n; i++) {
            __m512i terms[3];
            split_step(x + i * job->x_stride, job->columns - s * STEP_COLUMNS, terms);
            for (int term = 0; term < 3; term++) _mm512_store_si512(tokens[term][i], terms[term]);
        }
        if (job->T == 1) {
            uint32_t *to = (uint32_t *)(out + s * 4 * 64);
            for (int k = 0; k < TILE; k++, to += 4) {
                for (int term = 0; term < 3; term++) memcpy(to + term, tokens[term][0] + 4 * k, 4);
                to[3] = 0;
            }
            continue;
        }
        for (int term = 0; term < 3; term++, out += TILE_BYTES)
            for (int k = 0; k < TILE; k += 4) {
                __m512i words[4];
                turn(tokens[term][0] + 4 * k, 64, words);
                for (int i = 0; i < 4; i++) _mm512_store_si512(out + 64 * (k + i), words[i]);
            }
    }
}

/* Up to sixteen rows of weights: where they lie, and the last of their steps if it is a short one,
 * copied out and padded. */
typedef struct {
    const char *first;
    long stride, whole; /* steps that lie whole in a row */
    ALIGNED char last[TILE][64];
} Strip;

INLINE void strip_of(const Job *job, long row, long n, Strip *strip) {
    strip->first = job->weight + row * job->row_bytes, strip->stride = job->row_bytes;
    strip->whole = job->columns / STEP_COLUMNS;
    long done = strip->whole * 64;
    if (done == job->row_bytes) return;
    memset(strip->last, 0, sizeof strip->last);
    for (long r = 0; r < n; r++)
        memcpy(strip->last[r], strip->first + r * strip->stride + done, job->row_bytes - done);
}

/* Tiles 0 to 5 hold sums, 6 weights, 7 activations. */
INLINE void linear_shapes(long n_rows, int x_bytes) {
    TileShapes shapes = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        shapes.row_bytes[i] = i == 6 ? 64 : x_bytes;
        shapes.rows[i] = i == 7 ? TILE : n_rows;
    }
    shape_tiles(&shapes);
}

/* n rows of one token. */
INLINE void dot_strip(const Job *job, long row, long n) {
    ALIGNED float sums[TILE][4];
    const char *x = (const char *)job->arranged;
    Strip strip;
    strip_of(job, row, n, &strip);
    TILE_ZERO(0);
    for (long s = 0; s < strip.whole; s++) {
        const char *w = strip.first + 64 * s;
        for (long r = 0; r < TILE; r++) /* not a pointer: it may be past the end of the weights */
            __builtin_prefetch((void *)((uintptr_t)w + r * strip.stride + 256), 0, 2);
        TILE_LOAD(6, w, strip.stride);
        TILE_LOAD(7, x + 256 * s, 16);
        TILE_MULTIPLY(0, 6, 7);
    }
    if (job->columns % STEP_COLUMNS) {
        TILE_LOAD(6, strip.last, 64);
        TILE_LOAD(7, x + 256 * strip.whole, 16);
        TILE_MULTIPLY(0, 6, 7);
    }
    TILE_STORE(sums, 16, 0);
    for (long r = 0; r < n; r++) job->y[row + r] = (sums[r][0] + sums[r][1]) + sums[r][2];
}

/* One step of sixteen rows for sixteen or, with `two`, 32 tokens: three terms each. */
#define MULTIPLY_STEP(w, stride, x, y, two) do { \
    TILE_LOAD(6, w, stride); \
    TILE_LOAD(7, x, 64); TILE_MULTIPLY(0, 6, 7); \
    TILE_LOAD(7, (x) + TILE_BYTES, 64); TILE_MULTIPLY(1, 6, 7); \
    TILE_LOAD(7, (x) + 2 * TILE_BYTES, 64); TILE_MULTIPLY(2, 6, 7); \
    if (!(two)) break; \
    TILE_LOAD(7, y, 64); TILE_MULTIPLY(3, 6, 7); \
    TILE_LOAD(7, (y) + TILE_BYTES, 64); TILE_MULTIPLY(4, 6, 7); \
    TILE_LOAD(7, (y) + 2 * TILE_BYTES, 64); TILE_MULTIPLY(5, 6, 7); \
} while (0)

#define EACH_SUM(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5)

/* `n_steps` steps from `s` on for sixteen rows and 32 tokens. Their totals wait in memory while
 * other rows and tokens have their turn. `next`: the weights that come after these, if any. */
INLINE void multiply_steps(const Strip *strip, long s, long n_steps, const char *x, const char *y,
                           int two, char *totals, const char *next) {
    if (s == 0) {
#define ZERO(i) TILE_ZERO(i);
        EACH_SUM(ZERO)
    } else {
#define GET(i) TILE_LOAD(i, totals + TILE_BYTES * i, 64);
        EACH_SUM(GET)
    }
    for (long i = 0; i < n_steps; i++, s++, x += 3 * TILE_BYTES, y += 3 * TILE_BYTES) {
        for (long r = 0; next && r < TILE; r++) /* the hardware does not guess across rows */
            __builtin_prefetch((void *)((uintptr_t)next + r * strip->stride + 64 * i), 0, 2);
        if (s < strip->whole) MULTIPLY_STEP(strip->first + 64 * s, strip->stride, x, y, two);
        else MULTIPLY_STEP(strip->last, 64, x, y, two);
    }
#define PUT(i) TILE_STORE(totals + TILE_BYTES * i, 64, i);
    EACH_SUM(PUT)
}

/* n rows (n <= MANY_ROWS) of up to MANY_TOKENS tokens from t on. */
INLINE void multiply_strips(const Job *job, long t0, long first, long n) {
    float (*restrict totals)[MANY_TOKENS / TILE][3][TILE][TILE] = (void *)totals_of_thread;
    _Static_assert(MANY_ROWS * MANY_TOKENS * 3 <= TOTALS, "the totals have room");
    Strip strips[MANY_ROWS / TILE];
    const long n_steps = steps_of(job), tile = n_steps * 3 * TILE_BYTES;
    const long end = job->T - t0 < MANY_TOKENS ? job->T : t0 + MANY_TOKENS;
    for (long r = 0; r < n; r += TILE)
        strip_of(job, first + r, n - r < TILE ? n - r : TILE, &strips[r / TILE]);
    for (long s = 0; s < n_steps; s += STEPS) {
        long m = n_steps - s < STEPS ? n_steps - s : STEPS;
        for (long r = 0; r < n; r += TILE) {
            const Strip *strip = &strips[r / TILE];
            const char *next = strips[0].first + 64 * (s + m);
            if (r + TILE < n) next = strip[1].first + 64 * s;
            linear_shapes(n - r < TILE ? n - r : TILE, 64);
            for (long t = t0; t < end; t += 2 * TILE) {
                const char *x = (char *)job->arranged + t / TILE * tile + s * 3 * TILE_BYTES;
                multiply_steps(strip, s, m, x, x + tile, end - t > TILE,
                               (char *)totals[r / TILE][(t - t0) / TILE], t == t0 ? next : NULL);
            }
        }
    }
    for (long t = 0; t < end - t0; t++) {
        float *y = job->y + (t0 + t) * job->y_stride + first;
        for (long r = 0; r < n; r++) {
            const float *sum = &totals[r / TILE][t / TILE][0][r % TILE][t % TILE];
            y[r] = (sum[0] + sum[TILE * TILE]) + sum[2 * TILE * TILE];
        }
    }
}

static void linear_rows_amx(const Job *job, long first, long n) {
    if (job->format == INT4) { linear_rows_tiles(job, first, n); return; }
    if (job->format != BF16) { linear_rows_avx512(job, first, n); return; }
    for (long t = 0; t < job->T && job->T > 1; t += MANY_TOKENS)
        for (long r = 0; r < n; r += MANY_ROWS)
            multiply_strips(job, t, first + r, n - r < MANY_ROWS ? n - r : MANY_ROWS);
    for (long r = 0; r < n && job->T == 1; r += TILE) {
        long m = n - r < TILE ? n - r : TILE;
        if (r == 0 || m < TILE) linear_shapes(m, 16);
        dot_strip(job, first + r, m);
    }
    tiles_end();
}

TARGET_END

/* What paths.h calls. */
static const Path path_amx = {
    "amx", arranged_floats_amx, arrange_amx, linear_rows_amx, linear_columns_avx512,
    span_floats_amx, attend_span_amx, attend_merge_amx, attend_finish_amx, silu_mul_avx512,
    rms_norm_row_avx512, fma_rounds_avx512, read_bytes_avx512, 12 * 16, MANY_ROWS,
};
