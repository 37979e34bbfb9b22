/* Decoding on CPU: attention of one new token per row.

   R rows, G groups, K key heads, M query heads per key head, D head size, P prompt columns, S own columns. */

#include "vectors.h"

/* Keys are stored in blocks of BLOCK (16) columns, (D, 16) each. */
#define QUERIES 4 /* computed at once: as many as fit into the registers */

typedef struct {
    const void *query, *key, *value;           /* (R, K, M, D) and (R, K, D): the new token's */
    void *out;                                 /* (R, K, M, D) */
    const void *prompt_key, *prompt_value;     /* (G, K, P / 16, D, 16) and (G, K, P, D) */
    void *own_key, *own_value;                 /* (R, K, S / 16, D, 16) and (R, K, S, D); the new token's is written */
    const int64_t *order;                      /* (R): row indices, grouped */
    const int64_t *group, *prompt, *own;       /* (R): group, its prompt's length, own tokens before the new one */
    float *scratch;                            /* (threads, M * (D + P + S)) */
    const void *cosine, *sine;                 /* (R, D): rotation of queries and keys; null: already rotated */
    const void *query_norm, *key_norm;         /* (D): weights of a norm before the rotation; null: none */
    int64_t rows, heads, shared, size, prompt_room, own_room, window;
    int64_t half, threads; /* half: all numbers are bfloat16, not float */
    float scale, softcap;  /* window or softcap 0: none */
    float epsilon, shift;  /* of the norms */
} Decode;

SIZE_OF(decode, Decode)

/* scores[q][j] = queries[q] . key j, for the keys of `blocks` blocks */
INLINE void score(const float *queries, const void *keys, int64_t blocks, float *scores, int64_t room, int64_t D,
                  const int half, const int Q) {
    for (int64_t b = 0; b < blocks; b++)
        for (int part = 0; part < BLOCK; part += LANES) {
            vector even[QUERIES] = {0}, odd[QUERIES] = {0}; /* two sums each, because one alone would stall */
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

/* The keys that an item sees: [skip, stop) of the prompt and [own_skip, own_stop) of the row. */
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

/* A head's numbers, normalised and rotated by position if requested. */
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

/* Appends the new token's key and value to the row's own. */
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

/* Attention of one new token per row, whose key and value are stored first; D is a multiple of 32. */
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
