/* SPDX-License-Identifier: Apache-2.0 */
#include "simd_avx512.h"

size_t qf_ends_avx512(const int8_t *q, size_t n, int lo, int hi)
{
    const __m512i low = _mm512_set1_epi8((char)lo), high = _mm512_set1_epi8((char)hi);
    size_t found = 0, i = 0;
    for (; i + 64 <= n; i += 64) {
        __m512i v = _mm512_loadu_si512(q + i);
        __mmask64 end = _mm512_cmpeq_epi8_mask(v, low) | _mm512_cmpeq_epi8_mask(v, high);
        found += (size_t)__builtin_popcountll(end);
    }
    return found + qf_ends_scalar(q + i, n - i, lo, hi);
}
