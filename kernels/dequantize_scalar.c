/* SPDX-License-Identifier: Apache-2.0 */
#include "variants.h"

void qf_widen_scalar(const int8_t *q, size_t n, float *y)
{
    for (size_t i = 0; i < n; i++)
        y[i] = (float)q[i];
}

void qf_dequantize_scalar(const int8_t *q, size_t n, float scale, float *y)
{
    for (size_t i = 0; i < n; i++)
        y[i] = (float)q[i] * scale;
}

void qf_dequantize_columns_scalar(const int8_t *q, size_t n, const float *scales, float *y)
{
    for (size_t i = 0; i < n; i++)
        y[i] = (float)q[i] * scales[i];
}
