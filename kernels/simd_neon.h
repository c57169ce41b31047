/* SPDX-License-Identifier: Apache-2.0 */
/* What the NEON kernels share: 4 floats a register, the last few by the scalar definition. */
#ifndef QF_KERNELS_SIMD_NEON_H
#define QF_KERNELS_SIMD_NEON_H

#include <arm_neon.h>

#include "variants.h"

/* Loads of bytes, so that no alignment is assumed. */
static inline float32x4_t qf_floats4(const void *src, size_t i)
{
    return vreinterpretq_f32_u8(vld1q_u8((const uint8_t *)src + 4 * i));
}

/* Stored elements i to i + 3 as floats; `type` is a constant in every caller. */
static inline float32x4_t qf_stored4(const void *src, size_t i, qf_element type)
{
    if (type == QF_F32)
        return qf_floats4(src, i);
    uint8x8_t h = vld1_u8((const uint8_t *)src + 2 * i);
    if (type == QF_F16)
        return vcvt_f32_f16(vreinterpret_f16_u8(h));
    return vreinterpretq_f32_u32(vshll_n_u16(vreinterpret_u16_u8(h), 16));
}

/* Whether a register in which finite values left zeros and others NaNs is all zeros. */
static inline bool qf_all_zero(uint32x4_t v)
{
    return vmaxvq_u32(v) == 0;
}

/* NaN bits where v is not finite, else zeros. */
static inline uint32x4_t qf_not_finite(float32x4_t v)
{
    return vreinterpretq_u32_f32(vsubq_f32(v, v));
}

#endif
