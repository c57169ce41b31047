/* SPDX-License-Identifier: Apache-2.0 */
#include "exec/report.h"

#include <stdlib.h>

struct qf_report {
    qf_report_totals totals;
};

qf_status qf_report_make(const qf_report_totals *totals, qf_report **out, qf_error *err)
{
    if (!out)
        return QF_OK;
    qf_report *report = calloc(1, sizeof *report);
    if (!report)
        return qf_fail_memory(err);
    report->totals = *totals;
    *out = report;
    return QF_OK;
}

qf_report_totals qf_report_get(const qf_report *report)
{
    return report->totals;
}

void qf_report_free(qf_report *report)
{
    free(report);
}
