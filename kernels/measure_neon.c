/* SPDX-License-Identifier: Apache-2.0 */
#include "measure.h"

static const qf_measure_parts parts = {
    {qf_quantize_f32_neon, qf_quantize_f16_neon, qf_quantize_bf16_neon},
    {qf_quantize_columns_f32_neon, qf_quantize_columns_f16_neon, qf_quantize_columns_bf16_neon},
    {qf_errors_f32_neon, qf_errors_f16_neon, qf_errors_bf16_neon},
    {qf_errors_columns_f32_neon, qf_errors_columns_f16_neon, qf_errors_columns_bf16_neon},
    qf_ends_neon};

bool qf_measure_neon(const void *x, qf_element type, size_t n, const float *scales, size_t step,
                     int lo, int hi, qf_quantized out, qf_error_sums *sums)
{
    return qf_measure(&parts, x, type, n, scales, step, lo, hi, out, sums);
}
