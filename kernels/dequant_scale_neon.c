/* SPDX-License-Identifier: Apache-2.0 */
#include "simd_neon.h"

void qf_dequant_scale_neon(const float *scale_w, size_t n, float scale_d, float *deq)
{
    size_t i = 0;
    for (; i + 4 <= n; i += 4)
        vst1q_f32(deq + i, vmulq_n_f32(vld1q_f32(scale_w + i), scale_d));
    qf_dequant_scale_scalar(scale_w + i, n - i, scale_d, deq + i);
}

void qf_dequant_pack_neon(const float *deq, size_t n, uint32_t mask, uint64_t *param)
{
    size_t i = 0;
    for (; i + 4 <= n; i += 4) {
        uint32x4_t bits = vandq_u32(vreinterpretq_u32_f32(vld1q_f32(deq + i)), vdupq_n_u32(mask));
        vst1q_u64(param + i, vmovl_u32(vget_low_u32(bits)));
        vst1q_u64(param + i + 2, vmovl_u32(vget_high_u32(bits)));
    }
    qf_dequant_pack_scalar(deq + i, n - i, mask, param + i);
}
