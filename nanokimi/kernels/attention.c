// Causal attention, forward and backward, in bf16: `eager_attention` of attention.py, or with rotated queries and keys
// `FusedLatentAttention`. It processes one head of one sequence at a time, which fits into a core's cache, and skips
// keys that no query sees. The backward pass recomputes the weights from the logarithm of each query's sum (flash
// attention, arXiv 2205.14135).

#include "bf16.h"

enum { BLOCK = 64 };  // queries

typedef struct {
    long batch, tokens, heads, nope, rope, value;  // B, T, H, N, R, V; R is 0 without rotation
    double scale;
    const bf16 *k_rope;      // (B, T, R): the rotary key, shared by all heads
    const float *rotations;  // (T, R): cos and sin of the angle that rotates each pair
    float *log_sums;         // (B, H, T): of exp(logit), kept for the backward pass
} Layer;

// Heads (B, T, H, size), with the stride of each axis.
typedef struct {
    long batch, token, head;
    bf16 *numbers;
} Heads;

static inline bf16 *at(const Heads *x, long b, long t, long h) {
    return x->numbers + b * x->batch + t * x->token + h * x->head;
}

// A head's matrices, padded with zeros to whole vectors: T tokens, X = N + R, V.
typedef struct {
    long T, X, V;
    bf16 *q, *k, *v, *out_grad;                      // (T, X), (T, X), (T, V), (T, V)
    bf16x2 *keys, *key_rows, *values, *value_columns;  // k packed by columns and by rows, v by rows and by columns
    float *logits, *weights_grad, *out;              // (BLOCK, T) each, (BLOCK, max(X, V))
    bf16 *weights, *logits_grad;                     // (BLOCK, T)
    bf16x2 *left, *right;                              // a block packed
    float *k_grad, *v_grad;                          // (T, X), (T, V)
} Head;

static Head head_for(const Layer *l, Arena *r, int backward) {
    const long T = round_up(l->tokens, LANES), X = round_up(l->nope + l->rope, LANES), V = round_up(l->value, LANES);
    const long widest = X > V ? X : V;
    Head h = {.T = T, .X = X, .V = V};
    h.q = reserve(r, T * X, 2), h.k = reserve(r, T * X, 2), h.v = reserve(r, T * V, 2), h.keys = reserve(r, T * X / 2, 4);
    h.logits = reserve(r, BLOCK * T, 4), h.weights = reserve(r, BLOCK * T, 2), h.out = reserve(r, BLOCK * widest, 4);
    if (backward) {
        h.out_grad = reserve(r, T * V, 2), h.key_rows = reserve(r, T * X / 2, 4), h.value_columns = reserve(r, T * V / 2, 4);
        h.weights_grad = reserve(r, BLOCK * T, 4), h.logits_grad = reserve(r, BLOCK * T, 2);
        h.left = reserve(r, BLOCK / 2 * T, 4), h.right = reserve(r, BLOCK / 2 * widest, 4);
        h.k_grad = reserve(r, T * X, 4), h.v_grad = reserve(r, T * V, 4);
    } else {
        h.values = reserve(r, T * V / 2, 4);
    }
    if (!r->missing) {
        memset(h.q, 0, 2 * T * X), memset(h.k, 0, 2 * T * X), memset(h.v, 0, 2 * T * V);
        if (backward) memset(h.out_grad, 0, 2 * T * V);
    }
    return h;
}

static void narrow_row(const float *x, long size, bf16 *out) {
    for (long i = 0; i < size; i += LANES) narrow_some(_mm512_loadu_ps(x + i), out + i, lanes(size - i));
}

// Rotate pairs of neighbours: as complex numbers times cos + i sin of their angles, or times cos - i sin to rotate back.
static inline __m512 rotated(__m512 x, __m512 rotation, int back) {
    const __m512 by_cos = _mm512_moveldup_ps(rotation), crossed = _mm512_mul_ps(_mm512_permute_ps(x, 0xb1), _mm512_movehdup_ps(rotation));
    return back ? _mm512_fmsubadd_ps(x, by_cos, crossed) : _mm512_fmaddsub_ps(x, by_cos, crossed);
}

