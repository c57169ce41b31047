/* SPDX-License-Identifier: Apache-2.0 */
#include "variants.h"

size_t qf_ends_scalar(const int8_t *q, size_t n, int lo, int hi)
{
    size_t found = 0;
    for (size_t i = 0; i < n; i++)
        found += (size_t)((q[i] == lo) | (q[i] == hi));
    return found;
}
