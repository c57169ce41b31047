/* SPDX-License-Identifier: Apache-2.0 */
/* What the files that carry out a run (run.h) share: run.c has its threads, and for each of its
 * items goes to note_piece.c, from there to make_piece.c, from there to fetch.c for the source. */
#ifndef QF_EXEC_RUNNING_H
#define QF_EXEC_RUNNING_H

#include <omp.h>
#include <stdatomic.h>

#include "exec/hasher.h"
#include "exec/run.h"
#include "exec/writer.h"

enum {
    QF_ITEM_BYTES = 4 * 1024 * 1024, /* of a model's file that a thread makes at a time */
    QF_STEP_BYTES = 4 * 1024 * 1024, /* of the source that a thread reads before it lets go */
};

/* What a thread takes at a time: blocks of one large piece, or some small pieces. */
typedef struct qf_item {
    uint64_t first, count; /* blocks; count is 0 for small pieces */
    uint64_t bytes;        /* written */
    uint32_t piece, pieces;
} qf_item;

/* How much the run works with at once. */
typedef struct qf_running_scale {
    int threads;
    size_t room;   /* of a buffer */
    uint64_t out;  /* bytes of an item in one model */
    uint64_t step; /* bytes of the source */
} qf_running_scale;

typedef struct qf_running {
    const qf_work *work;
    const qf_stage *stage;
    qf_running_scale scale;
    const qf_part *pieces;
    size_t piece_count;
    qf_item *items;
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
} qf_running;

typedef struct qf_worker {
    qf_running *run;
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
} qf_worker;

/* ---- pieces.c ---- */

/* The job or the copy that a piece is; NULL if it is none. */
const qf_job *qf_piece_job(const qf_running *r, qf_part p);
const qf_copy *qf_piece_copy(const qf_running *r, qf_part p);
/* Of a job or a copy, the source and the blocks; the index is an empty one if there is none. */
const qf_span *qf_piece_span(const qf_running *r, qf_part p);
const qf_varint_index *qf_piece_index(const qf_running *r, qf_part p);
uint64_t qf_piece_blocks(const qf_running *r, qf_part p);
/* qf_job_reads or qf_copy_reads. */
qf_range qf_piece_reads(const qf_running *r, qf_part p, uint64_t first, uint64_t count);
/* Bytes that a piece writes in all, and the most to one of the models. */
uint64_t qf_piece_bytes(const qf_running *r, qf_part p, uint64_t *largest);
/* Spans of varints are indexed, and so checked, before anything is written. */
qf_status qf_varint_indexes_build(qf_running *r);
void qf_varint_indexes_release(qf_running *r);

/* ---- fit.c, items.c ---- */

/* Chooses threads and buffers so that memory stays under the limit: smaller buffers first, then
 * half the threads. */
qf_status qf_memory_fit(qf_running *r);
/* Makes the items of all pieces that this process writes. False when memory is exhausted. */
bool qf_items_make(qf_running *r);

/* ---- fetch.c ---- */

/* madvise for a part of a span. */
void qf_span_advise(const qf_running *r, const qf_span *span, qf_range range, int advice);
/* Whether a part of a span is in the page cache, by a few of its pages. */
bool qf_span_is_cached(const qf_span *span, qf_range range);
/* The file that a span lies in, opened once more; -1 if it is not the same any more. */
int qf_span_open(const qf_work *w, const qf_span *span, int flags);
/* Reads a part of a span past the page cache into the worker's buffer. NULL if that does not work;
 * the mapping always does. */
const unsigned char *qf_span_fetch(qf_worker *k, int fd, const qf_span *span, qf_range range);
/* Moves a large copy inside the kernel. False if that did not work. */
bool qf_copy_in_kernel(qf_worker *k, const qf_copy *copy, const qf_item *it);
/* Lets go of what small pieces read, if that is much the same stretch of one file. */
void qf_batch_forget(const qf_running *r, const qf_item *it);
/* Lets go of the varints of the elements whose plain bytes are `range`. */
void qf_piece_forget_varints(const qf_running *r, qf_part p, qf_range range);
/* Whether all that was read until now was there (base/mapguard.h). */
qf_status qf_sources_check(const qf_running *r, qf_error *err);

/* ---- make_piece.c, note_piece.c ---- */

/* The blocks of an item of one piece, or a small piece if `it` is NULL. */
qf_status qf_piece_make(qf_worker *k, qf_part p, const qf_item *it, qf_error *err);
/* The same for piece `at`, which with a journal is passed over if it is there, and else is to be
 * noted. */
qf_status qf_piece_run(qf_worker *k, uint32_t at, const qf_item *it, qf_error *err);
/* Notes the pieces that are made, all of whose bytes are with the kernel. */
qf_status qf_pending_note(qf_worker *k, qf_error *err);

/* ---- progress.c ---- */

/* Only the calling thread reports, so that callers need no locks. */
void qf_worker_report(qf_worker *k, qf_part p);
/* Counts `bytes` of an item as done. */
void qf_worker_count(qf_worker *k, qf_part p, uint64_t bytes);
/* Whether the run was called off. */
bool qf_running_is_over(const qf_running *r);

#endif
