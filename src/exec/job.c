/* SPDX-License-Identifier: Apache-2.0 */
#include "exec/job.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "exec/blocks.h"
#include "exec/source.h"

enum {
    /* Elements of a transposed block, and the most columns in it. Each column is a row of the
     * source, of which a run of at least TURNED_BLOCK / TURNED_COLS elements is read. */
    TURNED_BLOCK = 1024 * 1024,
    TURNED_COLS = 8192,
    TURNED_MAPPED = 64 * 1024 * 1024, /* bytes of the source that a stripe of columns takes */
    GATHER = 1024,                    /* elements whose scales are written out side by side */
    SHORT_RUN = 64                    /* elements: shorter runs of one scale are gathered */
};

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

/* A job is cut either as a flat sequence, or into bands of rows, or into columns and bands. */
static bool is_flat(const qf_job *job)
{
    if (job->found && !qf_job_two_pass(job))
        return false;
    return !job->transposed && !qf_has_format(job, QF_FORMAT_INT4_ROWS) &&
           !qf_has_format(job, QF_FORMAT_WORDS);
}

/* Where an element lies in the source, in bytes; of a pair of 4-bit elements, their byte. */
static uint64_t source_bytes(const qf_job *job, uint64_t elements)
{
    unsigned bits = qf_dtype_bits(job->data_type);
    return bits == 4 ? elements / 2 : elements * (bits / 8);
}

/* Rows and columns of a block of a job that is not flat. Bands are even, so that pairs of rows stay
 * together, and so are cuts between columns: nibble pairs of rows that are odd would straddle them,
 * so such rows are left whole. */
static void block_shape(const qf_job *job, uint64_t *rows, uint64_t *cols)
{
    if (job->found) {
        qf_found_shape(job, rows, cols);
        return;
    }
    uint64_t budget = job->transposed ? TURNED_BLOCK : QF_BLOCK, limit = budget / 2;
    if (job->transposed) {
        limit = qf_at_most(TURNED_COLS, TURNED_MAPPED / (source_bytes(job, job->rows) + 1));
        limit = limit > 2 ? limit & ~(uint64_t)1 : 2;
    }
    *cols = job->cols;
    if (*cols > limit && !qf_has_format(job, QF_FORMAT_WORDS) &&
        !(job->cols % 2 && qf_has_format(job, QF_FORMAT_INT4_FLAT)))
        *cols = limit;
    *rows = *cols < budget / 2 ? budget / *cols & ~(uint64_t)1 : 2;
}

uint64_t qf_job_blocks(const qf_job *job)
{
    uint64_t n = job->rows * job->cols, rows, cols;
    if (!n)
        return 0;
    if (is_flat(job))
        return qf_divide_up(n, QF_BLOCK);
    block_shape(job, &rows, &cols);
    return qf_divide_up(job->rows, rows) * qf_divide_up(job->cols, cols);
}

/* Blocks of a transposed job go down a stripe of columns, which is one piece of the source. */
static qf_region block_region(const qf_job *job, uint64_t block)
{
    uint64_t rows, cols;
    block_shape(job, &rows, &cols);
    uint64_t across = qf_divide_up(job->cols, cols), down = qf_divide_up(job->rows, rows);
    qf_region r = {.row = block / across * rows, .col = block % across * cols};
    if (job->transposed)
        r = (qf_region){.row = block % down * rows, .col = block / down * cols};
    r.rows = qf_at_most(rows, job->rows - r.row);
    r.cols = qf_at_most(cols, job->cols - r.col);
    return r;
}

qf_range qf_job_reads(const qf_job *job, uint64_t first, uint64_t count)
{
    uint64_t from, to;
    if (is_flat(job)) {
        from = first * QF_BLOCK;
        to = qf_at_most(from + count * QF_BLOCK, job->rows * job->cols);
    } else {
        qf_region a = block_region(job, first), b = block_region(job, first + count - 1);
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
    return qf_divide_up(copy->length, QF_ROOM);
}

qf_range qf_copy_reads(const qf_copy *copy, uint64_t first, uint64_t count)
{
    uint64_t from = first * QF_ROOM;
    return (qf_range){from, qf_at_most(count * QF_ROOM, copy->length - from)};
}

/* ---- scratch ---- */

float *qf_scratch_scales(qf_scratch *s, size_t count)
{
    if (s->scale_count < count) {
        free(s->scales);
        s->scales = malloc(count * sizeof *s->scales);
        s->scale_count = s->scales ? count : 0;
    }
    return s->scales;
}

float *qf_scratch_floats(float **slot)
{
    if (!*slot)
        *slot = malloc(QF_BLOCK * sizeof **slot);
    return *slot;
}

int8_t *qf_scratch_ints(qf_scratch *s, size_t count)
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
    free(scratch->scales);
    free(scratch->ints);
    *scratch = (qf_scratch){0};
}

