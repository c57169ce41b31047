/* SPDX-License-Identifier: Apache-2.0 */
#include "exec/job.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "exec/source.h"
#include "kernels.h"

enum {
    BLOCK = QF_ROOM / 4, /* elements: with input and outputs, about half of a 1 MiB L2 */
    /* Elements of a transposed block, and the most columns in it. Each column is a row of the
     * source, of which a run of at least TURNED_BLOCK / TURNED_COLS elements is read. */
    TURNED_BLOCK = 1024 * 1024,
    TURNED_COLS = 8192,
    TURNED_MAPPED = 64 * 1024 * 1024, /* bytes of the source that a stripe of columns takes */
    GATHER = 1024,                    /* elements whose scales are written out side by side */
    SHORT_RUN = 64                    /* elements: shorter runs of one scale are gathered */
};

/* A part of the output matrix. */
typedef struct region {
    uint64_t row, col;
    uint64_t rows, cols;
} region;

uint64_t qf_job_bytes(const qf_job *job, qf_format format)
{
    uint64_t n = job->rows * job->cols;
    switch (format) {
    case QF_FORMAT_INT8:
        return n;
    case QF_FORMAT_INT4_FLAT:
        return (n + 1) / 2;
    case QF_FORMAT_INT4_ROWS:
        return n / 2;
    case QF_FORMAT_WORDS:
        return job->rows * ((job->cols * (unsigned)job->bits + 31) / 32) * 4;
    case QF_FORMAT_FLOAT:
    case QF_FORMAT_FLOAT_SCALED:
    case QF_FORMAT_FLOAT_FOLDED:
        return n * 4;
    case QF_FORMAT_NONE:
        break;
    }
    return 0;
}

/* ---- cutting into blocks ---- */

static bool has_format(const qf_job *job, qf_format format)
{
    return job->out[QF_DEPLOY].format == format || job->out[QF_FAKE_QUANT].format == format;
}

/* A job is cut either as a flat sequence, or into bands of rows, or into columns and bands. */
static bool is_flat(const qf_job *job)
{
    return !job->transposed && !has_format(job, QF_FORMAT_INT4_ROWS);
}

/* Where an element lies in the source, in bytes; of a pair of 4-bit elements, their byte. */
static uint64_t source_bytes(const qf_job *job, uint64_t elements)
{
    unsigned bits = qf_dtype_bits(job->data_type);
    return bits == 4 ? elements / 2 : elements * (bits / 8);
}

static uint64_t at_most(uint64_t value, uint64_t limit)
{
    return value < limit ? value : limit;
}

/* Rows and columns of a block of a job that is not flat. Bands are even, so that pairs of rows stay
 * together, and so are cuts between columns: nibble pairs of rows that are odd would straddle them,
 * so such rows are left whole. */
static void block_shape(const qf_job *job, uint64_t *rows, uint64_t *cols)
{
    uint64_t budget = job->transposed ? TURNED_BLOCK : BLOCK, limit = budget / 2;
    if (job->transposed) {
        limit = at_most(TURNED_COLS, TURNED_MAPPED / (source_bytes(job, job->rows) + 1));
        limit = limit > 2 ? limit & ~(uint64_t)1 : 2;
    }
    *cols = job->cols;
    if (*cols > limit && !(job->cols % 2 && has_format(job, QF_FORMAT_INT4_FLAT)))
        *cols = limit;
    *rows = *cols < budget / 2 ? budget / *cols & ~(uint64_t)1 : 2;
}

static uint64_t divide_up(uint64_t a, uint64_t b)
{
    return (a + b - 1) / b;
}

uint64_t qf_job_blocks(const qf_job *job)
{
    uint64_t n = job->rows * job->cols, rows, cols;
    if (!n)
        return 0;
    if (is_flat(job))
        return divide_up(n, BLOCK);
    block_shape(job, &rows, &cols);
    return divide_up(job->rows, rows) * divide_up(job->cols, cols);
}

