/* SPDX-License-Identifier: Apache-2.0 */
#include "errors.h"
#include "simd_neon.h"

static inline size_t chunk(const void *x, const int8_t *q, size_t n, const float *scales,
                           size_t step, qf_element type, qf_error_lanes *lanes, qf_error_sums *sums)
{
    float32x4_t signal[4], noise[4], most = vdupq_n_f32(0), scale = vdupq_n_f32(scales[0]);
    uint32x4_t clipped = vdupq_n_u32(0); /* of a chunk, so it does not overflow */
    size_t i = 0;
    for (size_t j = 0; j < 4; j++)
        signal[j] = noise[j] = vdupq_n_f32(0);
    for (; i + 16 <= n; i += 16) {
        int8x16_t bytes = vld1q_s8(q + i);
        int16x8_t halves[2] = {vmovl_s8(vget_low_s8(bytes)), vmovl_s8(vget_high_s8(bytes))};
        for (size_t j = 0; j < 4; j++) {
            int16x4_t part = j % 2 ? vget_high_s16(halves[j / 2]) : vget_low_s16(halves[j / 2]);
            float32x4_t v = qf_stored4(x, i + 4 * j, type);
            scale = step ? vld1q_f32(scales + i + 4 * j) : scale;
            float32x4_t e = vsubq_f32(v, vmulq_f32(vcvtq_f32_s32(vmovl_s16(part)), scale));
            float32x4_t magnitude = vabsq_f32(e);
            float32x4_t limit = vmulq_f32(vdupq_n_f32(QF_CLIPPED), scale);
            signal[j] = vaddq_f32(signal[j], vmulq_f32(v, v));
            noise[j] = vaddq_f32(noise[j], vmulq_f32(e, e));
            most = vmaxq_f32(most, magnitude);
            clipped = vsubq_u32(clipped, vcgtq_f32(magnitude, limit));
        }
    }
    float found = vmaxvq_f32(most);
    sums->max_error = found > sums->max_error ? found : sums->max_error;
    sums->clipped += vaddvq_u32(clipped);
    for (size_t j = 0; j < 4; j++) {
        vst1q_f32(lanes->signal + 4 * j, signal[j]);
        vst1q_f32(lanes->noise + 4 * j, noise[j]);
    }
    return i;
}

void qf_errors_f32_neon(const void *x, const int8_t *q, size_t n, float scale, qf_error_sums *sums)
{
    qf_errors(chunk, x, q, n, &scale, 0, QF_F32, sums);
}

void qf_errors_columns_f32_neon(const void *x, const int8_t *q, size_t n, const float *scales,
                                qf_error_sums *sums)
{
    qf_errors(chunk, x, q, n, scales, 1, QF_F32, sums);
}

void qf_errors_f16_neon(const void *x, const int8_t *q, size_t n, float scale, qf_error_sums *sums)
{
    qf_errors(chunk, x, q, n, &scale, 0, QF_F16, sums);
}

void qf_errors_columns_f16_neon(const void *x, const int8_t *q, size_t n, const float *scales,
                                qf_error_sums *sums)
{
    qf_errors(chunk, x, q, n, scales, 1, QF_F16, sums);
}

void qf_errors_bf16_neon(const void *x, const int8_t *q, size_t n, float scale, qf_error_sums *sums)
{
    qf_errors(chunk, x, q, n, &scale, 0, QF_BF16, sums);
}

void qf_errors_columns_bf16_neon(const void *x, const int8_t *q, size_t n, const float *scales,
                                 qf_error_sums *sums)
{
    qf_errors(chunk, x, q, n, scales, 1, QF_BF16, sums);
}
