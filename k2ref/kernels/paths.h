/* The kernels' C side: what a job is, one copy of the loops per instruction set, and the threads.
 *
 * lanes.h, linear.h and attend.h are one body; it is compiled here for AVX-512, AVX2 and the
 * baseline (SSE2, NEON or plain C). Processors that multiply bytes (vnni) or tiles (amx) replace
 * parts of the AVX-512 body. A path is chosen when the module is imported.
 * Work is split over threads by output rows, by heads and by spans of keys, never inside a sum. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif
#if defined(__x86_64__) && defined(__linux__) && (__GNUC__ >= 11 || __clang_major__ >= 12)
#define HAS_TILES /* this build, if not this machine */
#endif

#define INLINE static inline __attribute__((always_inline))
#define ALIGNED __attribute__((aligned(64))) /* a vector load never straddles two cache lines */
/* Bytes between what is multiplied and what is fetched meanwhile: far enough to hide the wait. */
#define AHEAD 3072
#define COLUMNS 512 /* what a thread takes of a transposed product: whole blocks of FP8 */
/* A thread's totals of many tokens, not on its stack: musl gives a thread 128 KB of that. */
static _Thread_local ALIGNED float totals_of_thread[1 << 16];
#define TOTALS (sizeof totals_of_thread / sizeof(float))

enum { INT4, FP8, BF16, F32 };
static const int BITS[] = {4, 8, 16, 32};

/* One product of tokens with a weight. Arrays are C-contiguous but for the strides given. */
typedef struct {
    int format, transposed, bits;
    long rows, columns, T, first_row, scale_row, block, n_blocks, row_bytes;
    const char *weight, *scale;
    const float *x; /* (T, I), or (T, O) when transposed */
    float *y;       /* (T, O), or (T, I) when transposed */
    long x_stride, y_stride;
    float *arranged; /* x in the order of the kernel */
} Job;

#define KEYS 256  /* keys in a block of attention */
#define SPAN 1024 /* keys in a span of blocks: what one thread of a decode step takes */
#define HEADS 64  /* heads that read a block of keys together */
#define MERGED 8  /* heads whose states a thread merges at a time */
#define STATE(a) (HEADS * (2 + (a)->latents))

typedef struct {
    long T, H, C, start, width, latents; /* start: keys before the first token */
    float scale;
    const float *q, *cache; /* (T, H, width), (S rounded up to KEYS, width) */
    float *out;             /* (T, H, C) */
} Attention;

typedef struct {
    const char *name;
    long (*arranged_floats)(const Job *);
    void (*arrange)(const Job *, long);
    void (*linear_rows)(const Job *, long, long);
    void (*linear_columns)(const Job *, long, long);
    long (*span_floats)(const Attention *); /* of scratch, for attend_span */
    void (*attend_span)(const Attention *, long, long, long, float *, float *);
    void (*attend_merge)(const Attention *, float *, float *, long, long);
    void (*attend_finish)(const Attention *, long, long, float *);
    void (*silu_mul)(const float *, const float *, float *, long);
    void (*rms_norm_row)(const float *, const float *, float *, long, float);
    float (*fma_rounds)(long);
    long (*read_bytes)(const char *, long);
    int fmas_per_round, many_rows; /* many_rows: what a thread takes at a time of many tokens */
} Path;

/* The scales of one row: INT4 has its own row of them, FP8 one row per 128, the others none. */
INLINE const char *row_scale(const Job *job, long r) {
    if (job->format == INT4) return job->scale + r * job->scale_row;
    if (job->format == FP8) return job->scale + (job->first_row + r) / 128 * job->scale_row;
    return NULL;
}

#define NAME(x) x##_portable
#define ISA 0
#if defined(__aarch64__)
#define PATH_NAME "neon"
#else
#define PATH_NAME "portable"
#endif
#include "lanes.h"
#include "linear.h"
#include "attend.h"
#undef NAME
#undef ISA
#undef PATH_NAME

#if defined(__x86_64__)
#define PRAGMA(x) _Pragma(#x)
#if defined(__clang__)
#define TARGET(features) \
    PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define TARGET_END _Pragma("clang attribute pop")
