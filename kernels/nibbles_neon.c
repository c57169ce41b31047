/* SPDX-License-Identifier: Apache-2.0 */
#include "simd_neon.h"

static inline uint8x16_t joined(int8x16_t low, int8x16_t high)
{
    /* the high half of the result is inserted above the low nibble */
    return vsliq_n_u8(vreinterpretq_u8_s8(vandq_s8(low, vdupq_n_s8(15))), vreinterpretq_u8_s8(high),
                      4);
}

void qf_pack_pairs_neon(const int8_t *q, size_t n, uint8_t *out)
{
    size_t i = 0;
    for (; i + 16 <= n; i += 16) {
        int8x16x2_t v = vld2q_s8(q + 2 * i);
        vst1q_u8(out + i, joined(v.val[0], v.val[1]));
    }
    qf_pack_pairs_scalar(q + 2 * i, n - i, out + i);
}

void qf_pack_rows_neon(const int8_t *low, const int8_t *high, size_t n, uint8_t *out)
{
    size_t i = 0;
    for (; i + 16 <= n; i += 16)
        vst1q_u8(out + i, joined(vld1q_s8(low + i), vld1q_s8(high + i)));
    qf_pack_rows_scalar(low + i, high + i, n - i, out + i);
}
