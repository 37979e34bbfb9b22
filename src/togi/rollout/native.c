/* Decoding on CPU: attention of one new token a row, products of few rows with bfloat16 weights, norms and gates.

   Compiled for this processor when it is first used (native.py), and called with addresses of torch's tensors. Every
   number is computed by one thread and in one order, whatever the number of rows and threads.

   R rows, G groups, K key heads, M query heads a key head, D head size, P prompt columns, S own columns. */

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <omp.h>
#if defined(__AMX_BF16__) && defined(__AVX512BF16__) && defined(__linux__)
#define PRODUCTS
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#define INLINE static inline __attribute__((always_inline))
#define BLOCK 16  /* keys lie in blocks of 16 columns, (D, 16) each */
#define QUERIES 4 /* computed at once, as many as the registers hold */

#ifdef __AVX512F__
#define LANES 16
#else
#define LANES 8
#endif

typedef float vector __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint32_t words __attribute__((vector_size(4 * LANES)));
typedef uint16_t halves __attribute__((vector_size(2 * LANES), aligned(2), may_alias));

/* LANES numbers from `at`, which are bfloat16 or float. */
INLINE vector load(const void *from, size_t at, const int half) {
    if (!half) return *(const vector *)((const float *)from + at);
    return (vector)(__builtin_convertvector(*(const halves *)((const uint16_t *)from + at), words) << 16);
}

INLINE float number(const void *from, size_t at, const int half) {
    if (!half) return ((const float *)from)[at];
    uint32_t bits = (uint32_t)((const uint16_t *)from)[at] << 16;
    float wide;
    memcpy(&wide, &bits, 4);
    return wide;
}

