/* SPDX-License-Identifier: Apache-2.0 */
/* The definition of `measure`: quantizing and counting errors, run by run of errors.h, while the
 * run is in the first-level cache. An instruction set whose division leaves it time for both does
 * them in one loop instead. */
#ifndef QF_KERNELS_MEASURE_H
#define QF_KERNELS_MEASURE_H

#include "errors.h"

/* An instruction set's kernels, by qf_element. */
typedef struct qf_measure_parts {
    qf_quantize_fn quantize[3];
    qf_quantize_columns_fn quantize_columns[3];
    qf_errors_fn errors[3];
    qf_errors_columns_fn errors_columns[3];
    size_t (*ends)(const int8_t *q, size_t n, int lo, int hi);
} qf_measure_parts;

static inline bool qf_measure(const qf_measure_parts *p, const void *x, qf_element type, size_t n,
                              const float *scales, size_t step, int lo, int hi, qf_quantized out,
                              qf_error_sums *sums)
{
    bool finite = true;
    for (size_t at = 0; at < n; at += QF_ERROR_RUN) {
        size_t m = n - at < QF_ERROR_RUN ? n - at : QF_ERROR_RUN;
        const char *run = (const char *)x + at * qf_element_size(type);
        qf_quantized to = qf_quantized_behind(out, at);
        if (step) {
            finite &= p->quantize_columns[type](run, 1, m, scales + at, lo, hi, to);
            p->errors_columns[type](run, to.q, m, scales + at, sums);
        } else {
            finite &= p->quantize[type](run, m, *scales, lo, hi, to);
            p->errors[type](run, to.q, m, *scales, sums);
        }
        if (sums->with_ends)
            sums->ends += p->ends(to.q, m, lo, hi);
    }
    return finite;
}

#endif
