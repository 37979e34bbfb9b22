/* Norms, gates and rotary turns, forward and backward; each number is read once and written once.

   R rows, F width, T positions, H heads, D head size. */

#include "numbers.h"

#define CHUNK 32 /* rows whose share of a weight's gradient is summed by one thread: any number of threads sums alike */

/* The types of a norm: that of its input (and of what passes by), of its weight, of its output (and of what is added).
   The numbers are those of native.py. */
#define BY_TYPES(types, function, ...)                                                                                 \
    switch (types) {                                                                                                   \
    case 0: function(__VA_ARGS__, 0, 0, 0); break;                                                                     \
    case 1: function(__VA_ARGS__, 0, 0, 1); break;                                                                     \
    case 2: function(__VA_ARGS__, 1, 1, 1); break;                                                                     \
    default: function(__VA_ARGS__, 1, 0, 1);                                                                           \
    }

/* --- norms ------------------------------------------------------------------------------------------------------- */

typedef struct {
    const void *x, *more, *weight;      /* (R, F), (R, F), (F); null: nothing is added */
    void *sum, *y;                      /* (R, F): x + more, and sum / rms(sum) * (shift + weight) */
    const void *grad_y, *grad_sum;      /* (R, F); null: the sum has no other reader */
    void *grad_x, *grad_more;           /* (R, F): the same numbers in two types; null: not wanted */
    float *grad_weight, *partial;       /* (F) and (R / 32, F), or null */
    int64_t rows, width, types;
    float epsilon, shift;
} Norm;

INLINE void norm(const Norm *a, int64_t row, const int X, const int W, const int Y) {
    const int64_t F = a->width;
    const void *x = moved(a->x, row * F, X), *weight = a->weight;
    void *y = (void *)moved(a->y, row * F, Y);
    if (a->more) {
        const void *more = moved(a->more, row * F, Y);
        void *sum = (void *)moved(a->sum, row * F, X);
#pragma omp simd
        for (int64_t i = 0; i < F; i++) store(sum, i, number(x, i, X) + number(more, i, Y), X);
        x = sum;
    }
    float squares = 0;
#pragma omp simd reduction(+ : squares)
    for (int64_t i = 0; i < F; i++) squares += number(x, i, X) * number(x, i, X);
    const float scale = 1 / sqrtf(squares / F + a->epsilon), shift = a->shift;
#pragma omp simd
    for (int64_t i = 0; i < F; i++) store(y, i, number(x, i, X) * scale * (shift + number(weight, i, W)), Y);
}

void togi_norm(const Norm *a) {
#pragma omp parallel for schedule(static) if (a->rows * a->width >= PARALLEL)
    for (int64_t row = 0; row < a->rows; row++) BY_TYPES(a->types, norm, a, row)
}

