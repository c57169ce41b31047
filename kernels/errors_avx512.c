/* SPDX-License-Identifier: Apache-2.0 */
#include "errors.h"
#include "simd_avx512.h"

static inline size_t chunk(const void *x, const int8_t *q, size_t n, const float *scales,
                           size_t step, qf_element type, qf_error_lanes *lanes, qf_error_sums *sums)
{
    __m512 signal = _mm512_setzero_ps(), noise = signal, most = signal;
    __m512 scale = _mm512_set1_ps(scales[0]);
    uint64_t clipped = 0;
    size_t i = 0;
    for (; i + 16 <= n; i += 16) {
        __m512 v = qf_stored16(x, i, type);
        __m512 w = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)(q + i))));
        scale = step ? _mm512_loadu_ps(scales + i) : scale;
        __m512 e = _mm512_sub_ps(v, _mm512_mul_ps(w, scale));
        __m512 magnitude = _mm512_abs_ps(e);
        __m512 limit = _mm512_mul_ps(_mm512_set1_ps(QF_CLIPPED), scale);
        signal = _mm512_add_ps(signal, _mm512_mul_ps(v, v));
        noise = _mm512_add_ps(noise, _mm512_mul_ps(e, e));
        most = _mm512_max_ps(most, magnitude);
        clipped += (unsigned)__builtin_popcount(_mm512_cmp_ps_mask(magnitude, limit, _CMP_GT_OQ));
    }
    float found = _mm512_reduce_max_ps(most);
    sums->max_error = found > sums->max_error ? found : sums->max_error;
    sums->clipped += clipped;
    _mm512_storeu_ps(lanes->signal, signal);
    _mm512_storeu_ps(lanes->noise, noise);
    return i;
}

void qf_errors_f32_avx512(const void *x, const int8_t *q, size_t n, float scale,
                          qf_error_sums *sums)
{
    qf_errors(chunk, x, q, n, &scale, 0, QF_F32, sums);
}

void qf_errors_columns_f32_avx512(const void *x, const int8_t *q, size_t n, const float *scales,
                                  qf_error_sums *sums)
{
    qf_errors(chunk, x, q, n, scales, 1, QF_F32, sums);
}

void qf_errors_f16_avx512(const void *x, const int8_t *q, size_t n, float scale,
                          qf_error_sums *sums)
{
    qf_errors(chunk, x, q, n, &scale, 0, QF_F16, sums);
}

void qf_errors_columns_f16_avx512(const void *x, const int8_t *q, size_t n, const float *scales,
                                  qf_error_sums *sums)
{
    qf_errors(chunk, x, q, n, scales, 1, QF_F16, sums);
}

void qf_errors_bf16_avx512(const void *x, const int8_t *q, size_t n, float scale,
                           qf_error_sums *sums)
{
    qf_errors(chunk, x, q, n, &scale, 0, QF_BF16, sums);
}

void qf_errors_columns_bf16_avx512(const void *x, const int8_t *q, size_t n, const float *scales,
                                   qf_error_sums *sums)
{
    qf_errors(chunk, x, q, n, scales, 1, QF_BF16, sums);
}