static void rotate_row(const bf16 *x, const float *rotation, long size, bf16 *out) {
    for (long r = 0; r < size; r += LANES) {
        const __mmask16 some = lanes(size - r);
        narrow_some(rotated(widen_some(x + r, some), _mm512_maskz_loadu_ps(some, rotation + r), 0), out + r, some);
    }
}

// Copy head `h` of sequence `b` and pack its keys.
static void read_head(const Layer *l, const Head *s, const Heads *q, const Heads *k, const Heads *v, long b, long h) {
    const long T = l->tokens, N = l->nope, R = l->rope;
    for (long t = 0; t < T; t++) {
        memcpy(s->q + t * s->X, at(q, b, t, h), 2 * N), memcpy(s->k + t * s->X, at(k, b, t, h), 2 * N);
        memcpy(s->v + t * s->V, at(v, b, t, h), 2 * l->value);
        rotate_row(at(q, b, t, h) + N, l->rotations + t * R, R, s->q + t * s->X + N);
        rotate_row(l->k_rope + (b * T + t) * R, l->rotations + t * R, R, s->k + t * s->X + N);
    }
    pack_columns(s->k, s->T, s->X, s->X, s->keys, s->T);
}

// out (rows of a block, seen) = a b for queries `begin` to `end`, in steps of LANES queries that see no later keys
static void causal_product(long begin, long end, const bf16 *a, long inner, const bf16x2 *b, long stride, float *out) {
    for (long i = begin; i < end; i += LANES)
        for (long j = 0; j < i + LANES; j += PANEL)
            panel_product(LANES, i + LANES - j < PANEL ? i + LANES - j : PANEL, inner / 2, (const bf16x2 *)(a + i * inner),
                          inner / 2, 1, b + j, stride, out + (i - begin) * stride + j, stride, 0);
}

// out (rows of a block, columns) = a b: a (BLOCK, T) holds a block's queries by keys, of which those up to each query count
static void seen_product(const Head *s, long begin, long end, const bf16 *a, const bf16x2 *b, long columns, float *out) {
    for (long i = begin; i < end; i += LANES)
        for (long j = 0; j < columns; j += PANEL)
            panel_product(LANES, columns - j < PANEL ? columns - j : PANEL, (i + LANES) / 2,
                          (const bf16x2 *)(a + (i - begin) * s->T), s->T / 2, 1, b + j, columns,
                          out + (i - begin) * columns + j, columns, 0);
}

// Softmax of a query's scaled logits over the keys up to its own. The weights of later keys, up to `filled`, are 0.
// Returns the logarithm of the sum of exp(logit); `top` is raised to the largest logit.
static float softmax_row(const float *logits, long position, long filled, float scale, bf16 *weights, float *top) {
    __m512 largest = _mm512_set1_ps(-INFINITY), total = _mm512_setzero_ps();
    for (long j = 0; j <= position; j += LANES)
        largest = _mm512_mask_max_ps(largest, lanes(position + 1 - j), largest, _mm512_loadu_ps(logits + j));
    const float row_top = _mm512_reduce_max_ps(largest) * scale;
    for (long j = 0; j <= position; j += LANES) {
        const __m512 x = _mm512_fmsub_ps(_mm512_loadu_ps(logits + j), _mm512_set1_ps(scale), _mm512_set1_ps(row_top));
        total = _mm512_add_ps(total, _mm512_maskz_mov_ps(lanes(position + 1 - j), exponential16(x)));
    }
    const float log_sum = row_top + logf(_mm512_reduce_add_ps(total));
    for (long j = 0; j < filled; j += LANES) {
        const __mmask16 seen = j > position ? 0 : lanes(position + 1 - j);
        const __m512 x = _mm512_fmsub_ps(_mm512_maskz_loadu_ps(seen, logits + j), _mm512_set1_ps(scale), _mm512_set1_ps(log_sum));
        narrow16(_mm512_maskz_mov_ps(seen, exponential16(x)), weights + j);
    }
    *top = row_top > *top ? row_top : *top;
    return log_sum;
}

