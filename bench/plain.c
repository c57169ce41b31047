/* SPDX-License-Identifier: Apache-2.0 */
/* A file of its own because it is built with -march=native. */
#include <math.h>

#include "limits.h"

void qf_plain_quantize(const float *x, size_t n, float scale, int8_t *q)
{
    for (size_t i = 0; i < n; i++) {
        float v = rintf(x[i] / scale);
        v = v < -128.0f ? -128.0f : v;
        v = v > 127.0f ? 127.0f : v;
        q[i] = (int8_t)v;
    }
}
