/* SPDX-License-Identifier: Apache-2.0 */
#include "simd_avx512.h"

/* In each 16-bit lane the first integer is the low byte. */
void qf_pack_pairs_avx512(const int8_t *q, size_t n, uint8_t *out)
{
    size_t i = 0;
    for (; i + 32 <= n; i += 32) {
        __m512i v = _mm512_loadu_si512(q + 2 * i);
        __m512i low = _mm512_and_si512(v, _mm512_set1_epi16(0x000f));
        __m512i high = _mm512_and_si512(_mm512_srli_epi16(v, 4), _mm512_set1_epi16(0x00f0));
        _mm256_storeu_si256((void *)(out + i), _mm512_cvtepi16_epi8(_mm512_or_si512(low, high)));
    }
    qf_pack_pairs_scalar(q + 2 * i, n - i, out + i);
}

void qf_pack_rows_avx512(const int8_t *low, const int8_t *high, size_t n, uint8_t *out)
{
    const __m512i nibble = _mm512_set1_epi8(0x0f);
    size_t i = 0;
    for (; i + 64 <= n; i += 64) {
        __m512i a = _mm512_and_si512(_mm512_loadu_si512(low + i), nibble);
        __m512i b = _mm512_and_si512(_mm512_loadu_si512(high + i), nibble);
        _mm512_storeu_si512(out + i, _mm512_or_si512(a, _mm512_slli_epi16(b, 4)));
    }
    qf_pack_rows_scalar(low + i, high + i, n - i, out + i);
}
