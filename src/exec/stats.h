/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Statistics of a quantized weight, taken while its blocks are in the cache (docs/report.md): which
 * integers came out, channels of nothing but zeros, the range of the scales, two histograms.
 * Everything is a count, a minimum or a maximum, so that neither threads nor instruction sets can
 * make a difference.
 *
 * Every element is counted but for the histograms, which of a weight of more than QF_SAMPLE_ALL
 * elements see a stretch of QF_SAMPLE_RUN in each QF_SAMPLE_PERIOD. The order is that of the
 * source; the stretch moves from one period to the next, so that rows of any length are sampled at
 * all columns.
 */
#ifndef QF_EXEC_STATS_H
#define QF_EXEC_STATS_H

#include "kernels.h"

struct qf_job;

enum {
    QF_SAMPLE_ALL = 16 * 1024, /* elements */
    QF_SAMPLE_RUN = 1024,
    QF_SAMPLE_EVERY = 128,
    QF_SAMPLE_PERIOD = QF_SAMPLE_RUN * QF_SAMPLE_EVERY
};
/* A channel of zeros, whose largest magnitude would be its scale's numerator, gets this much; a
 * scale of no more than that is near zero. FLT_EPSILON. */
#define QF_NEAR_ZERO 0x1p-23f

/* What is known of a weight at the end; part of a journal entry. */
typedef struct qf_stats {
    uint64_t channels, dead; /* dead: all integers are 0 */
    uint64_t saturated;      /* integers that are the least or the greatest there is */
    uint64_t scales, near_zero;
    uint64_t sampled; /* elements that the histograms count */
    float scale_min, scale_max;
    uint32_t floats[QF_FLOAT_BINS]; /* zeros if the source is integers */
    uint32_t ints[QF_BINS];
} qf_stats;

/* Collects those of one weight after the other, one at a time. */
typedef struct qf_collector {
    qf_stats stats;
    const struct qf_job *job; /* borrowed */
    unsigned char *alive;     /* by channel: an integer that is not 0 was seen */
    size_t alive_room;
    uint64_t unseen; /* channels that are not alive */
    bool ends;       /* are to be counted here: nothing is measured, or not with them */
} qf_collector;
/* False when memory is exhausted. */
bool qf_collector_begin(qf_collector *c, const struct qf_job *job);
/* Counts the dead channels, behind the last block; `ends` of the error sums if blocks were
 * measured. */
void qf_collector_end(qf_collector *c, const qf_error_sums *sums);
void qf_collector_release(qf_collector *c);

/* What blocks tell. `c` may be NULL: nobody wants to know. */

/* Scales that the job found. */
void qf_collect_scales(qf_collector *c, const float *scales, size_t n);
/* Integers from flat index `first` of the output on. */
void qf_collect_ints(qf_collector *c, uint64_t first, size_t n, const int8_t *q);
/* Elements of which qf_collect_ints has the integers; `step` as in qf_histogram_floats. */
void qf_collect_floats(qf_collector *c, uint64_t first, size_t n, const void *x, qf_element type,
                       const float *scales, size_t step);
/* Both for a transposed job: part of column `col`, from `row` on. `x` NULL: the source is integers.
 */
void qf_collect_column(qf_collector *c, uint64_t row, uint64_t col, size_t n, const int8_t *q,
                       const float *x, float scale);

#endif
