/* SPDX-License-Identifier: Apache-2.0 */
/* The executor: runs all jobs and copies of an export on all cores, in one sweep over the source.
 */
#ifndef QF_EXEC_RUN_H
#define QF_EXEC_RUN_H

#include "exec/job.h"
#include "exec/stage.h"

typedef struct qf_work {
    qf_job *const *jobs;
    size_t job_count;
    const qf_copy *copies;
    size_t copy_count;
    int threads; /* 0: OpenMP's choice */
    qf_progress_fn progress;
    void *progress_user;
} qf_work;

/* Stage file i is output file i of the jobs. Of several failures, the one of the earliest block is
 * reported. QF_ERR_CANCELLED if the progress callback returned false. */
qf_status qf_work_run(const qf_work *work, const qf_stage *stage, qf_error *err);

/* A clock that only goes forward. */
double qf_monotonic_seconds(void);

#endif