/* Blocks of a transposed job go down a stripe of columns, which is one piece of the source. */
static region block_region(const qf_job *job, uint64_t block)
{
    uint64_t rows, cols;
    block_shape(job, &rows, &cols);
    uint64_t across = divide_up(job->cols, cols), down = divide_up(job->rows, rows);
    region r = {.row = block / across * rows, .col = block % across * cols};
    if (job->transposed)
        r = (region){.row = block % down * rows, .col = block / down * cols};
    r.rows = at_most(rows, job->rows - r.row);
    r.cols = at_most(cols, job->cols - r.col);
    return r;
}

qf_range qf_job_reads(const qf_job *job, uint64_t first, uint64_t count)
{
    uint64_t from, to;
    if (is_flat(job)) {
        from = first * BLOCK;
        to = at_most(from + count * BLOCK, job->rows * job->cols);
    } else {
        region a = block_region(job, first), b = block_region(job, first + count - 1);
        from = job->transposed ? a.col * job->rows : a.row * job->cols;
        to = job->transposed ? (b.col + b.cols) * job->rows : (b.row + b.rows) * job->cols;
    }
    uint64_t at = source_bytes(job, from);
    return (qf_range){at, qf_raw_bytes(job->data_type, to) - at};
}

uint64_t qf_job_mapped(const qf_job *job)
{
    uint64_t rows, cols;
    if (!job->transposed || !job->rows || !job->cols)
        return 0;
    block_shape(job, &rows, &cols);
    return source_bytes(job, cols * job->rows);
}

uint64_t qf_copy_blocks(const qf_copy *copy)
{
    return divide_up(copy->length, QF_ROOM);
}

qf_range qf_copy_reads(const qf_copy *copy, uint64_t first, uint64_t count)
{
    uint64_t from = first * QF_ROOM;
    return (qf_range){from, at_most(count * QF_ROOM, copy->length - from)};
}

/* ---- scratch ---- */

static float *floats_of(float **slot)
{
    if (!*slot)
        *slot = malloc(BLOCK * sizeof **slot);
    return *slot;
}

static int8_t *ints_of(qf_scratch *s, size_t count)
{
    if (s->int_count < count) {
        free(s->ints);
        s->ints = malloc(count);
        s->int_count = s->ints ? count : 0;
    }
    return s->ints;
}

void qf_scratch_release(qf_scratch *scratch)
{
    free(scratch->values);
    free(scratch->floats);
    free(scratch->ints);
    *scratch = (qf_scratch){0};
}

/* ---- scales ---- */

static uint64_t scale_index(const qf_job *job, uint64_t row, uint64_t col)
{
    if (job->scale_count == 1)
        return 0;
    return row / job->row_div * job->row_mul + row % job->row_mod +
           (job->col_div ? col / job->col_div : 0);
}

/* How many elements from (row, col) on, in the order of the output, share a scale, as far as that
 * is easily told; at most n. */
static size_t same_scale(const qf_job *job, uint64_t row, uint64_t col, size_t n)
{
    uint64_t run = job->cols - col;
    if (job->scale_count == 1)
        return n;
    if (job->col_div)
        run = at_most(run, job->col_div - col % job->col_div);
    else if (job->row_mod == 1)
        run += (job->row_div - 1 - row % job->row_div) * job->cols;
    return (size_t)at_most(run, n);
}

/* How many elements from there on have consecutive scales. */
static size_t scales_in_a_row(const qf_job *job, uint64_t col, size_t n)
{
    return job->col_div == 1 ? (size_t)at_most(job->cols - col, n) : 0;
}

/* Writes out the scales of `n` elements from flat index `first` on. */
static void gather_scales(const qf_job *job, uint64_t first, size_t n, float *out)
{
    for (size_t done = 0; done < n;) {
        uint64_t row = (first + done) / job->cols, col = (first + done) % job->cols;
        size_t run = scales_in_a_row(job, col, n - done);
        const float *scale = job->scales + scale_index(job, row, col);
        if (run) {
            memcpy(out + done, scale, run * sizeof *out);
            done += run;
            continue;
        }
        run = same_scale(job, row, col, n - done);
        for (size_t i = 0; i < run; i++)
            out[done + i] = *scale;
        done += run;
    }
}

