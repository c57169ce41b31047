/* SPDX-License-Identifier: Apache-2.0 */
#include "verify/finding.h"

#include <stdio.h>
#include <string.h>

/* `text` behind `start`, if it begins with that. */
static const char *behind(const char *text, const char *start)
{
    size_t n = strlen(start);
    return strncmp(text, start, n) == 0 ? text + n : text;
}

void qf_note_error(qf_diagnostics *findings, const char *file, const qf_error *err)
{
    char place[64] = "";
    const char *message = behind(err->message, err->file);
    if (err->line) {
        snprintf(place, sizeof place, ":%u:%u", err->line, err->column);
        message = behind(message, place);
    }
    if (err->has_byte) /* a finding has no field for it */
        message = behind(message, ", ");
    snprintf(place, sizeof place, "byte %llu: ", (unsigned long long)err->byte);
    const char *byte = err->has_byte ? place : "";
    message = behind(message, byte);
    if (!*byte && message != err->message)
        message = behind(message, ": ");
    if (err->item[0]) {
        size_t n = strlen(err->item);
        if (strncmp(message, err->item, n) == 0 && strncmp(message + n, ": ", 2) == 0)
            message += n + 2;
    }
    qf_where where = {.file = file ? file : err->file,
                      .item = err->item,
                      .line = err->line,
                      .column = err->column};
    qf_diag_add(findings, QF_ERROR, where, "%s%s", byte, message);
}

void qf_note_errors(qf_diagnostics *findings, const qf_diagnostics *list)
{
    for (size_t i = 0; i < qf_diagnostics_count(list); i++) {
        qf_diagnostic d = qf_diagnostics_at(list, i);
        qf_where where = {.file = d.file, .item = d.item, .line = d.line, .column = d.column};
        if (d.severity == QF_ERROR)
            qf_diag_add(findings, QF_ERROR, where, "%s", d.message);
    }
}
