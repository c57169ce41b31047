/* SPDX-License-Identifier: Apache-2.0 */
#include "simd_neon.h"

enum { SIDE = 16 };

/* Interleaves the bytes of rows i and i + 8 into rows 2i and 2i + 1. Four times over, this turns a
 * 16 x 16 block. */
static inline void interleave(const int8x16_t in[SIDE], int8x16_t out[SIDE])
{
    for (size_t i = 0; i < SIDE / 2; i++) {
        out[2 * i] = vzip1q_s8(in[i], in[i + 8]);
        out[2 * i + 1] = vzip2q_s8(in[i], in[i + 8]);
    }
}

static void turn(const int8_t *src, size_t src_stride, int8_t *dst, size_t dst_stride)
{
    int8x16_t a[SIDE], b[SIDE];
    for (size_t i = 0; i < SIDE; i++)
        a[i] = vld1q_s8(src + i * src_stride);
    interleave(a, b);
    interleave(b, a);
    interleave(a, b);
    interleave(b, a);
    for (size_t i = 0; i < SIDE; i++)
        vst1q_s8(dst + i * dst_stride, a[i]);
}

void qf_transpose_neon(const int8_t *src, size_t src_stride, size_t rows, size_t cols, int8_t *dst,
                       size_t dst_stride)
{
    size_t r = 0, c;
    for (; r + SIDE <= rows; r += SIDE) {
        for (c = 0; c + SIDE <= cols; c += SIDE)
            turn(src + r * src_stride + c, src_stride, dst + c * dst_stride + r, dst_stride);
        qf_transpose_scalar(src + r * src_stride + c, src_stride, SIDE, cols - c,
                            dst + c * dst_stride + r, dst_stride);
    }
    qf_transpose_scalar(src + r * src_stride, src_stride, rows - r, cols, dst + r, dst_stride);
}
