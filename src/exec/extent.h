/* SPDX-License-Identifier: Apache-2.0 */
/* The least and greatest values of weights, for each of their scales. */
#ifndef QF_EXEC_EXTENT_H
#define QF_EXEC_EXTENT_H

#include "base/file.h"
#include "exec/job.h"

typedef struct qf_extent {
    const qf_job *job; /* its scales are not looked at, its batch norm is not applied */
    float *min, *max;  /* one for each of job->scale_count; set by qf_extents_find */
} qf_extent;

/* Reads each job's source once, on `threads` cores (0: OpenMP's choice), and lets go of it behind.
 * The results do not depend on the number of threads. QF_ERR_INPUT, naming layer, tensor and
 * element, for a value that is not finite. */
qf_status qf_extents_find(qf_extent *extents, size_t count, const qf_file *sources, int threads,
                          qf_error *err);

#endif
