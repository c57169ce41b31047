/* SPDX-License-Identifier: Apache-2.0 */
#include "errors.h"

/* Everything is the rest here. */
static inline size_t chunk(const void *x, const int8_t *q, size_t n, const float *scales,
                           size_t step, qf_element type, qf_error_lanes *lanes, qf_error_sums *sums)
{
    (void)x, (void)q, (void)n, (void)scales, (void)step, (void)type, (void)lanes, (void)sums;
    return 0;
}

void qf_errors_f32_scalar(const void *x, const int8_t *q, size_t n, float scale,
                          qf_error_sums *sums)
{
    qf_errors(chunk, x, q, n, &scale, 0, QF_F32, sums);
}

void qf_errors_columns_f32_scalar(const void *x, const int8_t *q, size_t n, const float *scales,
                                  qf_error_sums *sums)
{
    qf_errors(chunk, x, q, n, scales, 1, QF_F32, sums);
}

void qf_errors_f16_scalar(const void *x, const int8_t *q, size_t n, float scale,
                          qf_error_sums *sums)
{
    qf_errors(chunk, x, q, n, &scale, 0, QF_F16, sums);
}

void qf_errors_columns_f16_scalar(const void *x, const int8_t *q, size_t n, const float *scales,
                                  qf_error_sums *sums)
{
    qf_errors(chunk, x, q, n, scales, 1, QF_F16, sums);
}

void qf_errors_bf16_scalar(const void *x, const int8_t *q, size_t n, float scale,
                           qf_error_sums *sums)
{
    qf_errors(chunk, x, q, n, &scale, 0, QF_BF16, sums);
}

void qf_errors_columns_bf16_scalar(const void *x, const int8_t *q, size_t n, const float *scales,
                                   qf_error_sums *sums)
{
    qf_errors(chunk, x, q, n, scales, 1, QF_BF16, sums);
}
