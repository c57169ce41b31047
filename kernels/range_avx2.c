/* SPDX-License-Identifier: Apache-2.0 */
#include "simd_avx2.h"

static inline __m256i magnitude(const void *x, size_t i)
{
    __m256i bits = _mm256_loadu_si256((const void *)((const float *)x + i));
    return _mm256_and_si256(bits, _mm256_set1_epi32(0x7fffffff));
}

/* Four maxima side by side, because one would wait for itself; the scalar definition joins them. */
bool qf_absmax_f32_avx2(const void *x, size_t n, float *max)
{
    __m256i best[4];
    float lanes[8];
    for (size_t j = 0; j < 4; j++)
        best[j] = _mm256_setzero_si256();
    size_t i = 0;
    for (; i + 32 <= n; i += 32) {
        for (size_t j = 0; j < 4; j++)
            best[j] = _mm256_max_epu32(best[j], magnitude(x, i + 8 * j));
    }
    best[0] =
        _mm256_max_epu32(_mm256_max_epu32(best[0], best[1]), _mm256_max_epu32(best[2], best[3]));
    _mm256_storeu_si256((void *)lanes, best[0]);
    bool finite = qf_absmax_f32_scalar(lanes, 8, max);
    return qf_absmax_f32_scalar((const float *)x + i, n - i, max) && finite;
}

bool qf_absmax_columns_f32_avx2(const void *x, size_t n, float *max)
{
    __m256i bad = _mm256_setzero_si256();
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        __m256i v = magnitude(x, i);
        bad = _mm256_or_si256(bad, _mm256_cmpgt_epi32(v, _mm256_set1_epi32(0x7f7fffff)));
        __m256i old = _mm256_loadu_si256((const void *)(max + i));
        _mm256_storeu_si256((void *)(max + i), _mm256_max_epu32(v, old));
    }
    return qf_absmax_columns_f32_scalar((const float *)x + i, n - i, max + i) &&
           qf_all_zero(_mm256_castsi256_ps(bad));
}

/* 16-bit floats by their bits, 16 a register; the scalar definition judges the largest of each
 * lane. Returns how many elements were done. */
static inline size_t absmax16(const void *x, size_t n, uint16_t lanes[16])
{
    const __m256i sign = _mm256_set1_epi16(0x7fff);
    const char *at = x;
    __m256i best[4];
    for (size_t j = 0; j < 4; j++)
        best[j] = _mm256_setzero_si256();
    size_t i = 0;
    for (; i + 64 <= n; i += 64) {
        for (size_t j = 0; j < 4; j++) {
            __m256i v = _mm256_loadu_si256((const void *)(at + 2 * i + 32 * j));
            best[j] = _mm256_max_epu16(best[j], _mm256_and_si256(v, sign));
        }
    }
    best[0] =
        _mm256_max_epu16(_mm256_max_epu16(best[0], best[1]), _mm256_max_epu16(best[2], best[3]));
    _mm256_storeu_si256((void *)lanes, best[0]);
    return i;
}

bool qf_absmax_f16_avx2(const void *x, size_t n, float *max)
{
    uint16_t lanes[16];
    size_t i = absmax16(x, n, lanes);
    bool finite = qf_absmax_f16_scalar(lanes, 16, max);
    return qf_absmax_f16_scalar((const char *)x + 2 * i, n - i, max) && finite;
}

bool qf_absmax_bf16_avx2(const void *x, size_t n, float *max)
{
    uint16_t lanes[16];
    size_t i = absmax16(x, n, lanes);
    bool finite = qf_absmax_bf16_scalar(lanes, 16, max);
    return qf_absmax_bf16_scalar((const char *)x + 2 * i, n - i, max) && finite;
}

/* Returns how many columns were done. */
static inline size_t columns16(const void *x, size_t n, qf_element type, float *max, bool *finite)
{
    __m256i bad = _mm256_setzero_si256();
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        __m256i v = _mm256_castps_si256(qf_stored8(x, i, type));
        v = _mm256_and_si256(v, _mm256_set1_epi32(0x7fffffff));
        bad = _mm256_or_si256(bad, _mm256_cmpgt_epi32(v, _mm256_set1_epi32(0x7f7fffff)));
        __m256i old = _mm256_loadu_si256((const void *)(max + i));
        _mm256_storeu_si256((void *)(max + i), _mm256_max_epu32(v, old));
    }
    *finite = qf_all_zero(_mm256_castsi256_ps(bad));
    return i;
}

bool qf_absmax_columns_f16_avx2(const void *x, size_t n, float *max)
{
    bool finite;
    size_t i = columns16(x, n, QF_F16, max, &finite);
    return qf_absmax_columns_f16_scalar((const char *)x + 2 * i, n - i, max + i) && finite;
}

bool qf_absmax_columns_bf16_avx2(const void *x, size_t n, float *max)
{
    bool finite;
    size_t i = columns16(x, n, QF_BF16, max, &finite);
    return qf_absmax_columns_bf16_scalar((const char *)x + 2 * i, n - i, max + i) && finite;
}

/* The element, and NaN bits in *bad where it is not finite; -0 becomes 0. */
static inline __m256 element(const void *x, size_t i, __m256 *bad)
{
    __m256 v = _mm256_add_ps(_mm256_loadu_ps((const float *)x + i), _mm256_setzero_ps());
    *bad = _mm256_or_ps(*bad, _mm256_sub_ps(v, v));
    return v;
}

/* Values so far, zeros positive. */
static inline __m256 started(const float *p)
{
    return _mm256_add_ps(_mm256_loadu_ps(p), _mm256_setzero_ps());
}

bool qf_minmax_avx2(const void *x, size_t n, float *min, float *max)
{
    __m256 low[2], high[2], bad = _mm256_setzero_ps();
    float lanes[16], ignored = *min;
    low[0] = low[1] = _mm256_set1_ps(*min + 0.0f);
    high[0] = high[1] = _mm256_set1_ps(*max + 0.0f);
    size_t i = 0;
    for (; i + 16 <= n; i += 16) {
        for (size_t j = 0; j < 2; j++) {
            __m256 v = element(x, i + 8 * j, &bad);
            low[j] = _mm256_min_ps(v, low[j]);
            high[j] = _mm256_max_ps(v, high[j]);
        }
    }
    _mm256_storeu_ps(lanes, _mm256_min_ps(low[0], low[1]));
    _mm256_storeu_ps(lanes + 8, _mm256_max_ps(high[0], high[1]));
    qf_minmax_scalar(lanes, 8, min, &ignored);
    qf_minmax_scalar(lanes + 8, 8, &ignored, max);
    return qf_minmax_scalar((const float *)x + i, n - i, min, max) && qf_all_zero(bad);
}

bool qf_minmax_columns_avx2(const void *x, size_t n, float *min, float *max)
{
    __m256 bad = _mm256_setzero_ps();
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        __m256 v = element(x, i, &bad);
        _mm256_storeu_ps(min + i, _mm256_min_ps(v, started(min + i)));
        _mm256_storeu_ps(max + i, _mm256_max_ps(v, started(max + i)));
    }
    return qf_minmax_columns_scalar((const float *)x + i, n - i, min + i, max + i) &&
           qf_all_zero(bad);
}
