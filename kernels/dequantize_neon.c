/* SPDX-License-Identifier: Apache-2.0 */
#include "simd_neon.h"

/* q[i] to q[i + 7] as two registers of floats. */
static inline void widened(const int8_t *q, size_t i, float32x4_t out[2])
{
    int16x8_t v = vmovl_s8(vld1_s8(q + i));
    out[0] = vcvtq_f32_s32(vmovl_s16(vget_low_s16(v)));
    out[1] = vcvtq_f32_s32(vmovl_s16(vget_high_s16(v)));
}

void qf_widen_neon(const int8_t *q, size_t n, float *y)
{
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        float32x4_t v[2];
        widened(q, i, v);
        vst1q_f32(y + i, v[0]);
        vst1q_f32(y + i + 4, v[1]);
    }
    qf_widen_scalar(q + i, n - i, y + i);
}

void qf_dequantize_neon(const int8_t *q, size_t n, float scale, float *y)
{
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        float32x4_t v[2];
        widened(q, i, v);
        vst1q_f32(y + i, vmulq_n_f32(v[0], scale));
        vst1q_f32(y + i + 4, vmulq_n_f32(v[1], scale));
    }
    qf_dequantize_scalar(q + i, n - i, scale, y + i);
}

void qf_dequantize_columns_neon(const int8_t *q, size_t n, const float *scales, float *y)
{
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        float32x4_t v[2];
        widened(q, i, v);
        vst1q_f32(y + i, vmulq_f32(v[0], vld1q_f32(scales + i)));
        vst1q_f32(y + i + 4, vmulq_f32(v[1], vld1q_f32(scales + i + 4)));
    }
    qf_dequantize_columns_scalar(q + i, n - i, scales + i, y + i);
}
