/* The softmax of a head over the vocabulary, forward and backward, without a copy of the logits.

   C tokens of a chunk, V vocabulary. */

#include "vectors.h"

typedef struct {
    void *logits;            /* (C, V); the backward overwrites them with their gradient */
    const int64_t *target;   /* (C) */
    float *chosen, *lse;     /* (C): of logits times `factor`, the target's and the log-sum-exp of all */
    float *entropy;          /* (C): of the distribution; optional (null) */
    const float *grad;       /* (C): of log-probabilities; null: forward */
    int64_t tokens, width, half;
    float factor;
} Logits;

SIZE_OF(softmax, Logits)

/* Adds exponentials to `sum`, and for the entropy exponential * exponent to `weight`; a zero exponential adds 0. */
INLINE void weigh(vector here, vector *sum, vector *weight, const int entropy) {
    const vector share = exps(here), least = all(-150.0f);
    *sum += share;
    if (!entropy) return;
    const ints above = here > least;
    *weight += share * (vector)(((ints)here & above) | ((ints)least & ~above));
}

INLINE void row_forward(const Logits *a, int64_t row, const int half, const int entropy) {
    const int64_t V = a->width;
    const void *from = moved(a->logits, row * V, half);
    vector tops = all(-INFINITY), even = {0}, odd = {0}, even_weight = {0}, odd_weight = {0};
    for (int64_t i = 0; i + LANES <= V; i += LANES) {
        const vector here = load(from, i, half) * a->factor;
        const ints above = ~(here <= tops); /* true for NaN */
        tops = (vector)(((ints)here & above) | ((ints)tops & ~above));
    }
    float top = -INFINITY, sum = 0, weight = 0;
    for (int i = 0; i < LANES; i++) top = !(tops[i] <= top) ? tops[i] : top;
    for (int64_t i = V / LANES * LANES; i < V; i++) {
        const float here = number(from, i, half) * a->factor;
        top = !(here <= top) ? here : top;
    }
    int64_t i = 0;
    for (; i + 2 * LANES <= V; i += 2 * LANES) {
        weigh(load(from, i, half) * a->factor - top, &even, &even_weight, entropy);
        weigh(load(from, i + LANES, half) * a->factor - top, &odd, &odd_weight, entropy);
    }
    for (; i < V; i++) {
        const float here = number(from, i, half) * a->factor - top, share = exp_(here);
        sum += share;
        weight += share * (here > -150.0f ? here : -150.0f);
    }
    sum += summed(even) + summed(odd);
    a->lse[row] = top + logf(sum);
    if (entropy) a->entropy[row] = logf(sum) - (summed(even_weight) + summed(odd_weight) + weight) / sum;
    a->chosen[row] = number(from, a->target[row], half) * a->factor;
}

INLINE void row_backward(const Logits *a, int64_t row, const int half) {
    const int64_t V = a->width, target = a->target[row];
    void *at = (void *)moved(a->logits, row * V, half);
    const float lse = a->lse[row], grad = a->grad[row] * a->factor;
    const float chosen = exp_(number(at, target, half) * a->factor - lse);
    for (int64_t i = 0; i < V; i += LANES) put(at, i, V, exps(get(at, i, V, half) * a->factor - lse) * -grad, half);
    store(at, target, grad * (1 - chosen), half);
}

void togi_softmax(const Logits *a) {
#pragma omp parallel for schedule(static) if (a->tokens * a->width >= PARALLEL)
    for (int64_t row = 0; row < a->tokens; row++) {
        if (a->grad && a->half) row_backward(a, row, 1);
        else if (a->grad) row_backward(a, row, 0);
        else if (a->half && a->entropy) row_forward(a, row, 1, 1);
        else if (a->half) row_forward(a, row, 1, 0);
        else if (a->entropy) row_forward(a, row, 0, 1);
        else row_forward(a, row, 0, 0);
    }
}
