// Decoding of one token with NanoGPT (gpt.py) in C. Letters are those of model/__init__.py.

#include "decode.h"

typedef struct {
    long width, heads, hidden;              // D, H, width of the MLP
    double eps;
    const float *gain_1, *shift_1;         // of the first norm; shifts and biases are NULL in a model without them
    const float *in, *in_bias;             // (3D, D): queries, keys, values
    const float *out, *out_bias;           // (D, D)
    const float *gain_2, *shift_2;
    const float *up, *up_bias;             // (hidden, D)
    const float *down, *down_bias;         // (D, hidden)
    float *keys, *values;                  // the cache: (capacity, D) each
} Layer;

// y = (x - mean) / deviation * gain + shift
static void normalise(const float *x, int n, float eps, const float *gain, const float *shift, float *y) {
    float mean = 0, variance = 0;
    for (int i = 0; i < n; i++) mean += x[i] / n;
    for (int i = 0; i < n; i++) y[i] = x[i] - mean;
    variance = dot(y, y, n) / n;
    const float scale = 1 / sqrtf(variance + eps);
    for (int i = 0; i < n; i++) y[i] = y[i] * scale * gain[i] + (shift ? shift[i] : 0);
}

// y = matrix x + bias
static void linear(const float *matrix, const float *bias, int rows, int columns, const float *x, float *y, int threads) {
    multiply(matrix, rows, columns, x, y, threads);
    for (int i = 0; i < rows && bias; i++) y[i] += bias[i];
}

// Logits (W) of the token after one at `position`. `x` (D) is the sum of its embeddings.
void decode_gpt(const Layer *layers, int count, const float *gain, const float *shift, const float *head, int vocabulary,
                float *x, int position, int threads, float *logits) {
    const int D = layers[0].width, H = layers[0].heads, X = D / H, F = layers[0].hidden;
    const float scale = 1 / sqrtf(X);
    float h[D], qkv[3 * D], attended[D], hidden[F], y[D];
    for (const Layer *l = layers; l < layers + count; l++) {
        normalise(x, D, l->eps, l->gain_1, l->shift_1, h);
        linear(l->in, l->in_bias, 3 * D, D, h, qkv, threads);
        memcpy(l->keys + (ptrdiff_t)position * D, qkv + D, sizeof(float) * D);
        memcpy(l->values + (ptrdiff_t)position * D, qkv + 2 * D, sizeof(float) * D);
        for (int i = 0; i < D; i++) qkv[i] *= scale;
        const Cached cached = {l->keys, l->values, D, X, H, X, X};
        attend(&cached, qkv, position + 1, threads, attended);
        linear(l->out, l->out_bias, D, D, attended, y, threads);
        for (int i = 0; i < D; i++) x[i] += y[i];

        normalise(x, D, l->eps, l->gain_2, l->shift_2, h);
        linear(l->up, l->up_bias, F, D, h, hidden, threads);
        for (int i = 0; i < F; i++) hidden[i] *= 0.5f * (1 + erff(hidden[i] * 0.70710678f));
        linear(l->down, l->down_bias, D, F, hidden, y, threads);
        for (int i = 0; i < D; i++) x[i] += y[i];
    }
    normalise(x, D, layers[0].eps, gain, shift, h);
    linear(head, NULL, vocabulary, D, h, logits, threads);
}
