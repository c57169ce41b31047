/* SPDX-License-Identifier: Apache-2.0 */
/* A call that failed, as a finding: where it failed goes into the fields for it. */
#ifndef QF_VERIFY_FINDING_H
#define QF_VERIFY_FINDING_H

#include "base/diag.h"

/* Adds `err`, whose message names its place, as a finding that has it in file, item, line and
 * column. `file`: what the caller calls the file; NULL: as the error does. */
void qf_note_error(qf_diagnostics *findings, const char *file, const qf_error *err);
/* Adds the errors of another list; its warnings are left. */
void qf_note_errors(qf_diagnostics *findings, const qf_diagnostics *list);

#endif
