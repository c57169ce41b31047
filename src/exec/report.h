/* SPDX-License-Identifier: Apache-2.0 */
#ifndef QF_EXEC_REPORT_H
#define QF_EXEC_REPORT_H

#include "base/error.h"

/* A report of its own memory; nothing if `out` is NULL. */
qf_status qf_report_make(const qf_report_totals *totals, qf_report **out, qf_error *err);

#endif
