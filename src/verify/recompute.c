/* SPDX-License-Identifier: Apache-2.0 */
/* Runs the jobs of a plan with a sink that compares in place of one that writes. */
#include <fenv.h>
#include <omp.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/spill.h"
#include "verify/against.h"
#include "verify/finding.h"
#include "verify/reading.h"

enum { ITEM_BLOCKS = 32 };

typedef struct item {
    size_t job;
    uint64_t first, count;
} item;

typedef struct sweep {
    qf_against *against;
    qf_plan *plan;
    qf_claims *claims;
    qf_varint_index *indexes; /* by job */
    item *items;
    size_t count, cap;
    _Atomic uint64_t bytes;
    _Atomic bool over;
    omp_lock_t lock; /* guards claims and what follows */
    qf_status status;
} sweep;

/* Bytes that a block made and that are not compared yet. */
typedef struct room {
    unsigned char *bytes;
    int file;
    uint64_t offset;
    size_t length;
} room;

typedef struct worker {
    sweep *sweep;
    qf_scratch scratch;
    room rooms[QF_SLOTS];
} worker;

/* ---- comparing ---- */

static int by_place(const void *a, const void *b)
{
    const qf_claim *x = a, *y = b;
    if (x->file != y->file)
        return x->file < y->file ? -1 : 1;
    return x->offset < y->offset ? -1 : x->offset > y->offset;
}

