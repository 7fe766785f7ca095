/* y = W x in integers, for INT4 weights (_integers.h): by VNNI for one token, by tiles for many.
 *
 * The order of every sum: a group's sum is that of _integers.h times its unit, which is exact. From
 * there on all is as in _linear.h: lane l of a block of 512 columns has group GROUP_OF(l), whose
 * sum times its scale is added to the lane's total, block after block; at the end the lanes are
 * added pairwise. A row in doubt is then computed again, as the AVX-512 path does it.
 */

TARGET(TILES_TARGET)

#define FEW 3 /* tokens that go one by one: unpacking weights for tiles would take longer */
/* Bytes fetched ahead of need, for few tokens: into the second cache, the first is full of digits.
 * As builtins, which the compiler may move, they bring 84 % of the read limit and not 91. */
#define INTEGERS_AHEAD 8192
#define FETCH(at) __asm__ volatile("prefetcht1 %0" : : "m"(*(const char *)(at)))
#define STRIPS 4       /* of sixteen rows, and */
#define TOKEN_TILES 4  /* of sixteen tokens: what is multiplied together */

/* What is in job->arranged: [token][block] or [16 tokens][block], then floats [token]. */
INLINE TokenBlock *token_blocks(const Job *job, long t) {
    return (TokenBlock *)job->arranged + t * job->n_blocks;
}
INLINE TilesBlock *tiles_blocks(const Job *job, long t) {
    return (TilesBlock *)job->arranged + t / TILE * job->n_blocks;
}

INLINE long integer_floats(const Job *job) {
    long n_bytes = job->T * job->n_blocks * sizeof(TokenBlock);
    if (job->T > FEW) n_bytes = (job->T + TILE - 1) / TILE * job->n_blocks * sizeof(TilesBlock);
    return n_bytes / sizeof(float);
}

static long arranged_floats_integers(const Job *job) {
    return integer_floats(job) + arranged_floats_avx512(job);
}

/* The job of token t in floats: what is arranged for those with a block in doubt. */
INLINE Job in_floats(const Job *job, long t) {
    Job one = *job;
    one.x += t * job->x_stride, one.y += t * job->y_stride, one.T = 1;
    one.arranged += integer_floats(job) + t * job->n_blocks * job->block;
    return one;
}

/* Compute again those of 16 rows of token t that are in doubt. */
static void in_floats_again(const Job *job, long t, long row, unsigned rows) {
    for (Job one = in_floats(job, t); rows; row++, rows >>= 1)
        if (rows & 1) dot_rows_avx512(&one, INT4, 32, row, 1);
}

