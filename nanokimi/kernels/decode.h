// Parts of decoders: products of a matrix and a vector, and attention over a cache, in fp32. Matrices are row-major,
// (rows, columns), so that a product is a dot product for each row.

#include <math.h>
#include <stddef.h>
#include <string.h>

// Eight numbers, at any alignment. Compilers translate operations on them into the processor's vector instructions.
typedef float vec __attribute__((vector_size(32), aligned(4)));
typedef int ivec __attribute__((vector_size(32), aligned(4)));

enum {
    LANES = 8,
    BLOCK = 64,                // tokens of a cache at a time, which fit into the first-level cache
    WORTH_A_THREAD = 1 << 16,  // multiplications; fewer take less time than starting a second thread
    MOST_STRETCHES = 8,        // that a cache is divided into
};

#define PICK(a, b, ...) (__builtin_shufflevector(a, b, __VA_ARGS__))

// The sums of eight vectors: neighbours are added, then pairs, then halves.
static inline vec eight_sums(const vec *v) {
    vec pairs[4], quads[2];
    for (int i = 0; i < 4; i++)
        pairs[i] = PICK(v[2 * i], v[2 * i + 1], 0, 8, 2, 10, 4, 12, 6, 14) +
                   PICK(v[2 * i], v[2 * i + 1], 1, 9, 3, 11, 5, 13, 7, 15);
    for (int i = 0; i < 2; i++)
        quads[i] = PICK(pairs[2 * i], pairs[2 * i + 1], 0, 1, 8, 9, 4, 5, 12, 13) +
                   PICK(pairs[2 * i], pairs[2 * i + 1], 2, 3, 10, 11, 6, 7, 14, 15);
    return PICK(quads[0], quads[1], 0, 1, 2, 3, 8, 9, 10, 11) + PICK(quads[0], quads[1], 4, 5, 6, 7, 12, 13, 14, 15);
}

static float dot(const float *a, const float *b, int n) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int i = 0; i < n; i++) sum += a[i] * b[i];
    return sum;
}

// out[t] = the first n numbers of row t times x, for `count` rows that begin every `stride` numbers
static void row_dots(const float *rows, int count, ptrdiff_t stride, const float *x, int n, float *out) {
    int t = 0;
    for (; t + LANES <= count && n % LANES == 0; t += LANES) {
        vec sums[LANES] = {0};
        for (int i = 0; i < n; i += LANES)
#pragma GCC unroll 8
            for (int j = 0; j < LANES; j++)
                sums[j] += *(const vec *)(rows + (t + j) * stride + i) * *(const vec *)(x + i);
        *(vec *)(out + t) = eight_sums(sums);
    }
    for (; t < count; t++) out[t] = dot(rows + t * stride, x, n);
}

// y = matrix x
static void multiply(const float *matrix, int rows, int columns, const float *x, float *y, int threads) {
#pragma omp parallel for if ((long)rows * columns > WORTH_A_THREAD) num_threads(threads) schedule(static)
    for (int i = 0; i < rows; i += LANES)
        row_dots(matrix + (ptrdiff_t)i * columns, rows - i < LANES ? rows - i : LANES, columns, x, columns, y + i);
}

// out += sum of weights[t] * (the first 8 * `vecs` numbers of row t), which stay in registers
static inline __attribute__((always_inline)) void weigh(const float *rows, int count, ptrdiff_t stride,
                                                        const float *weights, int vecs, float *out) {
    vec sums[LANES] = {0};
    for (int t = 0; t < count; t++)
#pragma GCC unroll 8
        for (int i = 0; i < vecs; i++) sums[i] += weights[t] * *(const vec *)(rows + t * stride + i * LANES);
    for (int i = 0; i < vecs; i++) *(vec *)(out + i * LANES) += sums[i];
}

// out += sum of weights[t] * (the first n numbers of row t)
static void weighted_sum(const float *rows, int count, ptrdiff_t stride, const float *weights, int n, float *out) {
    int c = 0;
    for (; c + 4 * LANES <= n && n - c != 7 * LANES; c += 4 * LANES) weigh(rows + c, count, stride, weights, 4, out + c);
    switch ((n - c) / LANES) {  // a constant each, so that the compiler knows how many registers
        case 7: weigh(rows + c, count, stride, weights, 7, out + c); break;
        case 3: weigh(rows + c, count, stride, weights, 3, out + c); break;
        case 2: weigh(rows + c, count, stride, weights, 2, out + c); break;
        case 1: weigh(rows + c, count, stride, weights, 1, out + c);
    }
    for (c = n - n % LANES; c < n; c++)
        for (int t = 0; t < count; t++) out[c] += weights[t] * rows[t * stride + c];
}

