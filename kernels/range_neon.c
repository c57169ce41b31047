/* SPDX-License-Identifier: Apache-2.0 */
#include "simd_neon.h"

static inline uint32x4_t magnitude(const void *x, size_t i)
{
    return vandq_u32(vreinterpretq_u32_f32(qf_floats4(x, i)), vdupq_n_u32(0x7fffffff));
}

/* Four maxima side by side, because one would wait for itself; the scalar definition joins them. */
bool qf_absmax_f32_neon(const void *x, size_t n, float *max)
{
    uint32x4_t best[4];
    for (size_t j = 0; j < 4; j++)
        best[j] = vdupq_n_u32(0);
    size_t i = 0;
    for (; i + 16 <= n; i += 16) {
        for (size_t j = 0; j < 4; j++)
            best[j] = vmaxq_u32(best[j], magnitude(x, i + 4 * j));
    }
    best[0] = vmaxq_u32(vmaxq_u32(best[0], best[1]), vmaxq_u32(best[2], best[3]));
    float lanes[4];
    vst1q_f32(lanes, vreinterpretq_f32_u32(best[0]));
    bool finite = qf_absmax_f32_scalar(lanes, 4, max);
    return qf_absmax_f32_scalar((const float *)x + i, n - i, max) && finite;
}

bool qf_absmax_columns_f32_neon(const void *x, size_t n, float *max)
{
    uint32x4_t bad = vdupq_n_u32(0);
    size_t i = 0;
    for (; i + 4 <= n; i += 4) {
        uint32x4_t v = magnitude(x, i);
        bad = vorrq_u32(bad, vcgeq_u32(v, vdupq_n_u32(0x7f800000)));
        uint32x4_t old = vreinterpretq_u32_f32(vld1q_f32(max + i));
        vst1q_f32(max + i, vreinterpretq_f32_u32(vmaxq_u32(v, old)));
    }
    return qf_absmax_columns_f32_scalar((const float *)x + i, n - i, max + i) && qf_all_zero(bad);
}

/* 16-bit floats by their bits, 8 a register; the scalar definition judges the largest of each lane.
 * Returns how many elements were done. */
static inline size_t absmax16(const void *x, size_t n, uint16_t lanes[8])
{
    const uint8_t *at = x;
    uint16x8_t best[4];
    for (size_t j = 0; j < 4; j++)
        best[j] = vdupq_n_u16(0);
    size_t i = 0;
    for (; i + 32 <= n; i += 32) {
        for (size_t j = 0; j < 4; j++) {
            uint16x8_t v = vreinterpretq_u16_u8(vld1q_u8(at + 2 * i + 16 * j));
            best[j] = vmaxq_u16(best[j], vandq_u16(v, vdupq_n_u16(0x7fff)));
        }
    }
    best[0] = vmaxq_u16(vmaxq_u16(best[0], best[1]), vmaxq_u16(best[2], best[3]));
    vst1q_u16(lanes, best[0]);
    return i;
}

bool qf_absmax_f16_neon(const void *x, size_t n, float *max)
{
    uint16_t lanes[8];
    size_t i = absmax16(x, n, lanes);
    bool finite = qf_absmax_f16_scalar(lanes, 8, max);
    return qf_absmax_f16_scalar((const char *)x + 2 * i, n - i, max) && finite;
}

bool qf_absmax_bf16_neon(const void *x, size_t n, float *max)
{
    uint16_t lanes[8];
    size_t i = absmax16(x, n, lanes);
    bool finite = qf_absmax_bf16_scalar(lanes, 8, max);
    return qf_absmax_bf16_scalar((const char *)x + 2 * i, n - i, max) && finite;
}

/* Returns how many columns were done. */
static inline size_t columns16(const void *x, size_t n, qf_element type, float *max, bool *finite)
{
    uint32x4_t bad = vdupq_n_u32(0);
    size_t i = 0;
    for (; i + 4 <= n; i += 4) {
        uint32x4_t v = vreinterpretq_u32_f32(qf_stored4(x, i, type));
        v = vandq_u32(v, vdupq_n_u32(0x7fffffff));
        bad = vorrq_u32(bad, vcgeq_u32(v, vdupq_n_u32(0x7f800000)));
        uint32x4_t old = vreinterpretq_u32_f32(vld1q_f32(max + i));
        vst1q_f32(max + i, vreinterpretq_f32_u32(vmaxq_u32(v, old)));
    }
    *finite = qf_all_zero(bad);
    return i;
}

bool qf_absmax_columns_f16_neon(const void *x, size_t n, float *max)
{
    bool finite;
    size_t i = columns16(x, n, QF_F16, max, &finite);
    return qf_absmax_columns_f16_scalar((const char *)x + 2 * i, n - i, max + i) && finite;
}

bool qf_absmax_columns_bf16_neon(const void *x, size_t n, float *max)
{
    bool finite;
    size_t i = columns16(x, n, QF_BF16, max, &finite);
    return qf_absmax_columns_bf16_scalar((const char *)x + 2 * i, n - i, max + i) && finite;
}

/* The element, and NaN bits in *bad where it is not finite; -0 becomes 0. */
static inline float32x4_t element(const void *x, size_t i, uint32x4_t *bad)
{
    float32x4_t v = vaddq_f32(qf_floats4(x, i), vdupq_n_f32(0));
    *bad = vorrq_u32(*bad, qf_not_finite(v));
    return v;
}

/* Values so far, zeros positive. */
static inline float32x4_t started(const float *p)
{
    return vaddq_f32(vld1q_f32(p), vdupq_n_f32(0));
}

bool qf_minmax_neon(const void *x, size_t n, float *min, float *max)
{
    float32x4_t low[2], high[2];
    uint32x4_t bad = vdupq_n_u32(0);
    low[0] = low[1] = vdupq_n_f32(*min + 0.0f);
    high[0] = high[1] = vdupq_n_f32(*max + 0.0f);
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        for (size_t j = 0; j < 2; j++) {
            float32x4_t v = element(x, i + 4 * j, &bad);
            low[j] = vminq_f32(v, low[j]);
            high[j] = vmaxq_f32(v, high[j]);
        }
    }
    *min = vminvq_f32(vminq_f32(low[0], low[1]));
    *max = vmaxvq_f32(vmaxq_f32(high[0], high[1]));
    return qf_minmax_scalar((const float *)x + i, n - i, min, max) && qf_all_zero(bad);
}

bool qf_minmax_columns_neon(const void *x, size_t n, float *min, float *max)
{
    uint32x4_t bad = vdupq_n_u32(0);
    size_t i = 0;
    for (; i + 4 <= n; i += 4) {
        float32x4_t v = element(x, i, &bad);
        vst1q_f32(min + i, vminq_f32(v, started(min + i)));
        vst1q_f32(max + i, vmaxq_f32(v, started(max + i)));
    }
    return qf_minmax_columns_scalar((const float *)x + i, n - i, min + i, max + i) &&
           qf_all_zero(bad);
}
