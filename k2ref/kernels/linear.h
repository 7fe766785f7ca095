/* y = W x for one path: INT4, FP8, BF16 and F32 weights, read as they lie in the checkpoint.
 *
 * The order of every sum, for one token or many: a row is cut into blocks of 512 columns (128 for
 * FP8). Inside a block each of sixteen lanes adds up its own 32 (or 8) columns one after another,
 * starting at zero. The block's sixteen sums are multiplied by their scales and added to the row's
 * sixteen totals; after the last block the lanes are added pairwise (add_lanes). For INT4 a lane owns
 * one group of 32 columns, so one scale; elsewhere lane l owns columns l, l + 16, l + 32, ...
 *
 * dot_rows does this for one token, the weights in registers, read in the order in which they lie;
 * multiply_rows for many: it spreads a block of weights into floats once and uses it for all tokens.
 */

/* Lane l of an INT4 block holds group GROUP_OF(l): what transpose4 leaves in it. */
#define GROUP_OF(l) (4 * ((l) & 3) + ((l) >> 2))

static long NAME(arranged_floats)(const Job *job) { return job->T * job->n_blocks * job->block; }

/* Put token t of x into the order in which the weights meet it, zeros after the end of a row:
 * [block][token][vector][lane]. */
static void NAME(arrange)(const Job *job, long t) {
    const float *x = job->x + t * job->x_stride;
    for (long b = 0; b < job->n_blocks; b++) {
        float *out = job->arranged + (b * job->T + t) * job->block;
        long start = b * job->block, left = job->columns - start;
        long n = left < job->block ? left : job->block;
        memset(out, 0, job->block * sizeof *x);
        if (job->format != INT4) memcpy(out, x + start, n * sizeof *x);
        else
            for (int l = 0; l < 16; l++)
                for (int v = 0; v < 32 && 32 * GROUP_OF(l) + v < n; v++)
                    out[16 * v + l] = x[start + 32 * GROUP_OF(l) + v];
    }
}

/* The scales of block b of one row, a lane each. */
INLINE v16 NAME(scales)(int format, const char *scale, long b) {
    v16 v;
    if (format == INT4) {
        const uint16_t *s = (const uint16_t *)scale + 16 * b;
#if ISA == 512
        const __m512i order = _mm512_set_epi32(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0);
        __m512i bits = _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((void *)s)), 16);
        v.part[0] = (vf)_mm512_permutexvar_epi32(order, bits);
#else
        ALIGNED uint32_t lanes[16];
        for (int l = 0; l < 16; l++) lanes[l] = (uint32_t)s[GROUP_OF(l)] << 16;
        EACH_PART v.part[p] = NAME(load)((const float *)lanes + WIDTH * p);
#endif
    } else
        EACH_PART v.part[p] = NAME(splat)(format == FP8 ? ((const float *)scale)[b] : 1.0f);
    return v;
}

/* A row's last block and its scales, copied out and padded where they end early. */
typedef struct { ALIGNED char block[2048]; uint16_t scale[16]; } NAME(Last);
INLINE void NAME(pad_last)(const Job *job, const char *row, const char *scale, NAME(Last) *last) {
    long b = job->n_blocks - 1, start = b * job->block * job->bits / 8;
    memset(last, 0, sizeof *last);
    memcpy(last->block, row + start, job->row_bytes - start);
    if (job->format == INT4) memcpy(last->scale, scale + 32 * b, job->columns / 16 - 32 * b);
}

/* Vector v of a block as floats. INT4 words have been transposed: word v / 8, nibble v % 8. */
INLINE vf NAME(weights)(int format, const char *block, const vi words[4], int v, int p) {
    long i = 16 * v + WIDTH * p;
    if (format == INT4) return NAME(nibble)(words[v / 8], v % 8);
    if (format == FP8) return NAME(from_fp8)((const uint8_t *)block + i);
    if (format == BF16) return NAME(from_bf16)((const uint16_t *)block + i);
    return NAME(load)((const float *)block + i);
}

