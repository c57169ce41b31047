/* SPDX-License-Identifier: Apache-2.0 */
/* Jobs that find their scales themselves: block by block while a block is in the cache, or, where a
 * scale takes in more than that, in a pass of their own. */
#include <float.h>
#include <stdlib.h>
#include <string.h>

#include "base/half.h"
#include "exec/blocks.h"

enum { NARROW = 4096 }; /* columns: narrower pieces of rows are not worth a write each */

/* Columns of a band of one group's rows. */
static uint64_t band_width(const qf_job *job)
{
    uint64_t most = qf_at_most(QF_FOUND_WIDEST / job->found->group, QF_BLOCK) & ~(uint64_t)1;
    return qf_at_most(job->cols, most);
}

bool qf_job_two_pass(const qf_job *job)
{
    if (!job->found || !job->rows || !job->cols)
        return false;
    if (!job->found->by_column)
        return job->cols > QF_FOUND_WIDEST && !qf_has_format(job, QF_FORMAT_WORDS);
    /* between odd rows, pairs of 4-bit elements would straddle cuts */
    bool pairs = job->cols % 2 && qf_has_format(job, QF_FORMAT_INT4_FLAT);
    return band_width(job) < job->cols && (band_width(job) < NARROW || pairs);
}

void qf_found_shape(const qf_job *job, uint64_t *rows, uint64_t *cols)
{
    *rows = job->found->group;
    *cols = band_width(job);
    if (job->found->by_column)
        return;
    *cols = job->cols;
    *rows = QF_BLOCK / job->cols;
    if (job->cols % 2) /* pairs of 4-bit elements stay together */
        *rows = *rows < 2 ? 2 : *rows & ~(uint64_t)1;
    *rows = *rows ? *rows : 1;
}

/* ---- scales ---- */

uint64_t qf_job_scale_count(const qf_job *job)
{
    return job->rows * job->cols / (job->found->group ? job->found->group : 1);
}

uint64_t qf_job_scale_bytes(const qf_job *job)
{
    return qf_raw_bytes(job->found->scale_type, qf_job_scale_count(job));
}

float qf_scale_round(float scale, int32_t scale_type)
{
    if (scale_type == ONNX__TENSOR_PROTO__DATA_TYPE__FLOAT16)
        return qf_half_value(qf_float_to_half(scale));
    if (scale_type == ONNX__TENSOR_PROTO__DATA_TYPE__BFLOAT16)
        return qf_bfloat_value(qf_float_to_bfloat(scale));
    return scale;
}

void qf_scales_write(const float *scales, uint64_t count, int32_t scale_type, unsigned char *out)
{
    if (scale_type == ONNX__TENSOR_PROTO__DATA_TYPE__FLOAT) {
        memcpy(out, scales, (size_t)count * sizeof *scales);
        return;
    }
    for (uint64_t i = 0; i < count; i++) {
        uint16_t bits = scale_type == ONNX__TENSOR_PROTO__DATA_TYPE__FLOAT16
                            ? qf_float_to_half(scales[i])
                            : qf_float_to_bfloat(scales[i]);
        memcpy(out + 2 * i, &bits, sizeof bits);
    }
}

/* The scale that a group whose largest magnitude is `largest` divides by. */
static float make_scale(const qf_found *f, float largest)
{
    float scale = qf_scale_round(largest / f->steps, f->scale_type);
    if (scale > 0)
        return scale;
    switch (f->scale_type) {
    case ONNX__TENSOR_PROTO__DATA_TYPE__FLOAT16:
        return 0x1p-10f;
    case ONNX__TENSOR_PROTO__DATA_TYPE__BFLOAT16:
        return 0x1p-7f;
    default:
        return FLT_EPSILON;
    }
}

