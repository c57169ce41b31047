/* SPDX-License-Identifier: Apache-2.0 */
#include "simd_avx2.h"

size_t qf_ends_avx2(const int8_t *q, size_t n, int lo, int hi)
{
    const __m256i low = _mm256_set1_epi8((char)lo), high = _mm256_set1_epi8((char)hi);
    size_t found = 0, i = 0;
    for (; i + 32 <= n; i += 32) {
        __m256i v = _mm256_loadu_si256((const void *)(q + i));
        __m256i end = _mm256_or_si256(_mm256_cmpeq_epi8(v, low), _mm256_cmpeq_epi8(v, high));
        found += (size_t)__builtin_popcount((unsigned)_mm256_movemask_epi8(end));
    }
    return found + qf_ends_scalar(q + i, n - i, lo, hi);
}
