/* SPDX-License-Identifier: Apache-2.0 */
/* The public functions. */
#include <errno.h>
#include <locale.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "exec/stage.h"
#include "report/summary.h"

/* The page in memory, malloc'ed. Numbers are written as in C whatever the host program's locale. */
static qf_status page(const qf_summary *s, char **out, size_t *length, qf_error *err)
{
    locale_t c = newlocale(LC_ALL_MASK, "C", (locale_t)0);
    FILE *file = c ? open_memstream(out, length) : NULL;
    bool ok = file != NULL;
    if (ok) {
        locale_t host = uselocale(c);
        ok = qf_summary_to_html(s, file) && !ferror(file);
        uselocale(host);
        ok = fclose(file) == 0 && ok;
        if (!ok)
            free(*out);
    }
    if (c)
        freelocale(c);
    return ok ? QF_OK : qf_fail_memory(err);
}

qf_status qf_summary_html(const char *path, char **out, size_t *length, qf_error *err)
{
    qf_summary *s;
    char *place, *text;
    size_t n;
    if (!path || !out)
        return qf_fail(err, QF_ERR_USAGE, "qf_summary_html: path and out must not be NULL");
    qf_status status = qf_summary_open(path, &s, &place, err);
    if (status != QF_OK)
        return status;
    status = page(s, &text, &n, err);
    qf_summary_close(s);
    free(place);
    if (status != QF_OK)
        return status;
    *out = text;
    if (length)
        *length = n;
    return QF_OK;
}

qf_status qf_summary_json(const char *path, char **out, size_t *length, qf_error *err)
{
    qf_summary *s;
    char *place;
    if (!path || !out)
        return qf_fail(err, QF_ERR_USAGE, "qf_summary_json: path and out must not be NULL");
    qf_status status = qf_summary_open(path, &s, &place, err);
    if (status != QF_OK)
        return status;
    cJSON *root = qf_summary_to_json(s);
    char *text = root ? cJSON_Print(root) : NULL;
    cJSON_Delete(root);
    qf_summary_close(s);
    free(place);
    if (!text)
        return qf_fail_memory(err);
    *out = text;
    if (length)
        *length = strlen(text);
    return QF_OK;
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
    qf_summary *s;
    char *place, *text, *to;
    size_t length;
    if (!path)
        return qf_fail(err, QF_ERR_USAGE, "qf_summary_save: path must not be NULL");
    qf_status status = qf_summary_open(path, &s, &place, err);
    if (status != QF_OK)
        return status;
    to = target ? strdup(target) : default_target(place);
    status = to ? page(s, &text, &length, err) : qf_fail_memory(err);
    qf_summary_close(s);
    free(place);
    if (status == QF_OK) {
        status = save(to, text, length, err);
        free(text);
    }
    if (status != QF_OK || !saved) {
        free(to);
        return status;
    }
    *saved = to;
    return QF_OK;
}