/* ---- arithmetic ---- */

/* Elements of a job's source as the kernels take them. */
typedef struct elements {
    const unsigned char *data;
    qf_element type;
} elements;

/* Whether the kernels read the job's elements as they are stored. */
static bool in_place(const qf_job *job, const qf_varint_index *index, qf_element *type)
{
    *type = QF_F32;
    if (index->offsets || job->fold)
        return false;
    if (job->data_type == ONNX__TENSOR_PROTO__DATA_TYPE__FLOAT16)
        *type = QF_F16;
    if (job->data_type == ONNX__TENSOR_PROTO__DATA_TYPE__BFLOAT16)
        *type = QF_BF16;
    return job->data_type != ONNX__TENSOR_PROTO__DATA_TYPE__DOUBLE;
}

static const unsigned char *stored_at(const qf_job *job, uint64_t element)
{
    return job->source.data + source_bytes(job, element);
}

/* x[i] *= the batch norm's factor of the row, if there is one. */
static void fold(const qf_job *job, uint64_t first, size_t n, float *x)
{
    for (size_t done = 0; job->fold && done < n;) {
        uint64_t row = (first + done) / job->cols, col = (first + done) % job->cols;
        size_t run = (size_t)at_most(job->cols - col, n - done);
        qf_kernels_get()->scale(x + done, run, job->fold[row / job->fold_div]);
        done += run;
    }
}

/* Elements of a job that is not transposed, from flat index `first` on, folded: in place or as
 * floats in scratch memory. data is NULL when memory is exhausted. */
static elements read_elements(const qf_job *job, const qf_varint_index *index, uint64_t first,
                              size_t n, qf_scratch *s)
{
    qf_element type;
    if (in_place(job, index, &type))
        return (elements){stored_at(job, first), type};
    float *values = floats_of(&s->values);
    if (values) {
        qf_source_floats(&job->source, index, job->data_type, first, n, values);
        fold(job, first, n, values);
    }
    return (elements){(const unsigned char *)values, QF_F32};
}

/* Quantizes `n` elements that start at flat index `first` of the output. False if one is not
 * finite. */
static bool quantize_span(const qf_job *job, uint64_t first, size_t n, elements x, qf_quantized out)
{
    const qf_kernels *k = qf_kernels_get();
    size_t width = qf_element_size(x.type);
    int lo = -(1 << (job->bits - 1)), hi = -lo - 1;
    bool finite = true;
    float gathered[GATHER];
    for (size_t done = 0; done < n;) {
        uint64_t row = (first + done) / job->cols, col = (first + done) % job->cols;
        const unsigned char *at = x.data + done * width;
        const float *scales = job->scales + scale_index(job, row, col);
        size_t left = n - done, run = same_scale(job, row, col, left);
        if (run >= SHORT_RUN || run == left) {
            finite &= qf_quantize_for(k, x.type)(at, run, *scales, lo, hi,
                                                 qf_quantized_behind(out, done));
        } else {
            size_t rows = 1;
            run = scales_in_a_row(job, col, left);
            if (run < SHORT_RUN && run < left) {
                run = (size_t)at_most(left, GATHER);
                gather_scales(job, first + done, run, gathered);
                scales = gathered;
            } else if (col == 0 && job->row_mul == 0 && job->row_mod == 1) {
                rows = left / run;
            }
            finite &= qf_quantize_columns_for(k, x.type)(at, rows, run, scales, lo, hi,
                                                         qf_quantized_behind(out, done));
            run *= rows;
        }
        done += run;
    }
    return finite;
}

