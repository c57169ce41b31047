/* SPDX-License-Identifier: Apache-2.0 */
#include "simd_avx512.h"

static inline __m512 widened(const int8_t *q, size_t i, __mmask16 m)
{
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(m, q + i)));
}

void qf_widen_avx512(const int8_t *q, size_t n, float *y)
{
    for (size_t i = 0; i < n; i += 16) {
        __mmask16 m = qf_first(n - i);
        _mm512_mask_storeu_ps(y + i, m, widened(q, i, m));
    }
}

void qf_dequantize_avx512(const int8_t *q, size_t n, float scale, float *y)
{
    const __m512 s = _mm512_set1_ps(scale);
    for (size_t i = 0; i < n; i += 16) {
        __mmask16 m = qf_first(n - i);
        _mm512_mask_storeu_ps(y + i, m, _mm512_mul_ps(widened(q, i, m), s));
    }
}

void qf_dequantize_columns_avx512(const int8_t *q, size_t n, const float *scales, float *y)
{
    for (size_t i = 0; i < n; i += 16) {
        __mmask16 m = qf_first(n - i);
        __m512 s = _mm512_maskz_loadu_ps(m, scales + i);
        _mm512_mask_storeu_ps(y + i, m, _mm512_mul_ps(widened(q, i, m), s));
    }
}