// Queries (B, T, H, N + R), keys (B, T, H, N) and values (B, T, H, V) to `out` (B, T, H, V) and the largest scaled logit
// of each head of each sequence (B, H). Returns whether memory ran out.
int attention_forward(const Layer *l, int threads, const Heads *q, const Heads *k, const Heads *v, const Heads *out,
                       float *largest) {
    const long T = l->tokens, H = l->heads;
    int failed = 0;
#pragma omp parallel num_threads(threads)
    {
        Arena own = {0};
        const Head s = head_for(l, &own, 0);
        if (own.missing) {
#pragma omp atomic write
            failed = 1;
        }
#pragma omp barrier
#pragma omp for schedule(static)
        for (long unit = 0; unit < (failed ? 0 : l->batch * H); unit++) {
            const long b = unit / H, h = unit % H;
            read_head(l, &s, q, k, v, b, h);
            pack_rows(s.v, s.T, s.V, s.V, s.values, s.V);
            largest[unit] = -INFINITY;
            for (long begin = 0; begin < T; begin += BLOCK) {
                const long end = begin + BLOCK < s.T ? begin + BLOCK : s.T;
                causal_product(begin, end, s.q, s.X, s.keys, s.T, s.logits);
                for (long i = begin; i < end; i++) {
                    bf16 *weights = s.weights + (i - begin) * s.T;
                    const float *logits = s.logits + (i - begin) * s.T;
                    if (i < T)
                        l->log_sums[unit * T + i] = softmax_row(logits, i, end, l->scale, weights, &largest[unit]);
                    else
                        memset(weights, 0, 2 * end);
                }
                seen_product(&s, begin, end, s.weights, s.values, s.V, s.out);
                for (long i = begin; i < end && i < T; i++)
                    narrow_row(s.out + (i - begin) * s.V, l->value, at(out, b, i, h));
            }
        }
        release(&own);
    }
    return failed;
}

// A query's weights, computed again, and the gradient of its unscaled logits: w (g - sum of w g) scale.
static void softmax_backward_row(const float *logits, const float *grad, long position, long filled, float scale,
                                 float log_sum, bf16 *weights, bf16 *logits_grad) {
    __m512 total = _mm512_setzero_ps();
    for (long j = 0; j < filled; j += LANES) {
        const __mmask16 seen = j > position ? 0 : lanes(position + 1 - j);
        const __m512 x = _mm512_fmsub_ps(_mm512_maskz_loadu_ps(seen, logits + j), _mm512_set1_ps(scale), _mm512_set1_ps(log_sum));
        const __m512 weight = _mm512_maskz_mov_ps(seen, exponential16(x));
        narrow16(weight, weights + j);
        total = _mm512_fmadd_ps(weight, _mm512_maskz_loadu_ps(seen, grad + j), total);
    }
    const __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(total)), by = _mm512_set1_ps(scale);
    for (long j = 0; j < filled; j += LANES) {
        const __mmask16 seen = j > position ? 0 : lanes(position + 1 - j);
        const __m512 apart = _mm512_sub_ps(_mm512_maskz_loadu_ps(seen, grad + j), mean);
        narrow16(_mm512_mul_ps(_mm512_mul_ps(widen16(weights + j), apart), by), logits_grad + j);
    }
}

