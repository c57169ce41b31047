/* SPDX-License-Identifier: Apache-2.0 */
/* Filling a qf_error. Each function formats a sentence, stores it and returns the status, so that a
 * failing path is one line: return qf_fail(err, QF_ERR_INPUT, "...", ...). `err` may be NULL. */
#ifndef QF_BASE_ERROR_H
#define QF_BASE_ERROR_H

#include "quantfold/quantfold.h"

#define QF_PRINTF(fmt_index, args_index) __attribute__((format(printf, fmt_index, args_index)))

/* Where a failure happened; unset fields are 0/NULL. */
typedef struct qf_where {
    const char *file;
    const char *item;
    uint32_t line, column;
    const uint64_t *byte;
    int sys_errno;
} qf_where;

qf_status qf_fail_at(qf_error *err, qf_status code, qf_where where, const char *format, ...)
    QF_PRINTF(4, 5);
/* With no place. */
qf_status qf_fail(qf_error *err, qf_status code, const char *format, ...) QF_PRINTF(3, 4);
/* A failed system call on `file`; appends strerror(saved_errno). */
qf_status qf_fail_errno(qf_error *err, const char *file, int saved_errno, const char *format, ...)
    QF_PRINTF(4, 5);
/* The one message for exhausted memory. */
qf_status qf_fail_memory(qf_error *err);

#endif
