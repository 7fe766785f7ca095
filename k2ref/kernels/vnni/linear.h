/* y = W x in integers, for INT4 weights (vnni/digits.h), by VNNI; path `vnni` is this and AVX-512.
 *
 * The order of every sum: a group's sum is that of vnni/digits.h times its unit, which is exact. From
 * there on all is as in linear.h: lane l of a block of 512 columns has group GROUP_OF(l), whose
 * sum times its scale is added to the lane's total, block after block; at the end the lanes are
 * added pairwise. A row in doubt is then computed again, as the AVX-512 path does it.
 */

TARGET(VNNI_TARGET)

#define FEW 3     /* tokens that memory keeps waiting, not arithmetic */
#define MANY 64   /* tokens whose digits stay in the second cache while rows go by */
#define BATCH 32  /* rows that do so for many tokens, and as many as a word has bits */
#define TOGETHER 4 /* rows whose sums are in registers: 16 of 32 */
/* Bytes fetched ahead of need, for few tokens: into the second cache, the first is full of digits. */
#define INTEGERS_AHEAD 8192

/* What is in job->arranged: [block][token], then floats [token] for rows in doubt. */
INLINE TokenBlock *token_blocks(const Job *job, long t, long b) {
    return (TokenBlock *)job->arranged + b * job->T + t;
}

INLINE long token_floats(const Job *job) {
    return job->T * job->n_blocks * (sizeof(TokenBlock) / sizeof(float));
}

static long arranged_floats_integers(const Job *job) {
    return token_floats(job) + arranged_floats_avx512(job);
}

/* The job of token t in floats: what is arranged for those with a block in doubt, after `before`
 * floats of digits. */
INLINE Job in_floats(const Job *job, long before, long t) {
    Job one = *job;
    one.x += t * job->x_stride, one.y += t * job->y_stride, one.T = 1;
    one.arranged += before + t * job->n_blocks * job->block;
    return one;
}

/* Compute again those of n rows (n <= 32) of token t that are in doubt, a bit each. */
static void in_floats_again(const Job *job, long before, long t, long row, long n, uint32_t doubt) {
    const Job one = in_floats(job, before, t);
    for (long r = 0; r < n; r++)
        if (doubt >> r & 1) dot_rows_avx512(&one, INT4, 32, row + r, 1);
}

static void arrange_integers(const Job *job, long t) {
    int doubtful = 0;
    for (long b = 0; b < job->n_blocks; b++)
        doubtful |= integers_of_block(job, job->x + t * job->x_stride, b, token_blocks(job, t, b));
    Job one = in_floats(job, token_floats(job), t);
    if (doubtful) arrange_avx512(&one, 0);
}

/* Where block b of a row and its scales lie; the last, if it is short, is copied and padded. */
INLINE void find_block(const Job *job, long row, long b, const char **block, const char **scales,
                       Last_avx512 *last) {
    const char *at = job->weight + row * job->row_bytes, *scale = row_scale(job, row);
    *block = at + 256 * b, *scales = scale + 32 * b;
    if (256 * b + 256 <= job->row_bytes) return;
    pad_last_avx512(job, at, scale, last);
    *block = last->block, *scales = (char *)last->scale;
}

/* The lower or the upper nibbles of a word, a byte each, from 0 to 15. */
INLINE __m512i nibbles_of(__m512i word, int upper) {
    return _mm512_and_si512(upper ? _mm512_srli_epi16(word, 4) : word, _mm512_set1_epi8(15));
}

/* Add to each lane of a sum the products of four bytes, from 0 to 255, with four digits. Not by the
 * intrinsic: GCC 12 copies every sum to another register and back. */
INLINE void add_bytes(__m512i *sum, __m512i bytes, __m512i digits) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(*sum) : "v"(bytes), "v"(digits));
}

/* Block b of TOGETHER rows: words as the checkpoint has them for few tokens, which unpack them as they
 * go; bytes for many. A lane is a group. */
typedef struct {
    __m512i word[8][TOGETHER];
    __m512 scale[TOGETHER];
} RowsBlock;