INLINE void NAME(load_words)(int format, const char *block, int p, vi words[4]) {
    if (format != INT4) return;
    for (int i = 0; i < 4; i++)
        words[i] = *(const NAME(vi_at) *)(block + 64 * i + 4 * WIDTH * p);
    NAME(transpose4)(words);
}

/* R rows (one or two) of one token: both share what is loaded of x, and their sums hide each other's
 * latency. Their bytes are fetched as they lie, one row after the other, ahead of need. `format`,
 * `n_vectors` and `R` are constants at every call, so each format is its own loop. */
INLINE void NAME(dot_group)(const Job *job, int format, int n_vectors, int R, long row) {
    const long step = 16 * n_vectors * BITS[format] / 8;
    const char *block[2], *scale[2];
    NAME(Last) last[2];
    v16 total[2] = {{{{0}}}};
    for (int r = 0; r < R; r++) {
        block[r] = job->weight + (row + r) * job->row_bytes;
        scale[r] = row_scale(job, row + r);
    }
    /* Not a pointer: it may be past the end of the weights. */
    uintptr_t ahead = (uintptr_t)block[0] + (R - 1) * job->row_bytes + AHEAD;
    for (long b = 0; b < job->n_blocks; b++, ahead += R * step) {
        const float *x = job->arranged + 16 * n_vectors * b;
        v16 sums[2] = {{{{0}}}};
        for (int r = 0; r < R && (b + 1) * step > job->row_bytes; r++) { /* a short last block */
            NAME(pad_last)(job, job->weight + (row + r) * job->row_bytes, scale[r], &last[r]);
            block[r] = last[r].block;
            if (format == INT4) scale[r] = (char *)last[r].scale - 32 * b;
        }
        EACH_PART {
            vi words[2][4];
#pragma GCC unroll 2
            for (int r = 0; r < R; r++) NAME(load_words)(format, block[r], p, words[r]);
#pragma GCC unroll 32
            for (int v = 0; v < n_vectors; v++) {
                vf xs = NAME(load)(x + 16 * v + WIDTH * p);
                IN_REGISTER(xs);
#pragma GCC unroll 2
                for (int r = 0; r < R; r++) {
                    if (p == 0 && v * step / n_vectors % 64 == 0)
                        FETCH(ahead + v * R * step / n_vectors + 64 * r);
                    sums[r].part[p] = NAME(fma)(NAME(weights)(format, block[r], words[r], v, p), xs,
                                                sums[r].part[p]);
                }
            }
        }
#pragma GCC unroll 2
        for (int r = 0; r < R; r++) {
            v16 by = NAME(scales)(format, scale[r], b);
            EACH_PART total[r].part[p] = NAME(fma)(sums[r].part[p], by.part[p], total[r].part[p]);
            block[r] += step;
        }
    }
    for (int r = 0; r < R; r++) {
        ALIGNED float lanes[16];
        EACH_PART NAME(store)(lanes + WIDTH * p, total[r].part[p]);
        job->y[row + r] = NAME(add_lanes)(lanes);
    }
}

/* n outputs for one token. */
INLINE void NAME(dot_rows)(const Job *job, int format, int n_vectors, long first, long n) {
    for (; n >= 2; n -= 2, first += 2) NAME(dot_group)(job, format, n_vectors, 2, first);
    if (n > 0) NAME(dot_group)(job, format, n_vectors, 1, first);
}

/* Add one block's products for TILE_ROWS rows and M tokens to their totals [row][token][lane], or
 * with `fresh` begin the totals with them. */
