/* SPDX-License-Identifier: Apache-2.0 */
#include "bits.h"
#include "variants.h"

void qf_load_f16_scalar(const void *src, size_t n, float *dst)
{
    for (size_t i = 0; i < n; i++)
        dst[i] = qf_stored(src, i, QF_F16);
}

void qf_load_bf16_scalar(const void *src, size_t n, float *dst)
{
    for (size_t i = 0; i < n; i++)
        dst[i] = qf_stored(src, i, QF_BF16);
}

void qf_load_f64_scalar(const void *src, size_t n, float *dst)
{
    for (size_t i = 0; i < n; i++) {
        double d;
        memcpy(&d, (const char *)src + 8 * i, sizeof d);
        dst[i] = (float)d;
    }
}

void qf_scale_scalar(float *x, size_t n, float factor)
{
    for (size_t i = 0; i < n; i++)
        x[i] *= factor;
}
