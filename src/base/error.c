/* SPDX-License-Identifier: Apache-2.0 */
#include "base/error.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

const char *qf_status_name(qf_status status)
{
    switch (status) {
    case QF_OK:
        return "ok";
    case QF_ERR_INPUT:
        return "input";
    case QF_ERR_USAGE:
        return "usage";
    case QF_ERR_SYSTEM:
        return "system";
    case QF_ERR_MEMORY:
        return "memory";
    case QF_ERR_CANCELLED:
        return "cancelled";
    }
    return "unknown";
}

/* Copies text, keeping its end when it is too long: the end of a path says more than its start. */
static void copy_tail(char *dst, size_t cap, const char *src)
{
    size_t n = strlen(src);
    if (n < cap) {
        memcpy(dst, src, n + 1);
        return;
    }
    memcpy(dst, "...", 3);
    memcpy(dst + 3, src + n - (cap - 4), cap - 3);
}

static void append(char *buffer, size_t cap, size_t *at, const char *format, ...) QF_PRINTF(4, 5);
static void append(char *buffer, size_t cap, size_t *at, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    int n = vsnprintf(buffer + *at, cap - *at, format, args);
    va_end(args);
    if (n > 0)
        *at += (size_t)n < cap - *at ? (size_t)n : cap - *at - 1;
}

static void fill(qf_error *err, qf_status code, const qf_where *where, const char *format,
                 va_list args)
{
    memset(err, 0, sizeof *err);
    err->code = code;
    err->sys_errno = where->sys_errno;
    err->line = where->line;
    err->column = where->column;
    if (where->byte) {
        err->has_byte = true;
        err->byte = *where->byte;
    }
    if (where->file)
        copy_tail(err->file, sizeof err->file, where->file);
    if (where->item)
        copy_tail(err->item, sizeof err->item, where->item);

    char *m = err->message;
    size_t cap = sizeof err->message, at = 0;
    if (err->file[0])
        append(m, cap, &at, "%s", err->file);
    if (err->line)
        append(m, cap, &at, ":%u:%u", err->line, err->column);
    if (err->has_byte)
        append(m, cap, &at, "%sbyte %llu", at ? ", " : "", (unsigned long long)err->byte);
    if (at)
        append(m, cap, &at, ": ");
    if (err->item[0])
        append(m, cap, &at, "%s: ", err->item);
    int n = vsnprintf(m + at, cap - at, format, args);
    if (n > 0)
        at += (size_t)n < cap - at ? (size_t)n : cap - at - 1;
    if (err->sys_errno)
        append(m, cap, &at, ": %s", strerror(err->sys_errno));
}

qf_status qf_fail_at(qf_error *err, qf_status code, qf_where where, const char *format, ...)
{
    if (err) {
        va_list args;
        va_start(args, format);
        fill(err, code, &where, format, args);
        va_end(args);
    }
    return code;
}

qf_status qf_fail(qf_error *err, qf_status code, const char *format, ...)
{
    if (err) {
        va_list args;
        va_start(args, format);
        fill(err, code, &(qf_where){0}, format, args);
        va_end(args);
    }
    return code;
}

qf_status qf_fail_errno(qf_error *err, const char *file, int saved_errno, const char *format, ...)
{
    if (err) {
        va_list args;
        va_start(args, format);
        fill(err, QF_ERR_SYSTEM, &(qf_where){.file = file, .sys_errno = saved_errno}, format, args);
        va_end(args);
    }
    return QF_ERR_SYSTEM;
}

qf_status qf_fail_memory(qf_error *err)
{
    return qf_fail(err, QF_ERR_MEMORY,
                   "out of memory; close other programs or export on a larger machine");
}
