/* SPDX-License-Identifier: Apache-2.0 */
/* A piece, or the blocks of one that are an item, from its source to the writer. */
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/spill.h"
#include "exec/running.h"

static qf_sink sink_of(qf_worker *k)
{
    return k->run->work->journal ? qf_hasher_sink(&k->hasher) : qf_writer_sink(&k->writer);
}

/* Runs blocks of a piece; `data`, unless NULL, holds what they read of the source. */
static qf_status run_blocks(qf_worker *k, qf_part p, uint64_t first, uint64_t count,
                            const unsigned char *data, qf_error *err)
{
    const qf_running *r = k->run;
    qf_sink sink = sink_of(k);
    qf_status status = QF_OK;
    qf_job job;
    qf_copy copy;
    /* where the span would begin if all of it were there */
    uintptr_t moved = data ? (uintptr_t)data - qf_piece_reads(r, p, first, count).offset : 0;
    if (p.kind == QF_PART_JOB)
        job = k->scales ? qf_job_with_scales(qf_piece_job(r, p), k->scales) : *qf_piece_job(r, p);
    else
        copy = *qf_piece_copy(r, p);
    if (data && p.kind == QF_PART_JOB)
        job.source.data = (const unsigned char *)moved;
    else if (data)
        copy.source.data = (const unsigned char *)moved;
    for (uint64_t b = first; status == QF_OK && b < first + count; b++)
        status = p.kind == QF_PART_JOB
                     ? qf_job_run_block(&job, qf_piece_index(r, p), b, &k->scratch, &sink, err)
                     : qf_copy_run_block(&copy, qf_piece_index(r, p), b, &sink, err);
    return status;
}

/* Runs the blocks of a large item in steps. The source is read from its mapping if it is in the
 * page cache or will be, else past the cache if output goes there too. Pages behind the sweep count
 * as ours until they are dropped; they are clean, so dropping costs nothing but a fault if a
 * neighbour is still to be read. */
static qf_status run_large(qf_worker *k, const qf_item *it, qf_error *err)
{
    const qf_running *r = k->run;
    qf_part p = r->pieces[it->piece];
    const qf_span *span = qf_piece_span(r, p);
    bool plain = !qf_piece_index(r, p)->offsets,
         turned = p.kind == QF_PART_JOB && qf_piece_job(r, p)->transposed;
    qf_range all = qf_piece_reads(r, p, it->first, it->count);
    uint64_t step = r->scale.step / (all.length / it->count + 1) + 1;
    int fd = -1;
    bool brief =
        qf_piece_reads(r, p, it->first, 1).length <= r->scale.step; /* a block's bytes are */
    if (plain && !turned && brief && k->writer.io == QF_IO_DIRECT && !qf_span_is_cached(span, all))
        fd = qf_span_open(r->work, span, O_DIRECT);
    if (plain && fd < 0 && !qf_span_is_cached(span, all))
        qf_span_advise(r, span, all, MADV_WILLNEED);
    qf_status status = QF_OK;
    for (uint64_t done = 0; status == QF_OK && done < it->count; done += step) {
        uint64_t first = it->first + done, n = it->count - done < step ? it->count - done : step;
        const unsigned char *data =
            fd < 0 ? NULL : qf_span_fetch(k, fd, span, qf_piece_reads(r, p, first, n));
        status = run_blocks(k, p, first, n, data, err);
        if (plain && !turned && !data)
            qf_span_advise(r, span, qf_piece_reads(r, p, first, n), MADV_DONTNEED);
        qf_worker_count(k, p, it->bytes / it->count * n);
        if (qf_running_is_over(r))
            break;
    }
    if (turned && plain)
        qf_span_advise(r, span, all, MADV_DONTNEED);
    if (!plain)
        qf_piece_forget_varints(r, p, all);
    if (fd >= 0)
        close(fd);
    return status;
}

static qf_status run_small(qf_worker *k, qf_part p, qf_error *err)
{
    if (p.kind != QF_PART_LITERAL)
        return run_blocks(k, p, 0, qf_piece_blocks(k->run, p), NULL, err);
    const qf_literal *l = &k->run->work->layout->literals[p.index];
    return qf_writer_put(&k->writer, l->target, l->file, l->offset, l->data, l->length, err);
}

/* ---- scales before weights ---- */

/* The first pass of a job in two: its scales. The source stays in the page cache for the second. */
static qf_status find_scales(qf_worker *k, qf_part p, qf_error *err)
{
    const qf_running *r = k->run;
    const qf_job *job = qf_piece_job(r, p);
    uint64_t blocks = qf_piece_blocks(r, p), step = r->scale.step / QF_ROOM + 1;
    qf_sink sink = sink_of(k);
    qf_status status = QF_OK;
    k->scales = qf_spill_alloc((size_t)qf_job_scale_count(job) * sizeof *k->scales);
    if (!k->scales)
        return qf_fail_memory(err);
    if (!qf_span_is_cached(qf_piece_span(r, p), qf_piece_reads(r, p, 0, blocks)))
        qf_span_advise(r, qf_piece_span(r, p), qf_piece_reads(r, p, 0, blocks), MADV_WILLNEED);
    for (uint64_t b = 0; status == QF_OK && b < blocks && !qf_running_is_over(r); b++) {
        status = qf_job_find_largest(job, qf_piece_index(r, p), b, &k->scratch, k->scales, err);
        uint64_t from = b / step * step;
        if ((b + 1) % step == 0 && !qf_piece_index(r, p)->offsets)
            qf_span_advise(r, qf_piece_span(r, p), qf_piece_reads(r, p, from, step), MADV_DONTNEED);
    }
    if (status == QF_OK)
        status = qf_job_store_scales(job, k->scales, &sink, err);
    if (status == QF_OK)
        qf_collect_scales(k->scratch.stats, k->scales, (size_t)qf_job_scale_count(job));
    return status;
}

/* ---- a piece ---- */

qf_status qf_piece_make(qf_worker *k, qf_part p, const qf_item *it, qf_error *err)
{
    const qf_running *r = k->run;
    const qf_copy *copy = qf_piece_copy(r, p);
    qf_status status = QF_OK;
    if (it && copy && qf_copy_in_kernel(k, copy, it))
        return QF_OK;
    if (p.kind == QF_PART_JOB && qf_job_two_pass(qf_piece_job(r, p)))
        status = find_scales(k, p, err);
    if (status == QF_OK && !qf_running_is_over(r))
        status = it ? run_large(k, it, err) : run_small(k, p, err);
    qf_spill_free(k->scales);
    k->scales = NULL;
    return status;
}
