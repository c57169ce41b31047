/* SPDX-License-Identifier: Apache-2.0 */
#include "exec/extent.h"

#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "exec/source.h"
#include "kernels.h"

enum {
    PIECE = 1024 * 1024, /* elements that a thread takes at once */
    CHUNK = 16 * 1024    /* elements that are converted at once */
};

/* A source as a matrix whose scale goes by row, by column or, with one scale, by neither. Of a
 * transposed job it is the matrix as stored. */
typedef struct matrix {
    const qf_job *job;
    qf_varint_index index;
    uint64_t rows, cols;
    bool turned;
} matrix;

static uint64_t scale_of(const matrix *m, uint64_t row, uint64_t col)
{
    const qf_job *j = m->job;
    if (j->scale_count == 1)
        return 0;
    if (m->turned)
        return row;
    return row / j->row_div * j->row_mul + row % j->row_mod + (j->col_div ? col / j->col_div : 0);
}

static bool scale_by_column(const matrix *m)
{
    return m->job->scale_count > 1 && !m->turned && m->job->col_div == 1;
}

/* How many elements from (row, col) on share a scale, within the row. */
static uint64_t same_scale(const matrix *m, uint64_t col)
{
    uint64_t left = m->cols - col, div = m->turned ? 0 : m->job->col_div;
    if (m->job->scale_count == 1 || !div)
        return left;
    return div - col % div < left ? div - col % div : left;
}

/* Elements as float32: in place, or in `room`. */
static const void *values_at(const matrix *m, uint64_t first, size_t n, float *room)
{
    const qf_job *j = m->job;
    if (j->data_type == ONNX__TENSOR_PROTO__DATA_TYPE__FLOAT && !m->index.offsets)
        return j->source.data + first * sizeof(float);
    qf_source_floats(&j->source, &m->index, j->data_type, first, n, room);
    return room;
}

/* Least and greatest of elements [first, first + n), into arrays with one value a scale. False if
 * an element is not finite. */
static bool find_in(const matrix *m, uint64_t first, uint64_t n, float *room, float *min,
                    float *max)
{
    const qf_kernels *k = qf_kernels_get();
    bool finite = true;
    for (uint64_t done = 0; done < n;) {
        uint64_t row = (first + done) / m->cols, col = (first + done) % m->cols;
        bool columns = scale_by_column(m);
        uint64_t run = columns ? m->cols - col : same_scale(m, col);
        run = run < n - done ? run : n - done;
        run = run < CHUNK ? run : CHUNK;
        const void *x = values_at(m, first + done, (size_t)run, room);
        uint64_t scale = scale_of(m, row, col);
        finite &=
            (columns ? k->minmax_columns : k->minmax)(x, (size_t)run, min + scale, max + scale);
        done += run;
    }
    return finite;
}

static void merge(qf_extent *e, const float *min, const float *max)
{
    for (size_t i = 0; i < e->job->scale_count; i++) {
        e->min[i] = min[i] < e->min[i] ? min[i] : e->min[i];
        e->max[i] = max[i] > e->max[i] ? max[i] : e->max[i];
    }
}

static qf_status refuse_value(const matrix *m, qf_error *err)
{
    const qf_job *j = m->job;
    for (uint64_t i = 0; i < m->rows * m->cols; i++) {
        float x;
        qf_source_floats(&j->source, &m->index, j->data_type, i, 1, &x);
        if (!isfinite(x))
            return qf_fail_at(err, QF_ERR_INPUT, (qf_where){.file = j->file, .item = j->layer},
                              "weight tensor '%s' holds %g at element %llu, which cannot be "
                              "quantized; look at the training run",
                              j->tensor, (double)x, (unsigned long long)i);
    }
    return qf_fail_at(err, QF_ERR_INPUT, (qf_where){.file = j->file, .item = j->layer},
                      "weight tensor '%s' changed while it was read", j->tensor);
}

static void fill(float *values, size_t n, float value)
{
    for (size_t i = 0; i < n; i++)
        values[i] = value;
}

/* One thread's part of a matrix: every piece that it gets, then one merge. */
typedef struct worker {
    float *room, *min, *max;
} worker;

static bool worker_init(worker *w, size_t scales)
{
    w->room = malloc(CHUNK * sizeof *w->room);
    w->min = malloc(scales * sizeof *w->min);
    w->max = malloc(scales * sizeof *w->max);
    if (!w->room || !w->min || !w->max)
        return false;
    fill(w->min, scales, INFINITY);
    fill(w->max, scales, -INFINITY);
    return true;
}

static void worker_release(worker *w)
{
    free(w->room);
    free(w->min);
    free(w->max);
}

static void let_go(const matrix *m, const qf_file *sources, uint64_t first, uint64_t n)
{
    const qf_job *j = m->job;
    if (m->index.offsets)
        return;
    unsigned width = qf_dtype_bits(j->data_type) / 8;
    const unsigned char *from = j->source.data + first * width;
    qf_file_advise(&sources[j->source.file], from, from + n * width, MADV_DONTNEED);
}

static qf_status find(qf_extent *e, const matrix *m, const qf_file *sources, int threads,
                      qf_error *err)
{
    uint64_t total = m->rows * m->cols, pieces = (total + PIECE - 1) / PIECE;
    bool memory = true, finite = true;
    if (pieces < (uint64_t)threads)
        threads = (int)pieces; /* NOLINT(clang-analyzer-deadcode.DeadStores): the pragma reads it */
#pragma omp parallel num_threads(threads) reduction(&& : memory, finite)
    {
        worker w;
        memory = worker_init(&w, e->job->scale_count);
#pragma omp for schedule(dynamic)
        for (uint64_t i = 0; i < pieces; i++) {
            uint64_t first = i * PIECE, n = total - first < PIECE ? total - first : PIECE;
            if (!memory)
                continue;
            finite = find_in(m, first, n, w.room, w.min, w.max) && finite;
            if (total > PIECE)
                let_go(m, sources, first, n);
        }
#pragma omp critical /* a name would be a symbol of the library */
        if (memory)
            merge(e, w.min, w.max);
        worker_release(&w);
    }
    if (!memory)
        return qf_fail_memory(err);
    return finite ? QF_OK : refuse_value(m, err);
}

qf_status qf_extents_find(qf_extent *extents, size_t count, const qf_file *sources, int threads,
                          qf_error *err)
{
    qf_status status = QF_OK;
    threads = threads > 0 ? threads : omp_get_max_threads();
    for (size_t i = 0; status == QF_OK && i < count; i++) {
        qf_extent *e = &extents[i];
        const qf_job *j = e->job;
        matrix m = {.job = j, .rows = j->rows, .cols = j->cols, .turned = j->transposed};
        if (m.turned) {
            m.rows = j->cols;
            m.cols = j->rows;
        }
        fill(e->min, j->scale_count, INFINITY);
        fill(e->max, j->scale_count, -INFINITY);
        status = qf_varint_index_build(&j->source, qf_varint_count(j->data_type, m.rows * m.cols),
                                       j->file, j->tensor, &m.index, err);
        if (status == QF_OK)
            status = find(e, &m, sources, threads, err);
        qf_varint_index_release(&m.index);
    }
    return status;
}
