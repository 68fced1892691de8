// Decoding of one token with NanoKimi: `AbsorbedKimi` of decode_kimi.py in C, which takes one call instead of a hundred
// small operations of torch. Letters are those of model/__init__.py.

#include "decode.h"

typedef struct {
    long width, heads, latent, rotary;           // D, H, C, R
    long query_low, dense, shared;               // Q, width of a dense layer, of the shared expert; 0 if there is none
    long experts, chosen, expert_width;          // E, K, F; E is 0 in a dense layer
    long normalise;                              // gates sum to `scaling`
    double scaling, eps, latent_eps;
    const float *in;                            // from the stream: queries unless low, rotary key, latent
    const float *query_down, *query_up;         // (Q, D) and (H (C + R), Q), or NULL
    const float *latent_gain;                   // (C)
    const float *out;                           // (D, H C)
    const float *first;                         // router, then gate and up of the shared expert or dense layer
    const float *bias;                          // (E)
    const float *down;                          // (D, F) of the shared expert or dense layer
    const float *expert_gate_up, *expert_down;  // (E, 2F, D), (E, D, F)
    float *rows;                                // the cache: (capacity, C + R)
} Layer;

// y = x / rms(x)
static void normalise(const float *x, int n, float eps, float *y) {
    const float scale = 1 / sqrtf(dot(x, x, n) / n + eps);
    for (int i = 0; i < n; i++) y[i] = x[i] * scale;
}

// Rotate pairs (x[2i], x[2i+1]) by (cos, sin) pairs.
static void rotate(float *x, const float *turn, int n) {
    for (int i = 0; i < n; i += 2) {
        const float even = x[i], odd = x[i + 1];
        x[i] = even * turn[i] - odd * turn[i + 1];
        x[i + 1] = even * turn[i + 1] + odd * turn[i];
    }
}

// x += attention(norm(x)). The token becomes row `position` of the cache.
static void attention(const Layer *l, float *x, const float *turn, int position, int threads) {
    const int D = l->width, H = l->heads, C = l->latent, R = l->rotary, of_queries = H * (C + R);
    float h[D], low[l->query_low + 1], projected[of_queries + R + C], q[of_queries], attended[H * C], y[D];
    normalise(x, D, l->eps, h);
    if (l->query_low) {
        multiply(l->query_down, l->query_low, D, h, low, threads);
        normalise(low, l->query_low, l->latent_eps, low);
        multiply(l->query_up, of_queries, l->query_low, low, projected, threads);
        multiply(l->in, R + C, D, h, projected + of_queries, threads);
    } else {
        multiply(l->in, of_queries + R + C, D, h, projected, threads);
    }
    // projected: H latent queries, H rotary queries, the rotary key, the latent
    for (int i = 0; i <= H; i++) rotate(projected + H * C + i * R, turn, R);
    for (int i = 0; i < H; i++) {
        memcpy(q + i * (C + R), projected + i * C, sizeof(float) * C);
        memcpy(q + i * (C + R) + C, projected + H * C + i * R, sizeof(float) * R);
    }
    float *row = l->rows + (ptrdiff_t)position * (C + R);
    normalise(projected + of_queries + R, C, l->latent_eps, row);
    for (int c = 0; c < C; c++) row[c] *= l->latent_gain[c];
    memcpy(row + C, projected + of_queries, sizeof(float) * R);
    const Cached cached = {l->rows, l->rows, C + R, 0, H, C + R, C};
    attend(&cached, q, position + 1, threads, attended);
    multiply(l->out, D, H * C, attended, y, threads);
    for (int i = 0; i < D; i++) x[i] += y[i];
}

// x += factor * down(silu(gate) * up). `hidden` is gate, then up.
static void add_gated(const float *down, int width, int size, float *hidden, float factor, float *x, int threads) {
    float y[width];
    for (int i = 0; i < size; i++) hidden[i] *= hidden[size + i] / (1 + expf(-hidden[i]));
    multiply(down, width, size, hidden, y, threads);
    for (int i = 0; i < width; i++) x[i] += factor * y[i];
}

// The experts with the K largest sums of score and bias.
static void choose(const Layer *l, const float *scores, int *chosen) {
    for (int k = 0; k < l->chosen; k++) {
        int best = -1;
        for (int e = 0; e < l->experts; e++) {
            int taken = 0;
            for (int j = 0; j < k; j++) taken |= chosen[j] == e;
            if (!taken && (best < 0 || scores[e] + l->bias[e] > scores[best] + l->bias[best])) best = e;
        }
        chosen[k] = best;
    }
}

// x += feed_forward(norm(x))
static void feed_forward(const Layer *l, float *x, int threads) {
    const int D = l->width, E = l->experts, F = l->expert_width, of_all = E ? l->shared : l->dense;
    float h[D], first[E + 2 * of_all], hidden[2 * F + 1], total = 0;
    normalise(x, D, l->eps, h);
    multiply(l->first, E + 2 * of_all, D, h, first, threads);
    if (of_all) add_gated(l->down, D, of_all, first + E, 1, x, threads);
    if (!E) return;
    int chosen[l->chosen];
    for (int e = 0; e < E; e++) first[e] = 1 / (1 + expf(-first[e]));
    choose(l, first, chosen);
    for (int k = 0; k < l->chosen; k++) total += first[chosen[k]];
    const float factor = l->scaling / (l->normalise ? total + 1e-20f : 1);
    for (int k = 0; k < l->chosen; k++) {
        const int e = chosen[k];
        multiply(l->expert_gate_up + (ptrdiff_t)e * 2 * F * D, 2 * F, D, h, hidden, threads);
        add_gated(l->expert_down + (ptrdiff_t)e * D * F, D, F, hidden, first[e] * factor, x, threads);
    }
}

// Logits (W) of the token after one at `position`. `x` (D) is its embedding, `turn` the (cos, sin) pairs of its rotation.
void decode_kimi(const Layer *layers, int count, const float *head, int vocabulary, float *x, const float *turn,
                 int position, int threads, float *logits) {
    const int D = layers[0].width;
    float h[D];
    for (int i = 0; i < count; i++) {
        attention(&layers[i], x, turn, position, threads);
        feed_forward(&layers[i], x, threads);
    }
    normalise(x, D, layers[0].eps, h);
    multiply(head, vocabulary, D, h, logits, threads);
}
