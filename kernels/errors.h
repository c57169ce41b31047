/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The order of the error sums, for every instruction set. A call is cut into chunks of QF_ERROR_RUN
 * elements. In a chunk, element i is added to lane i % QF_ERROR_LANES, in float32, a multiplication
 * and an addition that round by themselves; at its end the lanes are added in pairs, the upper half
 * to the lower until one is left, and that to the float64 sum.
 */
#ifndef QF_KERNELS_ERRORS_H
#define QF_KERNELS_ERRORS_H

#include "bits.h"
#include "variants.h"

enum { QF_ERROR_RUN = 1024, QF_ERROR_LANES = 16 };
#define QF_CLIPPED 0.51f /* of the scale: rounding alone leaves half of it */

typedef struct qf_error_lanes {
    float signal[QF_ERROR_LANES], noise[QF_ERROR_LANES];
} qf_error_lanes;

/* Elements [from, to) of a chunk that begins at x and q, one by one. `step` is 1 if each has its
 * scale and 0 if all share the first. */
static inline void qf_errors_rest(const void *x, const int8_t *q, size_t from, size_t to,
                                  const float *scales, size_t step, qf_element type,
                                  qf_error_lanes *lanes, qf_error_sums *sums)
{
    for (size_t i = from; i < to; i++) {
        float v = qf_stored(x, i, type), scale = scales[i * step];
        float e = v - (float)q[i] * scale;
        float magnitude = qf_from_bits(qf_to_bits(e) & 0x7fffffffu);
        lanes->signal[i % QF_ERROR_LANES] += v * v;
        lanes->noise[i % QF_ERROR_LANES] += e * e;
        sums->max_error = magnitude > sums->max_error ? magnitude : sums->max_error;
        sums->clipped += magnitude > QF_CLIPPED * scale;
    }
}

static inline float qf_errors_fold(float lanes[QF_ERROR_LANES])
{
    for (size_t half = QF_ERROR_LANES / 2; half; half /= 2) {
        for (size_t i = 0; i < half; i++)
            lanes[i] += lanes[i + half];
    }
    return lanes[0];
}

static inline void qf_errors_join(qf_error_lanes *lanes, qf_error_sums *sums)
{
    sums->signal += (double)qf_errors_fold(lanes->signal);
    sums->noise += (double)qf_errors_fold(lanes->noise);
}

/* A chunk of n elements by one instruction set: its whole groups of lanes, then the rest. */
typedef size_t (*qf_errors_chunk)(const void *x, const int8_t *q, size_t n, const float *scales,
                                  size_t step, qf_element type, qf_error_lanes *lanes,
                                  qf_error_sums *sums);

static inline void qf_errors(qf_errors_chunk chunk, const void *x, const int8_t *q, size_t n,
                             const float *scales, size_t step, qf_element type, qf_error_sums *sums)
{
    for (size_t at = 0; at < n; at += QF_ERROR_RUN) {
        size_t m = n - at < QF_ERROR_RUN ? n - at : QF_ERROR_RUN;
        const char *run = (const char *)x + at * qf_element_size(type);
        qf_error_lanes lanes = {{0}, {0}};
        size_t done = chunk(run, q + at, m, scales + at * step, step, type, &lanes, sums);
        qf_errors_rest(run, q + at, done, m, scales + at * step, step, type, &lanes, sums);
        qf_errors_join(&lanes, sums);
    }
}

#endif
