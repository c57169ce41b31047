/* SPDX-License-Identifier: Apache-2.0 */
#include "variants.h"

void qf_pack_pairs_scalar(const int8_t *q, size_t n, uint8_t *out)
{
    for (size_t i = 0; i < n; i++)
        out[i] = (uint8_t)((q[2 * i] & 15) | (q[2 * i + 1] & 15) << 4);
}

void qf_pack_rows_scalar(const int8_t *low, const int8_t *high, size_t n, uint8_t *out)
{
    for (size_t i = 0; i < n; i++)
        out[i] = (uint8_t)((low[i] & 15) | (high[i] & 15) << 4);
}