/* The first of the claims that a byte at a place belongs to; those at the same place follow. */
static size_t find_claim(const qf_claims *claims, int file, uint64_t offset)
{
    size_t low = 0, high = claims->count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        const qf_claim *c = &claims->items[middle];
        if (c->file < file || (c->file == file && c->offset + c->length <= offset))
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static void note_difference(qf_claim *c, uint64_t at, const unsigned char *wanted,
                            const unsigned char *got, size_t n)
{
    unsigned width = qf_dtype_bits(c->tensor->data_type) / 8;
    size_t i = 0;
    while (wanted[i] == got[i])
        i++;
    width = width && width <= 8 ? width : 1;
    i = i / width * width; /* both begin with a whole element */
    if (at + i >= c->differs || n - i < width)
        return;
    c->differs = at + i;
    memcpy(c->wanted, wanted + i, width);
    memcpy(c->got, got + i, width);
}

/* A claim that is stored as varints has one buffer for all threads. */
static void compare_claim(worker *k, qf_claim *c, const room *r)
{
    sweep *s = k->sweep;
    uint64_t at = r->offset - c->offset;
    bool alone = c->reading->index.offsets != NULL;
    if (alone)
        omp_set_lock(&s->lock);
    const unsigned char *got = qf_reading_at(c->reading, at, r->length);
    bool equal = got && memcmp(got, r->bytes, r->length) == 0;
    if (!equal && !alone)
        omp_set_lock(&s->lock);
    if (got && !equal)
        note_difference(c, at, r->bytes, got, r->length);
    if (!got)
        s->status = qf_fail_memory(s->against->err);
    if (!equal || alone)
        omp_unset_lock(&s->lock);
    if (equal)
        qf_reading_drop(c->reading, at, r->length);
}

static void compare_room(worker *k, room *r)
{
    qf_claims *claims = k->sweep->claims;
    for (size_t i = find_claim(claims, r->file, r->offset); r->length && i < claims->count; i++) {
        qf_claim *c = &claims->items[i];
        if (c->file != r->file || c->offset > r->offset)
            break;
        if (r->length <= c->length && r->offset - c->offset <= c->length - r->length)
            compare_claim(k, c, r);
    }
    atomic_fetch_add(&k->sweep->bytes, r->length);
    r->length = 0;
}

static qf_status give_room(void *user, int slot, int file, uint64_t offset, size_t n,
                           unsigned char **at, qf_error *err)
{
    worker *k = user;
    room *r = &k->rooms[slot];
    compare_room(k, r);
    if (!r->bytes)
        r->bytes = malloc(QF_ROOM);
    if (!r->bytes)
        return qf_fail_memory(err);
    r->file = file;
    r->offset = offset;
    r->length = n;
    *at = r->bytes;
    return QF_OK;
}

/* ---- running ---- */

static void forget_source(const sweep *s, const qf_job *job, uint64_t first, uint64_t count)
{
    if (qf_field_is_varint(job->source.field))
        return;
    qf_range range = qf_job_reads(job, first, count);
    const unsigned char *from = job->source.data + range.offset;
    qf_file_advise(&s->plan->model->files[job->source.file], from, from + range.length,
                   MADV_DONTNEED);
}

/* The first pass of a job in two. */
static qf_status find_scales(worker *k, const qf_job *job, const qf_varint_index *index,
                             const qf_sink *sink, float *scales, qf_error *err)
{
    qf_status status = QF_OK;
    uint64_t blocks = qf_job_blocks(job);
    for (uint64_t b = 0; status == QF_OK && b < blocks; b++) {
        status = qf_job_find_largest(job, index, b, &k->scratch, scales, err);
        if (b % ITEM_BLOCKS == ITEM_BLOCKS - 1)
            forget_source(k->sweep, job, b + 1 - ITEM_BLOCKS, ITEM_BLOCKS);
    }
    return status == QF_OK ? qf_job_store_scales(job, scales, sink, err) : status;
}

static qf_status run_item(worker *k, const item *it, qf_error *err)
{
    static const qf_varint_index none;
    sweep *s = k->sweep;
    const qf_job *job = s->plan->jobs[it->job];
    const qf_varint_index *index = s->indexes ? &s->indexes[it->job] : &none;
    const qf_sink sink = {give_room, k};
    qf_job with_scales;
    float *scales = NULL;
    qf_status status = QF_OK;
    if (qf_job_two_pass(job)) {
        scales = qf_spill_alloc((size_t)qf_job_scale_count(job) * sizeof *scales);
        status = scales ? find_scales(k, job, index, &sink, scales, err) : qf_fail_memory(err);
        with_scales = qf_job_with_scales(job, scales);
        job = &with_scales;
    }
    for (uint64_t b = it->first; status == QF_OK && b < it->first + it->count; b++) {
        status = qf_job_run_block(job, index, b, &k->scratch, &sink, err);
        if ((b - it->first) % ITEM_BLOCKS == ITEM_BLOCKS - 1)
            forget_source(s, job, b + 1 - ITEM_BLOCKS, ITEM_BLOCKS);
    }
    for (int i = 0; i < QF_SLOTS; i++)
        compare_room(k, &k->rooms[i]);
    forget_source(s, job, it->first, it->count);
    qf_spill_free(scales);
    return status;
}

static void note_failure(sweep *s, qf_status status, const qf_error *err)
{
    omp_set_lock(&s->lock);
    if (status == QF_ERR_INPUT) {
        qf_note_error(s->against->findings, NULL, err); /* of the source */
    } else {
        s->status = status;
        if (s->against->err)
            *s->against->err = *err;
        atomic_store(&s->over, true);
    }
    omp_unset_lock(&s->lock);
}

static void run_all(sweep *s)
{
    int threads = s->against->options->threads;
    /* NOLINTNEXTLINE(clang-analyzer-deadcode.DeadStores): the pragma reads it */
    threads = threads > 0 ? threads : omp_get_max_threads();
#pragma omp parallel num_threads(threads)
    {
        worker k = {.sweep = s};
        fenv_t host;
        /* the host program may flush subnormals or round otherwise */
        fegetenv(&host);
        fesetenv(FE_DFL_ENV);
#pragma omp for schedule(dynamic, 1)
        for (size_t i = 0; i < s->count; i++) {
            qf_error err;
            if (atomic_load(&s->over))
                continue;
            qf_status status = run_item(&k, &s->items[i], &err);
            if (status != QF_OK)
                note_failure(s, status, &err);
        }
        for (int i = 0; i < QF_SLOTS; i++)
            free(k.rooms[i].bytes);
        qf_scratch_release(&k.scratch);
        fesetenv(&host);
    }
}

/* ---- what there is to run ---- */

static bool is_placed(const qf_job *job)
{
    bool placed = false;
    for (int t = 0; t < QF_TARGETS; t++)
        placed |= job->out[t].placed || (job->found && job->found->out[t].placed);
    return placed;
}

static bool add_items(sweep *s, size_t at)
{
    const qf_job *job = s->plan->jobs[at];
    uint64_t blocks = qf_job_blocks(job);
    uint64_t step = qf_job_two_pass(job) ? blocks + 1 : ITEM_BLOCKS;
    for (uint64_t first = 0; first < blocks; first += step) {
        uint64_t n = blocks - first < step ? blocks - first : step;
        if (!qf_table_grow((void **)&s->items, &s->cap, s->count + 1, sizeof *s->items))
            return false;
        s->items[s->count++] = (item){at, first, n};
    }
    return true;
}

static qf_status prepare(sweep *s)
{
    const qf_plan *plan = s->plan;
    qf_status status = QF_OK;
    bool varints = false;
    for (size_t i = 0; i < plan->job_count; i++)
        varints |= qf_field_is_varint(plan->jobs[i]->source.field);
    if (varints)
        s->indexes = calloc(plan->job_count + 1, sizeof *s->indexes);
    if (varints && !s->indexes)
        return qf_fail_memory(s->against->err);
    for (size_t i = 0; status == QF_OK && i < plan->job_count; i++) {
        const qf_job *job = plan->jobs[i];
        if (!is_placed(job))
            continue;
        if (varints)
            status = qf_varint_index_build(&job->source,
                                           qf_varint_count(job->data_type, job->rows * job->cols),
                                           job->file, job->tensor, &s->indexes[i], s->against->err);
        if (status == QF_OK && !add_items(s, i))
            status = qf_fail_memory(s->against->err);
    }
    return status;
}

qf_status qf_recompute(qf_against *against, qf_plan *plan, qf_claims *claims)
{
    sweep s = {.against = against, .plan = plan, .claims = claims};
    if (claims->count)
        qsort(claims->items, claims->count, sizeof *claims->items, by_place);
    omp_init_lock(&s.lock);
    qf_status status = prepare(&s);
    if (status == QF_OK) {
        run_all(&s);
        status = s.status;
    }
    against->bytes += atomic_load(&s.bytes);
    for (size_t i = 0; s.indexes && i < plan->job_count; i++)
        qf_varint_index_release(&s.indexes[i]);
    free(s.indexes);
    qf_spill_free(s.items);
    omp_destroy_lock(&s.lock);
    return status;
}
