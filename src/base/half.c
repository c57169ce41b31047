/* SPDX-License-Identifier: Apache-2.0 */
#include "base/half.h"

#include <string.h>

#include "bits.h"

uint16_t qf_float_to_half(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    uint32_t sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000)
        return (uint16_t)(sign | 0x7e00);
    if (magnitude >= 0x477ff000) /* rounds to 65536 or more */
        return (uint16_t)(sign | 0x7c00);
    if (magnitude < 0x38800000) {
        /* subnormal: adding 0.5 puts the last bit at 2^-24, and the addition rounds */
        float f;
        memcpy(&f, &magnitude, sizeof f);
        f += 0.5f;
        memcpy(&magnitude, &f, sizeof magnitude);
        return (uint16_t)(sign | (magnitude - 0x3f000000));
    }
    uint32_t odd = magnitude >> 13 & 1;
    return (uint16_t)(sign | (magnitude - 0x38000000 + 0xfff + odd) >> 13);
}

uint16_t qf_float_to_bfloat(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    if ((bits & 0x7fffffff) > 0x7f800000)
        return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

float qf_half_value(uint16_t half)
{
    return qf_half_to_float(half);
}

float qf_bfloat_value(uint16_t bfloat)
{
    return qf_from_bits((uint32_t)bfloat << 16);
}