#else
#define TARGET(features) _Pragma("GCC push_options") PRAGMA(GCC target(features))
#define TARGET_END _Pragma("GCC pop_options")
#endif

TARGET("avx2,fma")
#define NAME(x) x##_avx2
#define ISA 256
#define PATH_NAME "avx2"
#include "lanes.h"
#include "linear.h"
#include "attend.h"
#undef NAME
#undef ISA
#undef PATH_NAME
TARGET_END

TARGET("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")
#define NAME(x) x##_avx512
#define ISA 512
#define PATH_NAME "avx512"
#include "lanes.h"
#include "linear.h"
#include "attend.h"
#undef NAME
#undef ISA
#undef PATH_NAME
TARGET_END
#include "vnni/digits.h"
#include "vnni/linear.h"
#endif
#if defined(HAS_TILES)
#include "amx/tiles.h"
#include "amx/attend.h"
#include "amx/integers.h"
#include "amx/linear.h"
#endif

/* The path of this name if this machine can run it; NULL asks for the fastest. */
static const Path *find_path(const char *name) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    int avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    int avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                 __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    int vnni = avx512 && __builtin_cpu_supports("avx512vnni");
#if defined(HAS_TILES)
    if (vnni && (!name || !strcmp(name, "amx")) && tiles_allowed()) return &path_amx;
#endif
    if (vnni && (!name || !strcmp(name, "vnni"))) return &path_vnni;
    if (avx512 && (!name || !strcmp(name, "avx512"))) return &path_avx512;
    if (avx2 && (!name || !strcmp(name, "avx2"))) return &path_avx2;
#endif
    if (!name || !strcmp(name, path_portable.name)) return &path_portable;
    return NULL;
}

static float *aligned_floats(long n) {
    void *memory = NULL;
    return posix_memalign(&memory, 64, n * sizeof(float)) ? NULL : memory;
}

/* Rows (or columns) that a thread takes at a time: one batch of rows for many tokens, for one about
 * a megabyte of weights, since each beginning is a wait for memory. */
static long rows_per_unit(const Path *path, const Job *job) {
    if (job->transposed) return COLUMNS;
    if (job->T > 1) return path->many_rows;
    long rows = (1 << 20) / (job->row_bytes + 1) / 32 * 32;
    return rows < 32 ? 32 : rows;
}

static long units_of(const Path *path, const Job *job) {
    long step = rows_per_unit(path, job);
    return ((job->transposed ? job->columns : job->rows) + step - 1) / step;
}

/* Waking a thread costs microseconds, and waiting for one on a busy machine far more: each should
 * have some 2^20 multiply-adds to do. */
static int threads_for(double n_products, int threads) {
    double worth = 1 + n_products / (1 << 20);
    return worth < threads ? (int)worth : threads;
}

/* Run all jobs in one parallel region. Jobs that share x and its order share one arrangement.
 * Returns 0, or -1 when memory for the arrangements cannot be had. */
static int run_linear(const Path *path, Job *jobs, long n_jobs, int threads) {
    long n_units = 0, *first = malloc((n_jobs + 1) * sizeof *first), failed = !first;
    double n_products = 0;
    for (long j = 0; j < n_jobs && !failed; j++) {
        Job *job = &jobs[j], *last = j ? job - 1 : NULL;
        first[j] = n_units, n_units += units_of(path, job), job->arranged = NULL;
        n_products += (double)job->rows * job->columns * job->T;
        if (job->transposed) continue;
        if (last && !last->transposed && last->x == job->x && last->T == job->T &&
            last->columns == job->columns && last->x_stride == job->x_stride &&
            last->format == job->format) { /* each has its own order */
            job->arranged = last->arranged;
            continue;
        }
        job->arranged = aligned_floats(path->arranged_floats(job));
        failed = !job->arranged;
        int arrangers = threads_for((double)job->T * job->columns * 16, threads);
        (void)arrangers; /* without OpenMP */
#pragma omp parallel for num_threads(arrangers) if (arrangers > 1)
        for (long t = 0; t < (failed ? 0 : job->T); t++) path->arrange(job, t);
    }
    if (!failed) {
        first[n_jobs] = n_units;
        threads = threads_for(n_products, threads);
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) if (threads > 1)
        for (long u = 0; u < n_units; u++) {
            long low = 0, high = n_jobs; /* the job whose units include u */
            while (high - low > 1) {
                long middle = (low + high) / 2;
                if (first[middle] <= u) low = middle; else high = middle;
            }
            const Job *job = &jobs[low];
            long step = rows_per_unit(path, job), r = (u - first[low]) * step;
            long n = (job->transposed ? job->columns : job->rows) - r;
            (job->transposed ? path->linear_columns : path->linear_rows)(job, r, n < step ? n : step);
        }
    }
    for (long j = 0; j < n_jobs && first; j++) {
        if (failed && !jobs[j].arranged) break;
        if (jobs[j].arranged && (j == 0 || jobs[j].arranged != jobs[j - 1].arranged))
            free(jobs[j].arranged);
    }
    free(first);
    return failed ? -1 : 0;
}