// The gradient of a head's queries from `begin` to `end`, in s->out, and their contributions to those of keys and values.
static void block_backward(const Layer *l, const Head *s, long unit, long begin, long end) {
    const long T = l->tokens, count = end - begin;
    causal_product(begin, end, s->q, s->X, s->keys, s->T, s->logits);
    causal_product(begin, end, s->out_grad, s->V, s->value_columns, s->T, s->weights_grad);
    for (long i = begin; i < end; i++) {
        const long row = (i - begin) * s->T;
        if (i < T)
            softmax_backward_row(s->logits + row, s->weights_grad + row, i, end, l->scale, l->log_sums[unit * T + i],
                                 s->weights + row, s->logits_grad + row);
        else
            memset(s->weights + row, 0, 2 * end), memset(s->logits_grad + row, 0, 2 * end);
    }
    seen_product(s, begin, end, s->logits_grad, s->key_rows, s->X, s->out);
    pack_rows(s->logits_grad, count, end, s->T, s->left, end);
    pack_rows(s->q + begin * s->X, count, s->X, s->X, s->right, s->X);
    transposed_product(end, s->X, count / 2, s->left, s->right, s->k_grad);
    pack_rows(s->weights, count, end, s->T, s->left, end);
    pack_rows(s->out_grad + begin * s->V, count, s->V, s->V, s->right, s->V);
    transposed_product(end, s->V, count / 2, s->left, s->right, s->v_grad);
}

static inline __m512 rotated_back(const float *x, const float *rotation, __mmask16 some) {
    return rotated(_mm512_maskz_loadu_ps(some, x), _mm512_maskz_loadu_ps(some, rotation), 1);
}

// Gradients of q, k and v, and of the rotary key for each head separately, (B, H, T, R). Returns whether memory ran out.
int attention_backward(const Layer *l, int threads, const Heads *q, const Heads *k, const Heads *v, const Heads *out_grad,
                        const Heads *q_grad, const Heads *k_grad, const Heads *v_grad, float *k_rope_grad) {
    const long T = l->tokens, H = l->heads, N = l->nope, R = l->rope, V = l->value;
    int failed = 0;
#pragma omp parallel num_threads(threads)
    {
        Arena own = {0};
        const Head s = head_for(l, &own, 1);
        if (own.missing) {
#pragma omp atomic write
            failed = 1;
        }
#pragma omp barrier
#pragma omp for schedule(static)
        for (long unit = 0; unit < (failed ? 0 : l->batch * H); unit++) {
            const long b = unit / H, h = unit % H;
            read_head(l, &s, q, k, v, b, h);
            for (long t = 0; t < T; t++) memcpy(s.out_grad + t * s.V, at(out_grad, b, t, h), 2 * V);
            pack_rows(s.k, s.T, s.X, s.X, s.key_rows, s.X);
            pack_columns(s.v, s.T, s.V, s.V, s.value_columns, s.T);
            memset(s.k_grad, 0, 4 * s.T * s.X), memset(s.v_grad, 0, 4 * s.T * s.V);
            for (long begin = 0; begin < T; begin += BLOCK) {
                const long end = begin + BLOCK < s.T ? begin + BLOCK : s.T;
                block_backward(l, &s, unit, begin, end);
                for (long i = begin; i < end && i < T; i++) {
                    const float *grad = s.out + (i - begin) * s.X;
                    bf16 *to = at(q_grad, b, i, h);
                    narrow_row(grad, N, to);
                    for (long r = 0; r < R; r += LANES)
                        narrow_some(rotated_back(grad + N + r, l->rotations + i * R + r, lanes(R - r)), to + N + r, lanes(R - r));
                }
            }
            for (long t = 0; t < T; t++) {
                narrow_row(s.k_grad + t * s.X, N, at(k_grad, b, t, h));
                narrow_row(s.v_grad + t * s.V, V, at(v_grad, b, t, h));
                for (long r = 0; r < R; r += LANES)
                    _mm512_mask_storeu_ps(k_rope_grad + (unit * T + t) * R + r, lanes(R - r),
                                          rotated_back(s.k_grad + t * s.X + N + r, l->rotations + t * R + r, lanes(R - r)));
            }
        }
        release(&own);
    }
    return failed;
}
