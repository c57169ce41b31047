/* SPDX-License-Identifier: Apache-2.0 */
#include "exec/run.h"

#include <omp.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

/* A few blocks of one job or copy: what a thread takes at a time. */
typedef struct item {
    const qf_job *job;
    const qf_copy *copy;
    const qf_varint_index *index;
    uint64_t first, count;
    uint64_t bytes; /* written */
} item;

typedef struct run {
    const qf_work *work;
    const qf_stage *stage;
    item *items;
    size_t count, cap;
    qf_varint_index *indexes;
    uint64_t total;
    _Atomic uint64_t done;
    _Atomic bool stop;
    omp_lock_t lock; /* guards what follows; a critical section would export a symbol */
    size_t failed;   /* item of the error held, SIZE_MAX if none */
    qf_status status;
    qf_error *err;
} run;

enum { BLOCKS_PER_ITEM = 16, DROP_BYTES = 1024 * 1024 };

static uint64_t output_bytes(const qf_job *job)
{
    uint64_t n = 0;
    for (int t = 0; t < QF_TARGETS; t++)
        n += job->out[t].placed ? qf_job_bytes(job, job->out[t].format) : 0;
    return n;
}

static uint64_t copied_bytes(const qf_copy *copy)
{
    return copy->length * (uint64_t)(copy->out[0].placed + copy->out[1].placed);
}

static bool add_items(run *r, item model, uint64_t blocks, uint64_t bytes)
{
    r->total += bytes;
    for (uint64_t first = 0; first < blocks; first += BLOCKS_PER_ITEM) {
        if (!qf_grow((void **)&r->items, &r->cap, r->count + 1, sizeof *r->items))
            return false;
        uint64_t left = blocks - first;
        model.first = first;
        model.count = left < BLOCKS_PER_ITEM ? left : BLOCKS_PER_ITEM;
        model.bytes = bytes / blocks * model.count + (left <= BLOCKS_PER_ITEM ? bytes % blocks : 0);
        r->items[r->count++] = model;
    }
    return true;
}

static qf_status prepare(run *r)
{
    const qf_work *w = r->work;
    r->indexes = calloc(w->job_count + w->copy_count + 1, sizeof *r->indexes);
    if (!r->indexes)
        return qf_fail_memory(r->err);
    for (size_t i = 0; i < w->job_count; i++) {
        const qf_job *job = w->jobs[i];
        qf_varint_index *index = &r->indexes[i];
        qf_status status = qf_varint_index_build(&job->source, job->rows * job->cols, job->file,
                                                 job->tensor, index, r->err);
        if (status != QF_OK)
            return status;
        if (!add_items(r, (item){.job = job, .index = index}, qf_job_blocks(job),
                       output_bytes(job)))
            return qf_fail_memory(r->err);
    }
    for (size_t i = 0; i < w->copy_count; i++) {
        const qf_copy *copy = &w->copies[i];
        qf_varint_index *index = &r->indexes[w->job_count + i];
        qf_status status = QF_OK;
        if (copy->decode)
            status = qf_varint_index_build(&copy->source,
                                           copy->length / (qf_dtype_bits(copy->data_type) / 8),
                                           copy->file, copy->tensor, index, r->err);
        if (status != QF_OK)
            return status;
        if (!add_items(r, (item){.copy = copy, .index = index}, qf_copy_blocks(copy),
                       copied_bytes(copy)))
            return qf_fail_memory(r->err);
    }
    return QF_OK;
}

static qf_status write_out(void *user, int file, uint64_t offset, const void *data, size_t n,
                           qf_error *err)
{
    return qf_stage_write(user, (size_t)file, offset, data, n, err);
}

/* Pages of the source behind the sweep count as ours until they are dropped. They are clean, so
 * dropping costs nothing but a fault if a neighbour is still to be read. */
