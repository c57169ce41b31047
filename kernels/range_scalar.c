/* SPDX-License-Identifier: Apache-2.0 */
#include "bits.h"
#include "variants.h"

/* `step` is 1 if each element has its maximum and 0 if all share the first; a constant in every
 * caller, as `type` is. Magnitudes are compared as integers, which order as the floats do. */
static inline bool absmax(const void *x, size_t n, size_t step, qf_element type, float *max)
{
    bool bad = false;
    for (size_t i = 0; i < n; i++) {
        uint32_t magnitude = qf_to_bits(qf_stored(x, i, type)) & 0x7fffffffu;
        bad |= magnitude >= 0x7f800000u;
        if (magnitude > qf_to_bits(max[i * step]))
            max[i * step] = qf_from_bits(magnitude);
    }
    return !bad;
}

static inline bool minmax(const void *x, size_t n, size_t step, float *min, float *max)
{
    bool bad = false;
    for (size_t i = 0; i < n; i++) {
        float v = qf_stored(x, i, QF_F32) + 0.0f; /* -0 becomes 0 */
        float low = min[i * step] + 0.0f, high = max[i * step] + 0.0f;
        bad |= qf_nonfinite(v) != 0;
        min[i * step] = v < low ? v : low;
        max[i * step] = v > high ? v : high;
    }
    return !bad;
}

bool qf_absmax_f32_scalar(const void *x, size_t n, float *max)
{
    return absmax(x, n, 0, QF_F32, max);
}

bool qf_absmax_f16_scalar(const void *x, size_t n, float *max)
{
    return absmax(x, n, 0, QF_F16, max);
}

bool qf_absmax_bf16_scalar(const void *x, size_t n, float *max)
{
    return absmax(x, n, 0, QF_BF16, max);
}

bool qf_absmax_columns_f32_scalar(const void *x, size_t n, float *max)
{
    return absmax(x, n, 1, QF_F32, max);
}

bool qf_absmax_columns_f16_scalar(const void *x, size_t n, float *max)
{
    return absmax(x, n, 1, QF_F16, max);
}

bool qf_absmax_columns_bf16_scalar(const void *x, size_t n, float *max)
{
    return absmax(x, n, 1, QF_BF16, max);
}

bool qf_minmax_scalar(const void *x, size_t n, float *min, float *max)
{
    *min += 0.0f; /* also where there is nothing to compare with */
    *max += 0.0f;
    return minmax(x, n, 0, min, max);
}

bool qf_minmax_columns_scalar(const void *x, size_t n, float *min, float *max)
{
    return minmax(x, n, 1, min, max);
}
