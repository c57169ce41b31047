/* SPDX-License-Identifier: Apache-2.0 */
#include "errors.h"
#include "simd_avx2.h"

static inline size_t chunk(const void *x, const int8_t *q, size_t n, const float *scales,
                           size_t step, qf_element type, qf_error_lanes *lanes, qf_error_sums *sums)
{
    __m256 signal[2], noise[2], most[2], scale = _mm256_set1_ps(scales[0]);
    uint64_t clipped = 0;
    size_t i = 0;
    for (size_t j = 0; j < 2; j++)
        signal[j] = noise[j] = most[j] = _mm256_setzero_ps();
    for (; i + 16 <= n; i += 16) {
        for (size_t j = 0; j < 2; j++) {
            size_t at = i + 8 * j;
            __m256 v = qf_stored8(x, at, type);
            __m256i w = _mm256_cvtepi8_epi32(_mm_loadl_epi64((const void *)(q + at)));
            scale = step ? _mm256_loadu_ps(scales + at) : scale;
            __m256 e = _mm256_sub_ps(v, _mm256_mul_ps(_mm256_cvtepi32_ps(w), scale));
            __m256 magnitude = _mm256_andnot_ps(_mm256_set1_ps(-0.0f), e);
            __m256 limit = _mm256_mul_ps(_mm256_set1_ps(QF_CLIPPED), scale);
            signal[j] = _mm256_add_ps(signal[j], _mm256_mul_ps(v, v));
            noise[j] = _mm256_add_ps(noise[j], _mm256_mul_ps(e, e));
            most[j] = _mm256_max_ps(most[j], magnitude);
            clipped += (unsigned)__builtin_popcount(
                (unsigned)_mm256_movemask_ps(_mm256_cmp_ps(magnitude, limit, _CMP_GT_OQ)));
        }
    }
    float found[8];
    _mm256_storeu_ps(found, _mm256_max_ps(most[0], most[1]));
    for (size_t j = 0; j < 8; j++)
        sums->max_error = found[j] > sums->max_error ? found[j] : sums->max_error;
    sums->clipped += clipped;
    for (size_t j = 0; j < 2; j++) {
        _mm256_storeu_ps(lanes->signal + 8 * j, signal[j]);
        _mm256_storeu_ps(lanes->noise + 8 * j, noise[j]);
    }
    return i;
}

void qf_errors_f32_avx2(const void *x, const int8_t *q, size_t n, float scale, qf_error_sums *sums)
{
    qf_errors(chunk, x, q, n, &scale, 0, QF_F32, sums);
}

void qf_errors_columns_f32_avx2(const void *x, const int8_t *q, size_t n, const float *scales,
                                qf_error_sums *sums)
{
    qf_errors(chunk, x, q, n, scales, 1, QF_F32, sums);
}

void qf_errors_f16_avx2(const void *x, const int8_t *q, size_t n, float scale, qf_error_sums *sums)
{
    qf_errors(chunk, x, q, n, &scale, 0, QF_F16, sums);
}

void qf_errors_columns_f16_avx2(const void *x, const int8_t *q, size_t n, const float *scales,
                                qf_error_sums *sums)
{
    qf_errors(chunk, x, q, n, scales, 1, QF_F16, sums);
}

void qf_errors_bf16_avx2(const void *x, const int8_t *q, size_t n, float scale, qf_error_sums *sums)
{
    qf_errors(chunk, x, q, n, &scale, 0, QF_BF16, sums);
}

void qf_errors_columns_bf16_avx2(const void *x, const int8_t *q, size_t n, const float *scales,
                                 qf_error_sums *sums)
{
    qf_errors(chunk, x, q, n, scales, 1, QF_BF16, sums);
}
