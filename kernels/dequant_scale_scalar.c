/* SPDX-License-Identifier: Apache-2.0 */
#include "bits.h"
#include "variants.h"

void qf_dequant_scale_scalar(const float *scale_w, size_t n, float scale_d, float *deq)
{
    for (size_t i = 0; i < n; i++)
        deq[i] = scale_w[i] * scale_d;
}

void qf_dequant_pack_scalar(const float *deq, size_t n, uint32_t mask, uint64_t *param)
{
    for (size_t i = 0; i < n; i++)
        param[i] = qf_to_bits(deq[i]) & mask;
}
