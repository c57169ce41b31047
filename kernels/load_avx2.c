/* SPDX-License-Identifier: Apache-2.0 */
#include "simd_avx2.h"

void qf_load_f16_avx2(const void *src, size_t n, float *dst)
{
    size_t i = 0;
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(dst + i, qf_stored8(src, i, QF_F16));
    qf_load_f16_scalar((const char *)src + 2 * i, n - i, dst + i);
}

void qf_load_bf16_avx2(const void *src, size_t n, float *dst)
{
    size_t i = 0;
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(dst + i, qf_stored8(src, i, QF_BF16));
    qf_load_bf16_scalar((const char *)src + 2 * i, n - i, dst + i);
}

void qf_load_f64_avx2(const void *src, size_t n, float *dst)
{
    size_t i = 0;
    for (; i + 4 <= n; i += 4)
        _mm_storeu_ps(dst + i, _mm256_cvtpd_ps(_mm256_loadu_pd((const double *)src + i)));
    qf_load_f64_scalar((const char *)src + 8 * i, n - i, dst + i);
}

void qf_scale_avx2(float *x, size_t n, float factor)
{
    const __m256 f = _mm256_set1_ps(factor);
    size_t i = 0;
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(x + i, _mm256_mul_ps(_mm256_loadu_ps(x + i), f));
    qf_scale_scalar(x + i, n - i, factor);
}