/* Stores scales [first, first + n) of the job. */
static qf_status store_scales(const qf_job *job, uint64_t first, size_t n, const float *scales,
                              const qf_sink *sink, qf_error *err)
{
    const qf_found *f = job->found;
    size_t width = qf_dtype_bits(f->scale_type) / 8, most = QF_ROOM / width;
    for (int t = 0; t < QF_TARGETS; t++) {
        for (size_t done = 0; f->out[t].placed && done < n;) {
            size_t m = n - done < most ? n - done : most;
            unsigned char *at;
            qf_status status = qf_store_room(sink, QF_TARGETS + t, f->out[t],
                                             (first + done) * width, m * width, &at, err);
            if (status != QF_OK)
                return status;
            qf_scales_write(scales + done, m, f->scale_type, at);
            done += m;
        }
    }
    return QF_OK;
}

/* ---- in one pass ---- */

typedef struct finder {
    const qf_job *job;
    const qf_varint_index *index;
    qf_scratch *scratch;
    const qf_kernels *k;
} finder;

static const unsigned char *behind(qf_elements x, size_t n)
{
    return x.data + n * qf_element_size(x.type);
}

/* Whole groups that one read of the source takes in. */
static qf_status quantize_groups(const finder *f, uint64_t first, size_t n, int8_t *q,
                                 float *scales, bool *finite, qf_error *err)
{
    size_t group = (size_t)f->job->found->group;
    qf_elements x = qf_block_elements(f->job, f->index, first, n, f->scratch);
    if (!x.data)
        return qf_fail_memory(err);
    for (size_t at = 0; at < n; at += group) {
        float largest = 0;
        *finite &= qf_absmax_for(f->k, x.type)(behind(x, at), group, &largest);
        scales[at / group] = make_scale(f->job->found, largest);
        qf_quantize_counted(f->scratch, first + at, x, at, group, scales + at / group, 0,
                            f->job->bits, (qf_quantized){.q = q + at});
    }
    return QF_OK;
}

/* One group that is longer than that. */
static qf_status quantize_long_group(const finder *f, uint64_t first, int8_t *q, float *scale,
                                     bool *finite, qf_error *err)
{
    uint64_t group = f->job->found->group;
    float largest = 0;
    for (uint64_t done = 0; done < 2 * group;) { /* twice over the group */
        uint64_t at = done % group;
        size_t n = (size_t)qf_at_most(group - at, QF_BLOCK);
        qf_elements x = qf_block_elements(f->job, f->index, first + at, n, f->scratch);
        if (!x.data)
            return qf_fail_memory(err);
        if (done < group)
            *finite &= qf_absmax_for(f->k, x.type)(x.data, n, &largest);
        if (done == group)
            *scale = make_scale(f->job->found, largest);
        if (done >= group) {
            qf_quantize_counted(f->scratch, first + at, x, 0, n, scale, 0, f->job->bits,
                                (qf_quantized){.q = q + at});
        }
        done += n;
    }
    return QF_OK;
}

static qf_status quantize_rows(const finder *f, qf_region r, int8_t *q, float *scales, bool *finite,
                               qf_error *err)
{
    uint64_t cols = r.cols, group = f->job->found->group;
    uint64_t step = cols <= QF_BLOCK ? cols : group <= QF_BLOCK ? QF_BLOCK / group * group : group;
    qf_status status = QF_OK;
    for (uint64_t row = 0; row < r.rows; row++) {
        for (uint64_t at = 0; status == QF_OK && at < cols; at += step) {
            uint64_t first = (r.row + row) * cols + at, to = row * cols + at;
            size_t n = (size_t)qf_at_most(step, cols - at);
            float *found = scales + to / group;
            status = n > QF_BLOCK ? quantize_long_group(f, first, q + to, found, finite, err)
                                  : quantize_groups(f, first, n, q + to, found, finite, err);
        }
    }
    return status;
}

