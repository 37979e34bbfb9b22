/* Norms and rotary positions, forward and backward. Each number is read once and written once.

   R rows, F width, T positions, H heads, D head size. */

#include "vectors.h"

/* One thread sums the weight gradient of CHUNK rows, so the result does not depend on the number of threads. */

/* The types of a norm's input, weight and output, numbered as in native.py. */
#define BY_TYPES(types, function, ...)                                                                                 \
    switch (types) {                                                                                                   \
    case 0: function(__VA_ARGS__, 0, 0, 0); break;                                                                     \
    case 1: function(__VA_ARGS__, 0, 0, 1); break;                                                                     \
    case 2: function(__VA_ARGS__, 1, 1, 1); break;                                                                     \
    default: function(__VA_ARGS__, 1, 0, 1);                                                                           \
    }

/* --- norms ------------------------------------------------------------------------------------------------------- */

typedef struct {
    const void *x, *weight;       /* (R, F), (F) */
    void *y;                      /* (R, F): x / rms(x) * (shift + weight) */
    const void *grad_y;           /* (R, F) */
    void *grad_x;                 /* (R, F) */
    float *grad_weight, *partial; /* (F) and (R / 32, F), or null */
    int64_t rows, width, types;
    float epsilon, shift;
} Norm;

SIZE_OF(norm, Norm)

INLINE void norm(const Norm *a, int64_t row, const int X, const int W, const int Y) {
    const int64_t F = a->width;
    const void *x = moved(a->x, row * F, X);
    void *y = (void *)moved(a->y, row * F, Y);
    vector squares = {0};
    for (int64_t i = 0; i < F; i += LANES) {
        vector wide = get(x, i, F, X);
        squares += wide * wide;
    }
    const float scale = 1 / sqrtf(summed(squares) / F + a->epsilon);
    for (int64_t i = 0; i < F; i += LANES)
        put(y, i, F, get(x, i, F, X) * scale * (a->shift + get(a->weight, i, F, W)), Y);
}

void togi_norm(const Norm *a) {
#pragma omp parallel for schedule(static) if (a->rows * a->width >= PARALLEL)
    for (int64_t row = 0; row < a->rows; row++) BY_TYPES(a->types, norm, a, row)
}

INLINE void norm_backward(const Norm *a, int64_t row, float *grad_weight, const int X, const int W, const int Y) {
    const int64_t F = a->width;
    const void *x = moved(a->x, row * F, X), *grad = moved(a->grad_y, row * F, Y);
    void *grad_x = (void *)moved(a->grad_x, row * F, X);
    vector squares = {0}, dots = {0};
    for (int64_t i = 0; i < F; i += LANES) {
        vector wide = get(x, i, F, X);
        squares += wide * wide;
        dots += wide * get(grad, i, F, Y) * (a->shift + get(a->weight, i, F, W));
    }
    const float scale = 1 / sqrtf(summed(squares) / F + a->epsilon), mean = scale * scale * summed(dots) / F;
    for (int64_t i = 0; i < F; i += LANES) {
        vector wide = get(x, i, F, X), coming = get(grad, i, F, Y);
        vector found = scale * (coming * (a->shift + get(a->weight, i, F, W)) - wide * mean);
        put(grad_x, i, F, found, X);
        if (grad_weight) put(grad_weight, i, F, get(grad_weight, i, F, 0) + coming * wide * scale, 0);
    }
}

void togi_norm_backward(const Norm *a) {
    const int64_t R = a->rows, F = a->width, chunks = (R + CHUNK - 1) / CHUNK;
#pragma omp parallel for schedule(static) if (R * F >= PARALLEL)
    for (int64_t chunk = 0; chunk < chunks; chunk++) {
        float *partial = a->partial ? a->partial + chunk * F : 0;
        if (partial) memset(partial, 0, F * sizeof(float));
        for (int64_t row = chunk * CHUNK; row < R && row < (chunk + 1) * CHUNK; row++)
            BY_TYPES(a->types, norm_backward, a, row, partial)
    }
    if (!a->grad_weight) return;
    memset(a->grad_weight, 0, F * sizeof(float));
    for (int64_t chunk = 0; chunk < chunks; chunk++)
        for (int64_t i = 0; i < F; i++) a->grad_weight[i] += a->partial[chunk * F + i];
}

/* --- rotary positions -------------------------------------------------------------------------------------------- */

typedef struct {
    const void *x, *cosine, *sine;   /* heads (T, H, D), backward (H, T, D); angles (T, D) */
    void *y;                         /* rotated (H, T, D); backward (T, H, D), by the transposed map */
    int64_t positions, heads, size;
    int64_t back, half, angle_half;
} Rotation;

SIZE_OF(rotate, Rotation)

INLINE void rotate(const Rotation *a, int64_t t, const int back, const int half, const int angle) {
    const int64_t T = a->positions, H = a->heads, D = a->size, M = D / 2;
    const void *cosine = moved(a->cosine, t * D, angle), *sine = moved(a->sine, t * D, angle);
    const void *high_cosine = moved(cosine, M, angle), *high_angle = moved(sine, M, angle);
    for (int64_t h = 0; h < H; h++) {
        const int64_t together = (t * H + h) * D, apart = (h * T + t) * D;
        const void *x = moved(a->x, back ? apart : together, half);
        const void *high_x = moved(x, M, half);
        void *y = (void *)moved(a->y, back ? together : apart, half), *high_y = (void *)moved(y, M, half);
        for (int64_t d = 0; d < M; d += LANES) {
            vector low = get(x, d, M, half), high = get(high_x, d, M, half);
            vector low_sine = get(sine, d, M, angle), high_sine = get(high_angle, d, M, angle);
            vector to_low = high * (back ? high_sine : -low_sine), to_high = low * (back ? -low_sine : high_sine);
            put(y, d, M, low * get(cosine, d, M, angle) + to_low, half);
            put(high_y, d, M, high * get(high_cosine, d, M, angle) + to_high, half);
        }
    }
}

INLINE void rotate_of(const Rotation *a, int64_t t, const int half, const int angle) {
    if (a->back) rotate(a, t, 1, half, angle);
    else rotate(a, t, 0, half, angle);
}

void togi_rotate(const Rotation *a) {
#pragma omp parallel for schedule(static) if (a->positions * a->heads * a->size >= PARALLEL)
    for (int64_t t = 0; t < a->positions; t++) {
        if (a->half && a->angle_half) rotate_of(a, t, 1, 1);
        else if (a->half) rotate_of(a, t, 1, 0);
        else if (a->angle_half) rotate_of(a, t, 0, 1);
        else rotate_of(a, t, 0, 0);
    }
}
