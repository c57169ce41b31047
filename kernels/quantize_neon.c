/* SPDX-License-Identifier: Apache-2.0 */
#include "simd_neon.h"

typedef struct bounds {
    float32x4_t lo, hi;
} bounds;

/* rint(clamp(x / scale)); leaves NaN bits in *bad where x is not finite. The conversion rounds to
 * even. */
static inline int32x4_t quantize4(float32x4_t x, float32x4_t scale, bounds b, uint32x4_t *bad)
{
    *bad = vorrq_u32(*bad, qf_not_finite(x));
    float32x4_t v = vdivq_f32(x, scale);
    return vcvtnq_s32_f32(vminq_f32(vmaxq_f32(v, b.lo), b.hi));
}

static inline int8x16_t bytes16(const int32x4_t v[4])
{
    int16x8_t low = vcombine_s16(vmovn_s32(v[0]), vmovn_s32(v[1]));
    int16x8_t high = vcombine_s16(vmovn_s32(v[2]), vmovn_s32(v[3]));
    return vcombine_s8(vmovn_s16(low), vmovn_s16(high));
}

/* Whole groups of 16; `type` and `step` are constants in every caller. Returns how many elements
 * were done. NEON has no store past the cache that is worth using here: `stream` is ignored. */
static inline size_t quantize(const void *x, size_t n, qf_element type, const float *scales,
                              size_t step, int lo, int hi, qf_quantized out, bool *finite)
{
    const bounds b = {vdupq_n_f32((float)lo), vdupq_n_f32((float)hi)};
    const float32x4_t first = vdupq_n_f32(n ? scales[0] : 1.0f);
    uint32x4_t bad = vdupq_n_u32(0);
    size_t i = 0;
    for (; i + 16 <= n; i += 16) {
        int32x4_t v[4];
        for (size_t j = 0; j < 4; j++) {
            float32x4_t s = step ? vld1q_f32(scales + i + 4 * j) : first;
            v[j] = quantize4(qf_stored4(x, i + 4 * j, type), s, b, &bad);
        }
        if (out.q)
            vst1q_s8(out.q + i, bytes16(v));
        for (size_t j = 0; out.y && j < 4; j++)
            vst1q_f32(out.y + i + 4 * j, vcvtq_f32_s32(v[j]));
    }
    *finite = qf_all_zero(bad);
    return i;
}

bool qf_quantize_f32_neon(const void *x, size_t n, float scale, int lo, int hi, qf_quantized out)
{
    bool finite;
    size_t i = quantize(x, n, QF_F32, &scale, 0, lo, hi, out, &finite);
    return qf_quantize_f32_scalar((const char *)x + 4 * i, n - i, scale, lo, hi,
                                  qf_quantized_behind(out, i)) &&
           finite;
}

bool qf_quantize_f16_neon(const void *x, size_t n, float scale, int lo, int hi, qf_quantized out)
{
    bool finite;
    size_t i = quantize(x, n, QF_F16, &scale, 0, lo, hi, out, &finite);
    return qf_quantize_f16_scalar((const char *)x + 2 * i, n - i, scale, lo, hi,
                                  qf_quantized_behind(out, i)) &&
           finite;
}

bool qf_quantize_bf16_neon(const void *x, size_t n, float scale, int lo, int hi, qf_quantized out)
{
    bool finite;
    size_t i = quantize(x, n, QF_BF16, &scale, 0, lo, hi, out, &finite);
    return qf_quantize_bf16_scalar((const char *)x + 2 * i, n - i, scale, lo, hi,
                                   qf_quantized_behind(out, i)) &&
           finite;
}

static inline bool quantize_rows(const void *x, size_t rows, size_t n, qf_element type,
                                 qf_quantize_columns_fn tail, const float *scales, int lo, int hi,
                                 qf_quantized out)
{
    bool all = true, finite;
    for (size_t r = 0; r < rows; r++) {
        const char *row = (const char *)x + r * n * qf_element_size(type);
        qf_quantized to = qf_quantized_behind(out, r * n);
        size_t i = quantize(row, n, type, scales, 1, lo, hi, to, &finite);
        all &= tail(row + i * qf_element_size(type), 1, n - i, scales + i, lo, hi,
                    qf_quantized_behind(to, i)) &&
               finite;
    }
    return all;
}

bool qf_quantize_columns_f32_neon(const void *x, size_t rows, size_t n, const float *scales, int lo,
                                  int hi, qf_quantized out)
{
    return quantize_rows(x, rows, n, QF_F32, qf_quantize_columns_f32_scalar, scales, lo, hi, out);
}

bool qf_quantize_columns_f16_neon(const void *x, size_t rows, size_t n, const float *scales, int lo,
                                  int hi, qf_quantized out)
{
    return quantize_rows(x, rows, n, QF_F16, qf_quantize_columns_f16_scalar, scales, lo, hi, out);
}

bool qf_quantize_columns_bf16_neon(const void *x, size_t rows, size_t n, const float *scales,
                                   int lo, int hi, qf_quantized out)
{
    return quantize_rows(x, rows, n, QF_BF16, qf_quantize_columns_bf16_scalar, scales, lo, hi, out);
}
