/* Products of few rows with bfloat16 weights, for processors with AMX.

   A weight (N, K) is stored as panels of 32 outputs. A panel is K / 32 pairs of tiles, each (16 input pairs, 16
   outputs, 2 inputs), and is read once from start to end. N is padded with zeros to a multiple of 32. */

#include "vectors.h"

#if defined(__AMX_BF16__) && defined(__AVX512BF16__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>

#define PANEL 32
#define AHEAD 4096 /* bytes of prefetch: on its own the processor does not prefetch beyond a page */

/* Whether this process may use the tiles. */
int togi_products(void) { return syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* tile data */) == 0; }

void togi_pack(const uint16_t *weight, uint16_t *packed, int64_t N, int64_t K) {
#pragma omp parallel for schedule(static)
    for (int64_t n = 0; n < (N + PANEL - 1) / PANEL; n++)
        for (int64_t k = 0; k < K; k += 32)
            for (int tile = 0; tile < 2; tile++)
                for (int pair = 0; pair < 16; pair++)
                    for (int column = 0; column < 16; column++) {
                        int64_t row = n * PANEL + tile * 16 + column;
                        uint16_t *to = packed + n * PANEL * K + k * PANEL + tile * 512 + pair * 32 + column * 2;
                        memset(to, 0, 4);
                        if (row < N) memcpy(to, weight + row * K + k + pair * 2, 4);
                    }
}

/* Tiles 0 to 3: sums of twice 16 rows; 4 and 5: inputs; 6 and 7: weights. */
static void configure(int upper, int lower) {
    struct { uint8_t palette, start, reserved[14]; uint16_t bytes[16]; uint8_t rows[16]; } tiles = {.palette = 1};
    const int rows[8] = {upper, upper, lower, lower, upper, lower, 16, 16};
    for (int i = 0; i < 8; i++) {
        tiles.bytes[i] = 64;
        tiles.rows[i] = rows[i] ? rows[i] : 1;
    }
    FENCE;
    _tile_loadconfig(&tiles);
}

/* y = x weight' + bias for x (M, K), with K a multiple of 32; null: no bias. */
void togi_linear(const uint16_t *x, const uint16_t *packed, const uint16_t *bias, uint16_t *y, int64_t M, int64_t N,
                 int64_t K) {
#pragma omp parallel
    {
        float sums[PANEL][PANEL] __attribute__((aligned(64)));
        int configured = 0;
#pragma omp for schedule(static)
        for (int64_t n = 0; n < (N + PANEL - 1) / PANEL; n++) {
            const __mmask32 columns = N - n * PANEL >= PANEL ? 0xffffffff : (1u << (N - n * PANEL)) - 1;
            __m512 low_bias = _mm512_setzero_ps(), high_bias = low_bias;
            if (bias) {
                __m512i found = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(columns, bias + n * PANEL));
                low_bias = _mm512_castsi512_ps(_mm512_slli_epi32(found, 16));
                found = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(columns >> 16, bias + n * PANEL + 16));
                high_bias = _mm512_castsi512_ps(_mm512_slli_epi32(found, 16));
            }
            for (int64_t m = 0; m < M; m += PANEL) {
                const int rows = M - m < PANEL ? M - m : PANEL, upper = rows < 16 ? rows : 16, lower = rows - upper;
                const uint16_t *from = packed + n * PANEL * K, *inputs = x + m * K;
                if (configured != rows) configure(upper, lower);
                configured = rows;
                _tile_zero(0);
                _tile_zero(1);
                _tile_zero(2);
                _tile_zero(3);
                for (int64_t k = 0; k < K; k += 32, from += 1024) {
                    for (int line = 0; line < 32; line++)
                        _mm_prefetch((const char *)from + AHEAD + 64 * line, _MM_HINT_T0);
                    _tile_loadd(4, inputs + k, K * 2);
                    _tile_loadd(6, from, 64);
                    _tile_loadd(7, from + 512, 64);
                    _tile_dpbf16ps(0, 4, 6);
                    _tile_dpbf16ps(1, 4, 7);
                    if (lower) {
                        _tile_loadd(5, inputs + 16 * K + k, K * 2);
                        _tile_dpbf16ps(2, 5, 6);
                        _tile_dpbf16ps(3, 5, 7);
                    }
                }
                _tile_stored(0, sums[0], 128);
                _tile_stored(1, sums[0] + 16, 128);
                if (lower) {
                    _tile_stored(2, sums[16], 128);
                    _tile_stored(3, sums[16] + 16, 128);
                }
                for (int row = 0; row < rows; row++) {
                    __m512 low = _mm512_add_ps(_mm512_load_ps(sums[row]), low_bias);
                    __m512 high = _mm512_add_ps(_mm512_load_ps(sums[row] + 16), high_bias);
                    _mm512_mask_storeu_epi16(y + (m + row) * N + n * PANEL, columns,
                                             (__m512i)_mm512_cvtne2ps_pbh(high, low));
                }
            }
        }
        if (configured) _tile_release();
    }
}

#else

int togi_products(void) { return 0; }

#endif
