/* SPDX-License-Identifier: Apache-2.0 */
/* What the AVX-512 kernels share: 16 floats a register, the last few by a mask. */
#ifndef QF_KERNELS_SIMD_AVX512_H
#define QF_KERNELS_SIMD_AVX512_H

#include <immintrin.h>

#include "variants.h"

/* The first n lanes of 16; all for n >= 16. */
static inline __mmask16 qf_first(size_t n)
{
    return (__mmask16)(n >= 16 ? 0xffffu : (1u << n) - 1);
}

/* Stored elements i to i + 15 as floats; `type` is a constant in every caller. */
static inline __m512 qf_stored16(const void *src, size_t i, qf_element type)
{
    if (type == QF_F32)
        return _mm512_loadu_ps((const float *)src + i);
    __m256i h = _mm256_loadu_si256((const void *)((const char *)src + 2 * i));
    if (type == QF_F16)
        return _mm512_cvtph_ps(h);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
}

/* The same for the lanes of a mask; the others are 0 and their memory is not touched. */
static inline __m512 qf_stored_masked(const void *src, size_t i, qf_element type, __mmask16 m)
{
    if (type == QF_F32)
        return _mm512_maskz_loadu_ps(m, (const float *)src + i);
    __m256i h = _mm256_maskz_loadu_epi16(m, (const char *)src + 2 * i);
    if (type == QF_F16)
        return _mm512_cvtph_ps(h);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
}

/* Four registers of integers that fit in a byte, as 64 bytes in order. */
static inline __m512i qf_bytes64(__m512i a, __m512i b, __m512i c, __m512i d)
{
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    __m512i ab = _mm512_packs_epi32(a, b), cd = _mm512_packs_epi32(c, d);
    return _mm512_permutexvar_epi32(order, _mm512_packs_epi16(ab, cd));
}

#endif
