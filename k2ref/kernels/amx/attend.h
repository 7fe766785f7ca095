/* Absorbed attention in matrix tiles, for the path `amx`: spans and states as in attend.h, but
 * other products inside a span. Both have all heads on one side and a block of keys on the other:
 *
 *     scores   A: keys x dims        B: dims x heads      C: score of each key and head
 *     mix      A: heads x keys       B: keys x latents    C: latents of each head
 *
 * Numbers are split into three BF16 terms (amx/terms.h). The side of the heads is split once: queries
 * for a span, weights for a block. The keys are far more. They are split 32 rows x 64 at a time (a
 * step), while the step before is multiplied: two units of a core do this, so that the splitting
 * costs little.
 *
 * A number goes through at most 16 roundings inside an instruction (a chain of 16 products for even
 * places, one for odd), 12 of each of the ADDED steps that are added up in tiles, and one for each
 * time that these are added to the total: 45 for a score of 576 dims.
 */

#include "terms.h"

TARGET(TILES_TARGET)

#define DEPTH 2  /* parts of 32 rows x 32 in a step */
#define STEP_BYTES (DEPTH * DEEP_BYTES)
#define STEP (32 * DEPTH)
#define ADDED 2  /* steps added up before they go to the total */
#define SUM (32 * 32) /* floats of the products of a step, for 32 heads */

/* A matrix of which tiles are split, and where it ends. */
typedef struct { const float *from; long row, n_rows, n_columns; } Side;

/* What is split into one tile: 16 rows x 32, or 32 rows x 16 when pairs are of rows (tall). At the
 * ends of the matrix a copy, with zeros for what is not there (or was never written). */
INLINE Rows tile_rows(Side side, long r, long c, int tall, float *copy) {
    const float *from = side.from + r * side.row + c;
    long n_rows = side.n_rows - r, n_columns = side.n_columns - c;
    if (n_rows >= (tall ? 32 : 16) && n_columns >= (tall ? 16 : 32))
        return (Rows){from, tall ? 2 * side.row : side.row, tall ? side.row : 16};
    for (long i = 0; i < 512; i++) {
        long row = i / (tall ? 16 : 32), column = i % (tall ? 16 : 32);
        copy[i] = row < n_rows && column < n_columns ? from[row * side.row + column] : 0;
    }
    return (Rows){copy, 32, 16};
}

/* 4 tiles of sums += 2 tiles of the split side (4, 5) times 2 of the heads (6, 7). */
#define MULTIPLY(c, of_keys, of_heads) \
    if (mixing) TILE_MULTIPLY(c, of_heads, of_keys); else TILE_MULTIPLY(c, of_keys, of_heads)
#define PRODUCTS MULTIPLY(0, 4, 6); MULTIPLY(1, 4, 7); MULTIPLY(2, 5, 6); MULTIPLY(3, 5, 7);
#define KEY_TERM(i) \
    TILE_LOAD(4, keys + i * PAIR_BYTES, 64); TILE_LOAD(5, keys + i * PAIR_BYTES + TILE_BYTES, 64)
#define HEAD_TERM(i) \
    TILE_LOAD(6, heads + i * PAIR_BYTES, 64); TILE_LOAD(7, heads + i * PAIR_BYTES + TILE_BYTES, 64)
#define MEANWHILE(first, last) if (more) split_rows(next, first, last, into, ahead)

/* Half a step: six products of terms, and between them a tile of the next step is split. */
INLINE void multiply_terms(int mixing, const char *keys, const char *heads, int more, Rows next,
                           char *into, const char *ahead) {
    KEY_TERM(0); HEAD_TERM(2); PRODUCTS MEANWHILE(0, 3);
    HEAD_TERM(1); PRODUCTS MEANWHILE(3, 6);
    KEY_TERM(1); PRODUCTS MEANWHILE(6, 9);
    HEAD_TERM(0); PRODUCTS MEANWHILE(9, 12);
    KEY_TERM(2); PRODUCTS MEANWHILE(12, 15);
    KEY_TERM(0); PRODUCTS MEANWHILE(15, 16);
}

/* Where products go: total = total * factor + products, or if they are first, they alone. */
typedef struct { const float *products, *factor; float *total; long row; int first; } Sum;

INLINE void add_step(Sum s) {
    for (int r = 0; r < 32; r++)
        for (int i = 0; i < 32; i += 16) {
            float *total = s.total + r * s.row + i;
            __m512 x = _mm512_load_ps(s.products + 32 * r + i), before = _mm512_load_ps(total);
            if (s.factor) x = _mm512_fmadd_ps(before, _mm512_set1_ps(s.factor[r]), x);
            else if (!s.first) x = _mm512_add_ps(before, x);
            _mm512_store_ps(total, x);
        }
}

/* What a thread works with. Terms of heads lie by step, half of the heads, part of the step. */
typedef struct {
    char *queries, *weights, *steps; /* terms: of a token, of a block, of two steps of keys */
    float *products, *scores, *factors, *mixed; /* mixed: [latents / 32][HEADS][32] */
} Room;

