/* SPDX-License-Identifier: Apache-2.0 */
/* Collecting findings. A NULL list is allowed everywhere and drops them. */
#ifndef QF_BASE_DIAG_H
#define QF_BASE_DIAG_H

#include "base/error.h"

/* `where.byte` and `where.sys_errno` are not used. Memory exhaustion is remembered and reported by
 * qf_diag_status. */
void qf_diag_add(qf_diagnostics *list, qf_severity severity, qf_where where, const char *format,
                 ...) QF_PRINTF(4, 5);

/* A point in a list's growth. */
typedef struct qf_diag_mark {
    size_t count, errors;
} qf_diag_mark;
qf_diag_mark qf_diag_now(const qf_diagnostics *list);
/* Takes back what was found since, when it does not hold after all. */
void qf_diag_cut(qf_diagnostics *list, qf_diag_mark mark);
/* QF_OK if no error was added since `mark`; else fills `err` from the first of them and says how
 * many more there are. */
qf_status qf_diag_status(const qf_diagnostics *list, qf_diag_mark mark, qf_error *err);

/* Edit distance (insertions, deletions, substitutions, neighbours swapped) for suggestions; texts
 * longer than 63 bytes count as far from anything. */
unsigned qf_edit_distance(const char *a, const char *b);
/* The nearest of `count` names if it is near enough to be what was meant, else NULL. */
const char *qf_suggest(const char *word, const char *const *names, size_t count);

#endif
