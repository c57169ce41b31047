/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The arithmetic. Pure functions of pointers, counts and parameters: no allocation, no threads, no
 * errors but a return value. The rounding contract is in kernels/README.md; *_scalar.c is the
 * definition, and every other variant must equal it bit for bit.
 *
 * `const void *` sources are elements as stored: little-endian, at any alignment. Float and integer
 * pointers are aligned for their type. Sources and destinations do not overlap unless said.
 */
#ifndef QF_KERNELS_H
#define QF_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* How elements are stored. */
typedef enum qf_element { QF_F32 = 0, QF_F16 = 1, QF_BF16 = 2 } qf_element;
static inline size_t qf_element_size(qf_element type)
{
    return type == QF_F32 ? 4 : 2;
}

/* What a quantize kernel writes: the integers, the integers as float32, or both from one read. */
typedef struct qf_quantized {
    int8_t *q; /* NULL: not wanted */
    float *y;  /* NULL: not wanted */
    /* Nobody reads the output soon: store past the cache where that is possible. For output of many
     * megabytes in memory; the executor's buffers stay in the cache and do not want it. */
    bool stream;
} qf_quantized;

/* The outputs from element n on. */
static inline qf_quantized qf_quantized_behind(qf_quantized out, size_t n)
{
    out.q = out.q ? out.q + n : NULL;
    out.y = out.y ? out.y + n : NULL;
    return out;
}

typedef bool (*qf_quantize_fn)(const void *x, size_t n, float scale, int lo, int hi,
                               qf_quantized out);
typedef bool (*qf_quantize_columns_fn)(const void *x, size_t rows, size_t n, const float *scales,
                                       int lo, int hi, qf_quantized out);

typedef bool (*qf_absmax_fn)(const void *x, size_t n, float *max);

/* How far integers times their scale are from what they stand for. */
typedef struct qf_error_sums {
    double signal; /* of x[i]^2 */
    double noise;  /* of (x[i] - q[i] * scale)^2 */
    float max_error;
    uint64_t clipped; /* elements more than 0.51 scale off: beyond the range of the integers */
    bool with_ends; /* set by who wants `measure` to count `ends` too: integers that are lo or hi */
    uint64_t ends;
} qf_error_sums;

typedef void (*qf_errors_fn)(const void *x, const int8_t *q, size_t n, float scale,
                             qf_error_sums *sums);
typedef void (*qf_errors_columns_fn)(const void *x, const int8_t *q, size_t n, const float *scales,
                                     qf_error_sums *sums);

/* One instruction set's kernels. */
typedef struct qf_kernels {
    const char *name;

    /* n stored elements to float32. A NaN stays one, quiet. */
    void (*load_f16)(const void *src, size_t n, float *dst);  /* exact */
    void (*load_bf16)(const void *src, size_t n, float *dst); /* exact */
    void (*load_f64)(const void *src, size_t n, float *dst);  /* rounded to nearest even */

    /* x[i] *= factor, one float32 rounding. */
    void (*scale)(float *x, size_t n, float factor);

    /* q[i] = clamp(rint(x[i] / scale), lo, hi), all in float32: reference facts 4.3; y[i] = q[i].
     * Returns false if any x[i] is not finite; the output is then unspecified but written. */
    qf_quantize_fn quantize_f32, quantize_f16, quantize_bf16;
    /* The same for `rows` rows of n elements, one behind the other, with a scale per column. */
    qf_quantize_columns_fn quantize_columns_f32, quantize_columns_f16, quantize_columns_bf16;

    /* *max = max(*max, |x[i]|), and the same for n columns. Returns false if any x[i] is not
     * finite; the maximum is then unspecified. Start with 0. */
    qf_absmax_fn absmax_f32, absmax_f16, absmax_bf16;
    qf_absmax_fn absmax_columns_f32, absmax_columns_f16, absmax_columns_bf16;
    /* *min = min(*min, x[i]), *max likewise; zeros are positive. Start with x[0]. */
    bool (*minmax)(const void *x, size_t n, float *min, float *max);
    bool (*minmax_columns)(const void *x, size_t n, float *min, float *max);

    /* Adds to *sums what quantizing to q[i] lost, in the order that kernels/README.md says. All
     * x[i] are finite. */
    qf_errors_fn errors_f32, errors_f16, errors_bf16;
    qf_errors_columns_fn errors_columns_f32, errors_columns_f16, errors_columns_bf16;
    /* Quantizes as quantize does, scale of element i being scales[i * step] (step is 0 or 1), and
     * adds what was lost to *sums as errors does, and the ends if wanted, from one read. out.q is
     * wanted. If it returns false, the sums are unspecified. */
    bool (*measure)(const void *x, qf_element type, size_t n, const float *scales, size_t step,
                    int lo, int hi, qf_quantized out, qf_error_sums *sums);
    /* How many of q are `lo` or `hi`. */
    size_t (*ends)(const int8_t *q, size_t n, int lo, int hi);

    /* y[i] = q[i]; y[i] = q[i] * scale; y[i] = q[i] * scales[i]. */
    void (*widen)(const int8_t *q, size_t n, float *y);
    void (*dequantize)(const int8_t *q, size_t n, float scale, float *y);
    void (*dequantize_columns)(const int8_t *q, size_t n, const float *scales, float *y);

    /* Two 4-bit integers a byte, the first in the low half: out[i] of q[2i] and q[2i + 1] for n
     * bytes; out[i] of low[i] and high[i]. */
    void (*pack_pairs)(const int8_t *q, size_t n, uint8_t *out);
    void (*pack_rows)(const int8_t *low, const int8_t *high, size_t n, uint8_t *out);

    /* q[i] = rint(b[i] / deq[deq_count == 1 ? 0 : i]) as int32: facts 4.4; deq_count is 1 or n.
     * Returns the index of the first value that is not in [-2^31, 2^31 - 1] (or not a number), or
     * n; q is written up to there and unspecified behind. */
    size_t (*bias_f32)(const float *b, size_t n, const float *deq, size_t deq_count, int32_t *q);
    /* The same in float64, deq widened. */
    size_t (*bias_f64)(const double *b, size_t n, const float *deq, size_t deq_count, int32_t *q);

    /* deq[i] = scale_w[i] * scale_d, one float32 rounding. */
    void (*dequant_scale)(const float *scale_w, size_t n, float scale_d, float *deq);
    /* param[i] = bits of deq[i] & mask in the low half, zero above: facts 4.2. */
    void (*dequant_pack)(const float *deq, size_t n, uint32_t mask, uint64_t *param);

    /* dst[c * dst_stride + r] = src[r * src_stride + c] for rows x cols bytes of src. */
    void (*transpose)(const int8_t *src, size_t src_stride, size_t rows, size_t cols, int8_t *dst,
                      size_t dst_stride);
} qf_kernels;