// exp(x) for x <= 0, to 2e-7 of it: 2^k, whose bits are k + 127 moved up, times a polynomial (Cephes) on half an octave
// to either side. Below -87 it is 2e-38.
static inline vec exponential(vec x) {
    const ivec too_low = x < -87.0f;
    x = (vec)(((ivec)x & ~too_low) | ((ivec)(vec){-87, -87, -87, -87, -87, -87, -87, -87} & too_low));
    const ivec k = __builtin_convertvector(x * 1.44269504f - 0.5f, ivec);  // cut towards 0, so rounded: x is not above 0
    const vec octaves = __builtin_convertvector(k, vec), f = x - octaves * 0.693359375f + octaves * 2.12194440e-4f;
    vec p = 1.9875691500e-4f * f + 1.3981999507e-3f;
    p = p * f + 8.3334519073e-3f;
    p = p * f + 4.1665795894e-2f;
    p = p * f + 1.6666665459e-1f;
    p = p * f + 5.0000001201e-1f;
    return (p * f * f + f + 1) * (vec)((k + 127) << 23);
}

static float exponential1(float x) { return exponential((vec){x})[0]; }

// The cache that a query attends to. Keys and values of head h begin h * `step` numbers into each token's row.
typedef struct {
    const float *keys, *values;
    ptrdiff_t stride, step;  // from token to token; from head to head, 0 if all heads share them
    int heads, key_size, value_size;
} Cached;

// Softmax attention over some tokens, not yet divided: each head's largest logit, the sum of exp(logit - largest), and
// the values weighted so, (heads, value_size).
static void attend_stretch(const Cached *c, const float *q, long begin, long end, float *largest, float *sum,
                           float *out) {
    float weights[BLOCK];
    for (int h = 0; h < c->heads; h++) largest[h] = -INFINITY, sum[h] = 0;
    memset(out, 0, sizeof(float) * c->heads * c->value_size);
    for (long start = begin; start < end; start += BLOCK) {
        const int count = end - start < BLOCK ? end - start : BLOCK;
        const float *next = c->keys + (start + BLOCK) * c->stride;
        for (int i = 0; i < BLOCK * c->stride; i += 16) __builtin_prefetch(next + i);  // `next` may be beyond the end
        for (int h = 0; h < c->heads; h++) {
            const float *keys = c->keys + start * c->stride + h * c->step, *values = c->values + (keys - c->keys);
            float top = largest[h], *y = out + h * c->value_size;
            row_dots(keys, count, c->stride, q + h * c->key_size, c->key_size, weights);
            for (int t = count; t % LANES; t++) weights[t] = -INFINITY;
            for (int t = 0; t < count; t++) top = weights[t] > top ? weights[t] : top;
            vec sums[LANES] = {0};
            for (int t = 0; t < count; t += LANES) {
                vec *w = (vec *)&weights[t];
                sums[0] += *w = exponential(*w - top);
            }
            const float shrink = exponential1(largest[h] - top);
            largest[h] = top, sum[h] = sum[h] * shrink + eight_sums(sums)[0];
            for (int i = 0; i < c->value_size && shrink != 1; i++) y[i] *= shrink;
            weighted_sum(values, count, c->stride, weights, c->value_size, y);
        }
    }
}

// softmax(q . keys) times values for each head, (heads, value_size). Many tokens are divided into stretches
// for the threads. Their number depends on the tokens alone, so the result does not depend on threads.
static void attend(const Cached *c, const float *q, int tokens, int threads, float *out) {
    const int H = c->heads, V = c->value_size, size = H * (V + 2);
    const long worth = (long)tokens * H * c->key_size / WORTH_A_THREAD;
    const int count = worth < 1 ? 1 : worth > MOST_STRETCHES ? MOST_STRETCHES : worth;
    float stretches[count][size];
#pragma omp parallel for if (count > 1) num_threads(threads) schedule(static)
    for (int i = 0; i < count; i++) {
        float *s = stretches[i];
        const long begin = (long)tokens * i / count / BLOCK * BLOCK, next = (long)tokens * (i + 1) / count / BLOCK * BLOCK;
        attend_stretch(c, q, begin, i + 1 < count ? next : tokens, s, s + H, s + 2 * H);
    }
    for (int h = 0; h < H; h++) {
        float top = -INFINITY, total = 0, *y = out + h * V;
        for (int i = 0; i < count; i++) top = fmaxf(top, stretches[i][h]);
        for (int v = 0; v < V; v++) y[v] = 0;
        for (int i = 0; i < count; i++) {
            const float *s = stretches[i], share = exponential1(s[h] - top);
            total += s[H + h] * share;
            for (int v = 0; v < V; v++) y[v] += share * s[2 * H + h * V + v];
        }
        for (int v = 0; v < V; v++) y[v] /= total;
    }
}
