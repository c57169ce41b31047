/* SPDX-License-Identifier: Apache-2.0 */
#include "variants.h"

void qf_transpose_scalar(const int8_t *src, size_t src_stride, size_t rows, size_t cols,
                         int8_t *dst, size_t dst_stride)
{
    for (size_t r = 0; r < rows; r++) {
        for (size_t c = 0; c < cols; c++)
            dst[c * dst_stride + r] = src[r * src_stride + c];
    }
}
