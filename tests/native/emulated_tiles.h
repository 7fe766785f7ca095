/* The tile instructions in plain C, in the place of those of amx/tiles.h: for machines without
 * tiles, and so that a sanitizer sees what they load and store.
 *
 * A product of BF16 rounds here in the order of its columns, by multiply-adds; the instruction keeps
 * another order and takes denormal numbers for zero. Products of bytes are exact in both.
 *
 * Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2, TILELOADD,
 * TILESTORED, TDPBF16PS, TDPBSSD.
 */

static int tiles_allowed(void) { return 1; }

static __thread TileShapes emulated_shapes;
static __thread uint8_t emulated_tile[8][TILE][64];

static inline void shape_tiles(const TileShapes *shapes) { emulated_shapes = *shapes; }
static inline void tiles_end(void) { memset(&emulated_shapes, 0, sizeof emulated_shapes); }

static void emulated_load(int tile, const void *from, long stride) {
    memset(emulated_tile[tile], 0, TILE_BYTES);
    for (int r = 0; r < emulated_shapes.rows[tile]; r++)
        memcpy(emulated_tile[tile][r], (const char *)from + r * stride,
               emulated_shapes.row_bytes[tile]);
}

static void emulated_store(void *to, long stride, int tile) {
    for (int r = 0; r < emulated_shapes.rows[tile]; r++)
        memcpy((char *)to + r * stride, emulated_tile[tile][r], emulated_shapes.row_bytes[tile]);
}

/* What is only arithmetic on the tiles above is left to the compiler alone: a sanitizer makes one call
 * of the kernel take minutes, and looks at loads and stores of tiles all the same. */
#define ARITHMETIC __attribute__((no_sanitize("address", "undefined")))

ARITHMETIC static inline float emulated_bf16(const uint8_t *at) {
    uint8_t bytes[4] = {0, 0, at[0], at[1]};
    float value;
    memcpy(&value, bytes, sizeof value);
    return value;
}

/* c += a b: words of a's rows meet rows of b, in each two numbers or four bytes. */
ARITHMETIC static void emulated_multiply(int c, int a, int b, int is_bytes) {
    for (int m = 0; m < emulated_shapes.rows[c]; m++)
        for (int k = 0; k < emulated_shapes.row_bytes[a] / 4; k++)
            for (int n = 0; n < emulated_shapes.row_bytes[c] / 4; n++) {
                uint8_t *sum = &emulated_tile[c][m][4 * n];
                const uint8_t *x = &emulated_tile[a][m][4 * k], *y = &emulated_tile[b][k][4 * n];
                if (is_bytes) {
                    int32_t total;
                    memcpy(&total, sum, sizeof total);
                    for (int i = 0; i < 4; i++) total += (int8_t)x[i] * (int8_t)y[i];
                    memcpy(sum, &total, sizeof total);
                } else {
                    float total;
                    memcpy(&total, sum, sizeof total);
                    for (int i = 0; i < 4; i += 2)
                        total += emulated_bf16(x + i) * emulated_bf16(y + i);
                    memcpy(sum, &total, sizeof total);
                }
            }
}

#define TILE_LOAD(tile, from, stride) emulated_load(tile, from, stride)
#define TILE_STORE(to, stride, tile) emulated_store(to, stride, tile)
#define TILE_ZERO(tile) memset(emulated_tile[tile], 0, TILE_BYTES)
#define TILE_MULTIPLY(c, a, b) emulated_multiply(c, a, b, 0)
#define TILE_MULTIPLY_BYTES(c, a, b) emulated_multiply(c, a, b, 1)
