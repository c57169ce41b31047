/* SPDX-License-Identifier: Apache-2.0 */
#include "simd_avx512.h"

enum { ROWS = 16, COLS = 64 };

/* Interleaves the bytes of rows i and i + 8 into rows 2i and 2i + 1, in each 16-byte lane. Four
 * times over, this turns each lane's 16 x 16 block. */
static inline void interleave(const __m512i in[ROWS], __m512i out[ROWS])
{
    for (size_t i = 0; i < ROWS / 2; i++) {
        out[2 * i] = _mm512_unpacklo_epi8(in[i], in[i + 8]);
        out[2 * i + 1] = _mm512_unpackhi_epi8(in[i], in[i + 8]);
    }
}

static void turn(const int8_t *src, size_t src_stride, int8_t *dst, size_t dst_stride)
{
    __m512i a[ROWS], b[ROWS];
    for (size_t i = 0; i < ROWS; i++)
        a[i] = _mm512_loadu_si512(src + i * src_stride);
    interleave(a, b);
    interleave(b, a);
    interleave(a, b);
    interleave(b, a);
    for (size_t i = 0; i < ROWS; i++) {
        _mm_storeu_si128((void *)(dst + i * dst_stride), _mm512_castsi512_si128(a[i]));
        _mm_storeu_si128((void *)(dst + (i + 16) * dst_stride), _mm512_extracti32x4_epi32(a[i], 1));
        _mm_storeu_si128((void *)(dst + (i + 32) * dst_stride), _mm512_extracti32x4_epi32(a[i], 2));
        _mm_storeu_si128((void *)(dst + (i + 48) * dst_stride), _mm512_extracti32x4_epi32(a[i], 3));
    }
}

void qf_transpose_avx512(const int8_t *src, size_t src_stride, size_t rows, size_t cols,
                         int8_t *dst, size_t dst_stride)
{
    size_t r = 0, c;
    for (; r + ROWS <= rows; r += ROWS) {
        for (c = 0; c + COLS <= cols; c += COLS)
            turn(src + r * src_stride + c, src_stride, dst + c * dst_stride + r, dst_stride);
        qf_transpose_avx2(src + r * src_stride + c, src_stride, ROWS, cols - c,
                          dst + c * dst_stride + r, dst_stride);
    }
    qf_transpose_scalar(src + r * src_stride, src_stride, rows - r, cols, dst + r, dst_stride);
}
