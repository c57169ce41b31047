/* SPDX-License-Identifier: Apache-2.0 */
/* What the portable definitions share: floats as bits, stored elements as floats. */
#ifndef QF_KERNELS_BITS_H
#define QF_KERNELS_BITS_H

#include <string.h>

#include "kernels.h"

static inline float qf_from_bits(uint32_t bits)
{
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

static inline uint32_t qf_to_bits(float f)
{
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    return bits;
}

static inline float qf_half_to_float(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000) << 16;
    uint32_t exponent = (h >> 10) & 31, mantissa = h & 0x3ff;
    if (exponent == 31)
        return qf_from_bits(sign | 0x7f800000u | mantissa << 13 | (mantissa ? 0x400000u : 0));
    if (exponent)
        return qf_from_bits(sign | (exponent + 112) << 23 | mantissa << 13);
    /* zero or subnormal: mantissa * 2^-24, exact in float32 */
    float magnitude = (float)mantissa * 0x1p-24f;
    return sign ? -magnitude : magnitude;
}

/* Element i of type `type`, which is a constant wherever this is called. */
static inline float qf_stored(const void *src, size_t i, qf_element type)
{
    float f;
    uint16_t h;
    if (type == QF_F32) {
        memcpy(&f, (const char *)src + 4 * i, sizeof f);
        return f;
    }
    memcpy(&h, (const char *)src + 2 * i, sizeof h); /* little-endian hosts only */
    return type == QF_F16 ? qf_half_to_float(h) : qf_from_bits((uint32_t)h << 16);
}

/* Infinities and NaNs have all exponent bits set. */
static inline uint32_t qf_nonfinite(float x)
{
    return (qf_to_bits(x) & 0x7f800000u) == 0x7f800000u;
}

#endif
