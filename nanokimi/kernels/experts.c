// The mixture of SwiGLU experts, forward and backward, in bf16: `BlockedExperts` of experts.py in C. A row is a token and
// one of its experts. Rows are processed in blocks of one expert, which are gathered and multiplied within a core's
// cache. One thread computes a whole row of a result, or a whole sum over rows, so results do not depend on threads.

#include "bf16.h"

enum { BLOCK = 64 };  // rows

typedef struct {
    long tokens, chosen, experts, width, hidden;  // M, K, E, D, F; D and F multiples of 16
    const int64_t *choice;                        // (M, K)
    const float *gates;                           // (M, K)
    const float *gate, *up, *down;                // (E, F, D), (E, F, D), (E, D, F)
    const bf16 *x;                                // (M, D)
    bf16 *gate_rows, *up_rows;                    // (M K, F) by expert: before silu; kept for the backward pass
} Layer;

// Expert e has the rows begin[e] to begin[e + 1], and row r is the pair row[r] (token * K + k).
typedef struct {
    long *begin, *row, *block_expert, *block_begin, blocks;
} Plan;

static Plan plan_for(const Layer *l, Arena *arena) {
    const long rows = l->tokens * l->chosen, most = rows / BLOCK + l->experts;
    Plan p = {reserve(arena, l->experts + 1, sizeof(long)), reserve(arena, rows, sizeof(long)),
              reserve(arena, most, sizeof(long)), reserve(arena, most, sizeof(long)), 0};
    long *next = reserve(arena, l->experts, sizeof(long));
    if (arena->missing) return p;
    memset(p.begin, 0, (l->experts + 1) * sizeof(long));
    for (long i = 0; i < rows; i++) p.begin[l->choice[i] + 1]++;
    for (long e = 0; e < l->experts; e++) {
        p.begin[e + 1] += p.begin[e];
        for (long r = p.begin[e]; r < p.begin[e + 1]; r += BLOCK) p.block_expert[p.blocks] = e, p.block_begin[p.blocks++] = r;
    }
    memcpy(next, p.begin, l->experts * sizeof(long));
    for (long i = 0; i < rows; i++) p.row[next[l->choice[i]]++] = i;
    return p;
}

static void round_all(const float *x, long count, bf16 *out) {
    for (long i = 0; i < count; i += LANES) narrow16(_mm512_loadu_ps(x + i), out + i);
}

static inline __m512 sigmoid(__m512 x) {
    const __m512 one = _mm512_set1_ps(1);
    return _mm512_div_ps(one, _mm512_add_ps(one, exponential16(_mm512_sub_ps(_mm512_setzero_ps(), x))));
}

// hidden = silu(gate) * up of a block's rows, which are also kept
static void activate(const float *gate, const float *up, long count, bf16 *kept_gate, bf16 *kept_up, bf16 *hidden) {
    for (long i = 0; i < count; i += LANES) {
        narrow16(_mm512_loadu_ps(gate + i), kept_gate + i);
        narrow16(_mm512_loadu_ps(up + i), kept_up + i);
        const __m512 g = widen16(kept_gate + i), u = widen16(kept_up + i);
        narrow16(_mm512_mul_ps(_mm512_mul_ps(g, sigmoid(g)), u), hidden + i);
    }
}

// out[m] = sum over k of factors[m, k] * rows[m, k], (M, D); factors that are NULL count as 1
static void combine(const Layer *l, const bf16 *rows, const float *factors, float *out) {
#pragma omp for schedule(static)
    for (long m = 0; m < l->tokens; m++)
        for (long d = 0; d < l->width; d += LANES) {
            __m512 sum = _mm512_setzero_ps();
            for (long i = m * l->chosen; i < (m + 1) * l->chosen; i++)
                sum = _mm512_fmadd_ps(widen16(rows + i * l->width + d), _mm512_set1_ps(factors ? factors[i] : 1), sum);
            _mm512_storeu_ps(out + m * l->width + d, sum);
        }
}

