/* SPDX-License-Identifier: Apache-2.0 */
/* The public functions. */
#include <errno.h>
#include <fcntl.h>
#include <locale.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/file.h"
#include "base/retry.h"
#include "exec/stage.h"
#include "report/summary.h"

/* The thread's locale while numbers are read and written: C, whatever the host program's. */
typedef struct c_locale {
    locale_t c, host;
} c_locale;

static bool enter_c(c_locale *l)
{
    l->c = newlocale(LC_ALL_MASK, "C", (locale_t)0);
    if (l->c)
        l->host = uselocale(l->c);
    return l->c != (locale_t)0;
}

static void leave_c(c_locale *l)
{
    uselocale(l->host);
    freelocale(l->c);
}

/* What makes a document of a summary, malloc'ed; false when memory is exhausted. */
typedef bool (*maker)(const qf_summary *s, char **out, size_t *length);

/* A stream into memory. open_memstream() is none to rely on: what it cannot keep for want of memory
 * is lost without a word. */
typedef struct growing {
    char *text;
    size_t length, cap;
    bool failed;
} growing;

static ssize_t grow(void *cookie, const char *bytes, size_t n)
{
    enum { FIRST = 1 << 16 };
    growing *g = cookie;
    size_t needed = g->length + n + 1, cap = g->cap ? g->cap : FIRST;
    while (cap < needed)
        cap *= 2;
    char *text = g->failed ? NULL : cap > g->cap ? realloc(g->text, cap) : g->text;
    g->failed = !text;
    if (!text)
        return 0;
    memcpy(text + g->length, bytes, n);
    g->text = text;
    g->cap = cap;
    g->length += n;
    text[g->length] = '\0';
    return (ssize_t)n;
}

static bool make_page(const qf_summary *s, char **out, size_t *length)
{
    growing g = {0};
    FILE *file = fopencookie(&g, "w", (cookie_io_functions_t){.write = grow});
    if (!file)
        return false;
    bool ok = qf_summary_to_html(s, file) && !ferror(file);
    ok = fclose(file) == 0 && ok && !g.failed && g.text;
    if (!ok) {
        free(g.text);
        return false;
    }
    *out = g.text;
    *length = g.length;
    return true;
}

static bool make_json(const qf_summary *s, char **out, size_t *length)
{
    cJSON *root = qf_summary_to_json(s);
    char *text = root ? cJSON_Print(root) : NULL;
    cJSON_Delete(root);
    if (!text)
        return false;
    *out = text;
    *length = strlen(text);
    return true;
}

/* PREFIX.manifest.json -> PREFIX.report.html, malloc'ed. */
static char *default_target(const char *place)
{
    static const char end[] = "manifest.json", name[] = "report.html";
    size_t n = strlen(place), stem = n - strlen(end);
    bool usual = n >= strlen(end) && strcmp(place + stem, end) == 0;
    stem = usual ? stem : n;
    char *target = malloc(stem + 1 + sizeof name);
    if (target)
        snprintf(target, stem + 1 + sizeof name, "%.*s%s%s", (int)stem, place, usual ? "" : ".",
                 name);
    return target;
}

/* A page takes the place of an earlier page, or of an empty file, and of nothing else: what has its
 * name may be a model, its source, a record. */
static qf_status check_target(const char *target, qf_error *err)
{
    static const char first[] = "<!DOCTYPE html>";
    char text[sizeof first] = "";
    struct stat st;
    if (stat(target, &st) != 0)
        return qf_is_absent(errno) ? QF_OK
                                   : qf_fail_errno(err, target, errno, "cannot examine the target");
    if (!S_ISREG(st.st_mode) || !st.st_size) /* what is no file is refused when it is written */
        return QF_OK;
    int fd = qf_open_at(AT_FDCWD, target, O_RDONLY | O_CLOEXEC | O_NONBLOCK, 0);
    ssize_t got = fd < 0 ? -1 : qf_read_all_at(fd, text, sizeof first - 1, 0);
    int e = errno;
    if (fd >= 0)
        qf_close(fd);
    if (got < 0)
        return qf_fail_errno(err, target, e, "cannot examine the target");
    if (strcmp(text, first) == 0)
        return QF_OK;
    return qf_fail_at(err, QF_ERR_INPUT, (qf_where){.file = target},
                      "the report would replace this file, which is no HTML page; choose another "
                      "name, or remove the file");
}

/* Where the report goes, malloc'ed: `target`, or beside the manifest. */
static qf_status choose_target(const char *place, const char *target, char **to, qf_error *err)
{
    char *chosen = target ? strdup(target) : default_target(place);
    if (!chosen)
        return qf_fail_memory(err);
    qf_status status = check_target(chosen, err);
    if (status == QF_OK)
        *to = chosen;
    else
        free(chosen);
    return status;
}

/* *to, if `to` is not NULL, is where to save it: `target` or a place of its own. */
static qf_status make(const char *path, maker how, const char *target, char **out, size_t *length,
                      char **to, qf_error *err)
{
    c_locale locale;
    qf_summary *s;
    char *place, *text = NULL;
    size_t n = 0;
    if (!path || !out)
        return qf_fail(err, QF_ERR_USAGE, "a report needs a path, and a place for the result");
    if (!enter_c(&locale))
        return qf_fail_memory(err);
    qf_status status = qf_summary_open(path, &s, &place, err);
    if (status == QF_OK) {
        status = how(s, &text, &n) ? QF_OK : qf_fail_memory(err);
        if (status == QF_OK && to)
            status = choose_target(place, target, to, err);
        qf_summary_close(s);
        free(place);
    }
    leave_c(&locale);
    if (status != QF_OK) {
        free(text);
        return status;
    }
    *out = text;
    if (length)
        *length = n;
    return QF_OK;
}

qf_status qf_summary_html(const char *path, char **out, size_t *length, qf_error *err)
{
    return make(path, make_page, NULL, out, length, NULL, err);
}

qf_status qf_summary_json(const char *path, char **out, size_t *length, qf_error *err)
{
    return make(path, make_json, NULL, out, length, NULL, err);
}

qf_status qf_summary_save(const char *path, const char *target, char **saved, qf_error *err)
{
    char *to = NULL, *text = NULL;
    size_t length = 0;
    qf_status status = make(path, make_page, target, &text, &length, &to, err);
    if (status != QF_OK)
        return status;
    status = qf_save_text(to, "report", text, length, err);
    free(text);
    if (status != QF_OK || !saved) {
        free(to);
        return status;
    }
    *saved = to;
    return QF_OK;
}
