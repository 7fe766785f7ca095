/* Run the kernels without Python, so that a cross compiler and an emulator can have them.
 *
 *   kernel_driver PATH THREADS CASES RESULTS
 *
 * CASES is what tests/native/kernel_cases.py writes: for each case eight 64-bit numbers (kind, then sizes)
 * and its arrays. RESULTS are the float32 results, one after another. All of it is little-endian.
 */

#include "../../k2ref/kernels/paths.h"

#include <stdio.h>

enum { LINEAR, ATTEND, SILU_MUL, RMS_NORM };

/* n bytes of the file, at an address that is a multiple of `unit` and of nothing more, as a tensor in
 * a memory map may be; they end where the allocation ends, so that a sanitizer sees a byte too far. */
static void *take(FILE *file, long n, long unit) {
    char *memory = (char *)malloc(n + unit) + unit;
    if (fread(memory, 1, n, file) != (size_t)n) {
        fprintf(stderr, "kernel_driver: the cases end too early\n");
        exit(2);
    }
    return memory;
}

static float *linear_case(const Path *path, int threads, FILE *file, const int64_t *size, long *n) {
    Job job = {.format = size[0], .transposed = size[1], .rows = size[2], .columns = size[3]};
    job.T = size[4], job.first_row = size[5], job.scale_row = size[6];
    job.bits = BITS[job.format], job.row_bytes = job.columns * job.bits / 8;
    job.block = job.format == FP8 ? 128 : 512;
    job.n_blocks = (job.columns + job.block - 1) / job.block;
    job.x_stride = job.transposed ? job.rows : job.columns;
    job.y_stride = job.transposed ? job.columns : job.rows;
    long scale_rows = job.format == INT4 ? job.rows
                      : job.format == FP8 ? (job.first_row + job.rows + 127) / 128 : 0;
    job.weight = take(file, job.rows * job.row_bytes, job.format == INT4 ? 4 : job.bits / 8);
    job.scale = take(file, scale_rows * job.scale_row, job.format == FP8 ? 4 : 2);
    job.x = take(file, job.T * job.x_stride * 4, 4);
    *n = job.T * job.y_stride;
    job.y = aligned_floats(*n);
    return run_linear(path, &job, 1, threads) ? NULL : job.y;
}

static float *attend_case(const Path *path, int threads, FILE *file, const int64_t *size, long *n) {
    Attention a = {.T = size[0], .H = size[1], .C = size[2], .start = size[3], .width = size[4]};
    long cache_rows = (a.start + a.T + KEYS - 1) / KEYS * KEYS;
    a.latents = (a.C + 15) / 16 * 16, a.scale = size[5] / 1024.0f;
    a.q = take(file, a.T * a.H * a.width * 4, 4);
    a.cache = take(file, cache_rows * a.width * 4, 4);
    *n = a.T * a.H * a.C;
    a.out = aligned_floats(*n);
    return run_attention(path, &a, threads) ? NULL : a.out;
}

static float *rows_case(const Path *path, int kind, FILE *file, const int64_t *size, long *n) {
    long T = size[0], D = size[1];
    float *x = take(file, T * D * 4, 4), *w = take(file, (kind == SILU_MUL ? T : 1) * D * 4, 4);
    float *y = aligned_floats(*n = T * D);
    if (kind == SILU_MUL) path->silu_mul(x, w, y, T * D);
    else
        for (long t = 0; t < T; t++) path->rms_norm_row(x + t * D, w, y + t * D, D, 1e-5f);
    return y;
}

int main(int argc, char **argv) {
    const Path *path = argc == 5 ? find_path(argv[1]) : NULL;
    if (!path) {
        fprintf(stderr, "kernel_driver: no such path here; expected PATH THREADS CASES RESULTS\n");
        return 2;
    }
    FILE *cases = fopen(argv[3], "rb"), *results = fopen(argv[4], "wb");
    if (!cases || !results) {
        perror("kernel_driver");
        return 2;
    }
    int64_t size[8];
    int threads = atoi(argv[2]);
    while (fread(size, sizeof size, 1, cases) == 1) { /* memory is never given back: it ends soon */
        long n = 0;
        float *y = size[0] == LINEAR   ? linear_case(path, threads, cases, size + 1, &n)
                   : size[0] == ATTEND ? attend_case(path, threads, cases, size + 1, &n)
                                       : rows_case(path, size[0], cases, size + 1, &n);
        if (!y || fwrite(y, sizeof *y, n, results) != (size_t)n) return 2;
    }
    return fclose(results) ? 2 : 0;
}
