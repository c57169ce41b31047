/* SPDX-License-Identifier: Apache-2.0 */
#include "simd_avx2.h"

static inline __m256 widened(const int8_t *q, size_t i)
{
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const void *)(q + i))));
}

void qf_widen_avx2(const int8_t *q, size_t n, float *y)
{
    size_t i = 0;
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(y + i, widened(q, i));
    qf_widen_scalar(q + i, n - i, y + i);
}

void qf_dequantize_avx2(const int8_t *q, size_t n, float scale, float *y)
{
    const __m256 s = _mm256_set1_ps(scale);
    size_t i = 0;
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(y + i, _mm256_mul_ps(widened(q, i), s));
    qf_dequantize_scalar(q + i, n - i, scale, y + i);
}

void qf_dequantize_columns_avx2(const int8_t *q, size_t n, const float *scales, float *y)
{
    size_t i = 0;
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(y + i, _mm256_mul_ps(widened(q, i), _mm256_loadu_ps(scales + i)));
    qf_dequantize_columns_scalar(q + i, n - i, scales + i, y + i);
}
