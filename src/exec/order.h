/* SPDX-License-Identifier: Apache-2.0 */
/* The order of the sweep: every job, copy and literal once, along the output files, so that what a
 * thread does one after the other lies together in the files of both models. */
#ifndef QF_EXEC_ORDER_H
#define QF_EXEC_ORDER_H

#include "exec/job.h"
#include "onnx/layout.h"

typedef enum qf_part_kind { QF_PART_LITERAL, QF_PART_COPY, QF_PART_JOB } qf_part_kind;

enum { QF_PART_INDEX_MAX = (1 << 29) - 1 };
typedef struct qf_part {
    uint32_t kind : 2;   /* qf_part_kind */
    uint32_t target : 1; /* of a literal */
    uint32_t index : 29; /* in the layout's literals or copies, or in the jobs */
} qf_part;

/* Where a piece goes: what it writes to each slot. */
typedef struct qf_place {
    int file;
    uint64_t offset, length;
    bool used;
} qf_place;
void qf_part_places(qf_part part, qf_job *const *jobs, const qf_layout *layout,
                    qf_place out[QF_SLOTS]);

/* *out is to be released with qf_spill_free. */
qf_status qf_order_build(qf_job *const *jobs, size_t job_count, const qf_layout *layout,
                         qf_part **out, size_t *count, qf_error *err);

#endif
