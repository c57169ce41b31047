/* SPDX-License-Identifier: Apache-2.0 */
/* The order of the sweep: every job, copy and literal once, along the output files, so that what a
 * thread does one after the other lies together in the files of both models. */
#ifndef QF_EXEC_ORDER_H
#define QF_EXEC_ORDER_H

#include "exec/job.h"
#include "onnx/layout.h"

typedef enum qf_piece_kind { QF_PIECE_LITERAL, QF_PIECE_COPY, QF_PIECE_JOB } qf_piece_kind;

enum { QF_PIECE_INDEX_MAX = (1 << 29) - 1 };
typedef struct qf_piece {
    uint32_t kind : 2;   /* qf_piece_kind */
    uint32_t target : 1; /* of a literal */
    uint32_t index : 29; /* in the layout's literals or copies, or in the jobs */
} qf_piece;

/* *out is malloc'ed. */
qf_status qf_order_build(qf_job *const *jobs, size_t job_count, const qf_layout *layout,
                         qf_piece **out, size_t *count, qf_error *err);

#endif
