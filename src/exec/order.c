/* SPDX-License-Identifier: Apache-2.0 */
#include "exec/order.h"

#include <stdlib.h>

#include "base/spill.h"

/* A piece as one target has it. */
typedef struct segment {
    uint64_t offset;
    int file;
    qf_part piece;
    bool both; /* the other target has it too */
} segment;

typedef struct segments {
    segment *items;
    size_t count, cap;
} segments;

typedef struct orderer {
    segments targets[QF_TARGETS];
    qf_part *out;
    size_t count;
} orderer;

static bool add(orderer *o, qf_part piece, const qf_job_output out[QF_TARGETS])
{
    for (int t = 0; t < QF_TARGETS; t++) {
        segments *s = &o->targets[t];
        if (!out[t].placed)
            continue;
        if (!qf_table_grow((void **)&s->items, &s->cap, s->count + 1, sizeof *s->items))
            return false;
        s->items[s->count++] = (segment){out[t].offset, out[t].file, piece, out[!t].placed};
    }
    return true;
}

static qf_part piece_of(qf_part_kind kind, qf_target target, size_t index)
{
    return (qf_part){.kind = (unsigned)kind & 3u,
                     .target = (unsigned)target & 1u,
                     .index = (uint32_t)index & QF_PART_INDEX_MAX};
}

static bool collect(orderer *o, qf_job *const *jobs, size_t job_count, const qf_layout *layout)
{
    bool ok = true;
    for (size_t i = 0; ok && i < layout->literal_count; i++) {
        const qf_literal *l = &layout->literals[i];
        qf_job_output out[QF_TARGETS] = {{0}, {0}};
        out[l->target] = (qf_job_output){.file = l->file, .offset = l->offset, .placed = true};
        ok = add(o, piece_of(QF_PART_LITERAL, l->target, i), out);
    }
    for (size_t i = 0; ok && i < layout->copy_count; i++)
        ok = add(o, piece_of(QF_PART_COPY, 0, i), layout->copies[i].out);
    for (size_t i = 0; ok && i < job_count; i++)
        ok = add(o, piece_of(QF_PART_JOB, 0, i), jobs[i]->out);
    return ok;
}

static int by_place(const void *a, const void *b)
{
    const segment *x = a, *y = b;
    if (x->file != y->file)
        return x->file < y->file ? -1 : 1;
    return x->offset < y->offset ? -1 : x->offset > y->offset;
}

/* Where a piece that both targets have stands in the second one's list. */
static size_t find(const segments *s, int file, uint64_t offset)
{
    size_t low = 0, high = s->count;
    while (low < high) {
        size_t mid = low + (high - low) / 2;
        const segment key = {.offset = offset, .file = file};
        if (by_place(&s->items[mid], &key) < 0)
            low = mid + 1;
        else
            high = mid;
    }
    return low;
}

/* The second target's own pieces in [from, to). */
static void emit_own(orderer *o, size_t from, size_t to)
{
    for (size_t i = from; i < to; i++) {
        if (!o->targets[1].items[i].both)
            o->out[o->count++] = o->targets[1].items[i].piece;
    }
}

/* Goes along the first target's files; before a piece that the second has too comes what the second
 * has before it. */
static void merge(orderer *o, qf_job *const *jobs, const qf_layout *layout)
{
    const segments *first = &o->targets[0], *second = &o->targets[1];
    size_t next = 0;
    for (size_t i = 0; i < first->count; i++) {
        qf_part p = first->items[i].piece;
        if (first->items[i].both) {
            const qf_job_output *out =
                p.kind == QF_PART_JOB ? &jobs[p.index]->out[1] : &layout->copies[p.index].out[1];
            size_t at = find(second, out->file, out->offset);
            if (at >= next) {
                emit_own(o, next, at);
                next = at + 1;
            }
        }
        o->out[o->count++] = p;
    }
    emit_own(o, next, second->count);
}

qf_status qf_order_build(qf_job *const *jobs, size_t job_count, const qf_layout *layout,
                         qf_part **out, size_t *count, qf_error *err)
{
    orderer o = {0};
    size_t total = job_count + layout->copy_count + layout->literal_count;
    qf_status status = QF_OK;
    if (total > QF_PART_INDEX_MAX)
        return qf_fail(err, QF_ERR_INPUT, "the model has too many tensors (%zu)", total);
    o.out = qf_spill_alloc((total + 1) * sizeof *o.out);
    if (o.out && collect(&o, jobs, job_count, layout)) {
        for (int t = 0; t < QF_TARGETS; t++) {
            if (o.targets[t].count)
                qsort(o.targets[t].items, o.targets[t].count, sizeof *o.targets[t].items, by_place);
        }
        merge(&o, jobs, layout);
    } else {
        qf_spill_free(o.out);
        status = qf_fail_memory(err);
    }
    for (int t = 0; t < QF_TARGETS; t++)
        qf_spill_free(o.targets[t].items);
    if (status == QF_OK) {
        *out = o.out;
        *count = o.count;
    }
    return status;
}

void qf_part_places(qf_part part, qf_job *const *jobs, const qf_layout *layout,
                    qf_place out[QF_SLOTS])
{
    for (int i = 0; i < QF_SLOTS; i++)
        out[i] = (qf_place){0};
    if (part.kind == QF_PART_LITERAL) {
        const qf_literal *l = &layout->literals[part.index];
        out[l->target] = (qf_place){l->file, l->offset, l->length, true};
        return;
    }
    for (int t = 0; t < QF_TARGETS; t++) {
        const qf_job *job = part.kind == QF_PART_JOB ? jobs[part.index] : NULL;
        const qf_copy *copy = job ? NULL : &layout->copies[part.index];
        const qf_job_output *o = job ? &job->out[t] : &copy->out[t];
        if (o->placed)
            out[t] = (qf_place){o->file, o->offset,
                                job ? qf_job_bytes(job, o->format) : copy->length, true};
        if (job && job->found && job->found->out[t].placed)
            out[QF_TARGETS + t] = (qf_place){job->found->out[t].file, job->found->out[t].offset,
                                             qf_job_scale_bytes(job), true};
    }
}
