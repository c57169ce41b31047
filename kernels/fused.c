/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "kernels.h"

size_t qf_element_size(qf_element type)
{
    return type == QF_F32 ? 4 : 2;
}

qf_quantize_fn qf_quantize_for(const qf_kernels *k, qf_element type)
{
    return type == QF_F32 ? k->quantize_f32 : type == QF_F16 ? k->quantize_f16 : k->quantize_bf16;
}

qf_quantize_columns_fn qf_quantize_columns_for(const qf_kernels *k, qf_element type)
{
    return type == QF_F32   ? k->quantize_columns_f32
           : type == QF_F16 ? k->quantize_columns_f16
                            : k->quantize_columns_bf16;
}

bool qf_quantize_nibbles(const qf_kernels *k, const void *x, qf_element type, size_t n, float scale,
                         uint8_t *out)
{
    enum { CHUNK = 4096 }; /* stays in the first-level cache */
    int8_t q[CHUNK];
    const char *at = x;
    qf_quantize_fn quantize = qf_quantize_for(k, type);
    bool finite = true;
    for (size_t done = 0; done < n; done += CHUNK) {
        size_t m = n - done < CHUNK ? n - done : CHUNK;
        finite &=
            quantize(at + done * qf_element_size(type), m, scale, -8, 7, (qf_quantized){.q = q});
        k->pack_pairs(q, m / 2, out + done / 2);
    }
    return finite;
}

/* A tile of runs is quantized into a buffer in the first-level cache and turned from there as
 * bytes: a quarter of what turning the floats would move. */
size_t qf_quantize_transposed(const qf_kernels *k, const void *src, qf_element type,
                              size_t src_stride, size_t rows, size_t cols, const float *scales,
                              size_t scale_count, int lo, int hi, qf_quantized out)
{
    enum { RUN = 256, RUNS = 64 };
    int8_t tile[RUN * RUNS], turned[RUN * RUNS];
    const char *at = src;
    size_t width = qf_element_size(type);
    qf_quantize_fn quantize = qf_quantize_for(k, type);
    for (size_t c = 0; c < cols; c += RUNS) {
        size_t m = cols - c < RUNS ? cols - c : RUNS;
        for (size_t r = 0; r < rows; r += RUN) {
            size_t n = rows - r < RUN ? rows - r : RUN;
            for (size_t i = 0; i < m; i++) {
                if (!quantize(at + ((c + i) * src_stride + r) * width, n,
                              scales[scale_count == 1 ? 0 : c + i], lo, hi,
                              (qf_quantized){.q = tile + i * RUN}))
                    return c + i;
            }
            int8_t *q = out.q ? out.q + r * cols + c : turned;
            size_t stride = out.q ? cols : RUNS;
            k->transpose(tile, RUN, m, n, q, stride);
            for (size_t i = 0; out.y && i < n; i++)
                k->widen(q + i * stride, m, out.y + (r + i) * cols + c);
        }
    }
    return cols;
}
