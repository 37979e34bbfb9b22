/* Vectors of numbers that are bfloat16 (`half`) or float in memory, and float in registers. */

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__clang__) || !defined(__GNUC__)
#error "its threads would not be torch's, which are GNU OpenMP's: use gcc"
#endif

#include <omp.h>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))
/* Python declares these structures too; their sizes are compared when the library is loaded. */
#define SIZE_OF(part, type) \
    int64_t togi_size_##part(void) { return sizeof(type); }

#define PARALLEL (1 << 15) /* numbers from which several threads pay off */

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

INLINE void store(void *to, size_t at, float number, const int half) {
    if (half) ((uint16_t *)to)[at] = rounded(number);
    else ((float *)to)[at] = number;
}

/* exp of r, a float or a vector, for |r| <= log(2) / 2 */
#define EXP_POLYNOMIAL(r) \
    ((((((1.9875691500e-4f * r + 1.3981999507e-3f) * r + 8.3334519073e-3f) * r + 4.1665795894e-2f) * r \
       + 1.6666665459e-1f) * r + 5.0000001201e-1f) * r * r + r + 1.0f)

/* exp of x <= 0, to 2 units in the last place; 0 below the smallest normal number. */
INLINE float exp_(float x) {
    float low = x < -87.0f ? -87.0f : x;
    float n = rintf(low * 1.44269504088896341f);
    float r = low - n * 0.693359375f + n * 2.12194440e-4f;
    float p = EXP_POLYNOMIAL(r);
    uint32_t bits = (uint32_t)((int32_t)n + 127) << 23;
    float power;
    memcpy(&power, &bits, 4);
    return x < -87.0f ? 0.0f : p * power;
}

/* --- vectors ----------------------------------------------------------------------------------------------------- */

typedef int32_t ints __attribute__((vector_size(4 * LANES)));

INLINE vector all(float number) { return (vector){0} + number; }

/* LANES numbers from 0 on */
INLINE ints counted(void) {
    ints found;
    for (int i = 0; i < LANES; i++) found[i] = i;
    return found;
}

/* x where the mask is set, else 0 */
INLINE vector kept(vector x, ints mask) { return (vector)((ints)x & mask); }

/* exp_ of each lane; also right a little above 0 */
INLINE vector exps(vector x) {
#ifdef __AVX512F__
    x = (vector)_mm512_max_ps((__m512)all(-150.0f), (__m512)x); /* returns its second operand if one is NaN */
    vector n = (vector)_mm512_roundscale_ps((__m512)(x * 1.44269504088896341f), 0);
#else
    const vector shift = all(12582912.0f); /* 1.5 * 2^23 */
    const ints some = ~(x < -87.0f); /* NaN stays NaN */
    x = kept(x, some);
    vector n = (x * 1.44269504088896341f + shift) - shift;
#endif
    vector r = x - n * 0.693359375f + n * 2.12194440e-4f;
    vector p = EXP_POLYNOMIAL(r);
#ifdef __AVX512F__
    return (vector)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
    return kept(p * (vector)((__builtin_convertvector(n, ints) + 127) << 23), some);
#endif
}

INLINE void store_lanes(void *to, size_t at, vector numbers, const int half) {
    if (!half) {
        *(vector *)((float *)to + at) = numbers;
        return;
    }
#ifdef __AVX512BF16__
    _mm256_storeu_si256((void *)((uint16_t *)to + at), (__m256i)_mm512_cvtneps_pbh((__m512)numbers));
#else
    for (int i = 0; i < LANES; i++) ((uint16_t *)to)[at + i] = rounded(numbers[i]);
#endif
}

/* Numbers `at` + 0, 1, .. of `count`, filled up with zeros. */
INLINE vector get(const void *from, int64_t at, int64_t count, const int half) {
    if (count - at >= LANES) return load(from, at, half);
    vector found = {0};
    for (int i = 0; at + i < count; i++) found[i] = number(from, at + i, half);
    return found;
}

INLINE void put(void *to, int64_t at, int64_t count, vector numbers, const int half) {
    if (count - at >= LANES) {
        store_lanes(to, at, numbers, half);
        return;
    }
    for (int i = 0; at + i < count; i++) store(to, at + i, numbers[i], half);
}

INLINE float summed(vector numbers) {
    float sum = 0;
    for (int i = 0; i < LANES; i++) sum += numbers[i];
    return sum;
}

/* Tile instructions access memory in ways that the compiler does not see. */
#define FENCE __asm__ volatile("" ::: "memory")