/* A band of one group's rows, with a scale for each column. */
static qf_status quantize_band(const finder *f, qf_region r, int8_t *q, float *scales, bool *finite,
                               qf_error *err)
{
    size_t n = (size_t)r.cols;
    memset(scales, 0, n * sizeof *scales);
    for (uint64_t done = 0; done < 2 * r.rows; done++) { /* twice over the band */
        uint64_t row = done % r.rows; /* NOLINT(clang-analyzer-core.DivideZero): not in this loop */
        qf_elements x = qf_block_elements(f->job, f->index, (r.row + row) * f->job->cols + r.col, n,
                                          f->scratch);
        if (!x.data)
            return qf_fail_memory(err);
        if (done < r.rows)
            *finite &= qf_absmax_columns_for(f->k, x.type)(x.data, n, scales);
        for (size_t i = 0; done == r.rows && i < n; i++)
            scales[i] = make_scale(f->job->found, scales[i]);
        if (done >= r.rows) {
            qf_quantize_counted(f->scratch, (r.row + row) * f->job->cols + r.col, x, 0, n, scales,
                                1, f->job->bits, (qf_quantized){.q = q + row * n});
        }
    }
    return QF_OK;
}

qf_status qf_found_run(const qf_job *job, const qf_varint_index *index, qf_region r, qf_scratch *s,
                       int8_t *q, const qf_sink *sink, bool *finite, qf_error *err)
{
    const finder f = {job, index, s, qf_kernels_get()};
    uint64_t group = job->found->group;
    size_t count = (size_t)(r.rows * r.cols / group);
    float *scales = qf_scratch_scales(s, count);
    *finite = true;
    if (!scales)
        return qf_fail_memory(err);
    uint64_t first = r.row * (job->cols / group);
    if (job->found->by_column)
        first = r.row / group * job->cols + r.col;
    qf_status status = job->found->by_column ? quantize_band(&f, r, q, scales, finite, err)
                                             : quantize_rows(&f, r, q, scales, finite, err);
    if (status == QF_OK)
        qf_collect_scales(s->stats, scales, count);
    return status == QF_OK ? store_scales(job, first, count, scales, sink, err) : status;
}

/* ---- in two passes ---- */

qf_status qf_job_find_largest(const qf_job *job, const qf_varint_index *index, uint64_t block,
                              qf_scratch *scratch, float *largest, qf_error *err)
{
    const qf_kernels *k = qf_kernels_get();
    const qf_found *f = job->found;
    uint64_t first = block * QF_BLOCK;
    size_t n = (size_t)qf_at_most(job->rows * job->cols - first, QF_BLOCK);
    qf_elements x = qf_block_elements(job, index, first, n, scratch);
    if (!x.data)
        return qf_fail_memory(err);
    /* what is not finite is found and named when it is quantized */
    for (size_t done = 0; done < n;) {
        uint64_t row = (first + done) / job->cols, col = (first + done) % job->cols;
        uint64_t run = job->cols - col;
        if (!f->by_column)
            run = qf_at_most(run, f->group - col % f->group);
        run = qf_at_most(run, n - done);
        if (f->by_column)
            qf_absmax_columns_for(k, x.type)(behind(x, done), (size_t)run,
                                             largest + row / f->group * job->cols + col);
        else
            qf_absmax_for(k, x.type)(behind(x, done), (size_t)run,
                                     largest + (row * job->cols + col) / f->group);
        done += run;
    }
    return QF_OK;
}

qf_status qf_job_store_scales(const qf_job *job, float *largest, const qf_sink *sink, qf_error *err)
{
    uint64_t count = qf_job_scale_count(job);
    for (uint64_t i = 0; i < count; i++)
        largest[i] = make_scale(job->found, largest[i]);
    return store_scales(job, 0, (size_t)count, largest, sink, err);
}

qf_job qf_job_with_scales(const qf_job *job, const float *scales)
{
    const qf_found *f = job->found;
    qf_job given = *job;
    given.found = NULL;
    given.scales = scales;
    given.scale_count = (size_t)qf_job_scale_count(job);
    given.row_div = f->by_column ? f->group : 1;
    given.row_mul = f->by_column ? job->cols : job->cols / f->group;
    given.row_mod = 1;
    given.col_div = f->by_column ? 1 : f->group;
    given.grouping = f->by_column ? QF_GROUPED_COLUMNS : QF_GROUPED_ROWS;
    return given;
}
