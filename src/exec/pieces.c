/* SPDX-License-Identifier: Apache-2.0 */
/* What a run knows of its pieces: what they are made of, where they go, and how their source is
 * read. */
#include <stdlib.h>
#include <sys/mman.h>

#include "exec/running.h"

const qf_job *qf_piece_job(const qf_running *r, qf_part p)
{
    return p.kind == QF_PART_JOB ? r->work->jobs[p.index] : NULL;
}

const qf_copy *qf_piece_copy(const qf_running *r, qf_part p)
{
    return p.kind == QF_PART_COPY ? &r->work->layout->copies[p.index] : NULL;
}

const qf_span *qf_piece_span(const qf_running *r, qf_part p)
{
    return p.kind == QF_PART_JOB ? &qf_piece_job(r, p)->source : &qf_piece_copy(r, p)->source;
}

const qf_varint_index *qf_piece_index(const qf_running *r, qf_part p)
{
    static const qf_varint_index none;
    const qf_varint_index *indexes = p.kind == QF_PART_JOB    ? r->job_indexes
                                     : p.kind == QF_PART_COPY ? r->copy_indexes
                                                              : NULL;
    return indexes ? &indexes[p.index] : &none;
}

uint64_t qf_piece_blocks(const qf_running *r, qf_part p)
{
    return p.kind == QF_PART_JOB ? qf_job_blocks(qf_piece_job(r, p))
                                 : qf_copy_blocks(qf_piece_copy(r, p));
}

uint64_t qf_piece_bytes(const qf_running *r, qf_part p, uint64_t *largest)
{
    qf_place places[QF_SLOTS];
    uint64_t sum = 0;
    *largest = 0;
    qf_part_places(p, r->work->jobs, r->work->layout, places);
    for (int i = 0; i < QF_SLOTS; i++) {
        sum += places[i].length;
        *largest = places[i].length > *largest ? places[i].length : *largest;
    }
    return sum;
}

qf_range qf_piece_reads(const qf_running *r, qf_part p, uint64_t first, uint64_t count)
{
    return p.kind == QF_PART_JOB ? qf_job_reads(qf_piece_job(r, p), first, count)
                                 : qf_copy_reads(qf_piece_copy(r, p), first, count);
}

/* ---- indexes of varints ---- */

qf_status qf_varint_indexes_build(qf_running *r)
{
    const qf_work *w = r->work;
    bool any = false;
    for (size_t i = 0; i < w->job_count; i++)
        any |= qf_field_is_varint(w->jobs[i]->source.field);
    for (size_t i = 0; i < w->layout->copy_count; i++)
        any |= w->layout->copies[i].decode;
    if (!any)
        return QF_OK;
    r->job_indexes = calloc(w->job_count + 1, sizeof *r->job_indexes);
    r->copy_indexes = calloc(w->layout->copy_count + 1, sizeof *r->copy_indexes);
    if (!r->job_indexes || !r->copy_indexes)
        return qf_fail_memory(r->err);
    qf_status status = QF_OK;
    for (size_t i = 0; status == QF_OK && i < w->job_count; i++) {
        const qf_job *job = w->jobs[i];
        status = qf_varint_index_build(&job->source,
                                       qf_varint_count(job->data_type, job->rows * job->cols),
                                       job->file, job->tensor, &r->job_indexes[i], r->err);
        if (r->job_indexes[i].offsets)
            qf_span_advise(r, &job->source, (qf_range){0, job->source.length}, MADV_DONTNEED);
    }
    for (size_t i = 0; status == QF_OK && i < w->layout->copy_count; i++) {
        const qf_copy *c = &w->layout->copies[i];
        if (c->decode)
            status =
                qf_varint_index_build(&c->source, c->length / (qf_dtype_bits(c->data_type) / 8),
                                      c->file, c->tensor, &r->copy_indexes[i], r->err);
        if (r->copy_indexes[i].offsets)
            qf_span_advise(r, &c->source, (qf_range){0, c->source.length}, MADV_DONTNEED);
    }
    return status;
}

void qf_varint_indexes_release(qf_running *r)
{
    for (size_t i = 0; r->job_indexes && i < r->work->job_count; i++)
        qf_varint_index_release(&r->job_indexes[i]);
    for (size_t i = 0; r->copy_indexes && i < r->work->layout->copy_count; i++)
        qf_varint_index_release(&r->copy_indexes[i]);
    free(r->job_indexes);
    free(r->copy_indexes);
}