/* y[i] = q[i] times its scale. */
static void dequantize_span(const qf_job *job, uint64_t first, size_t n, const int8_t *q, float *y)
{
    float gathered[GATHER];
    for (size_t done = 0; done < n;) {
        size_t run = (size_t)at_most(n - done, GATHER);
        gather_scales(job, first + done, run, gathered);
        qf_kernels_get()->dequantize_columns(q + done, run, gathered, y + done);
        done += run;
    }
}

/* The error if element (row, col) is not finite, else QF_OK. */
static qf_status check_element(const qf_job *job, const qf_varint_index *index, uint64_t row,
                               uint64_t col, qf_error *err)
{
    uint64_t at = job->transposed ? col * job->rows + row : row * job->cols + col;
    float x;
    qf_source_floats(&job->source, index, job->data_type, at, 1, &x);
    if (job->fold)
        x *= job->fold[row / job->fold_div];
    if (isfinite(x))
        return QF_OK;
    return qf_fail_at(err, QF_ERR_INPUT, (qf_where){.file = job->file, .item = job->layer},
                      "weight tensor '%s' holds %g at element %llu, which cannot be quantized; "
                      "look at the training run",
                      job->tensor, (double)x, (unsigned long long)at);
}

/* A value was not finite when it was quantized, and is when it is looked for. */
static qf_status refuse_change(const qf_job *job, qf_error *err)
{
    return qf_fail_at(err, QF_ERR_INPUT, (qf_where){.file = job->file, .item = job->layer},
                      "weight tensor '%s' changed while it was read", job->tensor);
}

/* ---- storing ---- */

static qf_status room(const qf_sink *sink, qf_target target, qf_job_output out, uint64_t offset,
                      size_t n, unsigned char **at, qf_error *err)
{
    return sink->room(sink->user, target, out.file, out.offset + offset, n, at, err);
}

static bool is_aligned(const void *p)
{
    return (uintptr_t)p % sizeof(float) == 0;
}

/* Stores up to BLOCK quantized elements from flat index `first` on, in any form but INT4_ROWS. */
static qf_status store_ints(const qf_job *job, qf_target target, uint64_t first, size_t n,
                            const int8_t *q, qf_scratch *s, const qf_sink *sink, qf_error *err)
{
    const qf_kernels *k = qf_kernels_get();
    qf_job_output out = job->out[target];
    bool pairs = out.format == QF_FORMAT_INT4_FLAT, bytes = out.format == QF_FORMAT_INT8;
    unsigned char *at;
    uint64_t offset = pairs ? first / 2 : bytes ? first : first * 4;
    size_t length = pairs ? (n + 1) / 2 : bytes ? n : n * 4;
    qf_status status = room(sink, target, out, offset, length, &at, err);
    if (status != QF_OK)
        return status;
    if (bytes) {
        memcpy(at, q, n);
    } else if (pairs) {
        k->pack_pairs(q, n / 2, at);
        if (n % 2) /* only the last block of all can be odd */
            at[n / 2] = (unsigned char)(q[n - 1] & 15);
    } else {
        float *y = is_aligned(at) ? (float *)(void *)at : floats_of(&s->floats);
        if (!y)
            return qf_fail_memory(err);
        if (out.format == QF_FORMAT_FLOAT_SCALED)
            dequantize_span(job, first, n, q, y);
        else
            k->widen(q, n, y);
        if ((unsigned char *)y != at)
            memcpy(at, y, length);
    }
    return QF_OK;
}

/* Pairs of rows of a region, each packed into one row of bytes. */
static qf_status store_row_pairs(const qf_job *job, qf_target target, region r, const int8_t *q,
                                 const qf_sink *sink, qf_error *err)
{
    for (uint64_t i = 0; i < r.rows / 2; i++) {
        const int8_t *low = q + 2 * i * r.cols;
        for (uint64_t c = 0; c < r.cols; c += QF_ROOM) {
            size_t n = (size_t)at_most(r.cols - c, QF_ROOM);
            unsigned char *at;
            uint64_t offset = (r.row / 2 + i) * job->cols + r.col + c;
            qf_status status = room(sink, target, job->out[target], offset, n, &at, err);
            if (status != QF_OK)
                return status;
            qf_kernels_get()->pack_rows(low + c, low + r.cols + c, n, at);
        }
    }
    return QF_OK;
}