INLINE void NAME(tile)(int M, int n_vectors, const float *w, const float *scale, const float *x,
                       long x_stride, float *totals, long row_stride, int fresh) {
    EACH_PART {
        vf sum[TILE_ROWS][3] = {{{0}}};
        for (int v = 0; v < n_vectors; v++) {
            vf xs[3];
#pragma GCC unroll 3
            for (int m = 0; m < M; m++) /* the next tile's tokens, from the second-level cache */
                __builtin_prefetch(x + (m + M) * x_stride + 16 * v);
#pragma GCC unroll 3
            for (int m = 0; m < M; m++) xs[m] = NAME(load)(x + m * x_stride + 16 * v + WIDTH * p);
#pragma GCC unroll 8
            for (int r = 0; r < TILE_ROWS; r++) {
                vf wv = NAME(load)(w + (r * n_vectors + v) * 16 + WIDTH * p);
                IN_REGISTER(wv); /* one load for all tokens */
#pragma GCC unroll 3
                for (int m = 0; m < M; m++) sum[r][m] = NAME(fma)(wv, xs[m], sum[r][m]);
            }
        }
#pragma GCC unroll 8
        for (int r = 0; r < TILE_ROWS; r++) {
            vf s = NAME(load)(scale + 16 * r + WIDTH * p);
#pragma GCC unroll 3
            for (int m = 0; m < M; m++) {
                float *t = totals + r * row_stride + 16 * m + WIDTH * p;
                NAME(store)(t, fresh ? sum[r][m] * s : NAME(fma)(sum[r][m], s, NAME(load)(t)));
            }
        }
    }
}

INLINE void NAME(any_tile)(long left, int n_vectors, const float *w, const float *scale,
                           const float *x, long x_stride, float *totals, long row_stride,
                           int fresh) {
    if (left >= 3) NAME(tile)(3, n_vectors, w, scale, x, x_stride, totals, row_stride, fresh);
    else if (left == 2) NAME(tile)(2, n_vectors, w, scale, x, x_stride, totals, row_stride, fresh);
    else NAME(tile)(1, n_vectors, w, scale, x, x_stride, totals, row_stride, fresh);
}

/* Block b of a row as floats, and its scales. */
INLINE void NAME(spread)(const Job *job, int format, int n_vectors, long r, long b, float *w,
                         float *scale) {
    const long step = 16 * n_vectors * BITS[format] / 8;
    const char *row = job->weight + r * job->row_bytes, *block = row + b * step;
    const char *scales = row_scale(job, r);
    NAME(Last) last;
    for (long i = 0; i < step; i += 64) /* rows lie too far apart for the hardware to guess */
        __builtin_prefetch(block + step + i, 0, 2);
    if ((b + 1) * step > job->row_bytes) {
        NAME(pad_last)(job, row, scales, &last);
        block = last.block;
        if (format == INT4) scales = (char *)last.scale - 32 * b;
    }
    v16 by = NAME(scales)(format, scales, b);
    EACH_PART {
        vi words[4];
        NAME(store)(scale + WIDTH * p, by.part[p]);
        NAME(load_words)(format, block, p, words);
#pragma GCC unroll 32
        for (int v = 0; v < n_vectors; v++)
            NAME(store)(w + 16 * v + WIDTH * p, NAME(weights)(format, block, words, v, p));
    }
}

/* Rows first..first+n (n <= ROWS) for all tokens. A block of x, 2 KB for each of TOKENS, stays in the
 * second-level cache while the rows go by; a tile's weights stay in the first. */
