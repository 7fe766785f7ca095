/* INT4 weights by tiles of bytes: the products of vnni/linear.h for many tokens, and their bits.
 *
 * A tile A holds four tokens with their four digits, a tile B eight words (32 columns) of sixteen
 * rows: so a group's sums are one product of tiles. They are exact, and what follows them is as for
 * one token.
 */

TARGET(TILES_TARGET)

#define STRIPS 4       /* of sixteen rows, and */
#define TOKEN_TILES 4  /* of sixteen tokens: what is multiplied together */

/* 512 columns of sixteen tokens: a tile A for each group and four tokens. Tiles take sixteen times the
 * weights, so units are a sixteenth. */
typedef struct {
    ALIGNED int32_t digit[16][4][4][4][8]; /* [group][tile][token][digit][word] */
    float unit[16][TILE], least[16][TILE];
    ALIGNED int doubtful; /* whether any `least` is above 0 */
} TilesBlock;

/* Make a block of one token the t-th of the tiles. */
static void put_in_tiles(const TokenBlock *block, TilesBlock *tiles, long t) {
    for (int d = 0; d < 4; d += 2) {
        __m512i w[16];
        for (int i = 0; i < 16; i++) w[i] = _mm512_load_si512(block->digit[i % 8][d + i / 8]);
        transpose16(w);
        for (int l = 0; l < 16; l++)
            _mm512_store_si512(tiles->digit[GROUP_OF(l)][t / 4][t % 4][d], w[l]);
    }
    for (int l = 0; l < 16; l++) {
        tiles->unit[GROUP_OF(l)][t] = block->unit[l] / 16;
        tiles->least[GROUP_OF(l)][t] = block->least[l] * 16;
    }
}

/* What is in job->arranged for more than FEW tokens: [16 tokens][block], then floats [token]. */
INLINE TilesBlock *tiles_blocks(const Job *job, long t) {
    return (TilesBlock *)job->arranged + t / TILE * job->n_blocks;
}

INLINE long tiles_floats(const Job *job) {
    return (job->T + TILE - 1) / TILE * job->n_blocks * (sizeof(TilesBlock) / sizeof(float));
}

static long arranged_floats_tiles(const Job *job) {
    if (job->T <= FEW) return arranged_floats_integers(job);
    return tiles_floats(job) + arranged_floats_avx512(job);
}

/* Sixteen tokens, from t on, or as many as there are. */
static void arrange_tiles(const Job *job, long t) {
    if (job->T <= FEW) { arrange_integers(job, t); return; }
    if (t % TILE) return; /* done with the first of its tile */
    const long n = job->T - t < TILE ? job->T - t : TILE;
    int doubts[TILE] = {0};
    for (long b = 0; b < job->n_blocks; b++) {
        TilesBlock *tiles = &tiles_blocks(job, t)[b];
        tiles->doubtful = 0;
        for (long i = 0; i < n; i++) {
            TokenBlock block;
            int doubt = integers_of_block(job, job->x + (t + i) * job->x_stride, b, &block);
            put_in_tiles(&block, tiles, i);
            doubts[i] |= doubt, tiles->doubtful |= doubt;
        }
    }
    for (long i = 0; i < n; i++) {
        Job one = in_floats(job, tiles_floats(job), t + i);
        if (doubts[i]) arrange_avx512(&one, 0);
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
static void multiply_integers_in_tiles(const Job *job, long t0, long first, long n) {
    float (*restrict totals)[TOKEN_TILES][16][TILE][16] = (void *)totals_of_thread; /* [strip][..] */
    _Static_assert(STRIPS * TOKEN_TILES * 16 * TILE * 16 <= TOTALS, "the totals have room");
    uint16_t doubt[STRIPS][TOKEN_TILES * TILE] = {{0}}; /* [..][token]: rows */
    StripBlock strip;
    const long end = job->T - t0 < TOKEN_TILES * TILE ? job->T : t0 + TOKEN_TILES * TILE;
    if (job->columns < 512) memset(totals, 0, sizeof totals_of_thread); /* some lanes have no group */
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
            if (doubt[r / 16][t - t0])
                in_floats_again(job, tiles_floats(job), t, first + r, n - r < 16 ? n - r : 16,
                                doubt[r / 16][t - t0]);
        }
}

static void linear_rows_tiles(const Job *job, long first, long n) {
    if (job->T <= FEW) { linear_rows_integers(job, first, n); return; }
    integer_shapes();
    for (long t = 0; t < job->T; t += TOKEN_TILES * TILE)
        for (long r = 0; r < n; r += 16 * STRIPS)
            multiply_integers_in_tiles(job, t, first + r, n - r < 16 * STRIPS ? n - r : 16 * STRIPS);
    tiles_end();
}

TARGET_END