static qf_status store_region(const qf_job *job, qf_target target, region r, const int8_t *q,
                              qf_scratch *s, const qf_sink *sink, qf_error *err)
{
    if (job->out[target].format == QF_FORMAT_INT4_ROWS)
        return store_row_pairs(job, target, r, q, sink, err);
    /* rows that are whole follow each other in the output */
    uint64_t run = r.cols == job->cols ? r.rows * r.cols : r.cols;
    for (uint64_t done = 0; done < r.rows * r.cols;) {
        uint64_t in_run = done % run;
        size_t n = (size_t)at_most(run - in_run, BLOCK);
        uint64_t first = (r.row + done / r.cols) * job->cols + r.col + done % r.cols;
        qf_status status = store_ints(job, target, first, n, q + done, s, sink, err);
        if (status != QF_OK)
            return status;
        done += n;
    }
    return QF_OK;
}

/* ---- running blocks ---- */

/* The places of a flat block's outputs; integers that nobody takes as they are go to scratch. */
static qf_status place_flat(const qf_job *job, uint64_t first, size_t n, qf_scratch *s,
                            const qf_sink *sink, qf_quantized *out, unsigned char *at[QF_TARGETS],
                            qf_error *err)
{
    *out = (qf_quantized){0};
    for (int t = 0; t < QF_TARGETS; t++) {
        qf_job_output o = job->out[t];
        bool bytes = o.format == QF_FORMAT_INT8, floats = o.format == QF_FORMAT_FLOAT;
        at[t] = NULL;
        if (!o.placed)
            continue;
        if (!bytes && !floats) {
            out->q = out->q ? out->q : ints_of(s, BLOCK);
            if (!out->q)
                return qf_fail_memory(err);
            continue;
        }
        qf_status status = room(sink, (qf_target)t, o, floats ? first * 4 : first,
                                floats ? n * 4 : n, &at[t], err);
        if (status != QF_OK)
            return status;
        if (bytes)
            out->q = (int8_t *)at[t];
        else
            out->y = is_aligned(at[t]) ? (float *)(void *)at[t] : floats_of(&s->floats);
        if (floats && !out->y)
            return qf_fail_memory(err);
    }
    return QF_OK;
}

/* What the kernel did not put in place itself. */
static qf_status finish_flat(const qf_job *job, uint64_t first, size_t n, qf_quantized made,
                             unsigned char *at[QF_TARGETS], qf_scratch *s, const qf_sink *sink,
                             qf_error *err)
{
    for (int t = 0; t < QF_TARGETS; t++) {
        qf_format format = job->out[t].format;
        if (!job->out[t].placed)
            continue;
        if (format == QF_FORMAT_FLOAT && (unsigned char *)made.y != at[t])
            memcpy(at[t], made.y, n * 4);
        if (format == QF_FORMAT_INT8 && (unsigned char *)made.q != at[t])
            memcpy(at[t], made.q, n);
        if (format == QF_FORMAT_FLOAT || format == QF_FORMAT_INT8)
            continue;
        qf_status status = store_ints(job, (qf_target)t, first, n, made.q, s, sink, err);
        if (status != QF_OK)
            return status;
    }
    return QF_OK;
}

/* A tensor of integers has nothing to be calculated. */
static qf_status run_flat_ints(const qf_job *job, const qf_varint_index *index, uint64_t first,
                               size_t n, qf_scratch *s, const qf_sink *sink, qf_error *err)
{
    qf_quantized made;
    unsigned char *at[QF_TARGETS];
    qf_status status = place_flat(job, first, n, s, sink, &made, at, err);
    if (status == QF_OK && !made.q && !(made.q = ints_of(s, BLOCK)))
        status = qf_fail_memory(err);
    if (status != QF_OK)
        return status;
    qf_source_ints(&job->source, index, job->data_type, first, n, made.q);
    if (made.y)
        qf_kernels_get()->widen(made.q, n, made.y);
    return finish_flat(job, first, n, made, at, s, sink, err);
}

