/* SPDX-License-Identifier: Apache-2.0 */
#include "exec/run.h"

#include <fenv.h>
#include <omp.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>

#include "base/spill.h"
#include "exec/running.h"

static const uint64_t direct_from = 32 * 1024 * 1024; /* bytes of output */

qf_io qf_io_choose(qf_io wanted, bool synced, uint64_t bytes)
{
    if (wanted != QF_IO_AUTO)
        return wanted;
    return synced && bytes >= direct_from ? QF_IO_DIRECT : QF_IO_PWRITE;
}

double qf_monotonic_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static qf_status prepare(qf_running *r)
{
    qf_status status = qf_varint_indexes_build(r);
    if (status == QF_OK)
        status = qf_memory_fit(r);
    if (status == QF_OK && !qf_items_make(r))
        status = qf_fail_memory(r->err);
    return status;
}

static qf_status run_item(qf_worker *k, const qf_item *it, qf_error *err)
{
    enum { PENDING_MOST = 64 * 1024 * 1024 }; /* bytes whose loss a kill may cost */
    const qf_running *r = k->run;
    qf_status status = QF_OK;
    if (it->count)
        status = qf_piece_run(k, it->piece, it, err);
    for (uint32_t i = 0; !it->count && status == QF_OK && i < it->pieces && !qf_running_is_over(r);
         i++)
        status = qf_piece_run(k, it->piece + i, NULL, err);
    if (!it->count)
        qf_batch_forget(r, it);
    if (status == QF_OK)
        status = qf_sources_check(r, err);
    if (status == QF_OK)
        status = qf_writer_flush(&k->writer, err);
    if (status == QF_OK && k->pending_bytes >= PENDING_MOST)
        status = qf_writer_finish(&k->writer, err);
    if (status == QF_OK && k->pending_count && !k->writer.later_used)
        status = qf_pending_note(k, err);
    return status;
}

static void note_failure(qf_running *r, size_t i, qf_status status, const qf_error *err)
{
    omp_set_lock(&r->lock);
    if (i < atomic_load(&r->failed)) {
        atomic_store(&r->failed, i);
        r->status = status;
        if (r->err)
            *r->err = *err;
    }
    omp_unset_lock(&r->lock);
}

/* Behind the sweep, when no direct write is under way any more. */
static void finish_worker(qf_worker *k)
{
    qf_running *r = k->run;
    qf_error err;
    bool wanted =
        r->work->journal || (!qf_running_is_over(r) && atomic_load(&r->failed) == SIZE_MAX);
    qf_status status = wanted ? qf_writer_finish(&k->writer, &err) : QF_OK;
    if (status == QF_OK && k->pending_count)
        status = qf_pending_note(k, &err);
    if (status != QF_OK)
        note_failure(r, r->count, status, &err);
}

static void sweep(qf_running *r)
{
#pragma omp parallel num_threads(r->scale.threads)
    {
        qf_worker k = {.run = r};
        fenv_t host;
        /* the host program may flush subnormals or round otherwise */
        fegetenv(&host);
        fesetenv(FE_DFL_ENV);
        qf_writer_init(&k.writer, r->stage, r->work->io, r->scale.room);
        bool ready = !r->work->journal || qf_hasher_init(&k.hasher, qf_writer_sink(&k.writer));
        k.scratch.errors = r->work->statistics ? &k.errors : NULL;
        /* what is before the first failure runs, so that it is the one reported */
#pragma omp for schedule(monotonic : dynamic, 1)
        for (size_t i = 0; i < r->count; i++) {
            qf_error err;
            const qf_item *it = &r->items[i];
            if (qf_running_is_over(r) || i > atomic_load(&r->failed))
                continue;
            k.counted = 0;
            qf_worker_report(&k, r->pieces[it->piece]);
            qf_status status = ready ? run_item(&k, it, &err) : qf_fail_memory(&err);
            if (status != QF_OK)
                note_failure(r, i, status, &err);
            qf_worker_count(&k, r->pieces[it->piece], it->bytes - k.counted);
        }
        finish_worker(&k);
        qf_writer_release(&k.writer);
        qf_scratch_release(&k.scratch);
        qf_collector_release(&k.stats);
        if (r->work->journal)
            qf_hasher_release(&k.hasher);
        free(k.pending);
        free(k.input);
        fesetenv(&host);
    }
}

static void release(qf_running *r)
{
    qf_varint_indexes_release(r);
    qf_spill_free(r->items);
    omp_destroy_lock(&r->lock);
}

static qf_status fail_cancelled(const qf_stage *stage, qf_error *err)
{
    return qf_fail_at(err, QF_ERR_CANCELLED, (qf_where){.file = stage->folder},
                      stage->keep
                          ? "interrupted; earlier output is as it was, and --resume goes on "
                            "from what is done"
                          : "interrupted; earlier output is as it was, and nothing of this "
                            "run is left");
}

qf_status qf_work_run(const qf_work *work, const qf_stage *stage, uint64_t *kept, qf_error *err)
{
    qf_running r = {.work = work,
                    .stage = stage,
                    .pieces = work->pieces,
                    .piece_count = work->piece_count,
                    .failed = SIZE_MAX,
                    .faults = qf_guard_faults(),
                    .err = err};
    omp_init_lock(&r.lock);
    qf_status status = prepare(&r);
    if (status == QF_OK && work->progress && !work->progress(0, r.total, "", work->progress_user))
        status = fail_cancelled(stage, err);
    if (status == QF_OK) {
        sweep(&r);
        status = r.status;
        if (status == QF_OK && atomic_load(&r.cancelled))
            status = fail_cancelled(stage, err);
    }
    if (status == QF_OK && work->progress &&
        !work->progress(r.total, r.total, "", work->progress_user))
        status = fail_cancelled(stage, err);
    if (kept)
        *kept = atomic_load(&r.kept);
    release(&r);
    return status;
}