/* ---- scales ---- */

uint64_t qf_scale_index(const qf_job *job, uint64_t row, uint64_t col)
{
    if (job->scale_count == 1)
        return 0;
    return qf_channel_index(job, row, col);
}

/* How many elements from (row, col) on, in the order of the output, share a scale, as far as that
 * is easily told; at most n. */
static size_t same_scale(const qf_job *job, uint64_t row, uint64_t col, size_t n)
{
    uint64_t run = job->cols - col;
    if (job->scale_count == 1)
        return n;
    if (job->col_div)
        run = qf_at_most(run, job->col_div - col % job->col_div);
    else if (job->row_mod == 1)
        run += (job->row_div - 1 - row % job->row_div) * job->cols;
    return (size_t)qf_at_most(run, n);
}

/* How many elements from there on have consecutive scales. */
static size_t scales_in_a_row(const qf_job *job, uint64_t col, size_t n)
{
    return job->col_div == 1 ? (size_t)qf_at_most(job->cols - col, n) : 0;
}

/* Writes out the scales of `n` elements from flat index `first` on. */
void qf_gather_scales(const qf_job *job, uint64_t first, size_t n, float *out)
{
    for (size_t done = 0; done < n;) {
        uint64_t row = (first + done) / job->cols, col = (first + done) % job->cols;
        size_t run = scales_in_a_row(job, col, n - done);
        const float *scale = job->scales + qf_scale_index(job, row, col);
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

/* Whether the kernels read the job's elements as they are stored. */
static bool in_place(const qf_job *job, const qf_varint_index *index, qf_element *type)
{
    *type = QF_F32;
    if (index->offsets || job->fold || job->prescale)
        return false;
    if (job->data_type == ONNX__TENSOR_PROTO__DATA_TYPE__FLOAT16)
        *type = QF_F16;
    if (job->data_type == ONNX__TENSOR_PROTO__DATA_TYPE__BFLOAT16)
        *type = QF_BF16;
    return *type != QF_F32 || job->data_type == ONNX__TENSOR_PROTO__DATA_TYPE__FLOAT;
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
        size_t run = (size_t)qf_at_most(job->cols - col, n - done);
        qf_kernels_get()->scale(x + done, run, job->fold[row / job->fold_div]);
        done += run;
    }
}

/* x[i] *= the scale that the source's elements have already, if they have one. */
static void prescale(const qf_job *job, uint64_t first, size_t n, float *x)
{
    const qf_prescale *p = job->prescale;
    for (size_t done = 0; p && done < n;) {
        uint64_t row = (first + done) / job->cols, col = (first + done) % job->cols;
        uint64_t run = qf_at_most(p->cols - col % p->cols, job->cols - col);
        run = qf_at_most(run, n - done);
        qf_kernels_get()->scale(x + done, (size_t)run,
                                p->scales[row / p->rows * p->across + col / p->cols]);
        done += run;
    }
}

qf_elements qf_block_elements(const qf_job *job, const qf_varint_index *index, uint64_t first,
                              size_t n, qf_scratch *s)
{
    qf_element type;
    if (in_place(job, index, &type))
        return (qf_elements){stored_at(job, first), type};
    float *values = qf_scratch_floats(&s->values);
    if (values) {
        qf_source_floats(&job->source, index, job->data_type, first, n, values);
        fold(job, first, n, values);
        prescale(job, first, n, values);
    }
    return (qf_elements){(const unsigned char *)values, QF_F32};
}

/* Quantizes `n` elements that start at flat index `first` of the output. False if one is not
 * finite. */
static bool quantize_span(const qf_job *job, uint64_t first, size_t n, qf_elements x, qf_scratch *s,
                          qf_quantized out)
{
    int lo = -(1 << (job->bits - 1)), hi = -lo - 1;
    bool finite = true;
    float gathered[GATHER];
    for (size_t done = 0; done < n;) {
        uint64_t row = (first + done) / job->cols, col = (first + done) % job->cols;
        const float *scales = job->scales + qf_scale_index(job, row, col);
        size_t left = n - done, run = same_scale(job, row, col, left), step = 0, rows = 1;
        qf_quantized to = qf_quantized_behind(out, done);
        if (run < SHORT_RUN && run < left) {
            step = 1;
            run = scales_in_a_row(job, col, left);
            if (run < SHORT_RUN && run < left) {
                run = (size_t)qf_at_most(left, GATHER);
                qf_gather_scales(job, first + done, run, gathered);
                scales = gathered;
            } else if (!s->errors && col == 0 && job->row_mul == 0 && job->row_mod == 1) {
                rows = left / run; /* NOLINT(clang-analyzer-core.DivideZero): a run is 1 at least */
            }
        }
        if (rows == 1)
            finite &=
                qf_quantize_counted(s, first + done, x, done, run, scales, step, job->bits, to);
        else
            finite &= qf_quantize_columns_for(qf_kernels_get(), x.type)(
                x.data + done * qf_element_size(x.type), rows, run, scales, lo, hi, to);
        done += rows * run;
    }
    return finite;
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
    if (!job->transposed)
        prescale(job, at, 1, &x);
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
            out->q = out->q ? out->q : qf_scratch_ints(s, QF_BLOCK);
            if (!out->q)
                return qf_fail_memory(err);
            continue;
        }
        qf_status status =
            qf_store_room(sink, t, o, floats ? first * 4 : first, floats ? n * 4 : n, &at[t], err);
        if (status != QF_OK)
            return status;
        if (bytes)
            out->q = (int8_t *)at[t];
        else
            out->y = qf_is_aligned(at[t]) ? (float *)(void *)at[t] : qf_scratch_floats(&s->floats);
        if (floats && !out->y)
            return qf_fail_memory(err);
    }
    if (s->errors && !out->q) /* counting needs the integers */
        out->q = qf_scratch_ints(s, QF_BLOCK);
    if (s->errors && !out->q)
        return qf_fail_memory(err);
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
            memcpy(at[t], made.q, n); /* NOLINT(clang-analyzer-core.NonNullParamChecker): made */
        if (format == QF_FORMAT_FLOAT || format == QF_FORMAT_INT8)
            continue;
        qf_status status = qf_store_ints(job, (qf_target)t, first, n, made.q, s, sink, err);
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
    if (status == QF_OK && !made.q && !(made.q = qf_scratch_ints(s, QF_BLOCK)))
        status = qf_fail_memory(err);
    if (status != QF_OK)
        return status;
    qf_source_ints(&job->source, index, job->data_type, first, n, made.q);
    qf_collect_ints(s->stats, first, n, made.q);
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
        qf_status status = qf_store_room(sink, t, job->out[t], first * 4, n * 4, &at, err);
        if (status != QF_OK)
            return status;
        memcpy(at, x, n * 4);
    }
    return QF_OK;
}