/* The one form that is not quantized. */
static qf_status store_folded(const qf_job *job, uint64_t first, size_t n, const float *x,
                              const qf_sink *sink, qf_error *err)
{
    for (int t = 0; t < QF_TARGETS; t++) {
        unsigned char *at;
        if (!job->out[t].placed)
            continue;
        qf_status status = room(sink, (qf_target)t, job->out[t], first * 4, n * 4, &at, err);
        if (status != QF_OK)
            return status;
        memcpy(at, x, n * 4);
    }
    return QF_OK;
}

static bool all_finite(const float *x, size_t n)
{
    float max = 0;
    return qf_kernels_get()->absmax(x, n, &max);
}

static qf_status run_flat(const qf_job *job, const qf_varint_index *index, uint64_t block,
                          qf_scratch *s, const qf_sink *sink, qf_error *err)
{
    uint64_t first = block * BLOCK;
    size_t n = (size_t)at_most(job->rows * job->cols - first, BLOCK);
    if (qf_source_is_integer(job->data_type))
        return run_flat_ints(job, index, first, n, s, sink, err);
    elements x = read_elements(job, index, first, n, s);
    if (!x.data)
        return qf_fail_memory(err);
    if (!job->bits && all_finite(s->values, n))
        return store_folded(job, first, n, s->values, sink, err);
    qf_quantized made;
    unsigned char *at[QF_TARGETS];
    qf_status status = job->bits ? place_flat(job, first, n, s, sink, &made, at, err) : QF_OK;
    if (status == QF_OK && job->bits && quantize_span(job, first, n, x, made))
        return finish_flat(job, first, n, made, at, s, sink, err);
    for (uint64_t i = first; status == QF_OK && i < first + n; i++)
        status = check_element(job, index, i / job->cols, i % job->cols, err);
    return status == QF_OK ? refuse_change(job, err) : status;
}

/* Quantizes a region of rows into `q`, row after row. False if a value is not finite. */
static bool quantize_rows(const qf_job *job, const qf_varint_index *index, region r, qf_scratch *s,
                          int8_t *q)
{
    uint64_t run = r.cols == job->cols ? r.rows * r.cols : r.cols;
    for (uint64_t done = 0; done < r.rows * r.cols;) {
        size_t n = (size_t)at_most(run - done % run, BLOCK);
        uint64_t first = (r.row + done / r.cols) * job->cols + r.col + done % r.cols;
        if (qf_source_is_integer(job->data_type)) {
            qf_source_ints(&job->source, index, job->data_type, first, n, q + done);
        } else {
            elements x = read_elements(job, index, first, n, s);
            if (!quantize_span(job, first, n, x, (qf_quantized){.q = q + done}))
                return false;
        }
        done += n;
    }
    return true;
}

/* The same for a transposed job of integers: int8 straight from the source, others run by run. */
static void turn_ints(const qf_job *job, const qf_varint_index *index, region r, int8_t *q)
{
    uint64_t first = r.col * job->rows + r.row;
    size_t rows = (size_t)r.rows, cols = (size_t)r.cols;
    if (job->data_type == ONNX__TENSOR_PROTO__DATA_TYPE__INT8 && !index->offsets) {
        const int8_t *src = (const int8_t *)job->source.data + first;
        qf_kernels_get()->transpose(src, (size_t)job->rows, cols, rows, q, cols);
        return;
    }
    for (size_t c = 0; c < cols; c++) {
        int8_t run[GATHER];
        for (size_t at = 0; at < rows; at += GATHER) {
            size_t n = (size_t)at_most(rows - at, GATHER);
            qf_source_ints(&job->source, index, job->data_type, first + c * job->rows + at, n, run);
            qf_kernels_get()->transpose(run, n, 1, n, q + at * cols + c, cols);
        }
    }
}