// The scratch memory of one thread.
typedef struct {
    bf16 *rounded, *x, *hidden;  // a matrix; a block's rows (BLOCK, D) and (BLOCK, F)
    float *gates, *ups, *outs;   // (BLOCK, F) twice, (BLOCK, D)
} Forward;

static void forward_block(const Layer *l, const Plan *p, long b, const bf16x2 *gate, const bf16x2 *up, const bf16x2 *down,
                          const Forward *s, bf16 *results) {
    const long D = l->width, F = l->hidden, e = p->block_expert[b], begin = p->block_begin[b], end = p->begin[e + 1];
    const long count = end - begin < BLOCK ? end - begin : BLOCK, filled = round_up(count, ROWS), *row = p->row + begin;
    for (long r = 0; r < count; r++) memcpy(s->x + r * D, l->x + row[r] / l->chosen * D, 2 * D);
    memset(s->x + count * D, 0, 2 * D * (filled - count));
    product(filled, F, D / 2, s->x, gate + e * D / 2 * F, s->gates, 0);
    product(filled, F, D / 2, s->x, up + e * D / 2 * F, s->ups, 0);
    activate(s->gates, s->ups, count * F, l->gate_rows + begin * F, l->up_rows + begin * F, s->hidden);
    memset(s->hidden + count * F, 0, 2 * F * (filled - count));
    product(filled, D, F / 2, s->hidden, down + e * F / 2 * D, s->outs, 0);
    for (long r = 0; r < count; r++) round_all(s->outs + r * D, D, results + row[r] * D);
}

// y (M, D) = sum over k of gates[m, k] * expert choice[m, k] of x[m]. Returns whether memory ran out.
int experts_forward(const Layer *l, int threads, float *y) {
    const long D = l->width, F = l->hidden, E = l->experts;
    Arena shared = {0};
    const Plan p = plan_for(l, &shared);
    bf16x2 *gate = reserve(&shared, E * D / 2 * F, 4), *up = reserve(&shared, E * D / 2 * F, 4);
    bf16x2 *down = reserve(&shared, E * F / 2 * D, 4);
    bf16 *results = reserve(&shared, l->tokens * l->chosen * D, 2);
    int failed = shared.missing;
#pragma omp parallel num_threads(threads)
    {
        Arena own = {0};
        const Forward s = {reserve(&own, D * F, 2),     reserve(&own, BLOCK * D, 2), reserve(&own, BLOCK * F, 2),
                           reserve(&own, BLOCK * F, 4), reserve(&own, BLOCK * F, 4), reserve(&own, BLOCK * D, 4)};
        if (own.missing) {
#pragma omp atomic write
            failed = 1;
        }
#pragma omp barrier
        if (!failed) {
#pragma omp for schedule(static)
            for (long e = 0; e < E; e++) {
                round_all(l->gate + e * D * F, D * F, s.rounded), pack_columns(s.rounded, F, D, D, gate + e * D / 2 * F, F);
                round_all(l->up + e * D * F, D * F, s.rounded), pack_columns(s.rounded, F, D, D, up + e * D / 2 * F, F);
                round_all(l->down + e * D * F, D * F, s.rounded), pack_columns(s.rounded, D, F, F, down + e * F / 2 * D, D);
            }
#pragma omp for schedule(dynamic)
            for (long b = 0; b < p.blocks; b++) forward_block(l, &p, b, gate, up, down, &s, results);
            combine(l, results, l->gates, y);
        }
        release(&own);
    }
    release(&shared);
    return failed;
}