/* Sixteen tokens, from t on, or as many as there are. */
static void arrange_integers(const Job *job, long t) {
    if (t % TILE) return; /* done with the first of its tile */
    const long n = job->T - t < TILE ? job->T - t : TILE;
    int doubts[TILE] = {0};
    for (long b = 0; b < job->n_blocks; b++) {
        TilesBlock *tiles = &tiles_blocks(job, t)[b];
        if (job->T > FEW) tiles->doubtful = 0;
        for (long i = 0; i < n; i++) {
            TokenBlock block, *to = job->T > FEW ? &block : &token_blocks(job, t + i)[b];
            int doubt = integers_of_block(job, job->x + (t + i) * job->x_stride, b, to);
            doubts[i] |= doubt;
            if (job->T <= FEW) continue;
            put_in_tiles(to, tiles, i);
            tiles->doubtful |= doubt;
        }
    }
    for (long i = 0; i < n; i++) {
        Job one = in_floats(job, t + i);
        if (doubts[i]) arrange_avx512(&one, 0);
    }
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

/* Two rows of one token: they share what is loaded of x. The nibbles of a word become two words of
 * bytes, and each meets four words of digits. Returns which of the two are in doubt. */
INLINE unsigned dot_pair(const Job *job, const TokenBlock *x, long row, long other,
                         float (*lanes)[16]) {
    const __m512i low = _mm512_set1_epi8(15);
    uintptr_t ahead = (uintptr_t)job->weight + row * job->row_bytes + INTEGERS_AHEAD;
    uintptr_t scales_ahead = (uintptr_t)row_scale(job, row) + INTEGERS_AHEAD / 8;
    __m512 total[2] = {{0}}, worst[2] = {{0}};
    for (long b = 0; b < job->n_blocks; b++, x++, ahead += 512, scales_ahead += 64) {
        vi_avx512 words[2][4];
        __m512i sum[2][4];
        __m512 by[2];
#pragma GCC unroll 2
        for (int r = 0; r < 2; r++) {
            const char *block, *scales;
            Last_avx512 last;
            find_block(job, r ? other : row, b, &block, &scales, &last);
            by[r] = scales_avx512(INT4, scales, 0).part[0];
            load_words_avx512(INT4, block, 0, words[r]);
#pragma GCC unroll 4
            for (int d = 0; d < 4; d++) sum[r][d] = _mm512_load_si512(x->start[d]);
        }
        FETCH(scales_ahead);
#pragma GCC unroll 8
        for (int w = 0; w < 8; w++) {
            __m512i nibbles[2];
            FETCH(ahead + 64 * w);
#pragma GCC unroll 2
            for (int r = 0; r < 2; r++) {
                __m512i v = (__m512i)words[r][w / 2];
                nibbles[r] = _mm512_and_si512(w % 2 ? _mm512_srli_epi16(v, 4) : v, low);
            }
#pragma GCC unroll 4
            for (int d = 0; d < 4; d++) {
                __m512i digits = _mm512_load_si512(x->digit[w][d]);
                IN_REGISTER(digits); /* one load for both rows */
                sum[0][d] = _mm512_dpbusd_epi32(sum[0][d], nibbles[0], digits);
                sum[1][d] = _mm512_dpbusd_epi32(sum[1][d], nibbles[1], digits);
            }
        }
        const __m512 unit = _mm512_load_ps(x->unit), least = _mm512_load_ps(x->least);
#pragma GCC unroll 2
        for (int r = 0; r < 2; r++) {
            __m512 s = group_sum(sum[r]);
            worst[r] = _mm512_min_ps(worst[r], above(s, least));
            total[r] = _mm512_fmadd_ps(_mm512_mul_ps(s, unit), by[r], total[r]);
        }
    }
    _mm512_store_ps(lanes[0], total[0]), _mm512_store_ps(lanes[1], total[1]);
    return !!in_doubt(worst[0]) + 2 * !!in_doubt(worst[1]);
}

/* n rows of few tokens, eight at a time; the last one stands in for those that are not there. */
static void dot_integers(const Job *job, long first, long n) {
    ALIGNED float lanes[8][16] = {{0}};
    for (long r = 0, last = first + n - 1; r < n; r += 8)
        for (long t = 0; t < job->T; t++) {
            const long m = n - r < 8 ? n - r : 8;
            unsigned doubt = 0;
            float y[8];
            for (long i = 0; i < m; i += 2) {
                long row = first + r + i, other = row < last ? row + 1 : last;
                doubt |= dot_pair(job, token_blocks(job, t), row, other, lanes + i) << i;
            }
            add_lanes8_avx512(lanes[0], 16, y);
            memcpy(job->y + t * job->y_stride + first + r, y, m * sizeof *y);
            in_floats_again(job, t, first + r, doubt & ((1u << m) - 1));
        }
}

/* Block b of sixteen rows: for each group a tile B, and scales. */
typedef struct {
    ALIGNED int32_t weight[16][8][16]; /* [group][word][row]; sixteen times the weights */
    float scale[16][16];               /* [group][row] */
} StripBlock;

/* Rows row..row+n; beyond them, the last of them again. */
static void unpack_strip(const Job *job, long row, long n, long b, StripBlock *strip) {
    const __m512i flip = _mm512_set1_epi8((char)0x80), upper = _mm512_set1_epi8((char)0xf0);
    const char *block[16], *scales[16];
    Last_avx512 last[16];
    __m512i w[16];
    for (long r = 0; r < 16; r++)
        find_block(job, row + (r < n ? r : n - 1), b, &block[r], &scales[r], &last[r]);
    for (int i = 0; i < 4; i++) {
        for (int r = 0; r < 16; r++) {
            w[r] = _mm512_loadu_si512(block[r] + 64 * i);
            __builtin_prefetch((void *)((uintptr_t)block[r] + 256 + 64 * i), 0, 2);
        }
        transpose16(w);
        for (int j = 0; j < 16; j++) { /* flip the top bit of a nibble: two's complement */
            int32_t (*to)[16] = &strip->weight[4 * i + j / 4][j % 4 * 2];
            __m512i even = _mm512_slli_epi32(w[j], 4);
            _mm512_store_si512(to[0], _mm512_and_si512(_mm512_xor_si512(even, flip), upper));
            _mm512_store_si512(to[1], _mm512_and_si512(_mm512_xor_si512(w[j], flip), upper));
        }
    }
    for (int r = 0; r < 16; r++)
        w[r] = _mm512_slli_epi32(
            _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)scales[r])), 16);
    transpose16(w);
    for (int g = 0; g < 16; g++) _mm512_store_si512(strip->scale[g], w[g]);
}

/* Add the sums of group g to the totals [token][row]; at the first block, begin them. Rows in doubt
 * are noted for each token, if `check`. */
INLINE void add_group(const StripBlock *strip, const TilesBlock *x, int g, long n, int check,
                      int32_t (*sums)[4][16], float (*totals)[16], __mmask16 begun,
                      uint16_t *doubt) {
    const __m512 scale = _mm512_load_ps(strip->scale[g]);
#pragma GCC unroll 4
    for (long t = 0; t < n; t++) {
        __m512i digit[4];
#pragma GCC unroll 4
        for (int d = 0; d < 4; d++) digit[d] = _mm512_load_si512(sums[t][d]);
        __m512 sum = group_sum(digit), total = _mm512_maskz_load_ps(begun, totals[t]);
        if (check) doubt[t] |= in_doubt(above(sum, _mm512_set1_ps(x->least[g][t])));
        sum = _mm512_mul_ps(sum, _mm512_set1_ps(x->unit[g][t]));
        _mm512_store_ps(totals[t], _mm512_fmadd_ps(sum, scale, total));
    }
}

