# cython: language_level=3, boundscheck=False, wraparound=False
"""The hot loops: thin checked doors to the kernels in kernels/, without the interpreter lock.

Every function here has a plain twin in NumPy, named in its docstring, and is held equal to it by the
tests.

Chapter 14.
"""

import os

cimport numpy as cnp
from libc.stdlib cimport free, malloc

cnp.import_array()

cdef extern from "kernels/paths.h" nogil:
    ctypedef struct Path:
        const char *name
        void (*silu_mul)(const float *, const float *, float *, long) noexcept nogil
        void (*rms_norm_row)(const float *, const float *, float *, long, float) noexcept nogil
        int fmas_per_round
    ctypedef struct Job:
        int format, transposed, bits
        long rows, columns, T, first_row, scale_row, block, n_blocks, row_bytes
        const char *weight
        const char *scale
        const float *x
        float *y
        long x_stride, y_stride
    ctypedef struct Attention:
        long T, H, C, start, width, latents
        float scale
        const float *q
        const float *cache
        float *out
    const int BITS[4]
    const Path *find_path(const char *name)
    int run_linear(const Path *path, Job *jobs, long n_jobs, int threads)
    int run_attention(const Path *path, const Attention *a, int threads)
    void run_fma(const Path *path, long n, int threads)
    void run_read(const Path *path, const char *data, long n, int threads)

cdef extern from *:
    """
    #ifdef _OPENMP
    #define HAS_OPENMP 1
    #else
    #define HAS_OPENMP 0
    #endif
    #if defined(_OPENMP) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 9
    #include <omp.h>
    #define let_threads_go() omp_pause_resource_all(omp_pause_hard)
    #else /* clang's runtime minds forks by itself */
    #define let_threads_go() 0
    #endif
    """
    const int HAS_OPENMP
    int let_threads_go()

cdef const Path *path = find_path(NULL)
has_openmp = bool(HAS_OPENMP)
FORMATS = {"Int4": 0, "Fp8": 1, "Bf16": 2, "F32": 3}


def before_fork():
    """End the threads of the calling thread's parallel regions; the next region starts new ones."""
    # Trap: a fork has none of the threads that GCC's OpenMP keeps, and waits for them for ever.
    # https://github.com/facebookresearch/faiss/issues/5206
    let_threads_go()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=before_fork)


def use_path(name):
    """Choose amx, vnni, avx512, avx2, neon or portable by name; None for the fastest there is.

    Raises: ValueError when this machine, or this build, cannot run it.
    """
    global path
    cdef bytes wanted = b"" if name is None else name.encode()
    cdef const Path *found = find_path(NULL if name is None else <const char *>wanted)
    if found == NULL:
        raise ValueError(f"K2REF_KERNELS: this machine has no kernels named {name!r}; "
                         f"leave it unset for {(<bytes>find_path(NULL).name).decode()!r}")
    path = found


def path_name():
    """Return the name of the instruction set in use."""
    return (<bytes>path.name).decode()


cdef float *floats(cnp.ndarray a, str what, int ndim, bint write=False) except NULL:
    """Check that `a` is float32 with a contiguous last axis, and return its data."""
    if cnp.PyArray_TYPE(a) != cnp.NPY_FLOAT32 or a.ndim != ndim or not cnp.PyArray_ISALIGNED(a):
        raise TypeError(f"{what}: expected {ndim}-d aligned float32, found {a.ndim}-d {a.dtype}")
    if a.size > 0 and a.shape[ndim - 1] > 1 and a.strides[ndim - 1] != 4:
        raise ValueError(f"{what}: expected a contiguous last axis, found strides "
                         f"{(<object>a).strides}")
    if write and not cnp.PyArray_ISWRITEABLE(a):
        raise ValueError(f"{what}: expected a writeable array")
    return <float *>cnp.PyArray_DATA(a)