static bool all_finite(const float *x, size_t n)
{
    float max = 0;
    return qf_kernels_get()->absmax_f32(x, n, &max);
}

static qf_status run_flat(const qf_job *job, const qf_varint_index *index, uint64_t block,
                          qf_scratch *s, const qf_sink *sink, qf_error *err)
{
    uint64_t first = block * QF_BLOCK;
    size_t n = (size_t)qf_at_most(job->rows * job->cols - first, QF_BLOCK);
    if (qf_source_is_integer(job->data_type))
        return run_flat_ints(job, index, first, n, s, sink, err);
    qf_elements x = qf_block_elements(job, index, first, n, s);
    if (!x.data)
        return qf_fail_memory(err);
    if (!job->bits && all_finite(s->values, n))
        return store_folded(job, first, n, s->values, sink, err);
    qf_quantized made;
    unsigned char *at[QF_TARGETS];
    qf_status status = job->bits ? place_flat(job, first, n, s, sink, &made, at, err) : QF_OK;
    if (status == QF_OK && job->bits && quantize_span(job, first, n, x, s, made)) {
        qf_collect_ints(s->stats, first, n, made.q);
        return finish_flat(job, first, n, made, at, s, sink, err);
    }
    for (uint64_t i = first; status == QF_OK && i < first + n; i++)
        status = check_element(job, index, i / job->cols, i % job->cols, err);
    return status == QF_OK ? refuse_change(job, err) : status;
}

/* Quantizes a region of rows into `q`, row after row. False if a value is not finite. */
static bool quantize_rows(const qf_job *job, const qf_varint_index *index, qf_region r,
                          qf_scratch *s, int8_t *q)
{
    uint64_t run = r.cols == job->cols ? r.rows * r.cols : r.cols;
    for (uint64_t done = 0; done < r.rows * r.cols;) {
        size_t n = (size_t)qf_at_most(run - done % run, QF_BLOCK);
        uint64_t first = (r.row + done / r.cols) * job->cols + r.col + done % r.cols;
        if (qf_source_is_integer(job->data_type)) {
            qf_source_ints(&job->source, index, job->data_type, first, n, q + done);
        } else {
            qf_elements x = qf_block_elements(job, index, first, n, s);
            if (!quantize_span(job, first, n, x, s, (qf_quantized){.q = q + done}))
                return false;
        }
        done += n;
    }
    return true;
}

