/* SPDX-License-Identifier: Apache-2.0 */
#include "exec/run.h"

#include <errno.h>
#include <fcntl.h>
#include <fenv.h>
#include <inttypes.h>
#include <omp.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/memory.h"
#include "base/retry.h"
#include "base/spill.h"
#include "exec/hasher.h"
#include "exec/writer.h"

enum {
    SMALL = 256 * 1024,     /* bytes of output: below, a piece is batched with others */
    ITEM = 4 * 1024 * 1024, /* bytes of a model's file that a thread makes at a time */
    STEP = 4 * 1024 * 1024, /* bytes of the source that a thread reads before it lets go of them */
    KERNEL_COPY = 1024 * 1024, /* bytes: shorter copies are not worth a system call of theirs */
    ROOM_LEAST = 2 * QF_ROOM,
    SCRATCH = 4 * 1024 * 1024, /* bytes a thread needs besides its buffers, generously */
    IO_THREADS = 3, /* threads a core in direct I/O, where the others wait while one calculates */
};
static const uint64_t direct_from = 32 * 1024 * 1024; /* bytes of output */

/* What a thread takes at a time: blocks of one large piece, or some small pieces. */
typedef struct item {
    uint64_t first, count; /* blocks; count is 0 for small pieces */
    uint64_t bytes;        /* written */
    uint32_t piece, pieces;
} item;

/* How much the run works with at once. */
typedef struct scale {
    int threads;
    size_t room;   /* of a buffer */
    uint64_t out;  /* bytes of an item in one model */
    uint64_t step; /* bytes of the source */
} scale;

typedef struct run {
    const qf_work *work;
    const qf_stage *stage;
    scale scale;
    const qf_part *pieces;
    size_t piece_count;
    item *items;
    size_t count, cap;
    qf_varint_index *job_indexes, *copy_indexes; /* NULL if no source is made of varints */
    uint64_t total;
    _Atomic uint64_t done, kept;
    uint64_t faults; /* of mapped files in this process, when the run began */
    _Atomic bool cancelled;
    _Atomic size_t failed; /* item of the error held, SIZE_MAX if none */
    omp_lock_t lock;       /* guards what follows; a critical section would export a symbol */
    qf_status status;
    qf_error *err;
} run;

typedef struct worker {
    run *run;
    qf_writer writer;
    qf_scratch scratch;
    unsigned char *input; /* what was read past the page cache */
    size_t input_room;
    float *scales;    /* of a job in two passes, while its blocks are run */
    double last;      /* report of progress */
    uint64_t counted; /* bytes of the item that progress has */
    /* with a journal */
    qf_hasher hasher;
    qf_error_sums errors;
    qf_collector stats;
    qf_result *pending; /* pieces that are made and not noted yet */
    size_t pending_count, pending_cap;
    uint64_t pending_bytes;
} worker;

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

/* ---- pieces ---- */

static const qf_job *job_of(const run *r, qf_part p)
{
    return p.kind == QF_PART_JOB ? r->work->jobs[p.index] : NULL;
}

static const qf_copy *copy_of(const run *r, qf_part p)
{
    return p.kind == QF_PART_COPY ? &r->work->layout->copies[p.index] : NULL;
}

static const qf_span *span_of(const run *r, qf_part p)
{
    return p.kind == QF_PART_JOB ? &job_of(r, p)->source : &copy_of(r, p)->source;
}

/* madvise for a part of a span. */
static void advise(const run *r, const qf_span *span, qf_range range, int advice)
{
    const unsigned char *from = span->data + range.offset;
    qf_file_advise(&r->work->sources[span->file], from, from + range.length, advice);
}

static const qf_varint_index *index_of(const run *r, qf_part p)
{
    static const qf_varint_index none;
    const qf_varint_index *indexes = p.kind == QF_PART_JOB    ? r->job_indexes
                                     : p.kind == QF_PART_COPY ? r->copy_indexes
                                                              : NULL;
    return indexes ? &indexes[p.index] : &none;
}

static const char *name_of(const run *r, qf_part p)
{
    return p.kind == QF_PART_JOB    ? job_of(r, p)->tensor
           : p.kind == QF_PART_COPY ? copy_of(r, p)->tensor
                                    : "(graph)";
}