cdef int fill(Job *job, tuple spec) except -1:
    """Describe one product (x, weight, y, transposed) to C, checking every shape."""
    cdef cnp.ndarray x, y, data, scale
    x, weight, y, transposed = spec
    cdef long n_in, n_out
    job.format = FORMATS[type(weight).__name__]
    job.transposed, job.bits = transposed, BITS[job.format]
    job.rows, job.columns = weight.shape
    n_in, n_out = (job.rows, job.columns) if transposed else (job.columns, job.rows)
    job.x, job.y = floats(x, "x", 2), floats(y, "y", 2, True)
    if x.shape[1] != n_in or y.shape[0] != x.shape[0] or y.shape[1] != n_out:
        raise ValueError(f"linear: a weight of shape {weight.shape} takes x (T, {n_in}) to "
                         f"(T, {n_out}), found {(<object>x).shape} to {(<object>y).shape}")
    if transposed and job.format == 0:
        raise TypeError("linear: an INT4 weight cannot be applied transposed")
    data, other = weight.arrays
    job.T = x.shape[0]
    job.x_stride, job.y_stride = x.strides[0] // 4, y.strides[0] // 4
    job.weight = <const char *>cnp.PyArray_DATA(data)
    job.row_bytes = job.columns * job.bits // 8
    job.block = 128 if job.format == 1 else 512
    job.n_blocks = (job.columns + job.block - 1) // job.block
    job.scale, job.first_row, job.scale_row = NULL, 0, 0
    if other is not None:
        scale = other
        job.scale = <const char *>cnp.PyArray_DATA(scale)
        job.scale_row = scale.strides[0]
        job.first_row = getattr(weight, "first_row", 0)
    return 0


def linear(list products, int threads):
    """Run products `(x, weight, y, transposed)` in one parallel region, writing each y.

    x float32 (T, I), y float32 (T, O); transposed: (T, O) to (T, I). Twin: ops.linear_numpy.
    Raises: TypeError, ValueError for a wrong dtype, shape or layout; MemoryError.
    """
    cdef long n = 0, i, n_products = len(products)
    cdef int failed
    cdef Job *jobs = <Job *>malloc((n_products + 1) * sizeof(Job))
    if jobs == NULL:
        raise MemoryError("linear: no memory for the list of products")
    try:
        for i in range(n_products):
            fill(&jobs[n], products[i])
            if jobs[n].T and jobs[n].rows and jobs[n].columns:
                n += 1
            else:
                products[i][2][...] = 0
        with nogil:
            failed = run_linear(path, jobs, n, threads)
        if failed:
            raise MemoryError("linear: no memory for the rearranged activations")
    finally:
        free(jobs)


def attend(cnp.ndarray q, cnp.ndarray cache, cnp.ndarray out, long start, float scale, int threads):
    """Attend T queries at positions start.. over the cache: softmax(scale q.k) c, causal.

    q (T, H, width), cache (capacity, width), out (T, H, C); capacity a multiple of 256 and at least
    start + T. Twin: attention.attend_numpy.
    Raises: TypeError, ValueError for a wrong dtype, shape or layout; MemoryError.
    """
    cdef Attention a
    cdef int failed
    a.q, a.cache, a.out = floats(q, "q", 3), floats(cache, "cache", 2), floats(out, "out", 3, True)
    a.T, a.H, a.C, a.width = q.shape[0], q.shape[1], out.shape[2], q.shape[2]
    a.start, a.scale, a.latents = start, scale, (a.C + 15) // 16 * 16
    if not (cnp.PyArray_IS_C_CONTIGUOUS(q) and cnp.PyArray_IS_C_CONTIGUOUS(cache)
            and cnp.PyArray_IS_C_CONTIGUOUS(out)):
        raise ValueError("attend: expected C-contiguous q, cache and out")
    if (a.width % 16 or cache.shape[1] != a.width or cache.shape[0] % 256 or a.latents > a.width
            or start < 0 or cache.shape[0] < start + a.T
            or out.shape[0] != a.T or out.shape[1] != a.H):
        raise ValueError(f"attend: q {(<object>q).shape}, cache {(<object>cache).shape} and out "
                         f"{(<object>out).shape} do not fit together at position {start}")
    if a.T and a.H:
        with nogil:
            failed = run_attention(path, &a, threads)
        if failed:
            raise MemoryError("attend: no memory for the states of the heads")


def silu_mul(cnp.ndarray gate, cnp.ndarray up, cnp.ndarray out):
    """Write silu(gate) * up, elementwise; all (T, F), contiguous. Twin: ops.silu."""
    cdef float *g = floats(gate, "gate", 2)
    cdef float *u = floats(up, "up", 2)
    cdef float *o = floats(out, "out", 2, True)
    cdef long n = gate.size
    if not (cnp.PyArray_IS_C_CONTIGUOUS(gate) and cnp.PyArray_IS_C_CONTIGUOUS(up)
            and cnp.PyArray_IS_C_CONTIGUOUS(out) and n == up.size == out.size):
        raise ValueError("silu_mul: expected three contiguous arrays of one size")
    with nogil:
        path.silu_mul(g, u, o, n)