// Gradients of a block's gate and up rows from that of its hidden rows for gates of 1; and hidden rows times gates.
static void activate_backward(const float *hidden_grad, const bf16 *gate, const bf16 *up, long F, float factor,
                              bf16 *gate_grad, bf16 *up_grad, bf16 *hidden, float *factor_grad) {
    const __m512 one = _mm512_set1_ps(1), by = _mm512_set1_ps(factor);
    __m512 dot = _mm512_setzero_ps();
    for (long f = 0; f < F; f += LANES) {
        const __m512 g = widen16(gate + f), u = widen16(up + f), s = sigmoid(g), silu = _mm512_mul_ps(g, s);
        const __m512 h = _mm512_mul_ps(silu, u), plain = _mm512_loadu_ps(hidden_grad + f);
        const __m512 grad = _mm512_mul_ps(plain, by);
        dot = _mm512_fmadd_ps(plain, h, dot);
        narrow16(_mm512_mul_ps(h, by), hidden + f);
        narrow16(_mm512_mul_ps(grad, silu), up_grad + f);
        const __m512 slope = _mm512_mul_ps(s, _mm512_fmadd_ps(g, _mm512_sub_ps(one, s), one));
        narrow16(_mm512_mul_ps(_mm512_mul_ps(grad, u), slope), gate_grad + f);
    }
    *factor_grad = _mm512_reduce_add_ps(dot);
}

// A matrix whose rows are sorted by expert, or reached through `row`.
typedef struct {
    const bf16 *numbers;
    const long *row;  // NULL: rows are contiguous
    long chosen, width;
} Rows;

static void pack_block(const Rows *s, long begin, long count, bf16 *gathered, bf16x2 *packed) {
    const long even = round_up(count, 2), w = s->width;
    for (long r = 0; r < count; r++)
        memcpy(gathered + r * w, s->numbers + (s->row ? s->row[begin + r] / s->chosen : begin + r) * w, 2 * w);
    if (even > count) memset(gathered + count * w, 0, 2 * w);
    pack_rows(gathered, even, w, w, packed, w);
}

// grad (width of a, width of b) = a^T b, summed over the rows of one expert
static void weight_grad(const Rows *a, const Rows *b, long begin, long end, bf16 *gathered, bf16x2 *left, bf16x2 *right,
                        float *grad) {
    memset(grad, 0, 4 * a->width * b->width);
    for (long r = begin; r < end; r += 2 * BLOCK) {
        const long count = end - r < 2 * BLOCK ? end - r : 2 * BLOCK;
        pack_block(a, r, count, gathered, left), pack_block(b, r, count, gathered, right);
        transposed_product(a->width, b->width, (count + 1) / 2, left, right, grad);
    }
}

// Shared by all threads in the backward pass: packed matrices, and rows of gradients by expert.
typedef struct {
    bf16x2 *gate, *up, *down;
    bf16 *y_grad, *gate_rows, *up_rows, *hidden_rows, *results;  // (M, D), three of (M K, F), (M K, D)
} Shared;

// The scratch memory of one thread.
typedef struct {
    bf16 *rounded, *grad, *block;
    float *hidden_grad, *outs;
    bf16x2 *left, *right;
} Backward;

static void backward_block(const Layer *l, const Plan *p, long b, const Shared *all, const Backward *s, float *gates_grad) {
    const long D = l->width, F = l->hidden, e = p->block_expert[b], begin = p->block_begin[b], end = p->begin[e + 1];
    const long count = end - begin < BLOCK ? end - begin : BLOCK, filled = round_up(count, ROWS), *row = p->row + begin;
    for (long r = 0; r < count; r++) memcpy(s->grad + r * D, all->y_grad + row[r] / l->chosen * D, 2 * D);
    memset(s->grad + count * D, 0, 2 * D * (filled - count));
    product(filled, F, D / 2, s->grad, all->down + e * D / 2 * F, s->hidden_grad, 0);
    for (long r = 0; r < count; r++) {
        const long at = (begin + r) * F;
        activate_backward(s->hidden_grad + r * F, l->gate_rows + at, l->up_rows + at, F, l->gates[row[r]],
                          all->gate_rows + at, all->up_rows + at, all->hidden_rows + at, gates_grad + row[r]);
    }
    memset(s->block, 0, 2 * BLOCK * F), memcpy(s->block, all->gate_rows + begin * F, 2 * count * F);
    product(filled, D, F / 2, s->block, all->gate + e * F / 2 * D, s->outs, 0);
    memcpy(s->block, all->up_rows + begin * F, 2 * count * F);
    product(filled, D, F / 2, s->block, all->up + e * F / 2 * D, s->outs, 1);
    for (long r = 0; r < count; r++) round_all(s->outs + r * D, D, all->results + row[r] * D);
}

