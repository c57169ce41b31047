/* SPDX-License-Identifier: Apache-2.0 */
/* Telling whether two payloads come to the same bytes. */
#ifndef QF_ONNX_SAME_H
#define QF_ONNX_SAME_H

#include "base/file.h"
#include "exec/job.h"

/* A text that spans of the same bytes have in common, and few others: their form, their length and
 * the hash of a few of their blocks. NULL when memory is exhausted. `sources` are the files that
 * spans lie in, here and below. */
char *qf_same_key(qf_arena *arena, const qf_span *span, int32_t data_type, const qf_file *sources);
/* Whether two spans hold the same bytes in the same form. */
bool qf_same_bytes(const qf_span *a, const qf_span *b, const qf_file *sources);
/* Whether two jobs do the same to the same source. */
bool qf_same_work(const qf_job *a, const qf_job *b);

#endif