/* Attention of T tokens. Many tokens: a thread takes a token's heads and walks the spans. Few: it
 * takes one span of one token; after every `wave` of spans their states are merged into the first,
 * each thread some heads. The merges are the same, from left to right. */
static int run_attention(const Path *path, const Attention *a, int threads) {
    long groups = (a->H + HEADS - 1) / HEADS, rows = a->T * groups;
    long n_spans = (a->start + a->T + SPAN - 1) / SPAN, scratch_floats = path->span_floats(a);
    threads = threads_for((double)a->T * a->H * (a->start + a->T) * 2 * a->width, threads);
    int few = rows < 4 * threads, failed = 0;
    long wave = threads > 8 ? 8 * threads : 64, slots = n_spans < wave + 1 ? n_spans : wave + 1;
    float *states = few ? aligned_floats(rows * slots * STATE(a)) : NULL;
    if (few && !states) return -1;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        float *scratch = aligned_floats(scratch_floats + 2 * STATE(a));
        if (!scratch) {
#pragma omp atomic write
            failed = 1;
        }
#pragma omp barrier
        for (long base = 0; few && !failed && base < n_spans; base += wave) {
#pragma omp for schedule(dynamic, 1)
            for (long u = 0; u < rows * slots; u++) {
                long row = u / slots, slot = u % slots, t = row / groups;
                if ((slot || !base) && base + slot <= (a->start + t) / SPAN)
                    path->attend_span(a, t, row % groups * HEADS, base + slot,
                                      states + u * STATE(a), scratch);
            }
#pragma omp for schedule(static)
            for (long u = 0; u < rows * HEADS; u += MERGED) {
                long row = u / HEADS, last = (a->start + row / groups) / SPAN - base;
                long left = a->H - row % groups * HEADS - u % HEADS;
                float *total = states + row * slots * STATE(a);
                for (long slot = 1; slot < slots && slot <= last && left > 0; slot++)
                    path->attend_merge(a, total, total + slot * STATE(a), u % HEADS,
                                       left < MERGED ? left : MERGED);
            }
        }
#pragma omp for schedule(dynamic, 1)
        for (long row = 0; row < rows; row++) {
            long t = row / groups, head = row % groups * HEADS;
            float *total = scratch + scratch_floats, *state = total + STATE(a);
            if (failed) continue;
            if (few) total = states + row * slots * STATE(a);
            else path->attend_span(a, t, head, 0, total, scratch);
            for (long s = 1; !few && s <= (a->start + t) / SPAN; s++) {
                path->attend_span(a, t, head, s, state, scratch);
                path->attend_merge(a, total, state, 0, a->H - head < HEADS ? a->H - head : HEADS);
            }
            path->attend_finish(a, t, head, total);
        }
        free(scratch);
    }
    free(states);
    return failed ? -1 : 0;
}

/* The limits of the machine, for scripts/bench.py. */
static void run_fma(const Path *path, long n, int threads) {
    volatile float sink = 0;
#pragma omp parallel for schedule(static, 1) num_threads(threads)
    for (int i = 0; i < threads; i++) sink = path->fma_rounds(n);
    (void)sink;
}

static void run_read(const Path *path, const char *data, long n, int threads) {
    volatile long sink = 0;
    long piece = 1 << 20, n_pieces = n / piece;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
    for (long i = 0; i < n_pieces; i++) sink = path->read_bytes(data + i * piece, piece);
    (void)sink;
}