static long n_steps(long n) { return (n + STEP - 1) / STEP; }

/* A model of few heads fills no tiles: with 4 heads AVX-512 is six times as fast. That does not
 * depend on the token, so each model keeps to one order. */
INLINE int is_for_tiles(const Attention *a) { return a->H > 16; }

static long span_floats_amx(const Attention *a) {
    if (!is_for_tiles(a)) return span_floats_avx512(a);
    return (n_steps(a->width) + n_steps(KEYS) + 1) * 2 * STEP_BYTES / 4 + 2 * SUM + HEADS * KEYS +
           HEADS + (a->latents + 31) / 32 * 32 * HEADS;
}

static Room room_in(const Attention *a, float *scratch) {
    Room room = {.queries = (char *)scratch};
    room.weights = room.queries + n_steps(a->width) * 2 * STEP_BYTES;
    room.steps = room.weights + n_steps(KEYS) * 2 * STEP_BYTES;
    room.products = (float *)(room.steps + 2 * STEP_BYTES);
    room.scores = room.products + 2 * SUM, room.factors = room.scores + HEADS * KEYS;
    room.mixed = room.factors + HEADS;
    return room;
}

/* All scores of a block of keys, or the mix of its latents. `halves`: of 64 heads, 32 each. */
INLINE void multiply_block(int mixing, Side side, Room room, int halves, int fresh,
                           const char *ahead) {
    ALIGNED float copy[512];
    const char *heads = mixing ? room.weights : room.queries;
    long deep = n_steps(mixing ? side.n_rows : side.n_columns);
    long wide = ((mixing ? side.n_columns : side.n_rows) + 31) / 32;
    Sum sum = {0};
/* Tile s of part d of step u. */
#define NEXT(u, s, d) \
    tile_rows(side, mixing ? (u) % deep * STEP + 32 * (d) : (u) / deep * 32 + 16 * (s), \
              mixing ? (u) / deep * 32 + 16 * (s) : (u) % deep * STEP + 32 * (d), mixing, copy)
    for (int i = 0; i < 2 * DEPTH; i++, ahead += TILE_BYTES)
        split_rows(NEXT(0, i % 2, i / 2), 0, 16,
                   room.steps + i / 2 * DEEP_BYTES + i % 2 * TILE_BYTES, ahead);
    for (long u = 0; u < wide * deep; u++)
        for (int half = 0; half < halves; half++) {
            long part = u % deep, more = u + 1 < wide * deep;
            const char *keys = room.steps + u % 2 * STEP_BYTES;
            const char *of_heads = heads + (part * halves + half) * STEP_BYTES;
            char *into = room.steps + (u + 1) % 2 * STEP_BYTES;
            float *products = room.products + half * SUM;
            float *second = products + (mixing ? 512 : 16), *third = products + (mixing ? 16 : 512);
            if (part % ADDED) {
                TILE_LOAD(0, products, 128); TILE_LOAD(1, second, 128);
                TILE_LOAD(2, third, 128); TILE_LOAD(3, products + 528, 128);
            } else {
                TILE_ZERO(0); TILE_ZERO(1); TILE_ZERO(2); TILE_ZERO(3);
            }
            for (int d = 0; d < DEPTH; d++, ahead += TILE_BYTES) {
                char *to = into + d * DEEP_BYTES;
                Rows next = {0};
                if (more) next = NEXT(u + 1, half, d);
                multiply_terms(mixing, keys + d * DEEP_BYTES, of_heads + d * DEEP_BYTES, more, next,
                               to + half * TILE_BYTES, ahead);
                if (more && halves == 1)
                    split_rows(NEXT(u + 1, 1, d), 0, 16, to + TILE_BYTES, ahead);
            }
            if (sum.products) add_step(sum); /* of the half before: its tiles are stored by now */
            TILE_STORE(products, 128, 0); TILE_STORE(second, 128, 1);
            TILE_STORE(third, 128, 2); TILE_STORE(products + 528, 128, 3);
            sum.products = part % ADDED == ADDED - 1 || part == deep - 1 ? products : NULL;
            sum.first = part < ADDED && fresh;
            sum.factor = part < ADDED && !fresh ? room.factors + 32 * half : NULL;
            sum.total = (mixing ? room.mixed + half * SUM : room.scores + half * 32) +
                        u / deep * 32 * HEADS;
            sum.row = mixing ? 32 : HEADS;
        }
    add_step(sum);
#undef NEXT
}

INLINE __m512 scaled(const float *scores, __m512 scale) {
    __m512 x = _mm512_mul_ps(_mm512_load_ps(scores), scale);
    __asm__("" : "+v"(x)); /* rounded: not fused with what follows, or exp(0) would not be of 0 */
    return x;
}

/* Scores to weights in place, for a span so far: exp(score - largest), zero after the last key. The
 * sums so far, and `factors` for the latents so far, follow the largest score. */