/* The same for a transposed job of integers: int8 straight from the source, others run by run. */
static void turn_ints(const qf_job *job, const qf_varint_index *index, qf_region r, int8_t *q)
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
            size_t n = (size_t)qf_at_most(rows - at, GATHER);
            qf_source_ints(&job->source, index, job->data_type, first + c * job->rows + at, n, run);
            qf_kernels_get()->transpose(run, n, 1, n, q + at * cols + c, cols);
        }
    }
}

/* The same for a transposed job, whose scales go by column and which folds nothing. Elements that
 * no kernel reads as they are stored go through floats, run by run. */
static bool quantize_turned(const qf_job *job, const qf_varint_index *index, qf_region r, int8_t *q)
{
    const qf_kernels *k = qf_kernels_get();
    const float *scales = job->scales + qf_scale_index(job, r.row, r.col);
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
            size_t n = (size_t)qf_at_most(rows - at, GATHER);
            qf_source_floats(&job->source, index, job->data_type, first + c * job->rows + at, n, x);
            if (!k->quantize_f32(x, n, scale, lo, hi, (qf_quantized){.q = run}))
                return false;
            k->transpose(run, n, 1, n, q + at * cols + c, cols);
        }
    }
    return true;
}

/* Counts a transposed region, column after column, in the order of the source. Its integers lie
 * row after row, and are turned a tile at a time. */
static void count_turned(const qf_job *job, const qf_varint_index *index, qf_region r,
                         const int8_t *q, qf_scratch *s)
{
    enum { RUN = 256, COLS = 64 };
    bool floats = !qf_source_is_integer(job->data_type);
    float x[RUN];
    int8_t tile[RUN * COLS];
    for (size_t c = 0; c < r.cols; c += COLS) {
        size_t cols = (size_t)qf_at_most(r.cols - c, COLS);
        for (size_t at = 0; at < r.rows; at += RUN) {
            size_t n = (size_t)qf_at_most(r.rows - at, RUN);
            qf_kernels_get()->transpose(q + at * r.cols + c, (size_t)r.cols, n, cols, tile, RUN);
            for (size_t i = 0; i < cols; i++) {
                uint64_t col = r.col + c + i, first = col * job->rows + r.row + at;
                float scale = job->scales[qf_scale_index(job, r.row, col)];
                const int8_t *run = tile + i * RUN;
                if (floats) {
                    qf_source_floats(&job->source, index, job->data_type, first, n, x);
                    qf_errors_for(qf_kernels_get(), QF_F32)(x, run, n, scale, s->errors);
                }
                qf_collect_column(s->stats, r.row + at, col, n, run, floats ? x : NULL, scale);
            }
        }
    }
}

/* Counts what quantizing a region has not counted yet. */
static void count_region(const qf_job *job, const qf_varint_index *index, qf_region r,
                         const int8_t *q, qf_scratch *s)
{
    if (job->transposed) {
        count_turned(job, index, r, q, s);
        return;
    }
    for (uint64_t row = 0; row < r.rows; row++)
        qf_collect_ints(s->stats, (r.row + row) * job->cols + r.col, (size_t)r.cols,
                        q + row * r.cols);
}

static qf_status run_region(const qf_job *job, const qf_varint_index *index, qf_region r,
                            qf_scratch *s, const qf_sink *sink, qf_error *err)
{
    int8_t *q = qf_scratch_ints(s, (size_t)(r.rows * r.cols));
    if (!q || (!job->transposed && !qf_scratch_floats(&s->values)))
        return qf_fail_memory(err);
    bool finite;
    qf_status status = QF_OK;
    if (job->found)
        status = qf_found_run(job, index, r, s, q, sink, &finite, err);
    else
        finite = job->transposed ? quantize_turned(job, index, r, q)
                                 : quantize_rows(job, index, r, s, q);
    if (status == QF_OK && finite && s->errors)
        count_region(job, index, r, q, s);
    if (status == QF_OK && !finite) {
        for (uint64_t i = 0; status == QF_OK && i < r.rows * r.cols; i++)
            status = check_element(job, index, r.row + i / r.cols, r.col + i % r.cols, err);
        return status == QF_OK ? refuse_change(job, err) : status;
    }
    for (int t = 0; status == QF_OK && t < QF_TARGETS; t++) {
        if (job->out[t].placed)
            status = qf_store_region(job, (qf_target)t, r, q, s, sink, err);
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
        qf_status status = qf_store_room(sink, t, copy->out[t], r.offset, n, &at, err);
        if (status != QF_OK)
            return status;
        if (copy->decode)
            qf_source_elements(&copy->source, index, width, r.offset / width, n / width, at);
        else
            memcpy(at, copy->source.data + r.offset, n);
    }
    return QF_OK;
}
