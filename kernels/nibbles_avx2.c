/* SPDX-License-Identifier: Apache-2.0 */
#include "simd_avx2.h"

/* In each 16-bit lane the first integer is the low byte. */
static inline __m256i joined(const int8_t *q)
{
    __m256i v = _mm256_loadu_si256((const void *)q);
    __m256i low = _mm256_and_si256(v, _mm256_set1_epi16(0x000f));
    __m256i high = _mm256_and_si256(_mm256_srli_epi16(v, 4), _mm256_set1_epi16(0x00f0));
    return _mm256_or_si256(low, high);
}

void qf_pack_pairs_avx2(const int8_t *q, size_t n, uint8_t *out)
{
    size_t i = 0;
    for (; i + 32 <= n; i += 32) {
        __m256i both = _mm256_packus_epi16(joined(q + 2 * i), joined(q + 2 * i + 32));
        _mm256_storeu_si256((void *)(out + i),
                            _mm256_permute4x64_epi64(both, _MM_SHUFFLE(3, 1, 2, 0)));
    }
    qf_pack_pairs_scalar(q + 2 * i, n - i, out + i);
}

void qf_pack_rows_avx2(const int8_t *low, const int8_t *high, size_t n, uint8_t *out)
{
    const __m256i nibble = _mm256_set1_epi8(0x0f);
    size_t i = 0;
    for (; i + 32 <= n; i += 32) {
        __m256i a = _mm256_and_si256(_mm256_loadu_si256((const void *)(low + i)), nibble);
        __m256i b = _mm256_and_si256(_mm256_loadu_si256((const void *)(high + i)), nibble);
        _mm256_storeu_si256((void *)(out + i), _mm256_or_si256(a, _mm256_slli_epi16(b, 4)));
    }
    qf_pack_rows_scalar(low + i, high + i, n - i, out + i);
}