INLINE uint16_t rounded(float wide) {
    uint32_t bits;
    memcpy(&bits, &wide, 4);
    return isnan(wide) ? 0x7fc0 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

INLINE const void *moved(const void *from, size_t count, const int half) {
    return (const char *)from + count * (half ? 2 : 4);
}

/* --- attention --------------------------------------------------------------------------------------------------- */

typedef struct {
    const void *query, *key, *value;           /* (R, K, M, D) and (R, K, D): the new token's */
    void *out;                                 /* (R, K, M, D) */
    const void *prompt_key, *prompt_value;     /* (G, K, P / 16, D, 16) and (G, K, P, D) */
    void *own_key, *own_value;                 /* (R, K, S / 16, D, 16) and (R, K, S, D); the new token's is written */
    const int64_t *order;                      /* (R): rows, those of a group one after another */
    const int64_t *group, *prompt, *own;       /* (R): group, its prompt's length, own tokens before the new one */
    float *scratch;                            /* (threads, M * (D + P + S)) */
    const void *cosine, *sine;                 /* (R, D): the turn of queries and keys; null: they are turned already */
    const void *query_norm, *key_norm;         /* (D): weights of a norm before it; null: none */
    int64_t rows, heads, shared, size, prompt_room, own_room, window;
    int64_t half, threads; /* half: all numbers are bfloat16, not float */
    float scale, softcap;  /* a window or cap of 0 is none */
    float epsilon, shift;  /* of the norms */
} Decode;

/* exp of x <= 0, to 2 units in the last place; 0 below the smallest normal number. */
INLINE float exp_(float x) {
    float low = x < -87.0f ? -87.0f : x;
    float n = rintf(low * 1.44269504088896341f);
    float r = low - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    uint32_t bits = (uint32_t)((int32_t)n + 127) << 23;
    float power;
    memcpy(&power, &bits, 4);
    return x < -87.0f ? 0.0f : p * power;
}

/* scores[q][j] = queries[q] . key j, for the keys of `blocks` blocks */
INLINE void score(const float *queries, const void *keys, int64_t blocks, float *scores, int64_t room, int64_t D,
                  const int half, const int Q) {
    for (int64_t b = 0; b < blocks; b++)
        for (int part = 0; part < BLOCK; part += LANES) {
            vector even[QUERIES] = {0}, odd[QUERIES] = {0}; /* two sums each: a single one would wait for itself */
            for (int64_t d = 0; d < D; d += 2) {
                size_t at = (b * D + d) * BLOCK + part;
                vector key = load(keys, at, half), next = load(keys, at + BLOCK, half);
                for (int q = 0; q < Q; q++) {
                    even[q] += queries[q * D + d] * key;
                    odd[q] += queries[q * D + d + 1] * next;
                }
            }
            for (int q = 0; q < Q; q++) *(vector *)(scores + q * room + b * BLOCK + part) = even[q] + odd[q];
        }
}

/* sums[q] += sum over j of weights[q][j] * values[j], for two vectors of each value */
INLINE void gather(const float *weights, int64_t room, const void *values, int64_t count, vector *sums, int64_t D,
                   const int half, const int Q) {
    for (int64_t j = 0; j < count; j++) {
        vector low = load(values, j * D, half), high = load(values, j * D + LANES, half);
        for (int q = 0; q < Q; q++) {
            float weight = weights[q * room + j];
            sums[2 * q] += weight * low;
            sums[2 * q + 1] += weight * high;
        }
    }
}

/* What an item sees: keys [skip, stop) of the prompt and [own_skip, own_stop) of the row. */
typedef struct {
    const void *prompt_key, *prompt_value, *own_key, *own_value;
    int64_t skip, stop, own_skip, own_stop;
} Seen;

INLINE void cap(float *scores, int64_t from, int64_t to, float softcap) {
    for (int64_t j = from; softcap && j < to; j++) { /* softcap * tanh(score / softcap) */
        float falling = exp_(-2 * fabsf(scores[j]) / softcap);
        scores[j] = copysignf(softcap * (1 - falling) / (1 + falling), scores[j]);
    }
}

INLINE void attend(const Decode *a, const Seen *s, const float *queries, float *weights, size_t out, const int half,
                   const int Q) {
    const int64_t D = a->size, room = a->prompt_room + a->own_room;
    int64_t from = s->skip / BLOCK, to = (s->stop + BLOCK - 1) / BLOCK;
    int64_t own_from = s->own_skip / BLOCK, own_to = (s->own_stop + BLOCK - 1) / BLOCK;
    float *own_weights = weights + a->prompt_room, total[QUERIES];
    score(queries, moved(s->prompt_key, from * D * BLOCK, half), to - from, weights + from * BLOCK, room, D, half, Q);
    score(queries, moved(s->own_key, own_from * D * BLOCK, half), own_to - own_from, own_weights + own_from * BLOCK,
          room, D, half, Q);
    for (int q = 0; q < Q; q++) {
        float *prompt = weights + q * room, *own = own_weights + q * room, most = -INFINITY, sum = 0;
        cap(prompt, s->skip, s->stop, a->softcap);
        cap(own, s->own_skip, s->own_stop, a->softcap);
#pragma omp simd reduction(max : most)
        for (int64_t j = s->skip; j < s->stop; j++) most = prompt[j] > most ? prompt[j] : most;
#pragma omp simd reduction(max : most)
        for (int64_t j = s->own_skip; j < s->own_stop; j++) most = own[j] > most ? own[j] : most;
#pragma omp simd reduction(+ : sum)
        for (int64_t j = s->skip; j < s->stop; j++) sum += prompt[j] = exp_(prompt[j] - most);
#pragma omp simd reduction(+ : sum)
        for (int64_t j = s->own_skip; j < s->own_stop; j++) sum += own[j] = exp_(own[j] - most);
        total[q] = sum;
    }
    for (int64_t part = 0; part < D; part += 2 * LANES) {
        vector sums[2 * QUERIES] = {0};
        gather(weights + s->skip, room, moved(s->prompt_value, s->skip * D + part, half), s->stop - s->skip, sums, D,
               half, Q);
        gather(own_weights + s->own_skip, room, moved(s->own_value, s->own_skip * D + part, half),
               s->own_stop - s->own_skip, sums, D, half, Q);
        for (int q = 0; q < Q; q++)
            for (int64_t d = 0; d < 2 * LANES; d++) {
                float share = sums[2 * q + d / LANES][d % LANES] / total[q];
                size_t at = out + q * D + part + d;
                if (half) ((uint16_t *)a->out)[at] = rounded(share);
                else ((float *)a->out)[at] = share;
            }
    }
}

/* A head's numbers, normalised and turned by their position as the row asks for. */
INLINE void prepare(const Decode *a, const void *head, const void *norm, int64_t row, float *to, const int half) {
    const int64_t D = a->size, H = D / 2;
    for (int64_t d = 0; d < D; d += LANES) *(vector *)(to + d) = load(head, d, half);
    if (norm) {
        float squares = 0;
#pragma omp simd reduction(+ : squares)
        for (int64_t d = 0; d < D; d++) squares += to[d] * to[d];
        float scale = 1 / sqrtf(squares / D + a->epsilon);
        for (int64_t d = 0; d < D; d += LANES) *(vector *)(to + d) *= scale * (a->shift + load(norm, d, half));
    }
    for (int64_t d = 0; a->cosine && d < H; d += LANES) {
        vector low = *(vector *)(to + d), high = *(vector *)(to + H + d);
        size_t at = row * D + d;
        *(vector *)(to + d) = low * load(a->cosine, at, half) - high * load(a->sine, at, half);
        *(vector *)(to + H + d) = high * load(a->cosine, at + H, half) + low * load(a->sine, at + H, half);
    }
}

/* Writes the new token's key and value behind the row's own. */
INLINE void keep(const Decode *a, int64_t row, int64_t head, int64_t own, float *key, const int half) {
    const int64_t D = a->size, at = row * a->heads + head, to = at * a->own_room * D;
    prepare(a, moved(a->key, at * D, half), a->key_norm, row, key, half);
    for (int64_t d = 0; d < D; d++) {
        size_t column = to + (own / BLOCK * D + d) * BLOCK + own % BLOCK;
        if (half) ((uint16_t *)a->own_key)[column] = rounded(key[d]);
        else ((float *)a->own_key)[column] = key[d];
    }
    memcpy((void *)moved(a->own_value, to + own * D, half), moved(a->value, at * D, half), half ? 2 * D : 4 * D);
}

INLINE void attend_row(const Decode *a, int64_t row, int64_t head, float *queries, const int half) {
    const int64_t D = a->size, M = a->shared, prompt = a->prompt[row], own = a->own[row], at = row * a->heads + head;
    const int64_t first = a->window && prompt + own >= a->window ? prompt + own - a->window + 1 : 0;
    const size_t group_at = (size_t)(a->group[row] * a->heads + head) * a->prompt_room * D;
    const size_t own_at = (size_t)at * a->own_room * D;
    Seen seen = {moved(a->prompt_key, group_at, half), moved(a->prompt_value, group_at, half),
                 moved(a->own_key, own_at, half), moved(a->own_value, own_at, half),
                 first < prompt ? first : prompt, prompt, first > prompt ? first - prompt : 0, own + 1};
    keep(a, row, head, own, queries, half);
    for (int64_t m = 0; m < M; m++) {
        prepare(a, moved(a->query, (at * M + m) * D, half), a->query_norm, row, queries + m * D, half);
        for (int64_t d = 0; d < D; d++) queries[m * D + d] *= a->scale;
    }
    for (int64_t m = 0; m < M; m += QUERIES) {
        const float *q = queries + m * D;
        float *weights = queries + M * D + m * (a->prompt_room + a->own_room);
        size_t out = (at * M + m) * D;
        switch (M - m) {
        case 1: attend(a, &seen, q, weights, out, half, 1); break;
        case 2: attend(a, &seen, q, weights, out, half, 2); break;
        case 3: attend(a, &seen, q, weights, out, half, 3); break;
        default: attend(a, &seen, q, weights, out, half, QUERIES);
        }
    }
}

/* Attention of one new token a row, whose key and value are written first; D is a multiple of 32. */
void togi_decode(const Decode *a) {
#pragma omp parallel num_threads(a->threads)
    {
        float *scratch = a->scratch + omp_get_thread_num() * a->shared * (a->size + a->prompt_room + a->own_room);
#pragma omp for schedule(dynamic, 4)
        for (int64_t i = 0; i < a->rows * a->heads; i++) {
            int64_t row = a->order[i % a->rows], head = i / a->rows;
            if (a->half) attend_row(a, row, head, scratch, 1);
            else attend_row(a, row, head, scratch, 0);
        }
    }
}

/* --- norms and gates --------------------------------------------------------------------------------------------- */

#define PARALLEL (1 << 15) /* numbers that repay waking the other threads */

INLINE void store(void *to, size_t at, float number, const int half) {
    if (half) ((uint16_t *)to)[at] = rounded(number);
    else ((float *)to)[at] = number;
}

INLINE void norm(const void *x, const void *weight, void *y, int64_t F, float epsilon, float shift, const int half) {
    float squares = 0;
#pragma omp simd reduction(+ : squares)
    for (int64_t i = 0; i < F; i++) squares += number(x, i, half) * number(x, i, half);
    float scale = 1 / sqrtf(squares / F + epsilon);
#pragma omp simd
    for (int64_t i = 0; i < F; i++) store(y, i, number(x, i, half) * scale * (shift + number(weight, i, half)), half);
}

/* y = x / rms(x) * (shift + weight), for x (R, F) */
void togi_norm(const void *x, const void *weight, void *y, int64_t R, int64_t F, float epsilon, float shift,
               int64_t half) {
#pragma omp parallel for schedule(static) if (R * F >= PARALLEL)
    for (int64_t row = 0; row < R; row++) {
        const void *from = moved(x, row * F, half);
        void *to = (void *)moved(y, row * F, half);
        if (half) norm(from, weight, to, F, epsilon, shift, 1);
        else norm(from, weight, to, F, epsilon, shift, 0);
    }
}

INLINE void gate(const void *x, const void *up, void *y, int64_t F, const int gelu, const int half) {
#pragma omp simd
    for (int64_t i = 0; i < F; i++) {
        float open = number(x, i, half), z = open;
        if (gelu) z = 1.5957691216057308f * (open + 0.044715f * open * open * open); /* 2 sqrt(2 / pi) */
        float falling = exp_(-fabsf(z)), share = (z < 0 ? falling : 1.0f) / (1.0f + falling);
        store(y, i, open * share * number(up, i, half), half);
    }
}

/* y = f(x) * up for x and up (R, F); f is SiLU, or GELU by tanh */
void togi_gate(const void *x, const void *up, void *y, int64_t R, int64_t F, int64_t gelu, int64_t half) {
#pragma omp parallel for schedule(static) if (R * F >= PARALLEL)
    for (int64_t row = 0; row < R; row++) {
        const void *from = moved(x, row * F, half), *by = moved(up, row * F, half);
        void *to = (void *)moved(y, row * F, half);
        if (half && gelu) gate(from, by, to, F, 1, 1);
        else if (half) gate(from, by, to, F, 0, 1);
        else if (gelu) gate(from, by, to, F, 1, 0);
        else gate(from, by, to, F, 0, 0);
    }
}

/* --- products ---------------------------------------------------------------------------------------------------- */

/* A weight (N, K) is kept as panels of 32 outputs; a panel is K / 32 pairs of tiles, a tile (16 inputs / 2, 16 outputs,
   2 inputs): a panel is read once from its beginning to its end. N is rounded up to 32 with zeros. */

#ifdef PRODUCTS

#define PANEL 32
#define AHEAD 4096 /* bytes asked for before they are read: by itself the processor does not look beyond a page */

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

/* Tiles 0 to 3: sums of two times 16 rows; 4 and 5: inputs; 6 and 7: weights. */
static void configure(int upper, int lower) {
    struct { uint8_t palette, start, reserved[14]; uint16_t bytes[16]; uint8_t rows[16]; } tiles = {.palette = 1};
    const int rows[8] = {upper, upper, lower, lower, upper, lower, 16, 16};
    for (int i = 0; i < 8; i++) {
        tiles.bytes[i] = 64;
        tiles.rows[i] = rows[i] ? rows[i] : 1;
    }
    _tile_loadconfig(&tiles);
}

/* y = x weight' + bias for x (M, K), K a multiple of 32; a null bias is none. */
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
