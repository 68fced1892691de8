// RMSNorm to bf16, forward and backward: `FusedRMSNorm` of rms_norm.py in C. One pass over memory each way.

#include "bf16.h"

enum { CHUNK = 64 };  // rows whose part of the gain's gradient is summed by one thread, for any number of threads

typedef struct {
    long rows, width, stride;  // rows of x start `stride` numbers apart
    double eps;
    const float *wide;    // x in fp32, or NULL
    const bf16 *narrow;   // else x in bf16
    const float *gain;    // (width)
    float *scale;         // (rows): 1 / rms, kept for the backward pass
} Layer;

static inline __m512 load(const Layer *l, long row, long d, __mmask16 some) {
    const long at = row * l->stride + d;
    return l->wide ? _mm512_maskz_loadu_ps(some, l->wide + at) : widen_some(l->narrow + at, some);
}

// out (rows, width) = x / rms(x) * gain
void rms_norm_forward(const Layer *l, int threads, bf16 *out) {
    const long D = l->width;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long row = 0; row < l->rows; row++) {
        __m512 squares = _mm512_setzero_ps();
        for (long d = 0; d < D; d += LANES) {
            const __m512 x = load(l, row, d, lanes(D - d));
            squares = _mm512_fmadd_ps(x, x, squares);
        }
        const float scale = 1 / sqrtf(_mm512_reduce_add_ps(squares) / D + l->eps);
        l->scale[row] = scale;
        for (long d = 0; d < D; d += LANES) {
            const __mmask16 some = lanes(D - d);
            const __m512 gain = _mm512_mul_ps(_mm512_maskz_loadu_ps(some, l->gain + d), _mm512_set1_ps(scale));
            narrow_some(_mm512_mul_ps(load(l, row, d, some), gain), out + row * D + d, some);
        }
    }
}

static void backward_row(const Layer *l, long row, const bf16 *grad, void *x_grad, float *share) {
    const long D = l->width;
    const __m512 scale = _mm512_set1_ps(l->scale[row]);
    __m512 dot = _mm512_setzero_ps();
    for (long d = 0; d < D; d += LANES) {
        const __mmask16 some = lanes(D - d);
        const __m512 g = _mm512_mul_ps(widen_some(grad + d, some), _mm512_maskz_loadu_ps(some, l->gain + d));
        dot = _mm512_fmadd_ps(g, load(l, row, d, some), dot);
    }
    const __m512 mean = _mm512_mul_ps(_mm512_set1_ps(_mm512_reduce_add_ps(dot) / D), scale);
    for (long d = 0; d < D; d += LANES) {
        const __mmask16 some = lanes(D - d);
        const __m512 n = _mm512_mul_ps(load(l, row, d, some), scale), plain = widen_some(grad + d, some);
        const __m512 g = _mm512_mul_ps(plain, _mm512_maskz_loadu_ps(some, l->gain + d));
        const __m512 result = _mm512_mul_ps(_mm512_fnmadd_ps(n, mean, g), scale);
        if (l->wide)
            _mm512_mask_storeu_ps((float *)x_grad + row * D + d, some, result);
        else
            narrow_some(result, (bf16 *)x_grad + row * D + d, some);
        _mm512_mask_storeu_ps(share + d, some, _mm512_fmadd_ps(plain, n, _mm512_maskz_loadu_ps(some, share + d)));
    }
}

// With n = x / rms(x) and g the gradient times the gain: x's is (g - n mean(g n)) / rms(x), in x's dtype; the gain's is
// the sum over rows of the gradient times n. Returns whether memory ran out.
int rms_norm_backward(const Layer *l, int threads, const bf16 *grad, void *x_grad, float *gain_grad) {
    const long D = l->width, chunks = (l->rows + CHUNK - 1) / CHUNK;
    float *shares = calloc(chunks * D, sizeof(float));
    if (!shares) return 1;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long chunk = 0; chunk < chunks; chunk++)
        for (long row = chunk * CHUNK; row < (chunk + 1) * CHUNK && row < l->rows; row++)
            backward_row(l, row, grad + row * D, x_grad, shares + chunk * D);
    memset(gain_grad, 0, sizeof(float) * D);
    for (long chunk = 0; chunk < chunks; chunk++)
        for (long d = 0; d < D; d++) gain_grad[d] += shares[chunk * D + d];
    free(shares);
    return 0;
}
