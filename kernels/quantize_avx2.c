/* SPDX-License-Identifier: Apache-2.0 */
#include "simd_avx2.h"

typedef struct bounds {
    __m256 lo, hi;
} bounds;

/* rint(clamp(x / scale)); leaves NaN bits in *bad where x is not finite. The conversion rounds to
 * even. */
static inline __m256i quantize8(__m256 x, __m256 scale, bounds b, __m256 *bad)
{
    *bad = _mm256_or_ps(*bad, _mm256_sub_ps(x, x));
    __m256 v = _mm256_div_ps(x, scale);
    return _mm256_cvtps_epi32(_mm256_min_ps(_mm256_max_ps(v, b.lo), b.hi));
}

static inline void store_floats(float *y, __m256i v, bool stream)
{
    if (stream)
        _mm256_stream_ps(y, _mm256_cvtepi32_ps(v));
    else
        _mm256_storeu_ps(y, _mm256_cvtepi32_ps(v));
}

/* Whole groups of 32; `type` and `step` are constants in every caller. Returns how many elements
 * were done. */
static inline size_t quantize(const void *x, size_t n, qf_element type, const float *scales,
                              size_t step, int lo, int hi, qf_quantized out, bool *finite)
{
    const bounds b = {_mm256_set1_ps((float)lo), _mm256_set1_ps((float)hi)};
    const __m256 first = _mm256_set1_ps(n ? scales[0] : 1.0f);
    bool stream = out.stream && (((uintptr_t)out.q | (uintptr_t)out.y) & 31) == 0;
    __m256 bad = _mm256_setzero_ps();
    size_t i = 0;
    for (; i + 32 <= n; i += 32) {
        __m256i v[4];
        for (size_t j = 0; j < 4; j++) {
            __m256 s = step ? _mm256_loadu_ps(scales + i + 8 * j) : first;
            v[j] = quantize8(qf_stored8(x, i + 8 * j, type), s, b, &bad);
        }
        __m256i bytes = qf_bytes32(v[0], v[1], v[2], v[3]);
        if (out.q && stream)
            _mm256_stream_si256((void *)(out.q + i), bytes);
        else if (out.q)
            _mm256_storeu_si256((void *)(out.q + i), bytes);
        for (size_t j = 0; out.y && j < 4; j++)
            store_floats(out.y + i + 8 * j, v[j], stream);
    }
    if (stream)
        _mm_sfence();
    *finite = qf_all_zero(bad);
    return i;
}

bool qf_quantize_f32_avx2(const void *x, size_t n, float scale, int lo, int hi, qf_quantized out)
{
    bool finite;
    size_t i = quantize(x, n, QF_F32, &scale, 0, lo, hi, out, &finite);
    return qf_quantize_f32_scalar((const char *)x + 4 * i, n - i, scale, lo, hi,
                                  qf_quantized_behind(out, i)) &&
           finite;
}

bool qf_quantize_f16_avx2(const void *x, size_t n, float scale, int lo, int hi, qf_quantized out)
{
    bool finite;
    size_t i = quantize(x, n, QF_F16, &scale, 0, lo, hi, out, &finite);
    return qf_quantize_f16_scalar((const char *)x + 2 * i, n - i, scale, lo, hi,
                                  qf_quantized_behind(out, i)) &&
           finite;
}

bool qf_quantize_bf16_avx2(const void *x, size_t n, float scale, int lo, int hi, qf_quantized out)
{
    bool finite;
    size_t i = quantize(x, n, QF_BF16, &scale, 0, lo, hi, out, &finite);
    return qf_quantize_bf16_scalar((const char *)x + 2 * i, n - i, scale, lo, hi,
                                   qf_quantized_behind(out, i)) &&
           finite;
}

static inline bool quantize_rows(const void *x, size_t rows, size_t n, qf_element type,
                                 qf_quantize_columns_fn tail, const float *scales, int lo, int hi,
                                 qf_quantized out)
{
    bool all = true, finite;
    for (size_t r = 0; r < rows; r++) {
        const char *row = (const char *)x + r * n * qf_element_size(type);
        qf_quantized to = qf_quantized_behind(out, r * n);
        size_t i = quantize(row, n, type, scales, 1, lo, hi, to, &finite);
        all &= tail(row + i * qf_element_size(type), 1, n - i, scales + i, lo, hi,
                    qf_quantized_behind(to, i)) &&
               finite;
    }
    return all;
}

bool qf_quantize_columns_f32_avx2(const void *x, size_t rows, size_t n, const float *scales, int lo,
                                  int hi, qf_quantized out)
{
    return quantize_rows(x, rows, n, QF_F32, qf_quantize_columns_f32_scalar, scales, lo, hi, out);
}

bool qf_quantize_columns_f16_avx2(const void *x, size_t rows, size_t n, const float *scales, int lo,
                                  int hi, qf_quantized out)
{
    return quantize_rows(x, rows, n, QF_F16, qf_quantize_columns_f16_scalar, scales, lo, hi, out);
}

bool qf_quantize_columns_bf16_avx2(const void *x, size_t rows, size_t n, const float *scales,
                                   int lo, int hi, qf_quantized out)
{
    return quantize_rows(x, rows, n, QF_BF16, qf_quantize_columns_bf16_scalar, scales, lo, hi, out);
}
