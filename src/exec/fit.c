/* SPDX-License-Identifier: Apache-2.0 */
/* How much a run works with at once: threads, buffers and items that fit the memory limit. */
#include <inttypes.h>
#include <omp.h>

#include "base/memory.h"
#include "exec/running.h"

enum {
    ROOM_LEAST = 2 * QF_ROOM,
    SCRATCH = 4 * 1024 * 1024, /* bytes a thread needs besides its buffers, generously */
    IO_THREADS = 3, /* threads a core in direct I/O, where the others wait while one calculates */
};

/* Bytes of the source that transposed jobs keep mapped: a stripe for each thread. Threads that are
 * at the same job share them, and jobs of many items have all threads at two of them at most. */
static uint64_t stripes(const qf_running *r, int threads)
{
    uint64_t most = 0;
    uint64_t few_items = 4 * (r->scale.room > QF_ITEM_BYTES ? r->scale.room : QF_ITEM_BYTES);
    for (size_t i = 0; i < r->work->job_count; i++) {
        const qf_job *job = r->work->jobs[i];
        uint64_t n = qf_job_mapped(job) * (uint64_t)threads, two = 2 * job->source.length;
        if (two > few_items * (uint64_t)threads && n > two)
            n = two;
        most = n > most ? n : most;
    }
    return most;
}

/* Large items have fewer ragged ends; small ones keep all threads busy to the end. */
static uint64_t item_bytes(const qf_running *r)
{
    enum { SHARES = 16 };
    uint64_t least = r->scale.room > QF_ITEM_BYTES ? r->scale.room : QF_ITEM_BYTES;
    uint64_t most = least, total = 0;
    for (size_t i = 0; i < r->stage->count; i++)
        total += r->stage->files[i].size;
    if (r->work->io == QF_IO_DIRECT)
        most = 4 * least;
    total /= SHARES * (uint64_t)r->scale.threads;
    return total < least ? least : total > most ? most : total;
}

static size_t halved(size_t n)
{
    n = n / 2 / QF_DIRECT_ALIGN * QF_DIRECT_ALIGN;
    return n > ROOM_LEAST ? n : ROOM_LEAST;
}

/* As many as were asked for; else all cores, but for small output no more than it keeps busy: to
 * start and to gather threads costs more than to write some hundred kilobytes. */
static int choose_threads(const qf_running *r)
{
    enum { EACH = 512 * 1024 };
    uint64_t total = 0;
    if (r->work->threads > 0)
        return r->work->threads;
    for (size_t i = 0; i < r->stage->count; i++)
        total += r->stage->files[i].size;
    int most = omp_get_max_threads();
    return total / EACH < (uint64_t)most ? (int)(total / EACH) + 1 : most;
}

qf_status qf_memory_fit(qf_running *r)
{
    const qf_work *w = r->work;
    uint64_t resident = qf_memory_resident(), limit = w->memory_limit;
    bool direct = w->io == QF_IO_DIRECT;
    qf_running_scale *s = &r->scale;
    s->threads = choose_threads(r) * (direct ? IO_THREADS : 1);
    s->room = qf_writer_room(w->io);
    s->step = QF_STEP_BYTES;
    if (!limit) {
        limit = qf_memory_available() / 4;
        resident = resident < limit / 2 ? resident : limit / 2; /* the host program's own */
    }
    for (;;) {
        uint64_t each = QF_TARGETS * (s->room + QF_DIRECT_ALIGN) + SCRATCH + 2 * s->step;
        uint64_t need = resident + each * (uint64_t)s->threads + stripes(r, s->threads);
        bool least = s->room <= ROOM_LEAST && s->step <= ROOM_LEAST && s->threads == 1;
        if (need <= limit || (least && !w->memory_limit)) { /* nobody asked for less than that */
            s->out = item_bytes(r);
            return QF_OK;
        }
        if (s->room > ROOM_LEAST || s->step > ROOM_LEAST) {
            s->room = halved(s->room);
            s->step = halved((size_t)s->step);
        } else if (s->threads > 1) {
            s->threads /= 2;
        } else {
            return qf_fail(r->err, QF_ERR_INPUT,
                           "the memory limit of %" PRIu64 " bytes is too low: %" PRIu64
                           " are resident before the first weight is read, and a thread needs "
                           "%" PRIu64 " more; raise the limit to %" PRIu64,
                           limit, resident, need - resident, need);
        }
    }
}