INLINE void norm_backward(const Norm *a, int64_t row, float *grad_weight, const int X, const int W, const int Y) {
    const int64_t F = a->width;
    const void *x = moved(a->x, row * F, X), *grad = moved(a->grad_y, row * F, Y), *weight = a->weight;
    void *grad_x = (void *)moved(a->grad_x, row * F, X);
    float squares = 0, dot = 0, shift = a->shift;
#pragma omp simd reduction(+ : squares, dot)
    for (int64_t i = 0; i < F; i++) {
        float wide = number(x, i, X);
        squares += wide * wide;
        dot += wide * number(grad, i, Y) * (shift + number(weight, i, W));
    }
    const float scale = 1 / sqrtf(squares / F + a->epsilon), mean = scale * scale * dot / F;
    if (a->grad_sum) {
        const void *passed = moved(a->grad_sum, row * F, X);
#pragma omp simd
        for (int64_t i = 0; i < F; i++) {
            float open = number(grad, i, Y) * (shift + number(weight, i, W)) - number(x, i, X) * mean;
            store(grad_x, i, number(passed, i, X) + scale * open, X);
        }
    } else {
#pragma omp simd
        for (int64_t i = 0; i < F; i++) {
            float open = number(grad, i, Y) * (shift + number(weight, i, W)) - number(x, i, X) * mean;
            store(grad_x, i, scale * open, X);
        }
    }
    if (a->grad_more) {
        void *grad_more = (void *)moved(a->grad_more, row * F, Y);
#pragma omp simd
        for (int64_t i = 0; i < F; i++) store(grad_more, i, number(grad_x, i, X), Y);
    }
    if (grad_weight) {
#pragma omp simd
        for (int64_t i = 0; i < F; i++) grad_weight[i] += number(grad, i, Y) * number(x, i, X) * scale;
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
    if (!a->partial) return;
    memset(a->grad_weight, 0, F * sizeof(float));
    for (int64_t chunk = 0; chunk < chunks; chunk++) {
#pragma omp simd
        for (int64_t i = 0; i < F; i++) a->grad_weight[i] += a->partial[chunk * F + i];
    }
}

/* --- gates ------------------------------------------------------------------------------------------------------- */

/* f(x) is x / (1 + exp(-z)): SiLU for z = x, GELU by tanh for z = 2 sqrt(2 / pi) (x + 0.044715 x^3). */
#define GELU 1.5957691216057308f
#define CUBE 0.044715f

typedef struct {
    const void *x, *up;              /* (R, F) */
    void *y;                         /* (R, F): f(x) * up; null in the backward: not wanted */
    const void *grad;                /* (R, F) */
    void *grad_x, *grad_up;          /* (R, F) */
    int64_t rows, width, gelu, half; /* half: all numbers are bfloat16, not float */
} Gate;

INLINE void gate(const Gate *a, int64_t row, const int gelu, const int half) {
    const int64_t F = a->width;
    const void *x = moved(a->x, row * F, half), *up = moved(a->up, row * F, half);
    void *y = (void *)moved(a->y, row * F, half);
#pragma omp simd
    for (int64_t i = 0; i < F; i++) {
        float open = number(x, i, half), z = gelu ? GELU * (open + CUBE * open * open * open) : open;
        float falling = exp_(-fabsf(z)), share = (z < 0 ? falling : 1.0f) / (1.0f + falling);
        store(y, i, open * share * number(up, i, half), half);
    }
}

INLINE void gate_backward(const Gate *a, int64_t row, const int gelu, const int half, const int again) {
    const int64_t F = a->width;
    const void *x = moved(a->x, row * F, half), *up = moved(a->up, row * F, half), *grad = moved(a->grad, row * F, half);
    void *grad_x = (void *)moved(a->grad_x, row * F, half), *grad_up = (void *)moved(a->grad_up, row * F, half);
    void *y = again ? (void *)moved(a->y, row * F, half) : 0;
#pragma omp simd
    for (int64_t i = 0; i < F; i++) {
        float open = number(x, i, half), z = gelu ? GELU * (open + CUBE * open * open * open) : open;
        float falling = exp_(-fabsf(z)), one = 1.0f / (1.0f + falling), other = falling * one;
        float share = z < 0 ? other : one, slope = gelu ? GELU * (1 + 3 * CUBE * open * open) : 1.0f;
        float by = number(up, i, half), coming = number(grad, i, half);
        if (again) store(y, i, open * share * by, half);
        store(grad_up, i, coming * open * share, half);
        store(grad_x, i, coming * by * (share + open * slope * one * other), half);
    }
}

INLINE void gate_rows(const Gate *a, int64_t row, const int gelu, const int half) {
    if (!a->grad) gate(a, row, gelu, half);
    else if (a->y) gate_backward(a, row, gelu, half, 1);
    else gate_backward(a, row, gelu, half, 0);
}

/* Forward without a gradient, backward with one. */
void togi_gate(const Gate *a) {
#pragma omp parallel for schedule(static) if (a->rows * a->width >= PARALLEL)
    for (int64_t row = 0; row < a->rows; row++) {
        if (a->half && a->gelu) gate_rows(a, row, 1, 1);
        else if (a->half) gate_rows(a, row, 0, 1);
        else if (a->gelu) gate_rows(a, row, 1, 0);
        else gate_rows(a, row, 0, 0);
    }
}

/* --- rotary turns ------------------------------------------------------------------------------------------------ */

typedef struct {
    const void *x, *cosine, *sine;   /* heads (T, H, D), backward (H, T, D); angles (T, D) */
    void *y;                         /* turned (H, T, D); backward (T, H, D), turned by the transposed map */
    int64_t positions, heads, size;
    int64_t back, half, angle_half;
} Turn;

INLINE void turn(const Turn *a, int64_t t, const int back, const int half, const int angle) {
    const int64_t T = a->positions, H = a->heads, D = a->size, M = D / 2;
    const void *cosine = moved(a->cosine, t * D, angle), *sine = moved(a->sine, t * D, angle);
    for (int64_t h = 0; h < H; h++) {
        const int64_t together = (t * H + h) * D, apart = (h * T + t) * D;
        const void *x = moved(a->x, back ? apart : together, half);
        void *y = (void *)moved(a->y, back ? together : apart, half);
#pragma omp simd
        for (int64_t d = 0; d < M; d++) {
            float low = number(x, d, half), high = number(x, M + d, half);
            float low_sine = number(sine, d, angle), high_sine = number(sine, M + d, angle);
            float to_low = back ? high * high_sine : -high * low_sine, to_high = back ? -low * low_sine : low * high_sine;
            store(y, d, low * number(cosine, d, angle) + to_low, half);
            store(y, M + d, high * number(cosine, M + d, angle) + to_high, half);
        }
    }
}

INLINE void turn_of(const Turn *a, int64_t t, const int half, const int angle) {
    if (a->back) turn(a, t, 1, half, angle);
    else turn(a, t, 0, half, angle);
}

void togi_turn(const Turn *a) {
#pragma omp parallel for schedule(static) if (a->positions * a->heads * a->size >= PARALLEL)
    for (int64_t t = 0; t < a->positions; t++) {
        if (a->half && a->angle_half) turn_of(a, t, 1, 1);
        else if (a->half) turn_of(a, t, 1, 0);
        else if (a->angle_half) turn_of(a, t, 0, 1);
        else turn_of(a, t, 0, 0);
    }
}
