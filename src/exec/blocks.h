/* SPDX-License-Identifier: Apache-2.0 */
/* What the files that run blocks of jobs share: job.c, found.c, store.c. */
#ifndef QF_EXEC_BLOCKS_H
#define QF_EXEC_BLOCKS_H

#include "exec/job.h"
#include "exec/stats.h"
#include "kernels.h"

enum { QF_BLOCK = QF_ROOM / 4 }; /* elements: with input and outputs, half of a 1 MiB L2 */

/* A part of the output matrix. */
typedef struct qf_region {
    uint64_t row, col;
    uint64_t rows, cols;
} qf_region;

/* Elements of a job's source as the kernels take them. */
typedef struct qf_elements {
    const unsigned char *data;
    qf_element type;
} qf_elements;

static inline uint64_t qf_at_most(uint64_t value, uint64_t limit)
{
    return value < limit ? value : limit;
}

static inline uint64_t qf_divide_up(uint64_t a, uint64_t b)
{
    return (a + b - 1) / b;
}

static inline bool qf_has_format(const qf_job *job, qf_format format)
{
    return job->out[QF_DEPLOY].format == format || job->out[QF_FAKE_QUANT].format == format;
}

/* Scratch memory for QF_BLOCK floats, or for `count` integers or scales; NULL when memory is
 * exhausted. */
float *qf_scratch_floats(float **slot);
int8_t *qf_scratch_ints(qf_scratch *s, size_t count);
float *qf_scratch_scales(qf_scratch *s, size_t count);

/* At most QF_BLOCK elements of a job that is not transposed, from flat index `first` on, folded: in
 * place or as floats in scratch memory. data is NULL when memory is exhausted. */
qf_elements qf_block_elements(const qf_job *job, const qf_varint_index *index, uint64_t first,
                              size_t n, qf_scratch *s);

/* The channel of element (row, col) of a job that is not grouped, and whose scales are given. */
static inline uint64_t qf_channel_index(const qf_job *job, uint64_t row, uint64_t col)
{
    return row / job->row_div * job->row_mul + row % job->row_mod +
           (job->col_div ? col / job->col_div : 0);
}

/* The scale of element (row, col), and those of `n` elements from flat index `first` on. */
uint64_t qf_scale_index(const qf_job *job, uint64_t row, uint64_t col);
void qf_gather_scales(const qf_job *job, uint64_t first, size_t n, float *out);

/* Quantizes n elements x[at] on, which are those from flat index `first` on, and takes them into
 * the scratch's sums and statistics if somebody wants them. `step` is 1 if each has its scale, 0 if
 * all have the first. False if one is not finite. */
static inline bool qf_quantize_counted(qf_scratch *s, uint64_t first, qf_elements x, size_t at,
                                       size_t n, const float *scales, size_t step, int bits,
                                       qf_quantized out)
{
    const qf_kernels *k = qf_kernels_get();
    const unsigned char *from = x.data + at * qf_element_size(x.type);
    int lo = -(1 << (bits - 1)), hi = -lo - 1;
    if (s->errors) {
        bool finite = k->measure(from, x.type, n, scales, step, lo, hi, out, s->errors);
        qf_collect_floats(s->stats, first, n, from, x.type, scales, step);
        return finite;
    }
    return step ? qf_quantize_columns_for(k, x.type)(from, 1, n, scales, lo, hi, out)
                : qf_quantize_for(k, x.type)(from, n, *scales, lo, hi, out);
}

/* ---- store.c ---- */

/* Room for `n` bytes, `offset` behind the start of an output. */
qf_status qf_store_room(const qf_sink *sink, int slot, qf_job_output out, uint64_t offset, size_t n,
                        unsigned char **at, qf_error *err);
bool qf_is_aligned(const void *p);
/* Stores up to QF_BLOCK quantized elements from flat index `first` on, in any form but
 * INT4_ROWS and WORDS. */
qf_status qf_store_ints(const qf_job *job, qf_target target, uint64_t first, size_t n,
                        const int8_t *q, qf_scratch *s, const qf_sink *sink, qf_error *err);
/* Stores a region, row after row in `q`, in any form. */
qf_status qf_store_region(const qf_job *job, qf_target target, qf_region r, const int8_t *q,
                          qf_scratch *s, const qf_sink *sink, qf_error *err);

/* ---- found.c ---- */

/* Rows and columns of the blocks of a job that finds its scales block by block. */
void qf_found_shape(const qf_job *job, uint64_t *rows, uint64_t *cols);
/* Finds the scales of a block, stores them, and quantizes its elements into `q`, row after row.
 * *finite is false if an element is not. */
qf_status qf_found_run(const qf_job *job, const qf_varint_index *index, qf_region r, qf_scratch *s,
                       int8_t *q, const qf_sink *sink, bool *finite, qf_error *err);

#endif