/* Tiles 0 to 3 hold sums, four tokens each, 6 weights, 7 activations. */
INLINE void integer_shapes(void) {
    TileShapes shapes = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        shapes.row_bytes[i] = i == 7 ? 32 : 64;
        shapes.rows[i] = i == 6 ? 8 : TILE;
    }
    shape_tiles(&shapes);
}

/* A block of sixteen rows and n tokens. The sums of a group are added while the tiles are at the
 * next one's. */
INLINE void multiply_groups(const StripBlock *strip, const TilesBlock *x, long n, long n_groups,
                            int check, float (*totals)[TILE][16], __mmask16 begun,
                            uint16_t *doubt) {
    ALIGNED int32_t sums[TILE][4][16]; /* [token][digit][row] */
    for (long g = 0; g <= n_groups; g++) {
        if (g < n_groups) TILE_LOAD(6, strip->weight[g], 64);
#define FOUR_TOKENS(i) if (4 * i < n) { \
        if (g > 0) TILE_STORE(sums[4 * i], 64, i); \
        if (g < n_groups) { \
            TILE_LOAD(7, x->digit[g][i], 32); \
            TILE_ZERO(i); \
            TILE_MULTIPLY_BYTES(i, 7, 6); \
        } \
    }
        FOUR_TOKENS(0) FOUR_TOKENS(1) FOUR_TOKENS(2) FOUR_TOKENS(3)
        if (g > 0)
            add_group(strip, x, g - 1, n, check, sums, totals[GROUP_OF(g - 1)], begun, doubt);
    }
}

/* n rows (n <= 16 STRIPS) of at most 16 TOKEN_TILES tokens from t0 on. */
static void multiply_integers(const Job *job, long t0, long first, long n) {
    ALIGNED float totals[STRIPS][TOKEN_TILES][16][TILE][16]; /* [..][..][lane][token][row] */
    uint16_t doubt[STRIPS][TOKEN_TILES * TILE] = {{0}}; /* [..][token]: rows */
    StripBlock strip;
    const long end = job->T - t0 < TOKEN_TILES * TILE ? job->T : t0 + TOKEN_TILES * TILE;
    if (job->columns < 512) memset(totals, 0, sizeof totals); /* some lanes have no group */
    for (long b = 0; b < job->n_blocks; b++) {
        long left = job->columns / 32 - 16 * b, n_groups = left < 16 ? left : 16;
        for (long r = 0; r < n; r += 16) {
            unpack_strip(job, first + r, n - r < 16 ? n - r : 16, b, &strip);
            for (long t = t0; t < end; t += TILE) {
                long m = end - t < TILE ? end - t : TILE;
                const TilesBlock *x = &tiles_blocks(job, t)[b];
                float (*to)[TILE][16] = totals[r / 16][(t - t0) / TILE];
                uint16_t *doubt_of = &doubt[r / 16][t - t0];
                if (x->doubtful)
                    multiply_groups(&strip, x, m, n_groups, 1, to, b ? 0xffff : 0, doubt_of);
                else multiply_groups(&strip, x, m, n_groups, 0, to, b ? 0xffff : 0, doubt_of);
            }
        }
    }
    for (long t = t0; t < end; t++)
        for (long r = 0; r < n; r += 16) {
            float (*lanes)[TILE][16] = totals[r / 16][(t - t0) / TILE];
            __m512 s[8]; /* as add_lanes adds them, for sixteen rows at once */
            for (int l = 0; l < 8; l++)
                s[l] = _mm512_add_ps(_mm512_load_ps(lanes[l][t % TILE]),
                                     _mm512_load_ps(lanes[l + 8][t % TILE]));
            for (int l = 0; l < 4; l++) s[l] = _mm512_add_ps(s[l], s[l + 4]);
            s[0] = _mm512_add_ps(_mm512_add_ps(s[0], s[2]), _mm512_add_ps(s[1], s[3]));
            const __mmask16 exist = n - r < 16 ? (1 << (n - r)) - 1 : 0xffff;
            _mm512_mask_storeu_ps(job->y + t * job->y_stride + first + r, exist, s[0]);
            in_floats_again(job, t, first + r, doubt[r / 16][t - t0] & exist);
        }
}

static void linear_rows_integers(const Job *job, long first, long n) {
    if (job->T <= FEW) { dot_integers(job, first, n); return; }
    integer_shapes();
    for (long t = 0; t < job->T; t += TOKEN_TILES * TILE)
        for (long r = 0; r < n; r += 16 * STRIPS)
            multiply_integers(job, t, first + r, n - r < 16 * STRIPS ? n - r : 16 * STRIPS);
    tiles_end();
}

TARGET_END