#define TOKENS 66
#define ROWS 32
INLINE void NAME(multiply_rows)(const Job *job, int format, int n_vectors, long first, long n) {
    ALIGNED float w[TILE_ROWS * 512], scale[TILE_ROWS * 16];
    float *restrict totals = totals_of_thread;
    _Static_assert(ROWS * TOKENS * 16 <= TOTALS, "the totals have room");
    for (long t0 = 0; t0 < job->T; t0 += TOKENS) {
        long m = job->T - t0 < TOKENS ? job->T - t0 : TOKENS;
        for (long b = 0; b < job->n_blocks; b++) {
            const float *x = job->arranged + (b * job->T + t0) * n_vectors * 16;
            for (long r = 0; r < n; r += TILE_ROWS) {
                for (long i = 0; i < TILE_ROWS; i++) { /* a short last tile repeats its last row */
                    long row = first + (r + i < n ? r + i : n - 1);
                    NAME(spread)(job, format, n_vectors, row, b, w + i * n_vectors * 16,
                                 scale + 16 * i);
                }
                for (long t = 0; t < m; t += 3)
                    NAME(any_tile)(m - t, n_vectors, w, scale, x + t * n_vectors * 16,
                                   n_vectors * 16, totals + (r * TOKENS + t) * 16, TOKENS * 16,
                                   b == 0);
            }
        }
        for (long t = 0; t < m; t++) {
            float *y = job->y + (t0 + t) * job->y_stride + first;
            const float *from = totals + t * 16;
            long r = 0;
            for (; r + 8 <= n; r += 8)
                NAME(add_lanes8)(from + r * TOKENS * 16, TOKENS * 16, y + r);
            for (; r < n; r++) y[r] = NAME(add_lanes)(from + r * TOKENS * 16);
        }
    }
}

INLINE void NAME(rows_of)(const Job *job, int format, int n_vectors, long first, long n) {
    if (job->T > 1) {
        for (long r = 0; r < n; r += ROWS)
            NAME(multiply_rows)(job, format, n_vectors, first + r, n - r < ROWS ? n - r : ROWS);
        return;
    }
    NAME(dot_rows)(job, format, n_vectors, first, n);
}

static void NAME(linear_rows)(const Job *job, long first, long n) {
    switch (job->format) {
    case INT4: NAME(rows_of)(job, INT4, 32, first, n); break;
    case FP8: NAME(rows_of)(job, FP8, 8, first, n); break;
    case BF16: NAME(rows_of)(job, BF16, 32, first, n); break;
    default: NAME(rows_of)(job, F32, 32, first, n);
    }
}

/* y = x W, columns first..first+n: y[c] = sum over rows r, in order, of x[r] W[r, c]. A thread takes
 * COLUMNS at most, so that a row of them is long enough to be read at the speed of memory. */
INLINE void NAME(columns_of)(const Job *job, int format, long first, long n) {
    ALIGNED float w[COLUMNS], y[16 * COLUMNS];
    char near_end[4 * COLUMNS];
    const long n_bytes = n * job->bits / 8, whole = (n + 127) / 128 * 128;
    for (long t0 = 0; t0 < job->T; t0 += 16) {
        long m = job->T - t0 < 16 ? job->T - t0 : 16;
        memset(y, 0, m * whole * sizeof *y);
        for (long r = 0; r < job->rows; r++) {
            const char *a = job->weight + r * job->row_bytes + first * job->bits / 8;
            const float *scale = (const float *)row_scale(job, r) + first / 128;
            for (long i = 0; i < n_bytes; i += 64)
                __builtin_prefetch((void *)((uintptr_t)a + AHEAD + i), 0, 3);
            if (n < whole) a = memcpy(memset(near_end, 0, sizeof near_end), a, n_bytes);
            for (long i = 0; i < whole; i += WIDTH) {
                vf wv = NAME(weights)(format, a + i * BITS[format] / 8, NULL, 0, 0);
                NAME(store)(w + i, format == FP8 ? wv * scale[i / 128] : wv);
            }
            for (long t = 0; t < m; t++) {
                vf x = NAME(splat)(job->x[(t0 + t) * job->x_stride + r]);
                float *to = y + whole * t;
                for (long i = 0; i < whole; i += WIDTH)
                    NAME(store)(to + i, NAME(fma)(x, NAME(load)(w + i), NAME(load)(to + i)));
            }
        }
        for (long t = 0; t < m; t++)
            memcpy(job->y + (t0 + t) * job->y_stride + first, y + whole * t, n * sizeof *y);
    }
}

static void NAME(linear_columns)(const Job *job, long first, long n) {
    if (job->format == FP8) NAME(columns_of)(job, FP8, first, n);
    else if (job->format == BF16) NAME(columns_of)(job, BF16, first, n);
    else NAME(columns_of)(job, F32, first, n);
}