/* The same for a transposed job, whose scales go by column and which folds nothing. Elements that
 * no kernel reads as they are stored go through floats, run by run. */
static bool quantize_turned(const qf_job *job, const qf_varint_index *index, region r, int8_t *q)
{
    const qf_kernels *k = qf_kernels_get();
    const float *scales = job->scales + scale_index(job, r.row, r.col);
    int lo = -(1 << (job->bits - 1)), hi = -lo - 1;
    uint64_t first = r.col * job->rows + r.row;
    size_t rows = (size_t)r.rows, cols = (size_t)r.cols;
    qf_element type;
    if (qf_source_is_integer(job->data_type)) {
        turn_ints(job, index, r, q);
        return true;
    }
    if (in_place(job, index, &type))
        return qf_quantize_transposed(k, stored_at(job, first), type, (size_t)job->rows, rows, cols,
                                      scales, job->scale_count, lo, hi,
                                      (qf_quantized){.q = q}) == cols;
    for (size_t c = 0; c < cols; c++) {
        float scale = scales[job->scale_count == 1 ? 0 : c], x[GATHER];
        int8_t run[GATHER];
        for (size_t at = 0; at < rows; at += GATHER) {
            size_t n = (size_t)at_most(rows - at, GATHER);
            qf_source_floats(&job->source, index, job->data_type, first + c * job->rows + at, n, x);
            if (!k->quantize_f32(x, n, scale, lo, hi, (qf_quantized){.q = run}))
                return false;
            k->transpose(run, n, 1, n, q + at * cols + c, cols);
        }
    }
    return true;
}

static qf_status run_region(const qf_job *job, const qf_varint_index *index, region r,
                            qf_scratch *s, const qf_sink *sink, qf_error *err)
{
    int8_t *q = ints_of(s, (size_t)(r.rows * r.cols));
    if (!q || (!job->transposed && !floats_of(&s->values)))
        return qf_fail_memory(err);
    qf_status status = QF_OK;
    if (!(job->transposed ? quantize_turned(job, index, r, q)
                          : quantize_rows(job, index, r, s, q))) {
        for (uint64_t i = 0; status == QF_OK && i < r.rows * r.cols; i++)
            status = check_element(job, index, r.row + i / r.cols, r.col + i % r.cols, err);
        return status == QF_OK ? refuse_change(job, err) : status;
    }
    for (int t = 0; status == QF_OK && t < QF_TARGETS; t++) {
        if (job->out[t].placed)
            status = store_region(job, (qf_target)t, r, q, s, sink, err);
    }
    return status;
}

qf_status qf_job_run_block(const qf_job *job, const qf_varint_index *index, uint64_t block,
                           qf_scratch *s, const qf_sink *sink, qf_error *err)
{
    if (is_flat(job))
        return run_flat(job, index, block, s, sink, err);
    return run_region(job, index, block_region(job, block), s, sink, err);
}

qf_status qf_copy_run_block(const qf_copy *copy, const qf_varint_index *index, uint64_t block,
                            const qf_sink *sink, qf_error *err)
{
    qf_range r = qf_copy_reads(copy, block, 1);
    unsigned width = qf_dtype_bits(copy->data_type) / 8;
    size_t n = (size_t)r.length;
    for (int t = 0; t < QF_TARGETS; t++) {
        unsigned char *at;
        if (!copy->out[t].placed)
            continue;
        qf_status status = room(sink, (qf_target)t, copy->out[t], r.offset, n, &at, err);
        if (status != QF_OK)
            return status;
        if (copy->decode)
            qf_source_elements(&copy->source, index, width, r.offset / width, n / width, at);
        else
            memcpy(at, copy->source.data + r.offset, n);
    }
    return QF_OK;
}
