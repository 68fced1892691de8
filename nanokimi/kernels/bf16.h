// Matrix products in bf16 with fp32 sums, for processors with AVX512-BF16. For others this does not compile, and the
// caller uses an implementation in Python. An instruction multiplies pairs of neighbours along the summed axis, so the
// left matrix is read as rows of pairs, and the right one is first packed into pairs of its rows.

#ifndef __AVX512BF16__
#error "no AVX512-BF16"
#endif

#include <immintrin.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef uint16_t bf16;
typedef uint32_t __attribute__((may_alias)) bf16x2;  // two neighbouring bf16

enum { LANES = 16, ROWS = 4, PANEL = 4 * LANES };  // of a vector in fp32; rows of a tile; columns of a tile at most

static inline int round_up(int n, int multiple) { return (n + multiple - 1) / multiple * multiple; }

static inline float widen(bf16 x) {
    const union { uint32_t bits; float value; } wide = {.bits = (uint32_t)x << 16};
    return wide.value;
}

static inline __m512 widen16(const bf16 *x) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)x)), 16));
}

static inline void narrow16(__m512 x, bf16 *out) { _mm256_storeu_si256((void *)out, (__m256i)_mm512_cvtneps_pbh(x)); }

// A mask of the first of 16 numbers, for the end of a row whose length is not a multiple of 16.
static inline __mmask16 lanes(long count) { return count >= LANES ? 0xffff : (1u << count) - 1; }

static inline __m512 widen_some(const bf16 *x, __mmask16 some) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(some, x)), 16));
}

static inline void narrow_some(__m512 x, bf16 *out, __mmask16 some) {
    _mm256_mask_storeu_epi16(out, some, (__m256i)_mm512_cvtneps_pbh(x));
}

// Scratch memory. Failed allocations are NULL and counted, so that the function can return before it does anything.
typedef struct {
    void *all[24];
    int count, missing;
} Arena;

// Memory for `count` numbers of `size` bytes, at a cache line.
static inline void *reserve(Arena *arena, size_t count, size_t size) {
    void *memory = aligned_alloc(64, (count * size + 64) / 64 * 64);
    arena->missing += !memory;
    return arena->all[arena->count++] = memory;
}

static inline void release(Arena *arena) {
    for (int i = 0; i < arena->count; i++) free(arena->all[i]);
}

// packed[k][j] = (x[2k][j], x[2k+1][j]) for an even number of `rows`
static inline void pack_rows(const bf16 *x, int rows, int columns, ptrdiff_t stride, bf16x2 *packed, ptrdiff_t packed_stride) {
    for (int k = 0; k < rows / 2; k++)
        for (int j = 0; j < columns; j++)
            packed[k * packed_stride + j] = x[2 * k * stride + j] | (bf16x2)x[(2 * k + 1) * stride + j] << 16;
}

// Transpose a square of 16 by 16 pairs: each step swaps rows and columns whose numbers differ in one bit.
static inline __attribute__((always_inline)) void turn_square(__m512i *rows) {
    const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
#pragma GCC unroll 4
    for (int bit = 1; bit < LANES; bit *= 2) {
        const __m512i other = _mm512_xor_si512(lane, _mm512_set1_epi32(bit)), second = _mm512_set1_epi32(LANES);
        const __mmask16 set = _mm512_test_epi32_mask(lane, _mm512_set1_epi32(bit));
        const __m512i above = _mm512_mask_or_epi32(lane, set, other, second);
        const __m512i below = _mm512_mask_or_epi32(other, set, lane, second);
#pragma GCC unroll 16
        for (int i = 0; i < LANES; i++)
            if (!(i & bit)) {
                const __m512i a = rows[i], b = rows[i | bit];
                rows[i] = _mm512_permutex2var_epi32(a, above, b), rows[i | bit] = _mm512_permutex2var_epi32(a, below, b);
            }
    }
}

// Pack the transposed matrix: packed[k][j] = (x[j][2k], x[j][2k+1]); `rows` is a multiple of LANES
static inline void pack_columns(const bf16 *x, int rows, int columns, ptrdiff_t stride, bf16x2 *packed,
                                ptrdiff_t packed_stride) {
    for (int j = 0; j < rows; j += LANES)
        for (int k = 0; k < columns / 2; k += LANES) {
            const int count = columns / 2 - k < LANES ? columns / 2 - k : LANES;
            __m512i square[LANES];
            for (int i = 0; i < LANES; i++)
                square[i] = _mm512_maskz_loadu_epi32(lanes(count), x + (j + i) * stride + 2 * k);
            turn_square(square);
            for (int i = 0; i < count; i++) _mm512_storeu_si512(packed + (k + i) * packed_stride + j, square[i]);
        }
}