/* The kernels in use: those that the environment variable QUANTFOLD_ISA names, else the fastest
 * that this machine runs. */
const qf_kernels *qf_kernels_get(void);
/* The value of QUANTFOLD_ISA if it names no kernels that run here (the fastest are then in use),
 * else NULL. */
const char *qf_kernels_refused(void);
/* All that this machine runs, slowest first: 0 <= i, NULL at the end. */
const qf_kernels *qf_kernels_at(size_t i);

/* ---- fused.c: kernels made of the above, for any instruction set -------------------------- */

qf_quantize_fn qf_quantize_for(const qf_kernels *k, qf_element type);
qf_quantize_columns_fn qf_quantize_columns_for(const qf_kernels *k, qf_element type);
qf_absmax_fn qf_absmax_for(const qf_kernels *k, qf_element type);
qf_absmax_fn qf_absmax_columns_for(const qf_kernels *k, qf_element type);
qf_errors_fn qf_errors_for(const qf_kernels *k, qf_element type);
qf_errors_columns_fn qf_errors_columns_for(const qf_kernels *k, qf_element type);

/* n / 2 bytes of pairs of 4-bit integers, for callers that have no use for the integers themselves;
 * n is even. Returns as quantize does. */
bool qf_quantize_nibbles(const qf_kernels *k, const void *x, qf_element type, size_t n, float scale,
                         uint8_t *out);

/* A source of `cols` runs of `rows` elements, `src_stride` elements apart, to a rows x cols matrix:
 * q[r * cols + c] from src[c * src_stride + r], each run with its scale (scale_count is 1 or cols).
 * `out.y` likewise. Returns cols if all is finite, else the first run that is not. */
size_t qf_quantize_transposed(const qf_kernels *k, const void *src, qf_element type,
                              size_t src_stride, size_t rows, size_t cols, const float *scales,
                              size_t scale_count, int lo, int hi, qf_quantized out);

/* ---- histogram.c: counts by value, portable -------------------------------------------------- */

/* Bins of a histogram; one of integers of fewer bits uses the first 2^bits alone. */
enum { QF_BIN_BITS = 6, QF_BINS = 1 << QF_BIN_BITS, QF_FLOAT_BINS = QF_BINS + 2 };
/* counts[b] += how many of q, integers of `bits` bits, fall into bin b of equal parts of their
 * range. */
void qf_histogram_ints(const int8_t *q, size_t n, int bits, uint32_t counts[QF_BINS]);
/* The same of x[i] / scales[i * step], in QF_BINS bins from half a step below the range to half a
 * step above it, between a bin of what is below and one of what is above. */
void qf_histogram_floats(const void *x, qf_element type, size_t n, const float *scales, size_t step,
                         int bits, uint32_t counts[QF_FLOAT_BINS]);

#endif
