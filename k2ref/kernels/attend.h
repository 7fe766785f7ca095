/* Absorbed attention for one path: queries in the latent space against the cache of latents.
 *
 * A cache row is [c_kv | k_rope | zeros up to a multiple of 16]; every head reads the same rows. Keys
 * are taken in blocks of KEYS at fixed absolute positions. A block gives each head a state (largest
 * score, sum of exponentials, weighted sum of latents); the states of a span of blocks are merged from
 * left to right, then those of the spans. So the bits of a token's answer depend on the keys before
 * it and on nothing else: not on how the prompt was cut, not on the number of threads, and no
 * (T, S) matrix ever exists.
 */

/* A state: for each head its largest score, its sum, and its latents (`a->latents` floats). */
INLINE float *NAME(state_sum)(float *state) { return state + HEADS; }
INLINE float *NAME(state_latents)(float *state) { return state + 2 * HEADS; }

static float NAME(exp_of)(float x) {
    float lanes[16];
    NAME(store)(lanes, NAME(exp)(NAME(splat)(x)));
    return lanes[0];
}

/* scores[h][k] = scale * q[h] . cache[k]: the tile of linear.h, with keys for rows. */
INLINE void NAME(score)(const Attention *a, const float *q, const float *keys, long n_heads,
                        long n_keys, float *scores) {
    ALIGNED float scale[TILE_ROWS * 16], totals[TILE_ROWS * 3 * 16];
    const long tile = TILE_ROWS * a->width * sizeof *keys / 64; /* cache lines of the keys at once */
    for (int i = 0; i < TILE_ROWS * 16; i++) scale[i] = a->scale;
    for (long k = 0; k < n_keys; k += TILE_ROWS)
        for (long h = 0; h < n_heads; h += 3) {
            long m = n_heads - h < 3 ? n_heads - h : 3;
            /* A part of the next keys: the hardware stops at the end of each page. */
            for (long i = tile * h / n_heads; i < tile * (h + m) / n_heads; i++)
                __builtin_prefetch((const char *)(keys + (k + TILE_ROWS) * a->width) + 64 * i, 0, 2);
            NAME(any_tile)(m, a->width / 16, keys + k * a->width, scale, q + h * a->width, a->width,
                           totals, 48, 1);
            for (long i = 0; i < m; i++)
#if TILE_ROWS == 8
                NAME(add_lanes8)(totals + 16 * i, 48, scores + (h + i) * KEYS + k);
#else
                NAME(add_lanes4)(totals + 16 * i, 48, scores + (h + i) * KEYS + k);
#endif
        }
}

/* Scores to exponentials in place, zeros after the last key; gives the largest score and the sum.
 * A score that is not finite would be passed over, or count for nothing: it makes the sum NaN. */
INLINE void NAME(exponentials)(float *scores, long n_keys, float *largest, float *sum) {
    ALIGNED float lanes[16];
    float top = scores[0];
    v16 most, total = {{{0}}}, doubt = {{{0}}};
    for (long k = n_keys; k < KEYS; k++) scores[k] = top;
    EACH_PART most.part[p] = NAME(splat)(top);
    for (long k = 0; k < KEYS; k += 16)
        EACH_PART most.part[p] = NAME(larger)(most.part[p], NAME(load)(scores + k + WIDTH * p));
    EACH_PART NAME(store)(lanes + WIDTH * p, most.part[p]);
    for (int l = 0; l < 16; l++) top = lanes[l] > top ? lanes[l] : top;
    for (long k = 0; k < KEYS; k += 16)
        EACH_PART {
            float *s = scores + k + WIDTH * p;
            doubt.part[p] = doubt.part[p] + NAME(load)(s);
            NAME(store)(s, NAME(exp)(NAME(load)(s) - top));
        }
    for (long k = n_keys; k < KEYS; k++) scores[k] = 0;
    for (long k = 0; k < KEYS; k += 16)
        EACH_PART total.part[p] = total.part[p] + NAME(load)(scores + k + WIDTH * p);
    EACH_PART NAME(store)(lanes + WIDTH * p, total.part[p]);
    *largest = top, *sum = NAME(add_lanes)(lanes);
    EACH_PART NAME(store)(lanes + WIDTH * p, doubt.part[p]);
    *sum += 0 * NAME(add_lanes)(lanes);
}

