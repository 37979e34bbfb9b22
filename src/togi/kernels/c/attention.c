/* Attention of a forest as dense blocks, and its gradients.

   A block is query rows [q0, q1) against key rows [k0, k1) of one tree. Blocks of a run of rows with itself come first,
   then blocks whose rows have been visited before (`merge`). Numbers are float, or bfloat16 (`half`) on processors with
   AMX: products then read bfloat16 and sum in float32, and exponentials are float32, as in torch's kernels.

   T rows, H query heads, R of them per key head, D head size (a multiple of 32). Rows and keys of a block are padded
   with zeros to a multiple of 32. Words: floats, or pairs of bfloat16 in the layout of the tiles' second operand. */

#include "vectors.h"

/* The scores of STEP rows and STEP keys stay in the cache. */
#define ROUND(n) (((n) + 31) / 32 * 32)

typedef struct {
    int64_t q0, q1, k0, k1;
    int64_t all, shift, merge; /* all keys are visible; position(q0) - position(k0); the rows were visited before */
} Block;

typedef struct {
    const void *query, *key, *value;              /* (H, T, D), (H / R, T, D), (T, H / R, D) */
    void *out;                                    /* (T, H, D) */
    float *lse;                                   /* (H, T): log-sum-exp of the scores */
    const void *grad;                             /* (T, H, D) */
    void *grad_query, *grad_key, *grad_value;     /* as query, key, value */
    float *partial_key, *partial_value;           /* (H, T, D): each query head's share */
    const Block *blocks;                          /* grouped by tree */
    const int64_t *trees, *starts;                /* (N + 1): first block, first row of each tree */
    char *scratch;                                /* (threads, room) */
    int64_t room, rows, heads, shared, size, num_trees, window, half, threads; /* window 0: none */
    float scale;
} Forest;

SIZE_OF(attend, Forest)

/* --- products ---------------------------------------------------------------------------------------------------- */

#define TALL 8 /* rows of a product that are summed at once, over two vectors of columns */

/* c = a b, or c += a b: a (M, K), b (K, N) and c (M, N) with row strides `la`, `lb` and `lc` */
static void multiply_floats(float *c, int64_t lc, const float *a, int64_t la, const float *b, int64_t lb, int64_t M,
                            int64_t N, int64_t K, int add) {
    for (int64_t n = 0; n < N; n += 2 * LANES)
        for (int64_t m = 0; m < M; m += TALL) {
            vector sums[TALL][2] = {0};
            for (int64_t k = 0; k < K; k++) {
                vector low = *(const vector *)(b + k * lb + n), high = *(const vector *)(b + k * lb + n + LANES);
                for (int i = 0; i < TALL; i++) {
                    sums[i][0] += a[(m + i) * la + k] * low;
                    sums[i][1] += a[(m + i) * la + k] * high;
                }
            }
            for (int i = 0; i < TALL; i++) {
                vector *low = (vector *)(c + (m + i) * lc + n), *high = (vector *)(c + (m + i) * lc + n + LANES);
                if (add) sums[i][0] += *low, sums[i][1] += *high;
                *low = sums[i][0];
                *high = sums[i][1];
            }
        }
}

#if defined(__AMX_BF16__) && defined(__AVX512BF16__) && defined(__linux__)

static void begin_tiles(void) {
    struct { uint8_t palette, start, reserved[14]; uint16_t bytes[16]; uint8_t rows[16]; } tiles = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        tiles.bytes[i] = 64;
        tiles.rows[i] = 16;
    }
    FENCE;
    _tile_loadconfig(&tiles);
}

#define end_tiles _tile_release

