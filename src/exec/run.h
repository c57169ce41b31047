/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The executor: runs all jobs and copies of an export on all cores, in one sweep over the source
 * that goes along the output files. What is large is split into items, what is small is batched
 * into one (items.c); threads take items in the order of the pieces (order.c).
 */
#ifndef QF_EXEC_RUN_H
#define QF_EXEC_RUN_H

#include "base/file.h"
#include "exec/job.h"
#include "exec/journal.h"
#include "exec/order.h"
#include "exec/stage.h"
#include "onnx/layout.h"

typedef struct qf_work {
    qf_job *const *jobs;
    size_t job_count;
    const qf_layout *layout; /* its copies and literals */
    const qf_part *pieces;   /* of qf_order_build */
    size_t piece_count;
    /* Pieces are noted here once they are written, those noted already and whole are left as they
     * are, and a piece is made by one thread, for its hash. NULL: nothing is noted. */
    qf_journal *journal;
    const uint32_t
        *owners; /* by output file: the shard that writes it; NULL: this one writes all */
    uint32_t shard;
    bool statistics;        /* quantization errors are counted; only with a journal */
    bool stats;             /* and all of qf_stats */
    const qf_file *sources; /* the files that spans index */
    size_t source_count;
    qf_io io;              /* not AUTO */
    uint64_t memory_limit; /* bytes resident; 0: a quarter of what there is */
    int threads;           /* 0: OpenMP's choice */
    qf_progress_fn progress;
    void *progress_user;
} qf_work;

/* The way to write `bytes` bytes that AUTO stands for: past the page cache if the run waits for the
 * disk anyway, into it if not (docs/benchmarks.md). */
qf_io qf_io_choose(qf_io wanted, bool synced, uint64_t bytes);

/* Stage file i is output file i of the layout. Of several failures, the one of the earliest block
 * is reported. QF_ERR_CANCELLED if the progress callback returned false; QF_ERR_INPUT if the memory
 * limit leaves no room to work in. *kept (may be NULL): bytes that an earlier run had written. */
qf_status qf_work_run(const qf_work *work, const qf_stage *stage, uint64_t *kept, qf_error *err);

/* A clock that only goes forward. */
double qf_monotonic_seconds(void);

#endif
