/* SPDX-License-Identifier: Apache-2.0 */
/* The public functions. */
#include <locale.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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

static bool make_page(const qf_summary *s, char **out, size_t *length)
{
    FILE *file = open_memstream(out, length);
    if (!file)
        return false;
    bool ok = qf_summary_to_html(s, file) && !ferror(file);
    ok = fclose(file) == 0 && ok;
    if (!ok)
        free(*out);
    return ok;
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

/* *place, which may be NULL, is the manifest's path. */
static qf_status make(const char *path, maker how, char **out, size_t *length, char **place,
                      qf_error *err)
{
    c_locale locale;
    qf_summary *s;
    char *found, *text = NULL;
    size_t n = 0;
    if (!path || !out)
        return qf_fail(err, QF_ERR_USAGE, "a report needs a path, and a place for the result");
    if (!enter_c(&locale))
        return qf_fail_memory(err);
    qf_status status = qf_summary_open(path, &s, &found, err);
    if (status == QF_OK) {
        status = how(s, &text, &n) ? QF_OK : qf_fail_memory(err);
        qf_summary_close(s);
        if (status != QF_OK || !place)
            free(found);
        else
            *place = found;
    }
    leave_c(&locale);
    if (status != QF_OK)
        return status;
    *out = text;
    if (length)
        *length = n;
    return QF_OK;
}

qf_status qf_summary_html(const char *path, char **out, size_t *length, qf_error *err)
{
    return make(path, make_page, out, length, NULL, err);
}

qf_status qf_summary_json(const char *path, char **out, size_t *length, qf_error *err)
{
    return make(path, make_json, out, length, NULL, err);
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

/* As an export does: under a temporary name beside it first. */
static qf_status save(const char *path, const char *text, size_t length, qf_error *err)
{
    char *folder, *name;
    size_t index;
    qf_stage stage;
    qf_status status = qf_save_path_split(path, &folder, &name, err);
    if (status != QF_OK)
        return status;
    if (!*name)
        status = qf_fail_at(err, QF_ERR_INPUT, (qf_where){.file = path},
                            "the report needs a file name, not only a folder");
    if (status == QF_OK)
        status = qf_stage_open(folder, name, QF_STAGE_FRESH, &stage, err);
    if (status == QF_OK) {
        status = qf_stage_create(&stage, name, length, &index, err);
        if (status == QF_OK)
            status = qf_stage_write(&stage, index, 0, text, length, err);
        if (status == QF_OK)
            status = qf_stage_commit(&stage, err);
        qf_stage_close(&stage);
    }
    free(folder);
    free(name);
    return status;
}

qf_status qf_summary_save(const char *path, const char *target, char **saved, qf_error *err)
{
    char *place = NULL, *text = NULL;
    size_t length = 0;
    qf_status status = make(path, make_page, &text, &length, &place, err);
    if (status != QF_OK)
        return status;
    char *to = target ? strdup(target) : default_target(place);
    free(place);
    status = to ? save(to, text, length, err) : qf_fail_memory(err);
    free(text);
    if (status != QF_OK || !saved) {
        free(to);
        return status;
    }
    *saved = to;
    return QF_OK;
}
