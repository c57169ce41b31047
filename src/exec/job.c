/* SPDX-License-Identifier: Apache-2.0 */
#include "exec/job.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "exec/source.h"
#include "kernels.h"

enum {
    BLOCK = 64 * 1024, /* elements: 256 KiB of float32, half of a small L2 */
    TRANSPOSED_BLOCK =
        512 * 1024,           /* elements: wide enough to use whole cache lines of the source */
    COPY_BLOCK = 1024 * 1024, /* bytes */
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

/* A job is cut either as a flat sequence, or into bands of rows, or into bands and columns. */
static bool is_flat(const qf_job *job)
{
    return !job->transposed && !has_format(job, QF_FORMAT_INT4_ROWS);
}

/* Rows and columns of a block of a job that is not flat. Bands are even, so that pairs of rows, and
 * nibble pairs of whole rows, stay together. Columns are cut only where a pair of rows is too
 * large, and never for INT4_FLAT, whose bytes would straddle blocks. */
static void block_shape(const qf_job *job, uint64_t *rows, uint64_t *cols)
{
    uint64_t budget = job->transposed ? TRANSPOSED_BLOCK : BLOCK;
    *cols = job->cols;
    if (*cols > budget / 2 && !has_format(job, QF_FORMAT_INT4_FLAT))
        *cols = budget / 2;
    *rows = budget / *cols & ~(uint64_t)1;
    if (*rows < 2)
        *rows = 2;
}

uint64_t qf_job_blocks(const qf_job *job)
{
    uint64_t n = job->rows * job->cols, rows, cols;
    if (!n)
        return 0;
    if (is_flat(job))
        return (n - 1) / BLOCK + 1;
    block_shape(job, &rows, &cols);
    return ((job->rows - 1) / rows + 1) * ((job->cols - 1) / cols + 1);
}

uint64_t qf_copy_blocks(const qf_copy *copy)
{
    return copy->length ? (copy->length - 1) / COPY_BLOCK + 1 : 0;
}

static region block_region(const qf_job *job, uint64_t block)
{
    uint64_t rows, cols;
    block_shape(job, &rows, &cols);
    uint64_t across = (job->cols - 1) / cols + 1;
    region r = {.row = block / across * rows, .col = block % across * cols};
    r.rows = job->rows - r.row < rows ? job->rows - r.row : rows;
    r.cols = job->cols - r.col < cols ? job->cols - r.col : cols;
    return r;
}

/* ---- scratch ---- */

static bool reserve(qf_scratch *s, size_t elements)
{
    if (elements <= s->cap)
        return true;
    qf_scratch_release(s);
    s->values = malloc(elements * sizeof *s->values);
    s->ints = malloc(elements);
    s->bytes = malloc(elements);
    if (!s->values || !s->ints || !s->bytes) {
        qf_scratch_release(s);
        return false;
    }
    s->cap = elements;
    return true;
}

void qf_scratch_release(qf_scratch *scratch)
{
    free(scratch->values);
    free(scratch->ints);
    free(scratch->bytes);
    *scratch = (qf_scratch){0};
}

/* ---- arithmetic on a piece of one row ---- */

static uint64_t scale_base(const qf_job *job, uint64_t row)
{
    return row / job->row_div * job->row_mul + row % job->row_mod;
}

/* Length of the run of columns from `col` on that shares a scale; at most `n`. */
static uint64_t run_length(const qf_job *job, uint64_t col, uint64_t n)
{
    if (job->scale_count == 1 || job->col_div <= 1)
        return n;
    uint64_t run = job->col_div - col % job->col_div;
    return run < n ? run : n;
}

/* Calls the plain or the per-column kernel for each run of a piece of a row. */
static bool quantize_piece(const qf_job *job, uint64_t row, uint64_t col, size_t n, float *x,
                           int8_t *q)
{
    const qf_kernels *k = qf_kernels_get();
    int lo = -(1 << (job->bits - 1)), hi = -lo - 1;
    bool finite = true;
    if (job->fold)
        k->scale(x, n, job->fold[row / job->fold_div]);
    if (job->scale_count == 1)
        return k->quantize(x, n, job->scales[0], lo, hi, q);
    const float *scales = job->scales + scale_base(job, row);
    if (job->col_div == 1)
        return k->quantize_columns(x, n, scales + col, lo, hi, q);
    for (size_t done = 0; done < n;) {
        size_t run = (size_t)run_length(job, col + done, n - done);
        uint64_t index = job->col_div ? (col + done) / job->col_div : 0;
        finite &= k->quantize(x + done, run, scales[index], lo, hi, q + done);
        done += run;
    }
    return finite;
}

/* For a job that folds and does not quantize; false if the result is not finite. */
static bool fold_piece(const qf_job *job, uint64_t row, size_t n, float *x)
{
    bool finite = true;
    qf_kernels_get()->scale(x, n, job->fold[row / job->fold_div]);
    for (size_t i = 0; i < n; i++)
        finite &= isfinite(x[i]) != 0;
    return finite;
}

static void dequantize_piece(const qf_job *job, uint64_t row, uint64_t col, size_t n,
                             const int8_t *q, float *y)
{
    const qf_kernels *k = qf_kernels_get();
    const float *scales = job->scales + (job->scale_count == 1 ? 0 : scale_base(job, row));
    if (job->scale_count > 1 && job->col_div == 1) {
        k->dequantize_columns(q, n, scales + col, y);
        return;
    }
    for (size_t done = 0; done < n;) {
        size_t run = (size_t)run_length(job, col + done, n - done);
        uint64_t index = job->scale_count > 1 && job->col_div ? (col + done) / job->col_div : 0;
        k->dequantize(q + done, run, scales[index], y + done);
        done += run;
    }
}

/* `x` is the piece of row `row` from column `col` on that holds the value. */
static qf_status refuse_nonfinite(const qf_job *job, uint64_t row, uint64_t col, const float *x,
                                  size_t n, qf_error *err)
{
    size_t i = 0;
    while (i + 1 < n && isfinite(x[i]))
        i++;
    uint64_t index = job->transposed ? (col + i) * job->rows + row : row * job->cols + col + i;
    return qf_fail_at(
        err, QF_ERR_INPUT, (qf_where){.file = job->file, .item = job->layer},
        "weight tensor '%s' holds %g at element %llu, which cannot be quantized; look "
        "at the training run",
        job->tensor, (double)x[i], (unsigned long long)index);
}

/* ---- storing ---- */

/* Stores `n` quantized elements (and their rows' float forms) that are contiguous in every output
 * but INT4_ROWS. `first` is their flat index. */
static qf_status store_flat(const qf_job *job, qf_job_output out, uint64_t first, size_t n,
                            qf_scratch *s, qf_write_fn write, void *user, qf_error *err)
{
    const qf_kernels *k = qf_kernels_get();
    switch (out.format) {
    case QF_FORMAT_INT8:
        return write(user, out.file, out.offset + first, s->ints, n, err);
    case QF_FORMAT_INT4_FLAT:
        k->pack_nibbles(s->ints, s->ints + 1, 2, n / 2, s->bytes);
        if (n % 2) /* only the last block of all can be odd */
            s->bytes[n / 2] = (unsigned char)(s->ints[n - 1] & 15);
        return write(user, out.file, out.offset + first / 2, s->bytes, (n + 1) / 2, err);
    case QF_FORMAT_FLOAT:
        k->widen(s->ints, n, s->values);
        break;
    case QF_FORMAT_FLOAT_SCALED:
        for (size_t done = 0; done < n;) {
            uint64_t row = (first + done) / job->cols, col = (first + done) % job->cols;
            uint64_t left = job->cols - col;
            size_t m = left < n - done ? (size_t)left : n - done;
            dequantize_piece(job, row, col, m, s->ints + done, s->values + done);
            done += m;
        }
        break;
    case QF_FORMAT_FLOAT_FOLDED:
        break;
    case QF_FORMAT_INT4_ROWS:
    case QF_FORMAT_NONE:
        return QF_OK;
    }
    return write(user, out.file, out.offset + first * 4, s->values, n * 4, err);
}

/* Stores a block whose rows are s->ints rows of `r.cols`. */
static qf_status store_region(const qf_job *job, qf_job_output out, region r, qf_scratch *s,
                              qf_write_fn write, void *user, qf_error *err)
{
    const qf_kernels *k = qf_kernels_get();
    size_t cols = (size_t)r.cols;
    if (out.format == QF_FORMAT_INT4_ROWS) {
        for (size_t i = 0; i < r.rows / 2; i++)
            k->pack_nibbles(s->ints + 2 * i * cols, s->ints + (2 * i + 1) * cols, 1, cols,
                            s->bytes + i * cols);
        for (size_t i = 0; i < r.rows / 2; i++) {
            bool whole = r.cols == job->cols;
            qf_status status =
                write(user, out.file, out.offset + (r.row / 2 + i) * job->cols + r.col,
                      s->bytes + i * cols, whole ? (size_t)(r.rows / 2) * cols : cols, err);
            if (status != QF_OK || whole)
                return status;
        }
        return QF_OK;
    }
    if (r.cols == job->cols)
        return store_flat(job, out, r.row * job->cols, (size_t)r.rows * cols, s, write, user, err);
    qf_scratch row = *s;
    for (uint64_t i = 0; i < r.rows; i++) {
        qf_status status =
            store_flat(job, out, (r.row + i) * job->cols + r.col, cols, &row, write, user, err);
        if (status != QF_OK)
            return status;
        row.ints += cols;
    }
    return QF_OK;
}

/* ---- running blocks ---- */

static qf_status run_flat(const qf_job *job, const qf_varint_index *index, uint64_t block,
                          qf_scratch *s, qf_write_fn write, void *user, qf_error *err)
{
    uint64_t total = job->rows * job->cols, first = block * BLOCK;
    size_t n = total - first < BLOCK ? (size_t)(total - first) : BLOCK;
    if (!reserve(s, BLOCK))
        return qf_fail_memory(err);
    qf_source_floats(&job->source, index, job->data_type, first, n, s->values);
    for (size_t done = 0; done < n;) {
        uint64_t row = (first + done) / job->cols, col = (first + done) % job->cols;
        uint64_t left = job->cols - col;
        size_t m = left < n - done ? (size_t)left : n - done;
        bool finite = job->bits ? quantize_piece(job, row, col, m, s->values + done, s->ints + done)
                                : fold_piece(job, row, m, s->values + done);
        if (!finite)
            return refuse_nonfinite(job, row, col, s->values + done, m, err);
        done += m;
    }
    for (int t = 0; t < QF_TARGETS; t++) {
        qf_status status = QF_OK;
        if (job->out[t].placed)
            status = store_flat(job, job->out[t], first, n, s, write, user, err);
        if (status != QF_OK)
            return status;
    }
    return QF_OK;
}

/* Fills s->values with the block, row by row; a transposed source is gathered column by column. */
static void load_region(const qf_job *job, const qf_varint_index *index, region r, qf_scratch *s)
{
    size_t cols = (size_t)r.cols;
    if (!job->transposed) {
        for (size_t i = 0; i < r.rows; i++)
            qf_source_floats(&job->source, index, job->data_type, (r.row + i) * job->cols + r.col,
                             cols, s->values + i * cols);
        return;
    }
    float run[256];
    for (size_t i0 = 0; i0 < r.rows; i0 += 256) {
        size_t m = r.rows - i0 < 256 ? (size_t)r.rows - i0 : 256;
        for (size_t j = 0; j < cols; j++) {
            qf_source_floats(&job->source, index, job->data_type,
                             (r.col + j) * job->rows + r.row + i0, m, run);
            for (size_t i = 0; i < m; i++)
                s->values[(i0 + i) * cols + j] = run[i];
        }
    }
}

qf_status qf_job_run_block(const qf_job *job, const qf_varint_index *index, uint64_t block,
                           qf_scratch *s, qf_write_fn write, void *user, qf_error *err)
{
    if (is_flat(job))
        return run_flat(job, index, block, s, write, user, err);
    region r = block_region(job, block);
    size_t cols = (size_t)r.cols;
    if (!reserve(s, (size_t)r.rows * cols))
        return qf_fail_memory(err);
    load_region(job, index, r, s);
    for (size_t i = 0; i < r.rows; i++) {
        if (!quantize_piece(job, r.row + i, r.col, cols, s->values + i * cols, s->ints + i * cols))
            return refuse_nonfinite(job, r.row + i, r.col, s->values + i * cols, cols, err);
    }
    for (int t = 0; t < QF_TARGETS; t++) {
        qf_status status = QF_OK;
        if (job->out[t].placed)
            status = store_region(job, job->out[t], r, s, write, user, err);
        if (status != QF_OK)
            return status;
    }
    return QF_OK;
}

qf_status qf_copy_run_block(const qf_copy *copy, const qf_varint_index *index, uint64_t block,
                            qf_scratch *s, qf_write_fn write, void *user, qf_error *err)
{
    uint64_t first = block * COPY_BLOCK;
    size_t n = copy->length - first < COPY_BLOCK ? (size_t)(copy->length - first) : COPY_BLOCK;
    const unsigned char *data = copy->source.data + first;
    if (copy->decode) {
        unsigned width = qf_dtype_bits(copy->data_type) / 8;
        if (!reserve(s, COPY_BLOCK))
            return qf_fail_memory(err);
        qf_source_elements(&copy->source, index, width, first / width, n / width, s->bytes);
        data = s->bytes;
    }
    for (int t = 0; t < QF_TARGETS; t++) {
        qf_status status = QF_OK;
        if (copy->out[t].placed)
            status = write(user, copy->out[t].file, copy->out[t].offset + first, data, n, err);
        if (status != QF_OK)
            return status;
    }
    return QF_OK;
}
