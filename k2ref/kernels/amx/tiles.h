/* Matrix tiles (AMX): what the kernels that use them share.
 *
 * One instruction (TDPBF16PS) adds to a tile C of 16x16 floats the product of A, 16 rows of 32 BF16
 * numbers, and B, 32 rows of 16: C[m][n] += sum over k of A[m][k] B[k][n]. It takes the time of 17
 * multiply-adds of AVX-512 that do as much. In memory B is read by pairs of rows: B[2 i][n] and
 * B[2 i + 1][n] are neighbours.
 *
 * BF16 has 8 significant bits, a float 24: so a float is exactly the sum of three BF16 numbers, and
 * three products with weights that BF16 can hold lose nothing. What gets lost is a term below
 * 2^-126: tiles take denormal numbers for zero.
 */

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#define TILE 16          /* rows of a tile, and floats in a row of it */
#define TILE_BYTES 1024  /* 16 rows of 64 bytes */

typedef struct { /* what LDTILECFG reads */
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} TileShapes;

#define TILES_TARGET \
    "amx-tile,amx-bf16,amx-int8,avx512vnni,avx512f,avx512bw,avx512vl,avx512dq,avx2,fma"
TARGET(TILES_TARGET)

#if defined(EMULATED_TILES) /* the name of a file: scripts/checks/sanitizers.sh */
#include EMULATED_TILES
#else

/* Whether the processor has tiles of BF16 and of bytes, and the system lets this process
 * use them: the state of tiles is large (8 KB a thread), so Linux wants to be asked. */
static int tiles_allowed(void) {
    unsigned a, b, c, d = 0, bf16_tile_bytes = 1 << 22 | 1 << 24 | 1 << 25;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return 0;
    if ((d & bf16_tile_bytes) != bf16_tile_bytes) return 0;
    return syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* tile data */) == 0;
}

/* Every thread says which shapes it wants before it touches a tile, and lets go of them afterwards:
 * tiles in use make each switch of threads slower. */
INLINE void shape_tiles(const TileShapes *shapes) {
    __asm__ volatile("ldtilecfg %0" : : "m"(*shapes));
}

INLINE void tiles_end(void) { __asm__ volatile("tilerelease"); }

/* The instructions, on tiles 0..7 by number. Not by the intrinsics: GCC's do not say that they read
 * memory, and it then leaves out what was written there. `stride`: bytes from row to row. */
#define TILE_LOAD(tile, from, stride) \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #tile \
                     : : "r"(from), "r"((long)(stride)) : "memory")
#define TILE_STORE(to, stride, tile) \
    __asm__ volatile("tilestored %%tmm" #tile ", (%0,%1,1)" \
                     : : "r"(to), "r"((long)(stride)) : "memory")
#define TILE_ZERO(tile) __asm__ volatile("tilezero %%tmm" #tile ::)
#define TILE_MULTIPLY(c, a, b) /* c += a b */ \
    __asm__ volatile("tdpbf16ps %%tmm" #b ", %%tmm" #a ", %%tmm" #c ::)
#define TILE_MULTIPLY_BYTES(c, a, b) /* the same of signed bytes, fours of them for pairs */ \
    __asm__ volatile("tdpbssd %%tmm" #b ", %%tmm" #a ", %%tmm" #c ::)

#endif

/* The common case: `rows[i]` rows in tile i, all of 64 bytes. */
INLINE void tiles_begin(const uint8_t rows[8]) {
    TileShapes shapes = {.palette = 1};
    for (int i = 0; i < 8; i++) shapes.row_bytes[i] = 64, shapes.rows[i] = rows[i];
    shape_tiles(&shapes);
}

/* The three terms of sixteen floats, largest first, each in the upper half of a float: cut off, not
 * rounded, so that all have the sign of x. Infinity is its own first term, the others zero; a NaN
 * stays one. */
INLINE void split(__m512 x, __m512 term[3]) {
    const __m512i upper = _mm512_set1_epi32((int)0xffff0000);
    __mmask16 finite = _mm512_cmp_ps_mask(_mm512_abs_ps(x), _mm512_set1_ps(INFINITY), _CMP_NEQ_UQ);
    term[0] = (__m512)_mm512_and_si512((__m512i)x, upper);
    __m512 rest = _mm512_maskz_sub_ps(finite, x, term[0]);
    term[1] = (__m512)_mm512_and_si512((__m512i)rest, upper);
    term[2] = _mm512_maskz_sub_ps(finite, rest, term[1]);
}

/* Sixteen terms as BF16: the upper halves. */
INLINE __m256i halves(__m512 term) {
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32((__m512i)term, 16));
}

TARGET_END
