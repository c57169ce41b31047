/* SPDX-License-Identifier: Apache-2.0 */
#include "simd_neon.h"

size_t qf_bias_f32_neon(const float *b, size_t n, const float *deq, size_t deq_count, int32_t *q)
{
    const bool each = deq_count != 1;
    const float32x4_t first = vdupq_n_f32(n ? deq[0] : 1.0f);
    size_t i = 0;
    for (; i + 4 <= n; i += 4) {
        float32x4_t d = each ? vld1q_f32(deq + i) : first;
        float32x4_t v = vrndnq_f32(vdivq_f32(vld1q_f32(b + i), d));
        uint32x4_t fits =
            vandq_u32(vcgeq_f32(v, vdupq_n_f32(-0x1p31f)), vcltq_f32(v, vdupq_n_f32(0x1p31f)));
        if (vminvq_u32(fits) == 0)
            break;
        vst1q_s32(q + i, vcvtq_s32_f32(v));
    }
    return i + qf_bias_f32_scalar(b + i, n - i, each ? deq + i : deq, each ? n - i : 1, q + i);
}

size_t qf_bias_f64_neon(const double *b, size_t n, const float *deq, size_t deq_count, int32_t *q)
{
    const bool each = deq_count != 1;
    const float64x2_t first = vdupq_n_f64(n ? (double)deq[0] : 1.0);
    size_t i = 0;
    for (; i + 2 <= n; i += 2) {
        float64x2_t d = each ? vcvt_f64_f32(vld1_f32(deq + i)) : first;
        float64x2_t v = vrndnq_f64(vdivq_f64(vld1q_f64(b + i), d));
        uint64x2_t fits =
            vandq_u64(vcgeq_f64(v, vdupq_n_f64(-0x1p31)), vcleq_f64(v, vdupq_n_f64(0x1p31 - 1)));
        if (vgetq_lane_u64(fits, 0) == 0 || vgetq_lane_u64(fits, 1) == 0)
            break;
        vst1_s32(q + i, vmovn_s64(vcvtq_s64_f64(v)));
    }
    return i + qf_bias_f64_scalar(b + i, n - i, each ? deq + i : deq, each ? n - i : 1, q + i);
}
