/* SPDX-License-Identifier: Apache-2.0 */
/* What the AVX2 kernels share: 8 floats a register, the last few by the scalar definition. */
#ifndef QF_KERNELS_SIMD_AVX2_H
#define QF_KERNELS_SIMD_AVX2_H

#include <immintrin.h>

#include "variants.h"

/* Stored elements i to i + 7 as floats; `type` is a constant in every caller. */
static inline __m256 qf_stored8(const void *src, size_t i, qf_element type)
{
    if (type == QF_F32)
        return _mm256_loadu_ps((const float *)src + i);
    __m128i h = _mm_loadu_si128((const void *)((const char *)src + 2 * i));
    if (type == QF_F16)
        return _mm256_cvtph_ps(h);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
}

/* Four registers of integers that fit in a byte, as 32 bytes in order. */
static inline __m256i qf_bytes32(__m256i a, __m256i b, __m256i c, __m256i d)
{
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    __m256i ab = _mm256_packs_epi32(a, b), cd = _mm256_packs_epi32(c, d);
    return _mm256_permutevar8x32_epi32(_mm256_packs_epi16(ab, cd), order);
}

/* Whether a register in which finite values left zeros and others NaNs is all zeros. */
static inline bool qf_all_zero(__m256 v)
{
    return _mm256_testz_si256(_mm256_castps_si256(v), _mm256_castps_si256(v));
}

#endif
