/* SPDX-License-Identifier: Apache-2.0 */
#include "measure.h"

static const qf_measure_parts parts = {
    {qf_quantize_f32_avx2, qf_quantize_f16_avx2, qf_quantize_bf16_avx2},
    {qf_quantize_columns_f32_avx2, qf_quantize_columns_f16_avx2, qf_quantize_columns_bf16_avx2},
    {qf_errors_f32_avx2, qf_errors_f16_avx2, qf_errors_bf16_avx2},
    {qf_errors_columns_f32_avx2, qf_errors_columns_f16_avx2, qf_errors_columns_bf16_avx2},
    qf_ends_avx2};

bool qf_measure_avx2(const void *x, qf_element type, size_t n, const float *scales, size_t step,
                     int lo, int hi, qf_quantized out, qf_error_sums *sums)
{
    return qf_measure(&parts, x, type, n, scales, step, lo, hi, out, sums);
}
