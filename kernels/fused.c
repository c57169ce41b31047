/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "kernels.h"

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

qf_absmax_fn qf_absmax_for(const qf_kernels *k, qf_element type)
{
    return type == QF_F32 ? k->absmax_f32 : type == QF_F16 ? k->absmax_f16 : k->absmax_bf16;
}

qf_absmax_fn qf_absmax_columns_for(const qf_kernels *k, qf_element type)
{
    return type == QF_F32   ? k->absmax_columns_f32
           : type == QF_F16 ? k->absmax_columns_f16
                            : k->absmax_columns_bf16;
}

qf_errors_fn qf_errors_for(const qf_kernels *k, qf_element type)
{
    return type == QF_F32 ? k->errors_f32 : type == QF_F16 ? k->errors_f16 : k->errors_bf16;
}

qf_errors_columns_fn qf_errors_columns_for(const qf_kernels *k, qf_element type)
{
    return type == QF_F32   ? k->errors_columns_f32
           : type == QF_F16 ? k->errors_columns_f16
                            : k->errors_columns_bf16;
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

/* Asks for the cache lines of a run that will be read soon; into the second level, because runs
 * that lie a power of two apart would push each other out of the first. */
static void prefetch(const char *at, size_t bytes)
{
    for (size_t i = 0; i < bytes; i += 64)
        __builtin_prefetch(at + i, 0, 1);
}

/* A tile of runs is quantized into a buffer in the first-level cache and turned there as bytes: a
 * quarter of what turning the floats would move. Its rows go out as whole cache lines, because the
 * rows of the output often lie a power of two apart and would push each other out. */
size_t qf_quantize_transposed(const qf_kernels *k, const void *src, qf_element type,
                              size_t src_stride, size_t rows, size_t cols, const float *scales,
                              size_t scale_count, int lo, int hi, qf_quantized out)
{
    enum { RUN = 256, RUNS = 64, AHEAD = 8 };
    int8_t tile[RUN * RUNS], turned[RUN * RUNS];
    size_t width = qf_element_size(type), stride = src_stride * width;
    qf_quantize_fn quantize = qf_quantize_for(k, type);
    for (size_t c = 0; c < cols; c += RUNS) {
        size_t m = cols - c < RUNS ? cols - c : RUNS;
        for (size_t r = 0; r < rows; r += RUN) {
            size_t n = rows - r < RUN ? rows - r : RUN;
            const char *run = (const char *)src + c * stride + r * width;
            for (size_t i = 0; i < m; i++, run += stride) {
                if (c + i + AHEAD < cols)
                    prefetch(run + AHEAD * stride, n * width);
                if (!quantize(run, n, scales[scale_count == 1 ? 0 : c + i], lo, hi,
                              (qf_quantized){.q = tile + i * RUN}))
                    return c + i;
            }
            k->transpose(tile, RUN, m, n, turned, RUNS);
            for (size_t i = 0; i < n; i++) {
                if (out.q)
                    memcpy(out.q + (r + i) * cols + c, turned + i * RUNS, m);
                if (out.y)
                    k->widen(turned + i * RUNS, m, out.y + (r + i) * cols + c);
            }
        }
    }
    return cols;
}
