/* Floats as sums of three BF16 terms, for matrix tiles.
 *
 * A float is the sum of three BF16 terms, x = hi + mid + lo: hi is x rounded to nearest, mid the
 * rest rounded to nearest, lo what is left. With 2^e <= |x| < 2^(e+1), |mid| <= 2^(e-8) and |lo| <=
 * 2^(e-17), and lo is exact. Of the nine products of terms the six largest are taken. What is left
 * out, mid lo + lo mid + lo lo, is below (2^-24 + 2^-34) |x y|: one rounding. (With terms that are
 * cut off it could be eight times as much, and all of one sign.)
 *
 * The terms of two vectors go into one, in pairs: as A of a product, a row of a tile has 32 places
 * of a row of the matrix; as B, two rows of it are interleaved, as the instruction wants them.
 */

TARGET(TILES_TARGET)

#define TERMS 3
#define PAIR_BYTES (2 * TILE_BYTES)     /* two tiles of one term, side by side */
#define DEEP_BYTES (TERMS * PAIR_BYTES) /* all terms of two tiles: 32 rows x 32 */

/* Rows of pairs of vectors: from[r * row ..] together with from[r * row + other ..]. */
typedef struct { const float *from; long row, other; } Rows;

/* The three terms of a and of b, each as 16 words: of a in the lower half, of b in the upper.
 * Infinity is its own first term and the others zero; a NaN stays one. */
INLINE void split_pair(__m512 a, __m512 b, __m512i term[TERMS]) {
    const __m512i half = _mm512_set1_epi32(0x8000), upper = _mm512_set1_epi32((int)0xffff0000);
    const __m512i zero_for_infinity = _mm512_set1_epi32(0x880000); /* of FIXUPIMM, else no change */
    for (int i = 0; i < 2; i++) { /* half a unit is added, the rest cut off: rounded to nearest */
        __m512i x = _mm512_and_si512(_mm512_add_epi32((__m512i)a, half), upper);
        __m512i y = _mm512_and_si512(_mm512_add_epi32((__m512i)b, half), upper);
        term[i] = _mm512_or_si512(_mm512_srli_epi32(x, 16), y);
        __m512 rest_a = _mm512_sub_ps(a, (__m512)x), rest_b = _mm512_sub_ps(b, (__m512)y);
        a = i ? rest_a : _mm512_fixupimm_ps(rest_a, a, zero_for_infinity, 0);
        b = i ? rest_b : _mm512_fixupimm_ps(rest_b, b, zero_for_infinity, 0);
    }
    term[2] = _mm512_mask_blend_epi16(0xaaaaaaaa, _mm512_srli_epi32((__m512i)a, 16), (__m512i)b);
}

/* Rows `first` to `last` of a tile of each term. For each, a cache line is fetched from `ahead`. */
INLINE void split_rows(Rows rows, int first, int last, char *tiles, const char *ahead) {
    for (int r = first; r < last; r++) {
        __m512i term[TERMS];
        const float *at = rows.from + r * rows.row;
        _mm_prefetch(ahead + 64 * r, _MM_HINT_T1);
        split_pair(_mm512_loadu_ps(at), _mm512_loadu_ps(at + rows.other), term);
        for (int i = 0; i < TERMS; i++)
            _mm512_store_si512(tiles + i * PAIR_BYTES + 64 * r, term[i]);
    }
}

/* A tile of each term from the columns of the rows: its row l holds lane l of all of them. */
static void split_columns(Rows rows, char *tiles) {
    __m512i term[TERMS][16], pair[TERMS];
    for (int r = 0; r < 16; r++) {
        const float *at = rows.from + r * rows.row;
        split_pair(_mm512_loadu_ps(at), _mm512_loadu_ps(at + rows.other), pair);
        for (int i = 0; i < TERMS; i++) term[i][r] = pair[i];
    }
    for (int i = 0; i < TERMS; i++) {
        transpose16(term[i]);
        for (int r = 0; r < 16; r++)
            _mm512_store_si512(tiles + i * PAIR_BYTES + 64 * r, term[i][r]);
    }
}

TARGET_END
