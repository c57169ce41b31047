/* SPDX-License-Identifier: Apache-2.0 */
#include "simd_avx512.h"

void qf_dequant_scale_avx512(const float *scale_w, size_t n, float scale_d, float *deq)
{
    const __m512 s = _mm512_set1_ps(scale_d);
    for (size_t i = 0; i < n; i += 16) {
        __mmask16 m = qf_first(n - i);
        _mm512_mask_storeu_ps(deq + i, m, _mm512_mul_ps(_mm512_maskz_loadu_ps(m, scale_w + i), s));
    }
}

void qf_dequant_pack_avx512(const float *deq, size_t n, uint32_t mask, uint64_t *param)
{
    const __m512i keep = _mm512_set1_epi64((long long)mask);
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        __m512i bits = _mm512_cvtepu32_epi64(_mm256_loadu_si256((const void *)(deq + i)));
        _mm512_storeu_si512(param + i, _mm512_and_si512(bits, keep));
    }
    qf_dequant_pack_scalar(deq + i, n - i, mask, param + i);
}
