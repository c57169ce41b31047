/* SPDX-License-Identifier: Apache-2.0 */
#include "simd_avx2.h"

enum { TO_EVEN = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC };

size_t qf_bias_f32_avx2(const float *b, size_t n, const float *deq, size_t deq_count, int32_t *q)
{
    const bool each = deq_count != 1;
    const __m256 first = _mm256_set1_ps(n ? deq[0] : 1.0f);
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        __m256 d = each ? _mm256_loadu_ps(deq + i) : first;
        __m256 v = _mm256_round_ps(_mm256_div_ps(_mm256_loadu_ps(b + i), d), TO_EVEN);
        __m256 fits = _mm256_and_ps(_mm256_cmp_ps(v, _mm256_set1_ps(-0x1p31f), _CMP_GE_OQ),
                                    _mm256_cmp_ps(v, _mm256_set1_ps(0x1p31f), _CMP_LT_OQ));
        if (_mm256_movemask_ps(fits) != 0xff)
            break;
        _mm256_storeu_si256((void *)(q + i), _mm256_cvtps_epi32(v));
    }
    return i + qf_bias_f32_scalar(b + i, n - i, each ? deq + i : deq, each ? n - i : 1, q + i);
}

size_t qf_bias_f64_avx2(const double *b, size_t n, const float *deq, size_t deq_count, int32_t *q)
{
    const bool each = deq_count != 1;
    const __m256d first = _mm256_set1_pd(n ? (double)deq[0] : 1.0);
    size_t i = 0;
    for (; i + 4 <= n; i += 4) {
        __m256d d = each ? _mm256_cvtps_pd(_mm_loadu_ps(deq + i)) : first;
        __m256d v = _mm256_round_pd(_mm256_div_pd(_mm256_loadu_pd(b + i), d), TO_EVEN);
        __m256d fits = _mm256_and_pd(_mm256_cmp_pd(v, _mm256_set1_pd(-0x1p31), _CMP_GE_OQ),
                                     _mm256_cmp_pd(v, _mm256_set1_pd(0x1p31 - 1), _CMP_LE_OQ));
        if (_mm256_movemask_pd(fits) != 0xf)
            break;
        _mm_storeu_si128((void *)(q + i), _mm256_cvtpd_epi32(v));
    }
    return i + qf_bias_f64_scalar(b + i, n - i, each ? deq + i : deq, each ? n - i : 1, q + i);
}