/* Like multiply_floats, with a in bfloat16 and b (K / 2, N) words */
static void multiply_halves(float *c, int64_t lc, const uint16_t *a, int64_t la, const uint32_t *b, int64_t lb,
                            int64_t M, int64_t N, int64_t K, int add) {
    FENCE;
    for (int64_t m = 0; m < M; m += 32)
        for (int64_t n = 0; n < N; n += 32) {
            float *to = c + m * lc + n;
            if (add) {
                _tile_loadd(0, to, lc * 4);
                _tile_loadd(1, to + 16, lc * 4);
                _tile_loadd(2, to + 16 * lc, lc * 4);
                _tile_loadd(3, to + 16 * lc + 16, lc * 4);
            } else {
                _tile_zero(0);
                _tile_zero(1);
                _tile_zero(2);
                _tile_zero(3);
            }
            for (int64_t k = 0; k < K; k += 32) {
                _tile_loadd(4, a + m * la + k, la * 2);
                _tile_loadd(6, b + k / 2 * lb + n, lb * 4);
                _tile_loadd(7, b + k / 2 * lb + n + 16, lb * 4);
                _tile_loadd(5, a + (m + 16) * la + k, la * 2);
                _tile_dpbf16ps(0, 4, 6);
                _tile_dpbf16ps(1, 4, 7);
                _tile_dpbf16ps(2, 5, 6);
                _tile_dpbf16ps(3, 5, 7);
            }
            _tile_stored(0, to, lc * 4);
            _tile_stored(1, to + 16, lc * 4);
            _tile_stored(2, to + 16 * lc, lc * 4);
            _tile_stored(3, to + 16 * lc + 16, lc * 4);
        }
}

