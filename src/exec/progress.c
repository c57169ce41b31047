/* SPDX-License-Identifier: Apache-2.0 */
/* How far a run has come, as its caller is told, who may call it off. */
#include <omp.h>

#include "exec/running.h"

static const char *name_of(const qf_running *r, qf_part p)
{
    return p.kind == QF_PART_JOB    ? qf_piece_job(r, p)->tensor
           : p.kind == QF_PART_COPY ? qf_piece_copy(r, p)->tensor
                                    : "(graph)";
}

void qf_worker_report(qf_worker *k, qf_part p)
{
    qf_running *r = k->run;
    const qf_work *w = r->work;
    if (!w->progress || omp_get_thread_num() != 0 || qf_monotonic_seconds() - k->last < 0.1)
        return;
    k->last = qf_monotonic_seconds();
    if (!w->progress(atomic_load(&r->done), r->total, name_of(r, p), w->progress_user))
        atomic_store(&r->cancelled, true);
}

bool qf_running_is_over(const qf_running *r)
{
    return atomic_load(&r->cancelled);
}

void qf_worker_count(qf_worker *k, qf_part p, uint64_t bytes)
{
    atomic_fetch_add(&k->run->done, bytes);
    k->counted += bytes;
    qf_worker_report(k, p);
}