def rms_norm(cnp.ndarray x, cnp.ndarray weight, cnp.ndarray out, float eps):
    """Write RMSNorm of each row of x (T, D). Twin: ops.rms_norm_numpy."""
    cdef float *a = floats(x, "x", 2)
    cdef float *w = floats(weight, "weight", 1)
    cdef float *o = floats(out, "out", 2, True)
    cdef long t, T = x.shape[0], D = x.shape[1]
    if weight.shape[0] != D or out.shape[0] != T or out.shape[1] != D:
        raise ValueError(f"rms_norm: x {(<object>x).shape} needs weight ({D},) and out of its "
                         f"shape, found {(<object>weight).shape}, {(<object>out).shape}")
    with nogil:
        for t in range(T):
            path.rms_norm_row(a + t * (x.strides[0] // 4), w, o + t * (out.strides[0] // 4), D, eps)


def rotate(cnp.ndarray x, cnp.ndarray cos, cnp.ndarray sin, cnp.ndarray out):
    """Write x (T, H, R) or (T, R), each pair turned by its angle. Twin: rope.rotate_numpy."""
    cdef bint heads = x.ndim == 3
    cdef float *a = floats(x, "x", 3 if heads else 2)
    cdef float *c = floats(cos, "cos", 2)
    cdef float *s = floats(sin, "sin", 2)
    cdef float *o = floats(out, "out", x.ndim, True)
    cdef float *pairs
    cdef long T = x.shape[0], H = x.shape[1] if heads else 1, half = cos.shape[1], t, h, j
    cdef long token = x.strides[0] // 4, head = x.strides[1] // 4 if heads else 0
    if not (cnp.PyArray_IS_C_CONTIGUOUS(cos) and cnp.PyArray_IS_C_CONTIGUOUS(sin)
            and cnp.PyArray_IS_C_CONTIGUOUS(out) and cos.shape[0] == sin.shape[0] == T
            and sin.shape[1] == half and x.shape[x.ndim - 1] == 2 * half
            and (<object>out).shape == (<object>x).shape):
        raise ValueError(f"rotate: x {(<object>x).shape}, out {(<object>out).shape}, cos "
                         f"{(<object>cos).shape}, sin {(<object>sin).shape} do not fit together")
    with nogil:
        for t in range(T):
            for h in range(H):
                pairs = a + t * token + h * head
                for j in range(half):
                    o[j] = pairs[2 * j] * c[j] - pairs[2 * j + 1] * s[j]
                    o[half + j] = pairs[2 * j + 1] * c[j] + pairs[2 * j] * s[j]
                o += 2 * half
            c, s = c + half, s + half


def weighted_sum(cnp.ndarray weights, list rows, cnp.ndarray out):
    """Write out[t], the sum of weights[t, k] rows[t K + k], k after k.

    weights (T, K), T K rows (D,), out (T, D). Twin: ops.weighted_sum_numpy.
    """
    cdef float *w = floats(weights, "weights", 2)
    cdef float *o = floats(out, "out", 2, True)
    cdef float *row
    cdef long T = weights.shape[0], K = weights.shape[1], D = out.shape[1], t, k, d
    if not (cnp.PyArray_IS_C_CONTIGUOUS(weights) and cnp.PyArray_IS_C_CONTIGUOUS(out)
            and out.shape[0] == T and K > 0 and len(rows) == T * K
            and all([r.shape == (D,) for r in rows])):
        raise ValueError(f"weighted_sum: weights {(<object>weights).shape}, {len(rows)} rows and "
                         f"out {(<object>out).shape} do not fit together")
    for t in range(T):
        for k in range(K):
            row = floats(rows[t * K + k], "row", 1)
            with nogil:
                if k == 0:
                    for d in range(D):
                        o[d] = w[0] * row[d]
                else:
                    for d in range(D):
                        o[d] += w[k] * row[d]
        o, w = o + D, w + K


def multiply_adds(long n_rounds, int threads):
    """Do nothing but multiply-adds, from registers; return how many there were, over all threads."""
    with nogil:
        run_fma(path, n_rounds, threads)
    return n_rounds * path.fmas_per_round * threads


def read_all(cnp.ndarray data, int threads):
    """Do nothing but read an array; return the bytes read (whole MiB)."""
    if not cnp.PyArray_IS_C_CONTIGUOUS(data):
        raise ValueError("read_all: expected a contiguous array")
    cdef const char *start = <const char *>cnp.PyArray_DATA(data)
    cdef long n = data.nbytes
    with nogil:
        run_read(path, start, n, threads)
    return n // (1 << 20) * (1 << 20)
