/* SPDX-License-Identifier: Apache-2.0 */
#include <math.h>

#include "variants.h"

size_t qf_bias_f32_scalar(const float *b, size_t n, const float *deq, size_t deq_count, int32_t *q)
{
    for (size_t i = 0; i < n; i++) {
        float v = rintf(b[i] / deq[deq_count == 1 ? 0 : i]);
        /* 2^31 - 1 is not a float32; the largest one below 2^31 is in range, 2^31 is not */
        if (!(v >= -0x1p31f && v < 0x1p31f))
            return i;
        q[i] = (int32_t)v;
    }
    return n;
}

size_t qf_bias_f64_scalar(const double *b, size_t n, const float *deq, size_t deq_count, int32_t *q)
{
    for (size_t i = 0; i < n; i++) {
        double v = rint(b[i] / (double)deq[deq_count == 1 ? 0 : i]);
        if (!(v >= -0x1p31 && v <= 0x1p31 - 1))
            return i;
        q[i] = (int32_t)v;
    }
    return n;
}
