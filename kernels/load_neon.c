/* SPDX-License-Identifier: Apache-2.0 */
#include "simd_neon.h"

void qf_load_f16_neon(const void *src, size_t n, float *dst)
{
    size_t i = 0;
    for (; i + 4 <= n; i += 4)
        vst1q_f32(dst + i, qf_stored4(src, i, QF_F16));
    qf_load_f16_scalar((const char *)src + 2 * i, n - i, dst + i);
}

void qf_load_bf16_neon(const void *src, size_t n, float *dst)
{
    size_t i = 0;
    for (; i + 4 <= n; i += 4)
        vst1q_f32(dst + i, qf_stored4(src, i, QF_BF16));
    qf_load_bf16_scalar((const char *)src + 2 * i, n - i, dst + i);
}

void qf_load_f64_neon(const void *src, size_t n, float *dst)
{
    size_t i = 0;
    for (; i + 2 <= n; i += 2) {
        float64x2_t d = vreinterpretq_f64_u8(vld1q_u8((const uint8_t *)src + 8 * i));
        vst1_f32(dst + i, vcvt_f32_f64(d));
    }
    qf_load_f64_scalar((const char *)src + 8 * i, n - i, dst + i);
}

void qf_scale_neon(float *x, size_t n, float factor)
{
    size_t i = 0;
    for (; i + 4 <= n; i += 4)
        vst1q_f32(x + i, vmulq_n_f32(vld1q_f32(x + i), factor));
    qf_scale_scalar(x + i, n - i, factor);
}