static void drop_source(const qf_span *source, uint64_t first, uint64_t length)
{
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t from = ((uintptr_t)source->data + first + page - 1) & ~(page - 1);
    uintptr_t to = ((uintptr_t)source->data + first + length) & ~(page - 1);
    if (to > from && to - from >= DROP_BYTES)
        madvise((void *)from, to - from, MADV_DONTNEED);
}

static qf_status run_item(const run *r, const item *it, qf_scratch *scratch, qf_error *err)
{
    qf_status status = QF_OK;
    for (uint64_t b = it->first; status == QF_OK && b < it->first + it->count; b++) {
        if (it->job)
            status =
                qf_job_run_block(it->job, it->index, b, scratch, write_out, (void *)r->stage, err);
        else
            status = qf_copy_run_block(it->copy, it->index, b, scratch, write_out, (void *)r->stage,
                                       err);
    }
    const qf_span *source = it->job ? &it->job->source : &it->copy->source;
    uint64_t blocks = it->job ? qf_job_blocks(it->job) : qf_copy_blocks(it->copy);
    if (!it->index->offsets && !(it->job && it->job->transposed))
        drop_source(source, source->length / blocks * it->first,
                    source->length / blocks * it->count);
    return status;
}

static const char *item_name(const item *it)
{
    return it->job ? it->job->tensor : it->copy->tensor;
}

double qf_monotonic_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* Only the calling thread reports, so that callers need no locks. */
static void report(run *r, const item *it, double *last)
{
    const qf_work *w = r->work;
    if (!w->progress || omp_get_thread_num() != 0 || qf_monotonic_seconds() - *last < 0.1)
        return;
    *last = qf_monotonic_seconds();
    if (!w->progress(atomic_load(&r->done), r->total, item_name(it), w->progress_user))
        atomic_store(&r->stop, true);
}

static void note_failure(run *r, size_t i, qf_status status, const qf_error *err)
{
    atomic_store(&r->stop, true);
    omp_set_lock(&r->lock);
    if (i < r->failed) {
        r->failed = i;
        r->status = status;
        if (r->err)
            *r->err = *err;
    }
    omp_unset_lock(&r->lock);
}

static void sweep(run *r)
{
    int threads = r->work->threads > 0 ? r->work->threads : omp_get_max_threads();
#pragma omp parallel num_threads(threads)
    {
        qf_scratch scratch = {0};
        double last = 0;
#pragma omp for schedule(dynamic, 1)
        for (size_t i = 0; i < r->count; i++) {
            qf_error err;
            if (atomic_load(&r->stop))
                continue;
            report(r, &r->items[i], &last);
            qf_status status = run_item(r, &r->items[i], &scratch, &err);
            if (status != QF_OK)
                note_failure(r, i, status, &err);
            atomic_fetch_add(&r->done, r->items[i].bytes);
        }
        qf_scratch_release(&scratch);
    }
}

qf_status qf_work_run(const qf_work *work, const qf_stage *stage, qf_error *err)
{
    run r = {.work = work, .stage = stage, .failed = SIZE_MAX, .err = err};
    omp_init_lock(&r.lock);
    qf_status status = prepare(&r);
    if (status == QF_OK && work->progress && !work->progress(0, r.total, "", work->progress_user))
        status = qf_fail(err, QF_ERR_CANCELLED, "cancelled");
    if (status == QF_OK) {
        sweep(&r);
        status = r.status;
        if (status == QF_OK && atomic_load(&r.stop))
            status = qf_fail(err, QF_ERR_CANCELLED, "cancelled");
    }
    if (status == QF_OK && work->progress &&
        !work->progress(r.total, r.total, "", work->progress_user))
        status = qf_fail(err, QF_ERR_CANCELLED, "cancelled");
    for (size_t i = 0; r.indexes && i < work->job_count + work->copy_count; i++)
        qf_varint_index_release(&r.indexes[i]);
    omp_destroy_lock(&r.lock);
    free(r.indexes);
    free(r.items);
    return status;
}
