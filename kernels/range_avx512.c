/* SPDX-License-Identifier: Apache-2.0 */
#include <math.h>

#include "simd_avx512.h"

static inline __m512i magnitude(const void *x, size_t i, __mmask16 m)
{
    __m512i bits = _mm512_maskz_loadu_epi32(m, (const float *)x + i);
    return _mm512_and_si512(bits, _mm512_set1_epi32(0x7fffffff));
}

/* Four maxima side by side, because one would wait for itself. */
bool qf_absmax_f32_avx512(const void *x, size_t n, float *max)
{
    __m512i best[4];
    for (size_t j = 0; j < 4; j++)
        best[j] = _mm512_setzero_si512();
    size_t i = 0;
    for (; i + 64 <= n; i += 64) {
        for (size_t j = 0; j < 4; j++)
            best[j] = _mm512_max_epu32(best[j], magnitude(x, i + 16 * j, 0xffff));
    }
    for (; i < n; i += 16)
        best[0] = _mm512_max_epu32(best[0], magnitude(x, i, qf_first(n - i)));
    best[0] =
        _mm512_max_epu32(_mm512_max_epu32(best[0], best[1]), _mm512_max_epu32(best[2], best[3]));
    float found = _mm512_cvtss_f32(
        _mm512_castsi512_ps(_mm512_set1_epi32((int)_mm512_reduce_max_epu32(best[0]))));
    *max = found > *max ? found : *max;
    return isfinite(found);
}

bool qf_absmax_columns_f32_avx512(const void *x, size_t n, float *max)
{
    __mmask16 bad = 0;
    for (size_t i = 0; i < n; i += 16) {
        __mmask16 m = qf_first(n - i);
        __m512i v = magnitude(x, i, m);
        bad |= _mm512_cmpge_epu32_mask(v, _mm512_set1_epi32(0x7f800000));
        _mm512_mask_storeu_epi32(max + i, m,
                                 _mm512_max_epu32(v, _mm512_maskz_loadu_epi32(m, max + i)));
    }
    return !bad;
}

/* 16-bit floats by their bits, 32 a register; the scalar definition judges the largest. */
static inline uint16_t absmax16(const void *x, size_t n)
{
    const __m512i sign = _mm512_set1_epi16(0x7fff);
    const char *at = x;
    __m512i best[4];
    for (size_t j = 0; j < 4; j++)
        best[j] = _mm512_setzero_si512();
    size_t i = 0;
    for (; i + 128 <= n; i += 128) {
        for (size_t j = 0; j < 4; j++)
            best[j] = _mm512_max_epu16(
                best[j], _mm512_and_si512(_mm512_loadu_si512(at + 2 * i + 64 * j), sign));
    }
    for (; i < n; i += 32) {
        __mmask32 m = n - i >= 32 ? 0xffffffffu : (1u << (n - i)) - 1;
        __m512i v = _mm512_maskz_loadu_epi16(m, at + 2 * i);
        best[0] = _mm512_max_epu16(best[0], _mm512_and_si512(v, sign));
    }
    best[0] =
        _mm512_max_epu16(_mm512_max_epu16(best[0], best[1]), _mm512_max_epu16(best[2], best[3]));
    __m512i low = _mm512_and_si512(best[0], _mm512_set1_epi32(0xffff));
    __m512i high = _mm512_srli_epi32(best[0], 16);
    return (uint16_t)_mm512_reduce_max_epu32(_mm512_max_epu32(low, high));
}

bool qf_absmax_f16_avx512(const void *x, size_t n, float *max)
{
    uint16_t found = absmax16(x, n);
    return qf_absmax_f16_scalar(&found, 1, max);
}

bool qf_absmax_bf16_avx512(const void *x, size_t n, float *max)
{
    uint16_t found = absmax16(x, n);
    return qf_absmax_bf16_scalar(&found, 1, max);
}

static inline bool columns16(const void *x, size_t n, qf_element type, float *max)
{
    __mmask16 bad = 0;
    for (size_t i = 0; i < n; i += 16) {
        __mmask16 m = qf_first(n - i);
        __m512i v = _mm512_castps_si512(qf_stored_masked(x, i, type, m));
        v = _mm512_and_si512(v, _mm512_set1_epi32(0x7fffffff));
        bad |= _mm512_cmpge_epu32_mask(v, _mm512_set1_epi32(0x7f800000));
        _mm512_mask_storeu_epi32(max + i, m,
                                 _mm512_max_epu32(v, _mm512_maskz_loadu_epi32(m, max + i)));
    }
    return !bad;
}

bool qf_absmax_columns_f16_avx512(const void *x, size_t n, float *max)
{
    return columns16(x, n, QF_F16, max);
}

bool qf_absmax_columns_bf16_avx512(const void *x, size_t n, float *max)
{
    return columns16(x, n, QF_BF16, max);
}

/* The element, and NaN bits in *bad where it is not finite; -0 becomes 0. */
static inline __m512 element(const void *x, size_t i, __m512 *bad)
{
    __m512 v = _mm512_add_ps(_mm512_loadu_ps((const float *)x + i), _mm512_setzero_ps());
    *bad = _mm512_or_ps(*bad, _mm512_sub_ps(v, v));
    return v;
}

/* Values so far, zeros positive. */
static inline __m512 started(const float *p)
{
    return _mm512_add_ps(_mm512_loadu_ps(p), _mm512_setzero_ps());
}

bool qf_minmax_avx512(const void *x, size_t n, float *min, float *max)
{
    __m512 low[2], high[2], bad = _mm512_setzero_ps();
    low[0] = low[1] = _mm512_set1_ps(*min + 0.0f);
    high[0] = high[1] = _mm512_set1_ps(*max + 0.0f);
    size_t i = 0;
    for (; i + 32 <= n; i += 32) {
        for (size_t j = 0; j < 2; j++) {
            __m512 v = element(x, i + 16 * j, &bad);
            low[j] = _mm512_min_ps(v, low[j]);
            high[j] = _mm512_max_ps(v, high[j]);
        }
    }
    *min = _mm512_reduce_min_ps(_mm512_min_ps(low[0], low[1]));
    *max = _mm512_reduce_max_ps(_mm512_max_ps(high[0], high[1]));
    bool finite = _mm512_test_epi32_mask(_mm512_castps_si512(bad), _mm512_castps_si512(bad)) == 0;
    return qf_minmax_scalar((const float *)x + i, n - i, min, max) && finite;
}

bool qf_minmax_columns_avx512(const void *x, size_t n, float *min, float *max)
{
    __m512 bad = _mm512_setzero_ps();
    size_t i = 0;
    for (; i + 16 <= n; i += 16) {
        __m512 v = element(x, i, &bad);
        _mm512_storeu_ps(min + i, _mm512_min_ps(v, started(min + i)));
        _mm512_storeu_ps(max + i, _mm512_max_ps(v, started(max + i)));
    }
    bool finite = _mm512_test_epi32_mask(_mm512_castps_si512(bad), _mm512_castps_si512(bad)) == 0;
    return qf_minmax_columns_scalar((const float *)x + i, n - i, min + i, max + i) && finite;
}
