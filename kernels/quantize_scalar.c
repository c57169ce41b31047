/* SPDX-License-Identifier: Apache-2.0 */
#include "bits.h"
#include "variants.h"

/* clamp(rint(x / scale), lo, hi). Clamping first gives the same, because the bounds are integers,
 * and leaves values so small that adding 1.5 * 2^23 puts the last bit at 1: the addition rounds to
 * even, the subtraction is exact. Unlike rintf this needs no instruction beyond the baseline's. */
static int8_t quantize_one(float x, float scale, int lo, int hi)
{
    const float magic = 0x1.8p23f;
    float v = x / scale;
    /* written so that a NaN becomes lo */
    v = v > (float)lo ? v : (float)lo;
    v = v < (float)hi ? v : (float)hi;
    v = v + magic;
    return (int8_t)(v - magic);
}

/* `type` and `step`, 1 if each element has its scale and 0 if all have the first, are constants in
 * every caller. Goes through a buffer, so that the compiler finds plain loops to vectorise. */
static inline bool quantize(const void *x, size_t n, qf_element type, const float *scales,
                            size_t step, int lo, int hi, qf_quantized out)
{
    enum { CHUNK = 512 };
    int8_t q[CHUNK];
    uint32_t bad = 0;
    for (size_t done = 0; done < n; done += CHUNK) {
        size_t m = n - done < CHUNK ? n - done : CHUNK;
        for (size_t i = 0; i < m; i++) {
            float v = qf_stored(x, done + i, type);
            q[i] = quantize_one(v, scales[(done + i) * step], lo, hi);
            bad |= qf_nonfinite(v);
        }
        if (out.q)
            memcpy(out.q + done, q, m);
        for (size_t i = 0; out.y && i < m; i++)
            out.y[done + i] = (float)q[i];
    }
    return !bad;
}

bool qf_quantize_f32_scalar(const void *x, size_t n, float scale, int lo, int hi, qf_quantized out)
{
    return quantize(x, n, QF_F32, &scale, 0, lo, hi, out);
}

bool qf_quantize_f16_scalar(const void *x, size_t n, float scale, int lo, int hi, qf_quantized out)
{
    return quantize(x, n, QF_F16, &scale, 0, lo, hi, out);
}

bool qf_quantize_bf16_scalar(const void *x, size_t n, float scale, int lo, int hi, qf_quantized out)
{
    return quantize(x, n, QF_BF16, &scale, 0, lo, hi, out);
}

static inline bool quantize_rows(const void *x, size_t rows, size_t n, qf_element type,
                                 const float *scales, int lo, int hi, qf_quantized out)
{
    bool finite = true;
    for (size_t r = 0; r < rows; r++) {
        const char *row = (const char *)x + r * n * qf_element_size(type);
        finite &= quantize(row, n, type, scales, 1, lo, hi, qf_quantized_behind(out, r * n));
    }
    return finite;
}

bool qf_quantize_columns_f32_scalar(const void *x, size_t rows, size_t n, const float *scales,
                                    int lo, int hi, qf_quantized out)
{
    return quantize_rows(x, rows, n, QF_F32, scales, lo, hi, out);
}

bool qf_quantize_columns_f16_scalar(const void *x, size_t rows, size_t n, const float *scales,
                                    int lo, int hi, qf_quantized out)
{
    return quantize_rows(x, rows, n, QF_F16, scales, lo, hi, out);
}

bool qf_quantize_columns_bf16_scalar(const void *x, size_t rows, size_t n, const float *scales,
                                     int lo, int hi, qf_quantized out)
{
    return quantize_rows(x, rows, n, QF_BF16, scales, lo, hi, out);
}