static void weigh(const Attention *a, const Room *room, long n_keys, int n_heads, int fresh,
                  float *state) {
    const __m512 scale = _mm512_set1_ps(a->scale);
    for (int h = 0; h < n_heads; h += 16) {
        float *scores = room->scores + h, *largest = state + h, *sums = state_sum_avx512(state) + h;
        __m512 top = _mm512_set1_ps(-INFINITY), tops[4] = {top, top, top, top};
        __m512 none = _mm512_setzero_ps(), sum[4] = {none, none, none, none}, doubt = none;
#pragma GCC unroll 4
        for (long k = 0; k < n_keys; k++)
            tops[k % 4] = _mm512_max_ps(scaled(scores + k * HEADS, scale), tops[k % 4]);
        for (int i = 0; i < 4; i++) top = _mm512_max_ps(tops[i], top);
        if (!fresh) top = _mm512_max_ps(_mm512_load_ps(largest), top);
#pragma GCC unroll 4
        for (long k = 0; k < n_keys; k++) {
            __m512 x = scaled(scores + k * HEADS, scale);
            doubt = _mm512_add_ps(doubt, x);
            x = (__m512)exp_avx512((vf_avx512)_mm512_sub_ps(x, top));
            _mm512_store_ps(scores + k * HEADS, x);
            sum[k % 4] = _mm512_add_ps(sum[k % 4], x);
        }
        for (long k = n_keys; k < n_steps(n_keys) * STEP; k++)
            _mm512_store_ps(scores + k * HEADS, none);
        sum[0] = _mm512_add_ps(_mm512_add_ps(sum[0], sum[1]), _mm512_add_ps(sum[2], sum[3]));
        sum[0] = _mm512_fmadd_ps(doubt, none, sum[0]); /* NaN, where a score is not finite */
        if (!fresh) {
            __m512 less = _mm512_sub_ps(_mm512_load_ps(largest), top);
            __m512 factor = (__m512)exp_avx512((vf_avx512)less);
            _mm512_store_ps(room->factors + h, factor);
            sum[0] = _mm512_fmadd_ps(_mm512_load_ps(sums), factor, sum[0]);
        }
        _mm512_store_ps(largest, top), _mm512_store_ps(sums, sum[0]);
    }
}

/* The state of token t over the keys of one span. */
static void attend_span_amx(const Attention *a, long t, long head, long span, float *state,
                            float *scratch) {
    if (!is_for_tiles(a)) { attend_span_avx512(a, t, head, span, state, scratch); return; }
    static const uint8_t whole[8] = {16, 16, 16, 16, 16, 16, 16, 16};
    ALIGNED float copy[512];
    const Room room = room_in(a, scratch);
    long n_heads = a->H - head < HEADS ? a->H - head : HEADS, seen = a->start + t + 1;
    int halves = n_heads > 32 ? 2 : 1;
    const Side queries = {a->q + (t * a->H + head) * a->width, a->width, n_heads, a->width};
    tiles_begin(whole);
    for (long i = 0; i < n_steps(a->width) * halves * DEPTH * 2; i++) {
        long step = i / 4 / halves, half = i / 4 % halves, d = i / 2 % 2;
        split_columns(tile_rows(queries, 32 * half + i % 2 * 16, step * STEP + 32 * d, 0, copy),
                      room.queries + i / 2 * DEEP_BYTES + i % 2 * TILE_BYTES);
    }
    for (long k = span * SPAN; k < (span + 1) * SPAN && k < seen; k += KEYS) {
        /* Trap: the causal mask, as in attend.h. Rows after the last key may hold anything, even
         * NaN: they are neither weighed nor mixed. */
        long n_keys = seen - k < KEYS ? seen - k : KEYS;
        int fresh = k == span * SPAN;
        const float *from = a->cache + k * a->width;
        const char *ahead = (const char *)(from + KEYS * a->width);
        const Side keys = {from, a->width, (n_keys + 31) / 32 * 32, a->width};
        multiply_block(0, keys, room, halves, 1, ahead);
        weigh(a, &room, n_keys, 32 * halves, fresh, state);
        for (long i = 0; i < n_steps(n_keys) * halves * DEPTH * 2; i++) {
            long step = i / 4 / halves, half = i / 4 % halves, d = i / 2 % 2; /* as above */
            const float *w = room.scores + (step * STEP + 32 * d) * HEADS + 32 * half + i % 2 * 16;
            split_columns((Rows){w, 2 * HEADS, HEADS},
                          room.weights + i / 2 * DEEP_BYTES + i % 2 * TILE_BYTES);
        }
        const Side latents = {from, a->width, n_keys, a->latents};
        ahead += KEYS / 2 * a->width * sizeof *from;
        multiply_block(1, latents, room, halves, fresh, ahead);
    }
    tiles_end();
    for (long h = 0; h < n_heads; h++)
        for (long c = 0; c < a->latents; c += 16)
            _mm512_storeu_ps(state_latents_avx512(state) + h * a->latents + c,
                             _mm512_load_ps(room.mixed + c / 32 * 32 * HEADS + h * 32 + c % 32));
}

#define attend_merge_amx attend_merge_avx512
#define attend_finish_amx attend_finish_avx512
TARGET_END
