/* SPDX-License-Identifier: Apache-2.0 */
#include "simd_avx512.h"

static inline void load(const void *src, size_t n, qf_element type, float *dst)
{
    size_t i = 0;
    for (; i + 16 <= n; i += 16)
        _mm512_storeu_ps(dst + i, qf_stored16(src, i, type));
    __mmask16 rest = qf_first(n - i);
    if (rest)
        _mm512_mask_storeu_ps(dst + i, rest, qf_stored_masked(src, i, type, rest));
}

void qf_load_f16_avx512(const void *src, size_t n, float *dst)
{
    load(src, n, QF_F16, dst);
}

void qf_load_bf16_avx512(const void *src, size_t n, float *dst)
{
    load(src, n, QF_BF16, dst);
}

void qf_load_f64_avx512(const void *src, size_t n, float *dst)
{
    size_t i = 0;
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(dst + i, _mm512_cvtpd_ps(_mm512_loadu_pd((const double *)src + i)));
    qf_load_f64_scalar((const char *)src + 8 * i, n - i, dst + i);
}

void qf_scale_avx512(float *x, size_t n, float factor)
{
    const __m512 f = _mm512_set1_ps(factor);
    for (size_t i = 0; i < n; i += 16) {
        __mmask16 m = qf_first(n - i);
        _mm512_mask_storeu_ps(x + i, m, _mm512_mul_ps(_mm512_maskz_loadu_ps(m, x + i), f));
    }
}
