/* SPDX-License-Identifier: Apache-2.0 */
#include "simd_neon.h"

size_t qf_ends_neon(const int8_t *q, size_t n, int lo, int hi)
{
    enum { RUN = 255 * 16 }; /* elements: a byte of the counter takes 255 */
    const int8x16_t low = vdupq_n_s8((int8_t)lo), high = vdupq_n_s8((int8_t)hi);
    size_t found = 0, i = 0;
    while (i + 16 <= n) {
        size_t to = n - i < RUN ? n : i + RUN;
        uint8x16_t count = vdupq_n_u8(0);
        for (; i + 16 <= to; i += 16) {
            int8x16_t v = vld1q_s8(q + i);
            count = vsubq_u8(count, vorrq_u8(vceqq_s8(v, low), vceqq_s8(v, high)));
        }
        found += vaddlvq_u8(count);
    }
    return found + qf_ends_scalar(q + i, n - i, lo, hi);
}