// Gradients of x (M, D), of the gates and of the three stacks, from that of y. Returns whether memory ran out.
int experts_backward(const Layer *l, int threads, const float *y_grad, float *x_grad, float *gates_grad, float *gate_grad,
                     float *up_grad, float *down_grad) {
    const long D = l->width, F = l->hidden, E = l->experts, M = l->tokens, rows = M * l->chosen, widest = D > F ? D : F;
    Arena shared = {0};
    const Plan p = plan_for(l, &shared);
    const Shared all = {reserve(&shared, E * F / 2 * D, 4), reserve(&shared, E * F / 2 * D, 4), reserve(&shared, E * D / 2 * F, 4),
                        reserve(&shared, M * D, 2),         reserve(&shared, rows * F, 2),      reserve(&shared, rows * F, 2),
                        reserve(&shared, rows * F, 2),      reserve(&shared, rows * D, 2)};
    int failed = shared.missing;
#pragma omp parallel num_threads(threads)
    {
        Arena own = {0};
        const Backward s = {reserve(&own, D * F + 2 * BLOCK * widest, 2), reserve(&own, BLOCK * D, 2),
                            reserve(&own, BLOCK * F, 2),      reserve(&own, BLOCK * F, 4), reserve(&own, BLOCK * D, 4),
                            reserve(&own, BLOCK * widest, 4), reserve(&own, BLOCK * widest, 4)};
        if (own.missing) {
#pragma omp atomic write
            failed = 1;
        }
#pragma omp barrier
        if (!failed) {
#pragma omp for schedule(static)
            for (long m = 0; m < M; m++) round_all(y_grad + m * D, D, all.y_grad + m * D);
#pragma omp for schedule(static)
            for (long e = 0; e < E; e++) {
                round_all(l->gate + e * D * F, D * F, s.rounded), pack_rows(s.rounded, F, D, D, all.gate + e * F / 2 * D, D);
                round_all(l->up + e * D * F, D * F, s.rounded), pack_rows(s.rounded, F, D, D, all.up + e * F / 2 * D, D);
                round_all(l->down + e * D * F, D * F, s.rounded), pack_rows(s.rounded, D, F, F, all.down + e * D / 2 * F, F);
            }
#pragma omp for schedule(dynamic)
            for (long b = 0; b < p.blocks; b++) backward_block(l, &p, b, &all, &s, gates_grad);
            combine(l, all.results, NULL, x_grad);
            const Rows x = {l->x, p.row, l->chosen, D}, y = {all.y_grad, p.row, l->chosen, D};
            const Rows gates = {all.gate_rows, NULL, 1, F}, ups = {all.up_rows, NULL, 1, F};
            const Rows hidden = {all.hidden_rows, NULL, 1, F};
#pragma omp for schedule(dynamic)
            for (long i = 0; i < 3 * E; i++) {
                const long e = i / 3, begin = p.begin[e], end = p.begin[e + 1], at = e * D * F;
                switch (i % 3) {
                    case 0: weight_grad(&gates, &x, begin, end, s.rounded, s.left, s.right, gate_grad + at); break;
                    case 1: weight_grad(&ups, &x, begin, end, s.rounded, s.left, s.right, up_grad + at); break;
                    case 2: weight_grad(&y, &hidden, begin, end, s.rounded, s.left, s.right, down_grad + at);
                }
            }
        }
        release(&own);
    }
    release(&shared);
    return failed;
}
