/* SPDX-License-Identifier: Apache-2.0 */
/* The definition of every kernel, in portable C. Built with -ffp-contract=off: each operation
 * rounds by itself. */
#include <math.h>
#include <string.h>

#include "kernels.h"

static float from_bits(uint32_t bits)
{
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

static uint32_t to_bits(float f)
{
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    return bits;
}

static uint16_t read_u16(const unsigned char *p)
{
    return (uint16_t)(p[0] | p[1] << 8);
}

static void load_f32(const void *src, size_t n, float *dst)
{
    if (n)
        memcpy(dst, src, n * sizeof *dst);
}

static float half_to_float(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000) << 16;
    uint32_t exponent = (h >> 10) & 31, mantissa = h & 0x3ff;
    if (exponent == 31)
        return from_bits(sign | 0x7f800000u | mantissa << 13);
    if (exponent)
        return from_bits(sign | (exponent + 112) << 23 | mantissa << 13);
    /* zero or subnormal: mantissa * 2^-24, exact in float32 */
    float magnitude = (float)mantissa * 0x1p-24f;
    return sign ? -magnitude : magnitude;
}

static void load_f16(const void *src, size_t n, float *dst)
{
    const unsigned char *p = src;
    for (size_t i = 0; i < n; i++)
        dst[i] = half_to_float(read_u16(p + 2 * i));
}

static void load_bf16(const void *src, size_t n, float *dst)
{
    const unsigned char *p = src;
    for (size_t i = 0; i < n; i++)
        dst[i] = from_bits((uint32_t)read_u16(p + 2 * i) << 16);
}

static void load_f64(const void *src, size_t n, float *dst)
{
    const unsigned char *p = src;
    for (size_t i = 0; i < n; i++) {
        double d;
        memcpy(&d, p + 8 * i, sizeof d);
        dst[i] = (float)d;
    }
}

static void scale(float *x, size_t n, float factor)
{
    for (size_t i = 0; i < n; i++)
        x[i] *= factor;
}

/* clamp(rint(x / scale), lo, hi). Clamping first gives the same, because the bounds are integers,
 * and leaves values so small that adding 1.5 * 2^23 puts the last bit at 1: the addition rounds to
 * even, the subtraction is exact. Unlike rintf this needs no instruction beyond the baseline's. */
static int8_t quantize_one(float x, float scale, int lo, int hi)
{
    const float magic = 0x1.8p23f;
    float v = x / scale;
    /* written so that a NaN becomes lo */
    v = v > (float)lo ? v : (float)lo;
    v = v < (float)hi ? v : (float)hi;
    v = v + magic;
    return (int8_t)(v - magic);
}

/* Infinities and NaNs have all exponent bits set. */
static uint32_t nonfinite(float x)
{
    return (to_bits(x) & 0x7f800000u) == 0x7f800000u;
}

static bool quantize(const float *x, size_t n, float scale_w, int lo, int hi, int8_t *q)
{
    uint32_t bad = 0;
    for (size_t i = 0; i < n; i++) {
        bad |= nonfinite(x[i]);
        q[i] = quantize_one(x[i], scale_w, lo, hi);
    }
    return !bad;
}

static bool quantize_columns(const float *x, size_t n, const float *scales, int lo, int hi,
                             int8_t *q)
{
    uint32_t bad = 0;
    for (size_t i = 0; i < n; i++) {
        bad |= nonfinite(x[i]);
        q[i] = quantize_one(x[i], scales[i], lo, hi);
    }
    return !bad;
}

static void widen(const int8_t *q, size_t n, float *y)
{
    for (size_t i = 0; i < n; i++)
        y[i] = (float)q[i];
}

static void dequantize(const int8_t *q, size_t n, float scale_w, float *y)
{
    for (size_t i = 0; i < n; i++)
        y[i] = (float)q[i] * scale_w;
}

static void dequantize_columns(const int8_t *q, size_t n, const float *scales, float *y)
{
    for (size_t i = 0; i < n; i++)
        y[i] = (float)q[i] * scales[i];
}

static void pack_nibbles(const int8_t *low, const int8_t *high, size_t step, size_t n, uint8_t *out)
{
    for (size_t i = 0; i < n; i++)
        out[i] = (uint8_t)((low[i * step] & 15) | (high[i * step] & 15) << 4);
}

static size_t bias_f32(const float *b, size_t n, const float *deq, size_t deq_count, int32_t *q)
{
    for (size_t i = 0; i < n; i++) {
        float v = rintf(b[i] / deq[deq_count == 1 ? 0 : i % deq_count]);
        /* 2^31 - 1 is not a float32; the largest one below 2^31 is in range, 2^31 is not */
        if (!(v >= -0x1p31f && v < 0x1p31f))
            return i;
        q[i] = (int32_t)v;
    }
    return n;
}

static size_t bias_f64(const double *b, size_t n, const float *deq, size_t deq_count, int32_t *q)
{
    for (size_t i = 0; i < n; i++) {
        double v = rint(b[i] / (double)deq[deq_count == 1 ? 0 : i % deq_count]);
        if (!(v >= -0x1p31 && v <= 0x1p31 - 1))
            return i;
        q[i] = (int32_t)v;
    }
    return n;
}

static void dequant_scale(const float *scale_w, size_t n, float scale_d, float *deq)
{
    for (size_t i = 0; i < n; i++)
        deq[i] = scale_w[i] * scale_d;
}

static void dequant_pack(const float *deq, size_t n, uint32_t mask, uint64_t *param)
{
    for (size_t i = 0; i < n; i++)
        param[i] = to_bits(deq[i]) & mask;
}

const qf_kernels qf_kernels_scalar = {
    .name = "scalar",
    .load_f32 = load_f32,
    .load_f16 = load_f16,
    .load_bf16 = load_bf16,
    .load_f64 = load_f64,
    .scale = scale,
    .quantize = quantize,
    .quantize_columns = quantize_columns,
    .widen = widen,
    .dequantize = dequantize,
    .dequantize_columns = dequantize_columns,
    .pack_nibbles = pack_nibbles,
    .bias_f32 = bias_f32,
    .bias_f64 = bias_f64,
    .dequant_scale = dequant_scale,
    .dequant_pack = dequant_pack,
};