/* Put one row's block at place r, meanwhile fetch four cache lines from `ahead`. */
INLINE void load_row(const Job *job, long row, long b, int few, uintptr_t ahead, RowsBlock *rows,
                     long r) {
    const char *block, *scales;
    Last_avx512 last;
    vi_avx512 words[4];
    find_block(job, row, b, &block, &scales, &last);
    for (int i = 0; i < 4; i++) FETCH(ahead + 64 * i);
    load_words_avx512(INT4, block, 0, words);
#pragma GCC unroll 8
    for (int w = 0; w < 8; w++) {
        if (!few) rows->word[w][r] = nibbles_of((__m512i)words[w / 2], w % 2);
        else if (w < 4) rows->word[w][r] = (__m512i)words[w];
    }
    rows->scale[r] = scales_avx512(INT4, scales, 0).part[0];
}

/* What is to be loaded while something else is multiplied: `row` and those after it, up to the last,
 * which stands in for what would come after it. */
typedef struct { const Job *job; long row, last, b; uintptr_t ahead; RowsBlock *to; } Next;

/* Add the sums of a token and these rows to their totals, `stride` vectors from row to row; at the
 * first block, begin them. Returns the rows in doubt. */
INLINE uint32_t add_products(const RowsBlock *rows, const TokenBlock *x, int few, __m512 *totals,
                             long stride, __mmask16 begun, const Next *next) {
    __m512i sum[TOGETHER][4];
#pragma GCC unroll 4
    for (int d = 0; d < 4; d++)
#pragma GCC unroll 4
        for (int r = 0; r < TOGETHER; r++) sum[r][d] = _mm512_load_si512(x->start[d]);
#pragma GCC unroll 1
    for (int w = 0; w < 8; w += 2) { /* a loop: unrolled, the sums would not stay in registers */
        if (next) {
            long row = next->row + w / 2 < next->last ? next->row + w / 2 : next->last;
            load_row(next->job, row, next->b, few, next->ahead + 128 * w, next->to, w / 2);
        }
#pragma GCC unroll 2
        for (int upper = 0; upper < 2; upper++) {
            __m512i bytes[TOGETHER];
#pragma GCC unroll 4
            for (int r = 0; r < TOGETHER; r++)
                bytes[r] = few ? nibbles_of(rows->word[w / 2][r], upper) : rows->word[w + upper][r];
#pragma GCC unroll 4
            for (int d = 0; d < 4; d++) {
                __m512i digits = _mm512_load_si512(x->digit[w + upper][d]);
                IN_REGISTER(digits); /* one load for all rows */
#pragma GCC unroll 4
                for (int r = 0; r < TOGETHER; r++) add_bytes(&sum[r][d], bytes[r], digits);
            }
        }
    }
    const __m512 unit = _mm512_load_ps(x->unit), least = _mm512_load_ps(x->least);
    const int may_doubt = _mm512_cmp_ps_mask(least, _mm512_setzero_ps(), _CMP_GT_OQ);
    uint32_t doubt = 0;
#pragma GCC unroll 4
    for (int r = 0; r < TOGETHER; r++) {
        __m512 s = group_sum(sum[r]), total = _mm512_maskz_load_ps(begun, totals + r * stride);
        if (may_doubt) doubt |= (uint32_t)!!in_doubt(above(s, least)) << r;
        totals[r * stride] = _mm512_fmadd_ps(_mm512_mul_ps(s, unit), rows->scale[r], total);
    }
    return doubt;
}

/* The outputs of n rows (n <= BATCH) from their lanes, `stride` vectors from row to row. */
INLINE void finish_rows(const Job *job, long t, long first, long n, const __m512 *totals,
                        long stride, uint32_t doubt) {
    float y[BATCH];
    for (long r = 0; r < n; r += TOGETHER)
        add_lanes4_avx512((const float *)(totals + r * stride), 16 * stride, y + r);
    memcpy(job->y + t * job->y_stride + first, y, n * sizeof *y);
    if (doubt) in_floats_again(job, token_floats(job), t, first, n, doubt);
}

/* n rows of few tokens, TOGETHER at a time. While a block is multiplied the next one is loaded, and
 * what lies INTEGERS_AHEAD is fetched, in the order in which it lies. */