/* out[h][c] += weight[h][k] * cache[k][c] over keys, in order, for M heads and V vectors. */
INLINE void NAME(mix_strip)(int M, int V, const float *weight, const float *keys, long width,
                            long n_keys, float *out, long latents) {
    vf sum[4][4];
#pragma GCC unroll 4
    for (int m = 0; m < M; m++)
#pragma GCC unroll 4
        for (int i = 0; i < V; i++) sum[m][i] = NAME(load)(out + m * latents + WIDTH * i);
    for (long k = 0; k < n_keys; k++) {
        vf c[4];
#pragma GCC unroll 4
        for (int i = 0; i < V; i++) {
            c[i] = NAME(load)(keys + k * width + WIDTH * i);
            IN_REGISTER(c[i]);
        }
#pragma GCC unroll 4
        for (int m = 0; m < M; m++) {
            vf w = NAME(splat)(weight[m * KEYS + k]);
#pragma GCC unroll 4
            for (int i = 0; i < V; i++) sum[m][i] = NAME(fma)(w, c[i], sum[m][i]);
        }
    }
#pragma GCC unroll 4
    for (int m = 0; m < M; m++)
#pragma GCC unroll 4
        for (int i = 0; i < V; i++) NAME(store)(out + m * latents + WIDTH * i, sum[m][i]);
}

/* The weighted sums of all heads. A strip of 64 keys stays in the first-level cache for all heads. */
INLINE void NAME(mix)(const Attention *a, const float *weight, const float *keys, long n_heads,
                      long n_keys, float *out) {
    memset(out, 0, n_heads * a->latents * sizeof *out);
    for (long c = 0, V; c < a->latents; c += V * WIDTH) {
        V = c + TILE_ROWS / 2 * WIDTH <= a->latents ? TILE_ROWS / 2 : 1;
        for (long k = 0; k < n_keys; k += 64)
            for (long h = 0, M; h < n_heads; h += M) {
                const float *w = weight + h * KEYS + k, *from = keys + k * a->width + c;
                float *to = out + h * a->latents + c;
                long n = n_keys - k < 64 ? n_keys - k : 64;
                M = n_heads - h >= 4 ? 4 : 1;
#define MIX(M, V) NAME(mix_strip)(M, V, w, from, a->width, n, to, a->latents)
                if (V > 1) M == 4 ? MIX(4, TILE_ROWS / 2) : MIX(1, TILE_ROWS / 2);
                else M == 4 ? MIX(4, 1) : MIX(1, 1);
#undef MIX
            }
    }
}

/* Merge the state of later keys into that of earlier ones: both are rescaled to the larger maximum. */
static void NAME(attend_merge)(const Attention *a, float *state, float *later, long head,
                               long n_heads) {
    for (long h = head; h < head + n_heads; h++) {
        float top = state[h] > later[h] ? state[h] : later[h];
        float old = NAME(exp_of)(state[h] - top), new = NAME(exp_of)(later[h] - top);
        float *sum = NAME(state_sum)(state) + h, *x = NAME(state_latents)(state) + h * a->latents;
        const float *y = NAME(state_latents)(later) + h * a->latents;
        float scaled = *sum * old;
        IN_REGISTER(scaled); /* of two products, compilers differ in which they fuse: not this one */
        *sum = NAME(state_sum)(later)[h] * new + scaled;
        state[h] = top;
        for (long c = 0; c < a->latents; c += WIDTH) {
            vf before = NAME(load)(x + c) * old;
            IN_REGISTER(before);
            NAME(store)(x + c, NAME(fma)(NAME(load)(y + c), NAME(splat)(new), before));
        }
    }
}

static long NAME(span_floats)(const Attention *a) { return STATE(a) + HEADS * KEYS; }

/* The state of token t over the keys of one span. `scratch` holds a second state and the scores. */
static void NAME(attend_span)(const Attention *a, long t, long head, long span, float *state,
                              float *scratch) {
    long n_heads = a->H - head < HEADS ? a->H - head : HEADS, seen = a->start + t + 1;
    const float *q = a->q + (t * a->H + head) * a->width;
    float *block = scratch, *scores = scratch + STATE(a);
    for (long k = span * SPAN; k < (span + 1) * SPAN && k < seen; k += KEYS) {
        /* Trap: the causal mask. A token sees keys up to itself; decode alone never shows a missing
         * mask, prefill does (mlxcel#998). */
        long n_keys = seen - k < KEYS ? seen - k : KEYS;
        const float *keys = a->cache + k * a->width;
        float *into = k == span * SPAN ? state : block;
        NAME(score)(a, q, keys, n_heads, n_keys, scores);
        for (long h = 0; h < n_heads; h++)
            NAME(exponentials)(scores + h * KEYS, n_keys, into + h, NAME(state_sum)(into) + h);
        NAME(mix)(a, scores, keys, n_heads, n_keys, NAME(state_latents)(into));
        if (into == block) NAME(attend_merge)(a, state, block, 0, n_heads);
    }
}

