/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The arithmetic. Pure functions of pointers, counts and parameters: no allocation, no threads, no
 * errors but a return value. The rounding contract is in kernels/README.md; *_scalar.c is the
 * definition, and every other variant must equal it bit for bit.
 *
 * Source pointers may be unaligned; float and integer destinations are aligned for their type.
 */
#ifndef QF_KERNELS_H
#define QF_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* One instruction set's kernels. */
typedef struct qf_kernels {
    const char *name;

    /* n elements as stored (little-endian, any alignment) to float32. */
    void (*load_f32)(const void *src, size_t n, float *dst);
    void (*load_f16)(const void *src, size_t n, float *dst);  /* exact */
    void (*load_bf16)(const void *src, size_t n, float *dst); /* exact */
    void (*load_f64)(const void *src, size_t n, float *dst);  /* rounded to nearest even */

    /* x[i] *= factor, one float32 rounding. */
    void (*scale)(float *x, size_t n, float factor);

    /* q[i] = clamp(rint(x[i] / scale), lo, hi), all in float32: reference facts 4.3. Returns false
     * if any x[i] is not finite; q is then unspecified but written. */
    bool (*quantize)(const float *x, size_t n, float scale, int lo, int hi, int8_t *q);
    /* The same with a scale per element. */
    bool (*quantize_columns)(const float *x, size_t n, const float *scales, int lo, int hi,
                             int8_t *q);

    /* y[i] = q[i]; y[i] = q[i] * scale; y[i] = q[i] * scales[i]. */
    void (*widen)(const int8_t *q, size_t n, float *y);
    void (*dequantize)(const int8_t *q, size_t n, float scale, float *y);
    void (*dequantize_columns)(const int8_t *q, size_t n, const float *scales, float *y);

    /* out[i] = low nibble of low[i] | low nibble of high[i] << 4. `step` is the distance between
     * elements of low and of high: 1 packs two rows, 2 with high == low + 1 packs neighbours. */
    void (*pack_nibbles)(const int8_t *low, const int8_t *high, size_t step, size_t n,
                         uint8_t *out);

    /* q[i] = rint(b[i] / deq[deq_count == 1 ? 0 : i % deq_count]) as int32: facts 4.4. Returns the
     * index of the first value that is not in [-2^31, 2^31 - 1] (or not a number), or n. */
    size_t (*bias_f32)(const float *b, size_t n, const float *deq, size_t deq_count, int32_t *q);
    /* The same in float64, deq widened. */
    size_t (*bias_f64)(const double *b, size_t n, const float *deq, size_t deq_count, int32_t *q);

    /* deq[i] = scale_w[i] * scale_d, one float32 rounding. */
    void (*dequant_scale)(const float *scale_w, size_t n, float scale_d, float *deq);
    /* param[i] = bits of deq[i] & mask in the low half, zero above: facts 4.2. */
    void (*dequant_pack)(const float *deq, size_t n, uint32_t mask, uint64_t *param);
} qf_kernels;

/* The kernels that run on this machine. */
const qf_kernels *qf_kernels_get(void);

#define QF_KERNELS(variant, flags) extern const qf_kernels qf_kernels_##variant;
#include "kernels.inc"
#undef QF_KERNELS

#endif