static void dot_integers(const Job *job, long first, long n) {
    const long last = first + n - 1;
    __m512 totals[FEW][TOGETHER];
    RowsBlock rows[2];
    Next next = {job, first, last, 0, 0, rows};
    uintptr_t scales = (uintptr_t)row_scale(job, first + TOGETHER - 1) + INTEGERS_AHEAD / 8;
    next.ahead = (uintptr_t)job->weight + (first + TOGETHER - 1) * job->row_bytes + INTEGERS_AHEAD;
    for (long r = 0; r < TOGETHER; r++)
        load_row(job, first + r < last ? first + r : last, 0, 1, next.ahead, rows, r);
    for (long row = first; row <= last; row += TOGETHER) {
        uint32_t doubt[FEW] = {0};
        for (long b = 0; b < job->n_blocks; b++) {
            const RowsBlock *now = next.to;
            next.to = now == rows ? rows + 1 : rows;
            if (++next.b == job->n_blocks) next.b = 0, next.row += TOGETHER;
            for (long i = 0; i < TOGETHER * 32; i += 64) FETCH(scales + i);
            doubt[0] |= add_products(now, token_blocks(job, 0, b), 1, totals[0], 1,
                                     b ? 0xffff : 0, &next);
            for (long t = 1; t < job->T; t++)
                doubt[t] |= add_products(now, token_blocks(job, t, b), 1, totals[t], 1,
                                         b ? 0xffff : 0, NULL);
            next.ahead += TOGETHER * 256, scales += TOGETHER * 32;
        }
        for (long t = 0; t < job->T; t++)
            finish_rows(job, t, row, last + 1 - row < TOGETHER ? last + 1 - row : TOGETHER,
                        totals[t], 1, doubt[t]);
    }
}

/* n rows (n <= BATCH) of at most MANY tokens from t0 on. */
static void multiply_integers(const Job *job, long t0, long first, long n) {
    enum { STRIDE = MANY + 1 }; /* of vectors; rows 4 KB apart were slower */
    __m512 (*restrict totals)[STRIDE] = (void *)totals_of_thread;
    _Static_assert(BATCH * STRIDE * 16 <= TOTALS, "the totals have room");
    uint32_t doubt[MANY] = {0};
    const long T = job->T - t0 < MANY ? job->T - t0 : MANY;
    for (long b = 0; b < job->n_blocks; b++)
        for (long r = 0; r < n; r += TOGETHER) {
            RowsBlock rows;
            for (long i = 0; i < TOGETHER; i++) { /* and fetch the row's next block */
                long row = first + (r + i < n ? r + i : n - 1);
                uintptr_t next = (uintptr_t)job->weight + row * job->row_bytes + 256 * (b + 1);
                load_row(job, row, b, 0, next, &rows, i);
            }
            for (long t = 0; t < T; t++)
                doubt[t] |= add_products(&rows, token_blocks(job, t0 + t, b), 0, &totals[r][t],
                                         STRIDE, b ? 0xffff : 0, NULL) << r;
        }
    for (long t = 0; t < T; t++)
        finish_rows(job, t0 + t, first, n, &totals[0][t], STRIDE, doubt[t]);
}

static void linear_rows_integers(const Job *job, long first, long n) {
    if (job->T <= FEW) { dot_integers(job, first, n); return; }
    for (long t = 0; t < job->T; t += MANY)
        for (long r = 0; r < n; r += BATCH)
            multiply_integers(job, t, first + r, n - r < BATCH ? n - r : BATCH);
}

TARGET_END

static long arranged_floats_vnni(const Job *job) {
    return job->format == INT4 ? arranged_floats_integers(job) : arranged_floats_avx512(job);
}

static void arrange_vnni(const Job *job, long t) {
    if (job->format == INT4) arrange_integers(job, t);
    else arrange_avx512(job, t);
}

static void linear_rows_vnni(const Job *job, long first, long n) {
    if (job->format == INT4) linear_rows_integers(job, first, n);
    else linear_rows_avx512(job, first, n);
}

/* What paths.h calls. */
static const Path path_vnni = {
    "vnni", arranged_floats_vnni, arrange_vnni, linear_rows_vnni, linear_columns_avx512,
    span_floats_avx512, attend_span_avx512, attend_merge_avx512, attend_finish_avx512,
    silu_mul_avx512, rms_norm_row_avx512, fma_rounds_avx512, read_bytes_avx512, 12 * 16, BATCH,
};