/* ctx[t, h] = latents / sum. */
static void NAME(attend_finish)(const Attention *a, long t, long head, float *state) {
    for (long h = 0; h < HEADS && head + h < a->H; h++)
        for (long c = 0; c < a->C; c++)
            a->out[(t * a->H + head + h) * a->C + c] =
                NAME(state_latents)(state)[h * a->latents + c] / NAME(state_sum)(state)[h];
}

/* Elementwise: h = silu(gate) * up, silu(x) = x / (1 + exp(-x)); n is any length. */
static void NAME(silu_mul)(const float *gate, const float *up, float *out, long n) {
    float g[16] = {0}, u[16] = {0}, y[16];
    for (long i = 0; i < n; i += 16) {
        long m = n - i < 16 ? n - i : 16;
        memcpy(g, gate + i, m * sizeof *g), memcpy(u, up + i, m * sizeof *u);
        EACH_PART {
            vf a = NAME(load)(g + WIDTH * p);
            NAME(store)(y + WIDTH * p, a / (1.0f + NAME(exp)(-a)) * NAME(load)(u + WIDTH * p));
        }
        memcpy(out + i, y, m * sizeof *y);
    }
}

/* One row of RMSNorm: y = w * (x * rsqrt(mean(x^2) + eps)), squares summed in sixteen lanes. Squares
 * that overflow would make zeros of a row: they make it NaN. */
static void NAME(rms_norm_row)(const float *x, const float *weight, float *y, long n, float eps) {
    float lanes[16] = {0};
    for (long i = 0; i < n; i++) lanes[i & 15] += x[i] * x[i];
    float mean = NAME(add_lanes)(lanes) / n, r = 1.0f / sqrtf(mean + eps + 0 * mean);
    for (long i = 0; i < n; i++) y[i] = weight[i] * (x[i] * r);
}

/* What this path can do at most, for scripts/bench.py: n rounds of twelve independent FMAs, and a read
 * of n bytes that does nothing else. The results only keep the compiler from leaving them out. */
static float NAME(fma_rounds)(long n) {
    v16 sum[12];
    const vf a = NAME(splat)(0.999f), b = NAME(splat)(0.001f);
    float lanes[16], total = 0;
    for (int c = 0; c < 12 / PARTS; c++) /* each its own number, or the compiler would merge them */
        EACH_PART sum[c].part[p] = NAME(splat)((float)(n + 17 * c + p));
    for (long i = 0; i < n; i++)
#pragma GCC unroll 12
        for (int c = 0; c < 12 / PARTS; c++) EACH_PART sum[c].part[p] = NAME(fma)(sum[c].part[p], a, b);
    for (int c = 0; c < 12 / PARTS; c++) {
        EACH_PART NAME(store)(lanes + WIDTH * p, sum[c].part[p]);
        total += NAME(add_lanes)(lanes);
    }
    return total;
}

static long NAME(read_bytes)(const char *data, long n) {
    vi seen[4] = {{0}};
    int32_t lanes[WIDTH];
    for (long i = 0; i + 16 * WIDTH <= n; i += 16 * WIDTH) {
        for (long c = 0; c < 16 * WIDTH; c += 64) FETCH((uintptr_t)data + i + AHEAD + c);
        for (int c = 0; c < 4; c++) seen[c] |= *(const NAME(vi_at) *)(data + i + 4 * WIDTH * c);
    }
    seen[0] |= seen[1] | seen[2] | seen[3];
    memcpy(lanes, &seen[0], sizeof lanes);
    return lanes[0] | lanes[WIDTH - 1];
}

/* What paths.h calls. */
static const Path NAME(path) = {
    PATH_NAME, NAME(arranged_floats), NAME(arrange), NAME(linear_rows), NAME(linear_columns),
    NAME(span_floats), NAME(attend_span), NAME(attend_merge), NAME(attend_finish), NAME(silu_mul),
    NAME(rms_norm_row), NAME(fma_rounds), NAME(read_bytes), 12 / PARTS * 16, ROWS,
};

#undef vf
#undef vi
#undef v16
#undef WIDTH
#undef PARTS
#undef TOKENS
#undef ROWS
#undef TILE_ROWS
#undef EACH_PART
#undef LOW_WORDS
#undef HIGH_WORDS
#undef LOW_PAIRS
#undef HIGH_PAIRS
#undef WORDS
#undef PAIRS