// c (ROWS, 16 * vectors) = a b over `pairs` pairs, or += where `add`; sums stay in registers. Pair k of row i of a is
// a[i * a_row + k * a_pair].
static inline __attribute__((always_inline)) void tile(int vectors, int pairs, const bf16x2 *a, ptrdiff_t a_row,
                                                       ptrdiff_t a_pair, const bf16x2 *b, ptrdiff_t b_stride, float *c,
                                                       ptrdiff_t c_stride, int add) {
    __m512 sums[ROWS][4];
#pragma GCC unroll 4
    for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 4
        for (int j = 0; j < vectors; j++)
            sums[i][j] = add ? _mm512_loadu_ps(c + i * c_stride + j * LANES) : _mm512_setzero_ps();
    for (int k = 0; k < pairs; k++) {
        __m512bh right[4];
#pragma GCC unroll 4
        for (int j = 0; j < vectors; j++) right[j] = (__m512bh)_mm512_loadu_si512(b + k * b_stride + j * LANES);
#pragma GCC unroll 4
        for (int i = 0; i < ROWS; i++) {
            const __m512bh left = (__m512bh)_mm512_set1_epi32(a[i * a_row + k * a_pair]);
#pragma GCC unroll 4
            for (int j = 0; j < vectors; j++) sums[i][j] = _mm512_dpbf16_ps(sums[i][j], left, right[j]);
        }
    }
#pragma GCC unroll 4
    for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 4
        for (int j = 0; j < vectors; j++) _mm512_storeu_ps(c + i * c_stride + j * LANES, sums[i][j]);
}

// c = a b, or += : a (rows, pairs), b (pairs, columns) packed, c in fp32. `rows` is a multiple of ROWS, `columns` one of
// LANES and at most PANEL.
static inline void panel_product(int rows, int columns, int pairs, const bf16x2 *a, ptrdiff_t a_row, ptrdiff_t a_pair,
                                 const bf16x2 *b, ptrdiff_t b_stride, float *c, ptrdiff_t c_stride, int add) {
    for (int i = 0; i < rows; i += ROWS) {
        const bf16x2 *left = a + i * a_row;
        float *out = c + i * c_stride;
        switch (columns / LANES) {  // a constant each, so that the compiler knows how many registers
            case 4: tile(4, pairs, left, a_row, a_pair, b, b_stride, out, c_stride, add); break;
            case 3: tile(3, pairs, left, a_row, a_pair, b, b_stride, out, c_stride, add); break;
            case 2: tile(2, pairs, left, a_row, a_pair, b, b_stride, out, c_stride, add); break;
            case 1: tile(1, pairs, left, a_row, a_pair, b, b_stride, out, c_stride, add);
        }
    }
}

// c = a b for any number of columns: c (rows, columns), a row-major with `2 * pairs` columns.
static inline void product(int rows, int columns, int pairs, const bf16 *a, const bf16x2 *b, float *c, int add) {
    for (int j = 0; j < columns; j += PANEL)
        panel_product(rows, columns - j < PANEL ? columns - j : PANEL, pairs, (const bf16x2 *)a, pairs, 1, b + j, columns,
                      c + j, columns, add);
}

// c (rows, columns) += a^T b, the sum over 2 * pairs rows of both, which are packed.
static inline void transposed_product(int rows, int columns, int pairs, const bf16x2 *a, const bf16x2 *b, float *c) {
    for (int j = 0; j < columns; j += PANEL)
        panel_product(rows, columns - j < PANEL ? columns - j : PANEL, pairs, a, 1, rows, b + j, columns, c + j, columns,
                      1);
}

// exp(x), to 2e-7 of it, for x between -87 and 87: 2^k times a polynomial (Cephes) on half an octave to either side. Not
// a number stays one: min and max return their second operand then.
static inline __m512 exponential16(__m512 x) {
    x = _mm512_max_ps(_mm512_set1_ps(-87), _mm512_min_ps(_mm512_set1_ps(87), x));
    const __m512 k = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), _MM_FROUND_TO_NEAREST_INT);
    const __m512 f = _mm512_fmadd_ps(k, _mm512_set1_ps(2.12194440e-4f), _mm512_fnmadd_ps(k, _mm512_set1_ps(0.693359375f), x));
    __m512 p = _mm512_set1_ps(1.9875691500e-4f);
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.3981999507e-3f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(8.3334519073e-3f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(4.1665795894e-2f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.6666665459e-1f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(5.0000001201e-1f));
    return _mm512_scalef_ps(_mm512_fmadd_ps(_mm512_mul_ps(p, f), f, _mm512_add_ps(f, _mm512_set1_ps(1))), k);
}