static uint64_t block_count(const run *r, qf_part p)
{
    return p.kind == QF_PART_JOB ? qf_job_blocks(job_of(r, p)) : qf_copy_blocks(copy_of(r, p));
}

/* Bytes that a piece writes in all, and the most to one of the models. */
static uint64_t bytes_of(const run *r, qf_part p, uint64_t *largest)
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

/* Whether this process writes the piece; all that a piece writes to has one owner. */
static bool is_ours(const run *r, qf_part p)
{
    qf_place places[QF_SLOTS];
    if (!r->work->owners)
        return true;
    qf_part_places(p, r->work->jobs, r->work->layout, places);
    for (int i = 0; i < QF_SLOTS; i++) {
        if (places[i].used)
            return r->work->owners[places[i].file] == r->work->shard;
    }
    return false;
}

/* Whether one thread makes the whole piece. */
static bool is_undivided(const run *r, qf_part p)
{
    return r->work->journal || (p.kind == QF_PART_JOB && qf_job_two_pass(job_of(r, p)));
}

/* ---- how much at once ---- */

/* Bytes of the source that transposed jobs keep mapped: a stripe for each thread. Threads that are
 * at the same job share them, and jobs of many items have all threads at two of them at most. */
static uint64_t stripes(const run *r, int threads)
{
    uint64_t most = 0, few_items = 4 * (r->scale.room > ITEM ? r->scale.room : ITEM);
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
static uint64_t item_bytes(const run *r)
{
    enum { SHARES = 16 };
    uint64_t least = r->scale.room > ITEM ? r->scale.room : ITEM, most = least, total = 0;
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
static int choose_threads(const run *r)
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

/* Chooses threads and buffers so that memory stays under the limit: smaller buffers first, then
 * half the threads. */
static qf_status fit_memory(run *r)
{
    const qf_work *w = r->work;
    uint64_t resident = qf_memory_resident(), limit = w->memory_limit;
    bool direct = w->io == QF_IO_DIRECT;
    scale *s = &r->scale;
    s->threads = choose_threads(r) * (direct ? IO_THREADS : 1);
    s->room = qf_writer_room(w->io);
    s->step = STEP;
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

/* ---- items ---- */

static bool add_item(run *r, item it)
{
    if (!qf_table_grow((void **)&r->items, &r->cap, r->count + 1, sizeof *r->items))
        return false;
    r->items[r->count++] = it;
    r->total += it.bytes;
    return true;
}

/* Splits a large piece at multiples of its blocks. */
static bool add_large(run *r, uint32_t at, uint64_t bytes, uint64_t largest)
{
    uint64_t blocks = block_count(r, r->pieces[at]);
    uint64_t step = r->scale.out / (largest / blocks + 1) + 1;
    if (is_undivided(r, r->pieces[at]))
        step = blocks;
    for (uint64_t first = 0; first < blocks; first += step) {
        uint64_t n = blocks - first < step ? blocks - first : step;
        uint64_t share = bytes / blocks * n + (first + n == blocks ? bytes % blocks : 0);
        if (!add_item(r, (item){first, n, share, at, 1}))
            return false;
    }
    return true;
}

static bool add_items(run *r)
{
    item batch = {0};
    uint64_t source = 0; /* of the batch */
    for (uint32_t i = 0; i < r->piece_count; i++) {
        qf_part p = r->pieces[i];
        uint64_t largest, bytes = bytes_of(r, p, &largest);
        /* a batch is pieces one behind the other */
        bool ours = is_ours(r, p);
        if (!ours && batch.pieces) {
            if (!add_item(r, batch))
                return false;
            batch = (item){0};
            source = 0;
        }
        if (!ours)
            continue;
        uint64_t length = p.kind == QF_PART_LITERAL ? 0 : span_of(r, p)->length;
        bool small = p.kind == QF_PART_LITERAL || !block_count(r, p) ||
                     (largest < SMALL && length < 4 * SMALL);
        if (small) {
            source += length;
            if (!batch.pieces)
                batch.piece = i;
            batch.pieces++;
            batch.bytes += bytes;
        }
        if (batch.pieces && (!small || batch.bytes >= ITEM || source >= r->scale.step)) {
            if (!add_item(r, batch))
                return false;
            batch = (item){0};
            source = 0;
        }
        if (!small && !add_large(r, i, bytes, largest))
            return false;
    }
    return !batch.pieces || add_item(r, batch);
}

/* Spans of varints are indexed, and so checked, before anything is written. */
static qf_status index_varints(run *r)
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
            advise(r, &job->source, (qf_range){0, job->source.length}, MADV_DONTNEED);
    }
    for (size_t i = 0; status == QF_OK && i < w->layout->copy_count; i++) {
        const qf_copy *c = &w->layout->copies[i];
        if (c->decode)
            status =
                qf_varint_index_build(&c->source, c->length / (qf_dtype_bits(c->data_type) / 8),
                                      c->file, c->tensor, &r->copy_indexes[i], r->err);
        if (r->copy_indexes[i].offsets)
            advise(r, &c->source, (qf_range){0, c->source.length}, MADV_DONTNEED);
    }
    return status;
}

static qf_status prepare(run *r)
{
    qf_status status = index_varints(r);
    if (status == QF_OK)
        status = fit_memory(r);
    if (status == QF_OK && !add_items(r))
        status = qf_fail_memory(r->err);
    return status;
}

/* ---- the source ---- */

static qf_range reads(const run *r, qf_part p, uint64_t first, uint64_t count)
{
    return p.kind == QF_PART_JOB ? qf_job_reads(job_of(r, p), first, count)
                                 : qf_copy_reads(copy_of(r, p), first, count);
}

/* Lets go of what small pieces read, if that is much the same stretch of one file. */
static void forget_batch(const run *r, const item *it)
{
    const unsigned char *from = NULL, *to = NULL;
    uint64_t sum = 0;
    const qf_span *any = NULL;
    for (uint32_t i = 0; i < it->pieces; i++) {
        qf_part p = r->pieces[it->piece + i];
        if (p.kind == QF_PART_LITERAL)
            continue;
        const qf_span *span = span_of(r, p);
        if (any && span->file != any->file)
            return;
        any = span;
        from = !from || span->data < from ? span->data : from;
        to = span->data + span->length > to ? span->data + span->length : to;
        sum += span->length;
    }
    enum { GAPS = 4 };
    if (from && (uint64_t)(to - from) <= GAPS * sum + r->scale.step)
        qf_file_advise(&r->work->sources[any->file], from, to, MADV_DONTNEED);
}

/* Whether a part of a span is in the page cache, by a few of its pages. */
static bool is_cached(const qf_span *span, qf_range range)
{
    enum { SAMPLES = 8 };
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    int found = 0;
    for (uint64_t i = 0; i < SAMPLES; i++) {
        unsigned char in_core = 1;
        uintptr_t at = (uintptr_t)span->data + range.offset + range.length / SAMPLES * i;
        found += mincore((void *)(at & ~(page - 1)), 1, &in_core) != 0 || (in_core & 1);
    }
    return found * 2 > SAMPLES;
}

/* The file that a span lies in, opened once more; -1 if it is not the same any more. */
static int open_source(const qf_work *w, const qf_span *span, int flags)
{
    const qf_file *f = &w->sources[span->file];
    struct stat st;
    int fd = qf_open_at(AT_FDCWD, f->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY | flags, 0);
    if (fd >= 0 && (fstat(fd, &st) != 0 || st.st_dev != f->device || st.st_ino != f->inode)) {
        close(fd);
        fd = -1;
    }
    return fd;
}

/* Reads a part of a span past the page cache into the worker's buffer. NULL if that does not work;
 * the mapping always does. */
static const unsigned char *fetch(worker *k, int fd, const qf_span *span, qf_range range)
{
    uint64_t from = span->offset + range.offset, start = from - from % QF_DIRECT_ALIGN;
    size_t need = (size_t)(from + range.length - start);
    size_t room = (need + QF_DIRECT_ALIGN - 1) / QF_DIRECT_ALIGN * QF_DIRECT_ALIGN, got = 0;
    if (room > k->input_room) {
        free(k->input);
        k->input = aligned_alloc(QF_DIRECT_ALIGN, room);
        k->input_room = k->input ? room : 0;
    }
    while (k->input && got < need) {
        ssize_t n = pread(fd, k->input + got, room - got, (off_t)(start + got));
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return NULL;
        got += (size_t)n;
    }
    return k->input ? k->input + (from - start) : NULL;
}

/* ---- running items ---- */

/* Moves a large copy inside the kernel. False if that did not work. */
static bool copy_in_kernel(worker *k, const qf_copy *copy, const item *it)
{
    qf_range range = qf_copy_reads(copy, it->first, it->count);
    bool moved = k->writer.io == QF_IO_PWRITE && !copy->decode && range.length >= KERNEL_COPY;
    int fd = moved ? open_source(k->run->work, &copy->source, 0) : -1;
    moved = moved && fd >= 0;
    for (int t = 0; moved && t < QF_TARGETS; t++) {
        const qf_job_output *out = &copy->out[t];
        if (out->placed)
            moved = qf_stage_copy(k->run->stage, (size_t)out->file, out->offset + range.offset, fd,
                                  copy->source.offset + range.offset, range.length);
    }
    if (fd >= 0)
        close(fd);
    return moved;
}

static qf_sink sink_of(worker *k)
{
    return k->run->work->journal ? qf_hasher_sink(&k->hasher) : qf_writer_sink(&k->writer);
}

/* Only the calling thread reports, so that callers need no locks. */
static void report(worker *k, qf_part p)
{
    run *r = k->run;
    const qf_work *w = r->work;
    if (!w->progress || omp_get_thread_num() != 0 || qf_monotonic_seconds() - k->last < 0.1)
        return;
    k->last = qf_monotonic_seconds();
    if (!w->progress(atomic_load(&r->done), r->total, name_of(r, p), w->progress_user))
        atomic_store(&r->cancelled, true);
}

static bool is_over(const run *r)
{
    return atomic_load(&r->cancelled);
}

/* Counts `bytes` of an item as done. */
static void count(worker *k, qf_part p, uint64_t bytes)
{
    atomic_fetch_add(&k->run->done, bytes);
    k->counted += bytes;
    report(k, p);
}

/* Runs blocks of a piece; `data`, unless NULL, holds what they read of the source. */
static qf_status run_blocks(worker *k, qf_part p, uint64_t first, uint64_t count,
                            const unsigned char *data, qf_error *err)
{
    const run *r = k->run;
    qf_sink sink = sink_of(k);
    qf_status status = QF_OK;
    qf_job job;
    qf_copy copy;
    /* where the span would begin if all of it were there */
    uintptr_t moved = data ? (uintptr_t)data - reads(r, p, first, count).offset : 0;
    if (p.kind == QF_PART_JOB)
        job = k->scales ? qf_job_with_scales(job_of(r, p), k->scales) : *job_of(r, p);
    else
        copy = *copy_of(r, p);
    if (data && p.kind == QF_PART_JOB)
        job.source.data = (const unsigned char *)moved;
    else if (data)
        copy.source.data = (const unsigned char *)moved;
    for (uint64_t b = first; status == QF_OK && b < first + count; b++)
        status = p.kind == QF_PART_JOB
                     ? qf_job_run_block(&job, index_of(r, p), b, &k->scratch, &sink, err)
                     : qf_copy_run_block(&copy, index_of(r, p), b, &sink, err);
    return status;
}

/* Lets go of the varints of the elements whose plain bytes are `range`. */
static void forget_varints(const run *r, qf_part p, qf_range range)
{
    const qf_span *span = span_of(r, p);
    int32_t type = p.kind == QF_PART_JOB ? job_of(r, p)->data_type : copy_of(r, p)->data_type;
    qf_range bytes = qf_varint_index_bytes(index_of(r, p), span, qf_varint_width(type), range);
    advise(r, span, bytes, MADV_DONTNEED);
}

/* Runs the blocks of a large item in steps. The source is read from its mapping if it is in the
 * page cache or will be, else past the cache if output goes there too. Pages behind the sweep count
 * as ours until they are dropped; they are clean, so dropping costs nothing but a fault if a
 * neighbour is still to be read. */
static qf_status run_large(worker *k, const item *it, qf_error *err)
{
    const run *r = k->run;
    qf_part p = r->pieces[it->piece];
    const qf_span *span = span_of(r, p);
    bool plain = !index_of(r, p)->offsets,
         turned = p.kind == QF_PART_JOB && job_of(r, p)->transposed;
    qf_range all = reads(r, p, it->first, it->count);
    uint64_t step = r->scale.step / (all.length / it->count + 1) + 1;
    int fd = -1;
    bool brief = reads(r, p, it->first, 1).length <= r->scale.step; /* a block's bytes are */
    if (plain && !turned && brief && k->writer.io == QF_IO_DIRECT && !is_cached(span, all))
        fd = open_source(r->work, span, O_DIRECT);
    if (plain && fd < 0 && !is_cached(span, all))
        advise(r, span, all, MADV_WILLNEED);
    qf_status status = QF_OK;
    for (uint64_t done = 0; status == QF_OK && done < it->count; done += step) {
        uint64_t first = it->first + done, n = it->count - done < step ? it->count - done : step;
        const unsigned char *data = fd < 0 ? NULL : fetch(k, fd, span, reads(r, p, first, n));
        status = run_blocks(k, p, first, n, data, err);
        if (plain && !turned && !data)
            advise(r, span, reads(r, p, first, n), MADV_DONTNEED);
        count(k, p, it->bytes / it->count * n);
        if (is_over(r))
            break;
    }
    if (turned && plain)
        advise(r, span, all, MADV_DONTNEED);
    if (!plain)
        forget_varints(r, p, all);
    if (fd >= 0)
        close(fd);
    return status;
}

static qf_status run_small(worker *k, qf_part p, qf_error *err)
{
    if (p.kind != QF_PART_LITERAL)
        return run_blocks(k, p, 0, block_count(k->run, p), NULL, err);
    const qf_literal *l = &k->run->work->layout->literals[p.index];
    return qf_writer_put(&k->writer, l->target, l->file, l->offset, l->data, l->length, err);
}

/* ---- scales before weights ---- */

/* The first pass of a job in two: its scales. The source stays in the page cache for the second. */
static qf_status find_scales(worker *k, qf_part p, qf_error *err)
{
    const run *r = k->run;
    const qf_job *job = job_of(r, p);
    uint64_t blocks = block_count(r, p), step = r->scale.step / QF_ROOM + 1;
    qf_sink sink = sink_of(k);
    qf_status status = QF_OK;
    k->scales = qf_spill_alloc((size_t)qf_job_scale_count(job) * sizeof *k->scales);
    if (!k->scales)
        return qf_fail_memory(err);
    if (!is_cached(span_of(r, p), reads(r, p, 0, blocks)))
        advise(r, span_of(r, p), reads(r, p, 0, blocks), MADV_WILLNEED);
    for (uint64_t b = 0; status == QF_OK && b < blocks && !is_over(r); b++) {
        status = qf_job_find_largest(job, index_of(r, p), b, &k->scratch, k->scales, err);
        uint64_t from = b / step * step;
        if ((b + 1) % step == 0 && !index_of(r, p)->offsets)
            advise(r, span_of(r, p), reads(r, p, from, step), MADV_DONTNEED);
    }
    if (status == QF_OK)
        status = qf_job_store_scales(job, k->scales, &sink, err);
    if (status == QF_OK)
        qf_collect_scales(k->scratch.stats, k->scales, (size_t)qf_job_scale_count(job));
    return status;
}

/* ---- pieces, noted in the journal or not ---- */

/* Whether all that was read until now was there (base/mapguard.h). */
static qf_status check_sources(const run *r, qf_error *err)
{
    if (qf_guard_faults() == r->faults)
        return QF_OK;
    return qf_files_check_faults(r->work->sources, r->work->source_count, err);
}

/* The blocks of an item of one piece, or a small piece if `it` is NULL. */
static qf_status make_piece(worker *k, qf_part p, const item *it, qf_error *err)
{
    const run *r = k->run;
    const qf_copy *copy = copy_of(r, p);
    qf_status status = QF_OK;
    if (it && copy && copy_in_kernel(k, copy, it))
        return QF_OK;
    if (p.kind == QF_PART_JOB && qf_job_two_pass(job_of(r, p)))
        status = find_scales(k, p, err);
    if (status == QF_OK && !is_over(r))
        status = it ? run_large(k, it, err) : run_small(k, p, err);
    qf_spill_free(k->scales);
    k->scales = NULL;
    return status;
}

/* Whether an earlier run has written the piece and it is still what it was. */
static bool is_kept(const run *r, size_t at, const qf_place places[QF_SLOTS])
{
    const qf_result *known = &r->work->journal->results[at];
    if (!known->known)
        return false;
    for (int i = 0; i < QF_SLOTS; i++) {
        qf_hash hash;
        if (places[i].used && (!qf_hash_staged(r->stage, &places[i], &hash) ||
                               memcmp(&hash, &known->hashes[i], sizeof hash) != 0))
            return false;
    }
    return true;
}

static bool add_pending(worker *k, const qf_result *result, uint64_t bytes)
{
    if (!qf_grow((void **)&k->pending, &k->pending_cap, k->pending_count + 1, sizeof *result))
        return false;
    k->pending[k->pending_count++] = *result;
    k->pending_bytes += bytes;
    return true;
}

/* Notes the pieces that are made, all of whose bytes are with the kernel. */
static qf_status note_pending(worker *k, qf_error *err)
{
    qf_status status = QF_OK;
    for (size_t i = 0; status == QF_OK && i < k->pending_count; i++)
        status = qf_journal_add(k->run->work->journal, &k->pending[i], err);
    k->pending_count = 0;
    k->pending_bytes = 0;
    return status;
}

/* The hash of a copy's source, letting go of it behind. */
static qf_hash hash_source(worker *k, qf_part p)
{
    const qf_copy *copy = copy_of(k->run, p);
    XXH3_state_t *state = k->hasher.slots[0].state;
    XXH3_128bits_reset(state);
    for (uint64_t at = 0; at < copy->length; at += STEP) {
        qf_range range = {at, qf_at_most(copy->length - at, STEP)};
        XXH3_128bits_update(state, copy->source.data + at, (size_t)range.length);
        advise(k->run, &copy->source, range, MADV_DONTNEED);
    }
    return qf_hash_digest(state);
}

/* Hashes of what a piece has written. What did not go through in order is read back. */
static qf_status hash_piece(worker *k, qf_part p, const qf_place places[QF_SLOTS],
                            qf_result *result, qf_error *err)
{
    const run *r = k->run;
    const qf_literal *l = p.kind == QF_PART_LITERAL ? &r->work->layout->literals[p.index] : NULL;
    const qf_copy *copy = copy_of(r, p);
    qf_status status = QF_OK;
    for (int i = 0; i < QF_SLOTS && status == QF_OK; i++) {
        if (!places[i].used)
            continue;
        if (l)
            result->hashes[i] = qf_hash_of(l->data, l->length);
        else if (copy && !k->hasher.slots[i].used) /* moved inside the kernel */
            result->hashes[i] = hash_source(k, p);
        else if (!qf_hasher_end(&k->hasher, i, &result->hashes[i])) {
            status = qf_writer_flush(&k->writer, err);
            status = status == QF_OK ? qf_writer_finish(&k->writer, err) : status;
            if (status == QF_OK && !qf_hash_staged(r->stage, &places[i], &result->hashes[i]))
                status = qf_fail_at(err, QF_ERR_SYSTEM, (qf_where){.file = r->stage->partial},
                                    "what was written there cannot be read back");
        }
    }
    return status;
}

/* Begins the statistics of a weight, if they are wanted and the piece is one. */
static qf_status measure(worker *k, qf_part p, qf_error *err)
{
    bool wanted = k->run->work->stats && p.kind == QF_PART_JOB && job_of(k->run, p)->bits;
    k->scratch.stats = wanted ? &k->stats : NULL;
    if (wanted && !qf_collector_begin(&k->stats, job_of(k->run, p)))
        return qf_fail_memory(err);
    return QF_OK;
}

static qf_status run_piece(worker *k, uint32_t at, const item *it, qf_error *err)
{
    run *r = k->run;
    qf_part p = r->pieces[at];
    if (!r->work->journal)
        return make_piece(k, p, it, err);
    qf_place places[QF_SLOTS];
    uint64_t largest, bytes = bytes_of(r, p, &largest);
    qf_part_places(p, r->work->jobs, r->work->layout, places);
    if (is_kept(r, at, places)) {
        atomic_fetch_add(&r->kept, bytes);
        return QF_OK;
    }
    qf_result result = {.piece = at};
    qf_hasher_begin(&k->hasher);
    k->errors = (qf_error_sums){0};
    qf_status status = measure(k, p, err);
    if (status == QF_OK)
        status = make_piece(k, p, it, err);
    if (status != QF_OK || is_over(r))
        return status;
    result.signal = k->errors.signal;
    result.noise = k->errors.noise;
    result.max_error = k->errors.max_error;
    result.clipped = k->errors.clipped;
    if (k->scratch.stats) {
        qf_collector_end(&k->stats);
        result.stats = qf_journal_measure(r->work->journal, at, &k->stats.stats);
    }
    status = hash_piece(k, p, places, &result, err);
    if (status == QF_OK)
        status = check_sources(r, err);
    if (status == QF_OK && !add_pending(k, &result, bytes))
        status = qf_fail_memory(err);
    return status;
}

static qf_status run_item(worker *k, const item *it, qf_error *err)
{
    enum { PENDING_MOST = 64 * 1024 * 1024 }; /* bytes whose loss a kill may cost */
    const run *r = k->run;
    qf_status status = QF_OK;
    if (it->count)
        status = run_piece(k, it->piece, it, err);
    for (uint32_t i = 0; !it->count && status == QF_OK && i < it->pieces && !is_over(r); i++)
        status = run_piece(k, it->piece + i, NULL, err);
    if (!it->count)
        forget_batch(r, it);
    if (status == QF_OK)
        status = check_sources(r, err);
    if (status == QF_OK)
        status = qf_writer_flush(&k->writer, err);
    if (status == QF_OK && k->pending_bytes >= PENDING_MOST)
        status = qf_writer_finish(&k->writer, err);
    if (status == QF_OK && k->pending_count && !k->writer.later_used)
        status = note_pending(k, err);
    return status;
}

static void note_failure(run *r, size_t i, qf_status status, const qf_error *err)
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
static void finish_worker(worker *k)
{
    run *r = k->run;
    qf_error err;
    bool wanted = r->work->journal || (!is_over(r) && atomic_load(&r->failed) == SIZE_MAX);
    qf_status status = wanted ? qf_writer_finish(&k->writer, &err) : QF_OK;
    if (status == QF_OK && k->pending_count)
        status = note_pending(k, &err);
    if (status != QF_OK)
        note_failure(r, r->count, status, &err);
}

static void sweep(run *r)
{
#pragma omp parallel num_threads(r->scale.threads)
    {
        worker k = {.run = r};
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
            const item *it = &r->items[i];
            if (is_over(r) || i > atomic_load(&r->failed))
                continue;
            k.counted = 0;
            report(&k, r->pieces[it->piece]);
            qf_status status = ready ? run_item(&k, it, &err) : qf_fail_memory(&err);
            if (status != QF_OK)
                note_failure(r, i, status, &err);
            count(&k, r->pieces[it->piece], it->bytes - k.counted);
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

static void release(run *r)
{
    for (size_t i = 0; r->job_indexes && i < r->work->job_count; i++)
        qf_varint_index_release(&r->job_indexes[i]);
    for (size_t i = 0; r->copy_indexes && i < r->work->layout->copy_count; i++)
        qf_varint_index_release(&r->copy_indexes[i]);
    free(r->job_indexes);
    free(r->copy_indexes);
    qf_spill_free(r->items);
    omp_destroy_lock(&r->lock);
}

qf_status qf_work_run(const qf_work *work, const qf_stage *stage, uint64_t *kept, qf_error *err)
{
    run r = {.work = work,
             .stage = stage,
             .pieces = work->pieces,
             .piece_count = work->piece_count,
             .failed = SIZE_MAX,
             .faults = qf_guard_faults(),
             .err = err};
    omp_init_lock(&r.lock);
    qf_status status = prepare(&r);
    if (status == QF_OK && work->progress && !work->progress(0, r.total, "", work->progress_user))
        status = qf_fail(err, QF_ERR_CANCELLED, "cancelled");
    if (status == QF_OK) {
        sweep(&r);
        status = r.status;
        if (status == QF_OK && atomic_load(&r.cancelled))
            status = qf_fail(err, QF_ERR_CANCELLED, "cancelled");
    }
    if (status == QF_OK && work->progress &&
        !work->progress(r.total, r.total, "", work->progress_user))
        status = qf_fail(err, QF_ERR_CANCELLED, "cancelled");
    if (kept)
        *kept = atomic_load(&r.kept);
    release(&r);
    return status;
}
