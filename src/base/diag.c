/* SPDX-License-Identifier: Apache-2.0 */
#include "base/diag.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/arena.h"

/* A file can hold millions of mistakes; of errors and of warnings a thousand each are kept. */
enum { MAX_STORED = 1000 };

struct qf_diagnostics {
    qf_arena arena;
    qf_diagnostic *items;
    size_t count, cap, errors, warnings;
    bool lost; /* a finding was dropped for want of memory; seen as one more at the end */
};

qf_diagnostics *qf_diagnostics_create(void)
{
    qf_diagnostics *list = calloc(1, sizeof *list);
    if (list)
        qf_arena_init(&list->arena);
    return list;
}

void qf_diagnostics_free(qf_diagnostics *list)
{
    if (!list)
        return;
    qf_arena_release(&list->arena);
    free(list->items);
    free(list);
}

size_t qf_diagnostics_count(const qf_diagnostics *list)
{
    return list ? list->count + list->lost : 0;
}

size_t qf_diagnostics_errors(const qf_diagnostics *list)
{
    return list ? list->errors : 0;
}

qf_diagnostic qf_diagnostics_at(const qf_diagnostics *list, size_t index)
{
    static const qf_diagnostic out_of_memory = {
        QF_ERROR, "", 0,
        0,        "", "out of memory; close other programs or export on a larger machine"};
    return index < list->count ? list->items[index] : out_of_memory;
}

void qf_diag_add(qf_diagnostics *list, qf_severity severity, qf_where where, const char *format,
                 ...)
{
    if (!list)
        return;
    size_t *seen = severity == QF_ERROR ? &list->errors : &list->warnings;
    if (++*seen > MAX_STORED)
        return;
    char message[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(message, sizeof message, format, args);
    va_end(args);

    const char *file = qf_arena_strdup(&list->arena, where.file ? where.file : "");
    const char *item = qf_arena_strdup(&list->arena, where.item ? where.item : "");
    const char *text = qf_arena_strdup(&list->arena, message);
    if (!file || !item || !text ||
        !qf_grow((void **)&list->items, &list->cap, list->count + 1, sizeof *list->items)) {
        /* what was lost is seen as an error */
        list->errors += severity != QF_ERROR && !list->lost;
        list->lost = true;
        return;
    }
    list->items[list->count++] =
        (qf_diagnostic){severity, file, where.line, where.column, item, text};
}

qf_diag_mark qf_diag_now(const qf_diagnostics *list)
{
    return (qf_diag_mark){list ? list->count : 0, qf_diagnostics_errors(list)};
}

void qf_diag_cut(qf_diagnostics *list, qf_diag_mark mark)
{
    if (!list)
        return;
    while (list->count > mark.count)
        list->warnings -= list->items[--list->count].severity != QF_ERROR;
    list->errors = mark.errors;
    list->lost = false;
}

qf_status qf_diag_status(const qf_diagnostics *list, qf_diag_mark mark, qf_error *err)
{
    if (!list || (list->errors == mark.errors && !list->lost))
        return QF_OK;
    if (list->lost)
        return qf_fail_memory(err);
    size_t at = mark.count, more = list->errors - mark.errors - 1;
    while (at < list->count && list->items[at].severity != QF_ERROR)
        at++;
    if (at == list->count)
        return qf_fail(err, QF_ERR_INPUT, "%zu more errors, after the list of findings was full",
                       more + 1);
    const qf_diagnostic *first = &list->items[at];
    qf_where where = {
        .file = first->file, .item = first->item, .line = first->line, .column = first->column};
    if (!more)
        return qf_fail_at(err, QF_ERR_INPUT, where, "%s", first->message);
    return qf_fail_at(err, QF_ERR_INPUT, where, "%s (and %zu more errors)", first->message, more);
}

void qf_diagnostics_add_error(qf_diagnostics *list, const qf_error *err)
{
    /* the message names its place already */
    qf_diag_add(list, QF_ERROR, (qf_where){0}, "%s", err->message);
}

unsigned qf_edit_distance(const char *a, const char *b)
{
    enum { MAX = 64 };
    size_t na = strlen(a), nb = strlen(b);
    if (na >= MAX || nb >= MAX)
        return MAX;
    unsigned char rows[3][MAX] = {{0}};
    unsigned char *before = rows[0], *last = rows[1], *row = rows[2];
    for (size_t j = 0; j <= nb; j++)
        last[j] = (unsigned char)j;
    for (size_t i = 1; i <= na; i++) {
        row[0] = (unsigned char)i;
        for (size_t j = 1; j <= nb; j++) {
            unsigned best = last[j - 1] + (a[i - 1] != b[j - 1] ? 1u : 0u);
            if (last[j] + 1u < best)
                best = last[j] + 1u;
            if (row[j - 1] + 1u < best)
                best = row[j - 1] + 1u;
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] &&
                before[j - 2] + 1u < best)
                best = before[j - 2] + 1u;
            row[j] = (unsigned char)best;
        }
        unsigned char *oldest = before;
        before = last;
        last = row;
        row = oldest;
    }
    return last[nb];
}

const char *qf_suggest(const char *word, const char *const *names, size_t count)
{
    const char *best = NULL;
    unsigned best_distance = (unsigned)(strlen(word) / 3 + 1);
    for (size_t i = 0; i < count; i++) {
        unsigned d = qf_edit_distance(word, names[i]);
        if (d <= best_distance && d < strlen(names[i])) {
            if (!best || d < best_distance)
                best = names[i];
            best_distance = d;
        }
    }
    return best;
}
