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

/* Takes quantized elements into the scratch's sums and statistics, if somebody wants them: elements
 * x[at] on, from flat index `first` on, that share a scale, or a row of them with a scale each. */
static inline void qf_count_errors(qf_scratch *s, uint64_t first, qf_elements x, size_t at,
                                   const int8_t *q, size_t n, float scale)
{
    if (!s->errors)
        return;
    const unsigned char *from = x.data + at * qf_element_size(x.type);
    qf_errors_for(qf_kernels_get(), x.type)(from, q, n, scale, s->errors);
    qf_collect_floats(s->stats, first, n, from, x.type, &scale, 0);
}

static inline void qf_count_column_errors(qf_scratch *s, uint64_t first, qf_elements x,
                                          const int8_t *q, size_t n, const float *scales)
{
    if (!s->errors)
        return;
    qf_errors_columns_for(qf_kernels_get(), x.type)(x.data, q, n, scales, s->errors);
    qf_collect_floats(s->stats, first, n, x.data, x.type, scales, 1);
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
