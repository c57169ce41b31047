/* SPDX-License-Identifier: Apache-2.0 */
#include "simd_avx512.h"

enum { TO_EVEN = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC };

size_t qf_bias_f32_avx512(const float *b, size_t n, const float *deq, size_t deq_count, int32_t *q)
{
    const bool each = deq_count != 1;
    const __m512 first = _mm512_set1_ps(n ? deq[0] : 1.0f);
    size_t i = 0;
    for (; i + 16 <= n; i += 16) {
        __m512 d = each ? _mm512_loadu_ps(deq + i) : first;
        __m512 v = _mm512_roundscale_ps(_mm512_div_ps(_mm512_loadu_ps(b + i), d), TO_EVEN);
        __mmask16 fits = _mm512_cmp_ps_mask(v, _mm512_set1_ps(-0x1p31f), _CMP_GE_OQ) &
                         _mm512_cmp_ps_mask(v, _mm512_set1_ps(0x1p31f), _CMP_LT_OQ);
        if (fits != 0xffff)
            break;
        _mm512_storeu_si512(q + i, _mm512_cvtps_epi32(v));
    }
    return i + qf_bias_f32_scalar(b + i, n - i, each ? deq + i : deq, each ? n - i : 1, q + i);
}

size_t qf_bias_f64_avx512(const double *b, size_t n, const float *deq, size_t deq_count, int32_t *q)
{
    const bool each = deq_count != 1;
    const __m512d first = _mm512_set1_pd(n ? (double)deq[0] : 1.0);
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        __m512d d = each ? _mm512_cvtps_pd(_mm256_loadu_ps(deq + i)) : first;
        __m512d v = _mm512_roundscale_pd(_mm512_div_pd(_mm512_loadu_pd(b + i), d), TO_EVEN);
        __mmask8 fits = _mm512_cmp_pd_mask(v, _mm512_set1_pd(-0x1p31), _CMP_GE_OQ) &
                        _mm512_cmp_pd_mask(v, _mm512_set1_pd(0x1p31 - 1), _CMP_LE_OQ);
        if (fits != 0xff)
            break;
        _mm256_storeu_si256((void *)(q + i), _mm512_cvtpd_epi32(v));
    }
    return i + qf_bias_f64_scalar(b + i, n - i, each ? deq + i : deq, each ? n - i : 1, q + i);
}