/* The transpose of 16 rows of 16 words. */
INLINE void transpose(__m512i *x) {
    __m512i y[16];
    for (int i = 0; i < 16; i += 2) {
        y[i] = _mm512_unpacklo_epi32(x[i], x[i + 1]);
        y[i + 1] = _mm512_unpackhi_epi32(x[i], x[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
        for (int j = 0; j < 2; j++) {
            x[i + 2 * j] = _mm512_unpacklo_epi64(y[i + j], y[i + j + 2]);
            x[i + 2 * j + 1] = _mm512_unpackhi_epi64(y[i + j], y[i + j + 2]);
        }
    for (int i = 0; i < 4; i++) {
        y[i] = _mm512_shuffle_i32x4(x[i], x[i + 4], 0x88);
        y[i + 4] = _mm512_shuffle_i32x4(x[i], x[i + 4], 0xdd);
        y[i + 8] = _mm512_shuffle_i32x4(x[i + 8], x[i + 12], 0x88);
        y[i + 12] = _mm512_shuffle_i32x4(x[i + 8], x[i + 12], 0xdd);
    }
    for (int i = 0; i < 4; i++) {
        x[i] = _mm512_shuffle_i32x4(y[i], y[i + 8], 0x88);
        x[i + 8] = _mm512_shuffle_i32x4(y[i], y[i + 8], 0xdd);
        x[i + 4] = _mm512_shuffle_i32x4(y[i + 4], y[i + 12], 0x88);
        x[i + 12] = _mm512_shuffle_i32x4(y[i + 4], y[i + 12], 0xdd);
    }
}

/* 16 words of 16 rows (null: zeros), to columns with row stride `room` */
static void turn_words(uint32_t *to, const uint32_t *const *rows, int64_t room) {
    __m512i x[16];
    for (int j = 0; j < 16; j++) x[j] = rows[j] ? _mm512_loadu_si512(rows[j]) : _mm512_setzero_si512();
    transpose(x);
    for (int j = 0; j < 16; j++) _mm512_storeu_si512(to + j * room, x[j]);
}

#else

static void begin_tiles(void) {}
static void end_tiles(void) {}
static void multiply_halves(float *c, int64_t lc, const uint16_t *a, int64_t la, const uint32_t *b, int64_t lb,
                            int64_t M, int64_t N, int64_t K, int add) {} /* never called: see attention.py */

static void turn_words(uint32_t *to, const uint32_t *const *rows, int64_t room) {
    for (int j = 0; j < 16; j++)
        for (int i = 0; i < 16; i++) to[i * room + j] = rows[j] ? rows[j][i] : 0;
}

#endif

/* c = a b, or c += a b: a (M, K), b words of (K, N) and c (M, N) with row strides `la`, `lb` and `lc`; all sizes are
   multiples of 32 */
INLINE void multiply(float *c, int64_t lc, const void *a, int64_t la, const void *b, int64_t lb, int64_t M, int64_t N,
                     int64_t K, int add, const int half) {
    if (half) multiply_halves(c, lc, a, la, b, lb, M, N, K, add);
    else multiply_floats(c, lc, a, la, b, lb, M, N, K, add);
}

/* --- layouts ----------------------------------------------------------------------------------------------------- */

/* (count, D) with row stride `stride`, to (room, D), filled up with zeros */
INLINE void as_rows(void *to, const void *from, int64_t stride, int64_t count, int64_t room, int64_t D,
                    const int half) {
    for (int64_t i = 0; i < count; i++)
        memcpy((void *)moved(to, i * D, half), moved(from, i * stride, half), D * (half ? 2 : 4));
    memset((void *)moved(to, count * D, half), 0, (room - count) * D * (half ? 2 : 4));
}

/* The same, to words of (room, D). */
INLINE void as_words(uint32_t *to, const void *from, int64_t stride, int64_t count, int64_t room, int64_t D,
                     const int half) {
    if (!half) {
        as_rows(to, from, stride, count, room, D, 0);
        return;
    }
    for (int64_t i = 0; i < room; i += 2, to += D)
        for (int64_t d = 0; d < D; d += LANES) {
            words low = {0}, high = {0};
            if (i < count) low = (words)load(from, i * stride + d, 1) >> 16;
            if (i + 1 < count) high = (words)load(from, (i + 1) * stride + d, 1);
            *(vector *)(to + d) = (vector)(low | high);
        }
}

/* The same, to words of the transpose, (D, room). */
INLINE void as_turned_words(uint32_t *to, const void *from, int64_t stride, int64_t count, int64_t room, int64_t D,
                            const int half) {
    const int64_t words = half ? D / 2 : D;
    for (int64_t i = 0; i < room; i += 16)
        for (int64_t d = 0; d < words; d += 16) {
            const uint32_t *rows[16];
            for (int j = 0; j < 16; j++)
                rows[j] = i + j < count ? (const uint32_t *)moved(from, (i + j) * stride, half) + d : 0;
            turn_words(to + d * room + i, rows, room);
        }
}

/* From words of the transpose to the transpose itself, (D, room). */
INLINE void as_turned(uint16_t *to, const uint32_t *from, int64_t room, int64_t D) {
    for (int64_t d = 0; d < D / 2; d++)
        for (int64_t i = 0; i < room; i++) {
            to[2 * d * room + i] = from[d * room + i];
            to[(2 * d + 1) * room + i] = from[d * room + i] >> 16;
        }
}

/* to (count, D) += the transpose of from (D, room) */
static void add_turned(float *to, const float *from, int64_t count, int64_t room, int64_t D) {
    for (int64_t i = 0; i < count; i += 16)
        for (int64_t d = 0; d < D; d += 16) {
            float turned[16][16];
            const uint32_t *rows[16];
            for (int j = 0; j < 16; j++) rows[j] = (const uint32_t *)from + (d + j) * room + i;
            turn_words((uint32_t *)turned, rows, 16);
            for (int j = 0; j < 16 && i + j < count; j++)
                for (int k = 0; k < 16; k++) to[(i + j) * D + d + k] += turned[j][k];
        }
}

/* --- visibility -------------------------------------------------------------------------------------------------- */

/* The position of the first query row minus that of the first key, and the longest distance that a query sees. */
typedef struct { int64_t distance, window; } Sight;

static Sight sight(const Forest *f, const Block *b) {
    if (b->all) return (Sight){INT32_MAX / 2, INT32_MAX};
    return (Sight){b->shift, f->window ? f->window : INT32_MAX};
}

/* Whether rows [q, q + nq) see none of keys [k, k + nk) (0), all of them (1), or some (2). */
static int seen(Sight s, int64_t q, int64_t nq, int64_t k, int64_t nk) {
    const int64_t nearest = s.distance + q - (k + nk - 1), farthest = s.distance + q + nq - 1 - k;
    if (farthest < 0 || nearest >= s.window) return 0;
    return nearest >= 0 && farthest < s.window ? 1 : 2;
}

/* --- forward ----------------------------------------------------------------------------------------------------- */

/* Which of the keys or rows `at` + 0, 1, .. are in [first, last). */
INLINE ints within(int64_t at, int64_t first, int64_t last) {
    const ints here = counted() + (int32_t)at;
    return (here >= (int32_t)first) & (here < (int32_t)last);
}

/* One step of the softmax: turns scores (rows, keys) into exponentials, and rescales the sums to the new maximum. */
INLINE void exponentials(const float *scores, void *shares, float *sums, float *most, float *total, int64_t rows,
                         int64_t keys, int64_t D, Sight s, float scale, const int masked, const int half) {
    const int64_t room = ROUND(keys);
    for (int64_t i = 0; i < ROUND(rows); i++) {
        const float *from = scores + i * STEP;
        void *to = (void *)moved(shares, i * STEP, half);
        int64_t first = 0, last = i < rows ? keys : 0; /* keys [first, last) are visible */
        if (masked && last) {
            const int64_t here = s.distance + i;
            last = here + 1 < keys ? here + 1 : keys;
            first = here - s.window + 1 > 0 ? here - s.window + 1 : 0;
        }
        if (first >= last) {
            memset(to, 0, room * (half ? 2 : 4));
            continue;
        }
        const int whole = first == 0 && last == room;
        vector tops = all(-INFINITY), totals = {0};
        for (int64_t j = 0; j < room; j += LANES) {
            vector here = *(const vector *)(from + j);
            const ints mask = whole ? (ints){0} - 1 : within(j, first, last);
            here = (vector)(((ints)here & mask) | ((ints)all(-INFINITY) & ~mask));
            const ints above = here > tops;
            tops = (vector)(((ints)here & above) | ((ints)tops & ~above));
        }
        float top = -INFINITY;
        for (int j = 0; j < LANES; j++) top = tops[j] > top ? tops[j] : top;
        top = top * scale > most[i] ? top * scale : most[i];
        for (int64_t j = 0; j < room; j += LANES) {
            vector share = exps(*(const vector *)(from + j) * scale - top);
            if (!whole) share = kept(share, within(j, first, last));
            totals += share;
            store_lanes(to, j, share, half);
        }
        const float fading = most[i] == -INFINITY ? 0 : exp_(most[i] - top);
        total[i] = total[i] * fading + summed(totals);
        most[i] = top;
        for (int64_t d = 0; d < D; d += LANES) *(vector *)(sums + i * D + d) *= fading;
    }
}

typedef struct {
    void *rows;                 /* (q, D) */
    float *sums, *most, *total; /* (q, D), (q), (q) */
} Run;

/* The rows [q0, q1) of a run that are in a block, against the keys of that block. */
INLINE void look(const Forest *f, const Block *b, int64_t q0, int64_t q1, int64_t head, Run run, char *scratch,
                 const int half) {
    const int64_t D = f->size, keys = b->k1 - b->k0, room = ROUND(keys), many = f->heads / f->shared;
    const int64_t from = q0 > b->q0 ? q0 : b->q0, to = q1 < b->q1 ? q1 : b->q1, key_head = head / f->shared;
    const int64_t pair = half ? 2 : 1;
    uint32_t *key = (uint32_t *)scratch, *value = key + room * D / pair;
    float *scores = (float *)(value + room * D / pair);
    void *shares = scores + STEP * STEP;
    as_turned_words(key, moved(f->key, (key_head * f->rows + b->k0) * D, half), D, keys, room, D, half);
    as_words(value, moved(f->value, (b->k0 * many + key_head) * D, half), many * D, keys, room, D, half);
    const Sight s = sight(f, b);
    for (int64_t q = from; q < to; q += STEP)
        for (int64_t k = 0; k < keys; k += STEP) {
            const int64_t nq = to - q < STEP ? to - q : STEP, nk = keys - k < STEP ? keys - k : STEP, at = q - q0;
            const int how = seen(s, q - b->q0, nq, k, nk);
            if (!how) continue;
            const Sight here = {s.distance + q - b->q0 - k, s.window};
            const void *rows = moved(run.rows, at * D, half);
            float *sums = run.sums + at * D, *most = run.most + at, *total = run.total + at;
            multiply(scores, STEP, rows, D, key + k, room, ROUND(nq), ROUND(nk), D, 0, half);
            if (how == 2) exponentials(scores, shares, sums, most, total, nq, nk, D, here, f->scale, 1, half);
            else exponentials(scores, shares, sums, most, total, nq, nk, D, here, f->scale, 0, half);
            multiply(sums, D, shares, STEP, value + k / pair * D, D, ROUND(nq), D, ROUND(nk), 1, half);
        }
}

/* Rows [q0, q1) against all keys that they see: each run's own keys, then those of the merged blocks. */
INLINE void rows_forward(const Forest *f, const Block *first, const Block *end, int64_t q0, int64_t q1, int64_t head,
                         char *scratch, const int half) {
    const int64_t D = f->size, count = q1 - q0, room = ROUND(count) + 32; /* a block may start at any row */
    Run run = {scratch, (float *)moved(scratch, room * D, half), 0, 0};
    run.most = run.sums + room * D;
    run.total = run.most + room;
    as_rows(run.rows, moved(f->query, (head * f->rows + q0) * D, half), D, count, room, D, half);
    memset(run.sums, 0, room * D * 4);
    for (int64_t i = 0; i < room; i++) {
        run.most[i] = -INFINITY;
        run.total[i] = 0;
    }
    for (const Block *b = first; b < end; b++)
        if (b->q0 < q1 && b->q1 > q0) look(f, b, q0, q1, head, run, (char *)(run.total + room), half);
    for (int64_t i = 0; i < count; i++) {
        void *to = (void *)moved(f->out, ((q0 + i) * f->heads + head) * D, half);
        const float share = 1 / run.total[i];
        for (int64_t d = 0; d < D; d += LANES) store_lanes(to, d, *(vector *)(run.sums + i * D + d) * share, half);
        f->lse[head * f->rows + q0 + i] = run.most[i] + logf(run.total[i]);
    }
}

/* Run by run, except that branches which all see the whole trunk are computed together: its keys are packed once. */
INLINE void tree_forward(const Forest *f, int64_t tree, int64_t head, char *scratch, const int half) {
    const Block *first = f->blocks + f->trees[tree], *end = f->blocks + f->trees[tree + 1];
    int64_t done = first->q0;
    for (const Block *b = first; b < end && !b->merge; b++) {
        int64_t q1 = b->q1;
        if (b->q0 < done) continue;
        for (const Block *m = b; m < end; m++)
            if (m->all && m->q0 == b->q0) q1 = m->q1;
        rows_forward(f, first, end, b->q0, q1, head, scratch, half);
        done = q1;
    }
}

void togi_attend(const Forest *f) {
#pragma omp parallel num_threads(f->threads)
    {
        char *scratch = f->scratch + omp_get_thread_num() * f->room;
        if (f->half) begin_tiles();
#pragma omp for schedule(dynamic) collapse(2)
        for (int64_t tree = 0; tree < f->num_trees; tree++)
            for (int64_t head = 0; head < f->heads; head++) {
                if (f->half) tree_forward(f, tree, head, scratch, 1);
                else tree_forward(f, tree, head, scratch, 0);
            }
        if (f->half) end_tiles();
    }
}

/* --- backward ---------------------------------------------------------------------------------------------------- */

/* Softmax shares, and gradients (slopes), of scores (keys, rows); the slopes also as words. */
INLINE void slopes(const float *scores, const float *grads, const float *lse, const float *mean, void *shares,
                   void *slope, uint32_t *words, int64_t rows, int64_t keys, int64_t real, Sight s, float scale,
                   const int masked, const int half) {
    for (int64_t k = 0; k < keys; k++) {
        /* rows [first, last) see this key */
        const int64_t first = masked ? k - s.distance : 0;
        const int64_t last = !masked ? rows : k < real ? first + s.window : first;
        for (int64_t q = 0; q < rows; q += LANES) {
            const int64_t at = k * STEP + q;
            vector share = exps(*(const vector *)(scores + at) * scale - *(const vector *)(lse + q));
            if (masked) share = kept(share, within(q, first, last < INT32_MAX ? last : INT32_MAX));
            store_lanes(shares, at, share, half);
            store_lanes(slope, at, share * (*(const vector *)(grads + at) - *(const vector *)(mean + q)) * scale, half);
        }
    }
    if (half) as_words(words, slope, STEP, keys, keys, STEP, 1);
}

typedef struct {
    float *query, *key, *value; /* of a tree, from its first row */
} Sums;

INLINE void *take(char **scratch, int64_t bytes) {
    void *found = *scratch;
    *scratch += bytes;
    return found;
}

INLINE void block_backward(const Forest *f, const Block *b, int64_t head, int64_t start, Sums to, char *scratch,
                           const int half) {
    const int64_t D = f->size, many = f->heads / f->shared, key_head = head / f->shared, width = half ? 2 : 4;
    const int64_t nq = b->q1 - b->q0, nk = b->k1 - b->k0, Q = ROUND(nq), K = ROUND(nk), pair = half ? 2 : 1;
    const void *query = moved(f->query, (head * f->rows + b->q0) * D, half);
    const void *key = moved(f->key, (key_head * f->rows + b->k0) * D, half);
    const void *value = moved(f->value, (b->k0 * many + key_head) * D, half);
    const void *grad = moved(f->grad, (b->q0 * f->heads + head) * D, half);
    const void *out = moved(f->out, (b->q0 * f->heads + head) * D, half);
    float *scores = take(&scratch, STEP * STEP * 4), *grads = take(&scratch, STEP * STEP * 4);
    void *shares = take(&scratch, STEP * STEP * width), *slope = take(&scratch, STEP * STEP * width);
    uint32_t *words = half ? take(&scratch, STEP * STEP * 2) : slope;
    float *lse = take(&scratch, Q * 4), *mean = take(&scratch, Q * 4);
    float *grad_query = take(&scratch, Q * D * 4);
    float *grad_key = take(&scratch, K * D * 4), *grad_value = take(&scratch, K * D * 4);
    uint32_t *query_words = take(&scratch, Q * D * width), *query_turned = take(&scratch, Q * D * width);
    uint32_t *grad_words = take(&scratch, Q * D * width), *grad_turned = take(&scratch, Q * D * width);
    void *key_rows = take(&scratch, K * D * width), *value_rows = take(&scratch, K * D * width);
    uint32_t *key_turned_words = take(&scratch, K * D * width);
    void *key_turned = half ? take(&scratch, K * D * width) : key_turned_words;

    as_words(query_words, query, D, nq, Q, D, half);
    as_turned_words(query_turned, query, D, nq, Q, D, half);
    as_words(grad_words, grad, f->heads * D, nq, Q, D, half);
    as_turned_words(grad_turned, grad, f->heads * D, nq, Q, D, half);
    as_rows(key_rows, key, D, nk, K, D, half);
    as_rows(value_rows, value, many * D, nk, K, D, half);
    as_turned_words(key_turned_words, key, D, nk, K, D, half);
    if (half) as_turned(key_turned, key_turned_words, K, D);
    memset(grad_query, 0, (Q + 2 * K) * D * 4);
    for (int64_t q = 0; q < Q; q++) {
        vector sums = {0};
        lse[q] = q < nq ? f->lse[head * f->rows + b->q0 + q] : INFINITY; /* makes the share 0 */
        for (int64_t d = 0; d < (q < nq ? D : 0); d += LANES)
            sums += load(grad, q * f->heads * D + d, half) * load(out, q * f->heads * D + d, half);
        mean[q] = summed(sums);
    }
    const Sight s = sight(f, b);
    for (int64_t k = 0; k < K; k += STEP)
        for (int64_t q = 0; q < Q; q += STEP) {
            const int64_t rows = Q - q < STEP ? Q - q : STEP, keys = K - k < STEP ? K - k : STEP;
            const int64_t real = nk - k < keys ? nk - k : keys;
            const int how = seen(s, q, rows, k, keys);
            if (!how) continue;
            const Sight here = {s.distance + q - k, s.window};
            multiply(scores, STEP, moved(key_rows, k * D, half), D, query_turned + q, Q, keys, rows, D, 0, half);
            multiply(grads, STEP, moved(value_rows, k * D, half), D, grad_turned + q, Q, keys, rows, D, 0, half);
            if (how == 2 || real < keys)
                slopes(scores, grads, lse + q, mean + q, shares, slope, words, rows, keys, real, here, f->scale, 1,
                       half);
            else
                slopes(scores, grads, lse + q, mean + q, shares, slope, words, rows, keys, real, here, f->scale, 0,
                       half);
            multiply(grad_value + k * D, D, shares, STEP, grad_words + q / pair * D, D, keys, D, rows, 1, half);
            multiply(grad_key + k * D, D, slope, STEP, query_words + q / pair * D, D, keys, D, rows, 1, half);
            multiply(grad_query + q, Q, moved(key_turned, k, half), K, words, STEP, D, rows, keys, 1, half);
        }
    add_turned(to.query + (b->q0 - start) * D, grad_query, nq, Q, D);
    for (int64_t i = 0, at = (b->k0 - start) * D; i < nk * D; i += LANES) {
        *(vector *)(to.key + at + i) += *(vector *)(grad_key + i);
        *(vector *)(to.value + at + i) += *(vector *)(grad_value + i);
    }
}

INLINE void tree_backward(const Forest *f, int64_t tree, int64_t head, char *scratch, const int half) {
    const int64_t D = f->size, start = f->starts[tree], rows = f->starts[tree + 1] - start;
    const int64_t at = (head * f->rows + start) * D;
    const Sums sums = {(float *)scratch, f->partial_key + at, f->partial_value + at};
    memset(sums.query, 0, rows * D * 4);
    memset(sums.key, 0, rows * D * 4);
    memset(sums.value, 0, rows * D * 4);
    for (int64_t i = f->trees[tree]; i < f->trees[tree + 1]; i++)
        block_backward(f, f->blocks + i, head, start, sums, scratch + rows * D * 4, half);
    for (int64_t i = 0; i < rows * D; i += LANES)
        store_lanes(f->grad_query, at + i, *(vector *)(sums.query + i), half);
}

/* Sums the gradients of all query heads of a key head. */
INLINE void gather(const Forest *f, int64_t head, int64_t t, const int half) {
    const int64_t D = f->size, T = f->rows, many = f->heads / f->shared;
    for (int64_t d = 0; d < D; d += LANES) {
        vector key = {0}, value = {0};
        for (int64_t i = head * f->shared; i < (head + 1) * f->shared; i++) {
            key += *(vector *)(f->partial_key + (i * T + t) * D + d);
            value += *(vector *)(f->partial_value + (i * T + t) * D + d);
        }
        store_lanes(f->grad_key, (head * T + t) * D + d, key, half);
        store_lanes(f->grad_value, (t * many + head) * D + d, value, half);
    }
}

void togi_attend_backward(const Forest *f) {
#pragma omp parallel num_threads(f->threads)
    {
        char *scratch = f->scratch + omp_get_thread_num() * f->room;
        if (f->half) begin_tiles();
#pragma omp for schedule(dynamic) collapse(2)
        for (int64_t tree = 0; tree < f->num_trees; tree++)
            for (int64_t head = 0; head < f->heads; head++) {
                if (f->half) tree_backward(f, tree, head, scratch, 1);
                else tree_backward(f, tree, head, scratch, 0);
            }
        if (f->half) end_tiles();
#pragma omp for schedule(static) collapse(2)
        for (int64_t head = 0; head < f->heads / f->shared; head++)
            for (int64_t t = 0; t < f->rows; t++) {
                if (f->half) gather(f, head, t, 1);
                else gather(f, head, t, 0);
            }
    }
}
