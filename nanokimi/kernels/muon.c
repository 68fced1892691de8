// Muon's step in one pass over each matrix, from momentum to new weight: `matrix_step` of optim/muon.py in C and bf16.
// Everything that Newton-Schulz multiplies for one matrix stays in the processor's caches, and only one half of each
// symmetric product is computed.

#include "bf16.h"

typedef struct {
    long count, rows, columns, nesterov;  // matrices in the stack, and the size of each
    double decay, step, keep;             // of the momentum; weight = keep * weight - step * direction
    float *weight, *momentum;             // (count, rows, columns) each
    const float *grad;
} Stack;

typedef struct {
    int m, n;  // of the iterated matrix, m <= n, padded with zeros to whole vectors
    bf16 *x, *gram, *polynomial, *rounded;
    bf16x2 *packed;
    float *direction, *panel;
} Scratch;

static const float A = 3.4445f, B = -4.7750f, C = 2.0315f;

// A panel of columns of a symmetric product x b, from column j, without what is left of the diagonal.
static void upper_panel(const bf16 *x, int inner, const bf16x2 *b, int size, int j, int columns, float *panel) {
    for (int i = 0; i < j + columns; i += ROWS) {
        const int skipped = i <= j ? 0 : (i - j) / LANES * LANES;
        panel_product(ROWS, columns - skipped, inner / 2, (const bf16x2 *)(x + i * inner), inner / 2, 1, b + j + skipped,
                      size, panel + i * PANEL + skipped, PANEL, 0);
    }
}

// Copy the numbers right of the diagonal to their transposed places.
static void mirror(bf16 *symmetric, int size) {
    for (int i = LANES; i < size; i++)
        for (int j = 0; j < i / LANES * LANES; j++) symmetric[i * size + j] = symmetric[j * size + i];
}

// gram = x x^T; polynomial = B gram + C gram^2; x = A x + polynomial x
static void iterate(const Scratch *s) {
    const int m = s->m, n = s->n;
    pack_columns(s->x, m, n, n, s->packed, m);
    for (int j = 0; j < m; j += PANEL) {
        const int columns = m - j < PANEL ? m - j : PANEL;
        upper_panel(s->x, n, s->packed, m, j, columns, s->panel);
        for (int i = 0; i < j + columns; i++)
            for (int v = i <= j ? 0 : (i - j) / LANES * LANES; v < columns; v += LANES)
                narrow16(_mm512_loadu_ps(s->panel + i * PANEL + v), s->gram + i * m + j + v);
    }
    mirror(s->gram, m);
    pack_rows(s->gram, m, m, m, s->packed, m);
    for (int j = 0; j < m; j += PANEL) {
        const int columns = m - j < PANEL ? m - j : PANEL;
        upper_panel(s->gram, m, s->packed, m, j, columns, s->panel);
        for (int i = 0; i < j + columns; i++)
            for (int v = i <= j ? 0 : (i - j) / LANES * LANES; v < columns; v += LANES) {
                const __m512 linear = _mm512_mul_ps(widen16(s->gram + i * m + j + v), _mm512_set1_ps(B));
                const __m512 square = _mm512_loadu_ps(s->panel + i * PANEL + v);
                narrow16(_mm512_fmadd_ps(square, _mm512_set1_ps(C), linear), s->polynomial + i * m + j + v);
            }
    }
    mirror(s->polynomial, m);
    pack_rows(s->x, m, n, n, s->packed, n);
    for (int j = 0; j < n; j += PANEL) {
        const int columns = n - j < PANEL ? n - j : PANEL;
        panel_product(m, columns, m / 2, (bf16x2 *)s->polynomial, m / 2, 1, s->packed + j, n, s->panel, PANEL, 0);
        for (int i = 0; i < m; i++)
            for (int v = 0; v < columns; v += LANES) {
                bf16 *x = s->x + i * n + j + v;
                const __m512 more = _mm512_loadu_ps(s->panel + i * PANEL + v);
                narrow16(_mm512_fmadd_ps(widen16(x), _mm512_set1_ps(A), more), x);
            }
    }
}

// One matrix: momentum, direction, Newton-Schulz, weight.
static void update(const Scratch *s, float *weight, float *momentum, const float *grad, const Stack *stack,
                   int iterations) {
    const int rows = stack->rows, columns = stack->columns, size = rows * columns, tall = rows > columns;
    const float decay = stack->decay, step = stack->step, keep = stack->keep;
    float squares = 0;
#pragma omp simd reduction(+ : squares)
    for (int i = 0; i < size; i++) {
        momentum[i] += (1 - decay) * (grad[i] - momentum[i]);
        s->direction[i] = stack->nesterov ? grad[i] + decay * (momentum[i] - grad[i]) : momentum[i];
        squares += s->direction[i] * s->direction[i];
    }
    const __m512 scale = _mm512_set1_ps(1 / (sqrtf(squares) + 1e-7f));
    for (int i = 0; i < size; i += LANES)
        narrow16(_mm512_mul_ps(_mm512_loadu_ps(s->direction + i), scale), s->rounded + i);
    memset(s->x, 0, sizeof(bf16) * s->m * s->n);
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < columns; j++) s->x[tall ? j * s->n + i : i * s->n + j] = s->rounded[i * columns + j];
    for (int i = 0; i < iterations; i++) iterate(s);
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < columns; j++) {
            const float orthogonal = widen(s->x[tall ? j * s->n + i : i * s->n + j]);
            weight[i * columns + j] = keep * weight[i * columns + j] - step * orthogonal;
        }
}

static int smaller(const Stack *s) { return round_up(s->rows < s->columns ? s->rows : s->columns, LANES); }

static int larger(const Stack *s) { return round_up(s->rows < s->columns ? s->columns : s->rows, LANES); }

// One step of Muon on all matrices of all stacks. One thread computes a whole matrix, so threads change no result.
// Returns whether memory ran out, before anything was changed.
int muon_step(const Stack *stacks, int stack_count, int iterations, int threads) {
    long matrices = 0, m = 0, mn = 0;  // the largest of each
    for (const Stack *s = stacks; s < stacks + stack_count; s++) {
        const long rows = smaller(s), size = rows * larger(s);
        m = rows > m ? rows : m, mn = size > mn ? size : mn;
        matrices += s->count;
    }
    int failed = 0;
#pragma omp parallel num_threads(threads)
    {
        Arena own = {0};
        Scratch s = {0, 0, reserve(&own, mn, 2), reserve(&own, m * m, 2), reserve(&own, m * m, 2), reserve(&own, mn, 2),
                     reserve(&own, mn / 2, 4), reserve(&own, mn, 4), reserve(&own, m * PANEL, 4)};
        if (own.missing) {
#pragma omp atomic write
            failed = 1;
        }
#pragma omp barrier
#pragma omp for schedule(dynamic)
        for (long i = 0; i < (failed ? 0 : matrices); i++) {
            const Stack *stack = stacks;
            long number = i;
            while (number >= stack->count) number -= stack++->count;
            const long offset = number * stack->rows * stack->columns;
            s.m = smaller(stack), s.n = larger(stack);
            update(&s, stack->weight + offset, stack->momentum + offset, stack->grad + offset, stack, iterations);
        }
        release(&own);
    }
    return failed;
}
