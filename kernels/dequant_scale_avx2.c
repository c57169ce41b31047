/* SPDX-License-Identifier: Apache-2.0 */
#include "simd_avx2.h"

void qf_dequant_scale_avx2(const float *scale_w, size_t n, float scale_d, float *deq)
{
    const __m256 s = _mm256_set1_ps(scale_d);
    size_t i = 0;
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(deq + i, _mm256_mul_ps(_mm256_loadu_ps(scale_w + i), s));
    qf_dequant_scale_scalar(scale_w + i, n - i, scale_d, deq + i);
}

void qf_dequant_pack_avx2(const float *deq, size_t n, uint32_t mask, uint64_t *param)
{
    const __m256i keep = _mm256_set1_epi64x((long long)mask);
    size_t i = 0;
    for (; i + 4 <= n; i += 4) {
        __m256i bits = _mm256_cvtepu32_epi64(_mm_loadu_si128((const void *)(deq + i)));
        _mm256_storeu_si256((void *)(param + i), _mm256_and_si256(bits, keep));
    }
    qf_dequant_pack_scalar(deq + i, n - i, mask, param + i);
}
