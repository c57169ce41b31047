/* SPDX-License-Identifier: Apache-2.0 */
/* The manifest in its place: this run's is staged with the other files, an earlier run's goes. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/json.h"
#include "base/retry.h"
#include "base/spill.h"
#include "exec/manifest.h"

qf_status qf_manifest_stage(qf_stage *stage, const char *name, cJSON *manifest,
                            const qf_result *results, size_t count, const qf_stats_table *stats,
                            qf_error *err)
{
    size_t index;
    qf_status status = qf_manifest_fill(manifest, results, count, stats->items, err);
    char *text = status == QF_OK ? cJSON_Print(manifest) : NULL;
    if (status == QF_OK && !text)
        status = qf_fail_memory(err);
    size_t n = text ? strlen(text) : 0;
    if (status == QF_OK)
        text[n] = '\n'; /* in place of the NUL */
    if (status == QF_OK)
        status = qf_stage_create(stage, name, n + 1, &index, err);
    if (status == QF_OK)
        status = qf_stage_write(stage, index, 0, text, n + 1, err);
    free(text);
    return status;
}

/* ---- of an earlier run ---- */

static bool starts_manifest(const char *text)
{
    static const char first[] = "\"quantfold\"";
    if (*text != '{')
        return false;
    text++;
    return strncmp(text + strspn(text, " \t\r\n"), first, sizeof first - 1) == 0;
}

enum { MANIFEST_MOST = 1 << 28 }; /* bytes of one that is looked into */

static bool writes(const qf_layout *layout, const char *name)
{
    for (size_t i = 0; i < layout->file_count; i++) {
        if (strcmp(layout->files[i].name, name) == 0)
            return true;
    }
    return false;
}

/* A model that the manifest names, that is there, and that this run leaves as it is, malloc'ed;
 * NULL if there is none, or if the run writes one of the models. */
static qf_status find_left(const cJSON *manifest, const char *folder, const qf_layout *layout,
                           char **left, qf_error *err)
{
    const cJSON *file;
    *left = NULL;
    cJSON_ArrayForEach(file, cJSON_GetObjectItemCaseSensitive(manifest, "files"))
    {
        const char *name = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(file, "name"));
        if (!name || !qf_ends_with(name, ".onnx") || !qf_name_is_safe(name))
            continue;
        if (writes(layout, name)) {
            free(*left);
            *left = NULL;
            return QF_OK;
        }
        if (*left)
            continue;
        *left = qf_stage_path(folder, name);
        if (!*left)
            return qf_fail_memory(err);
        if (access(*left, F_OK) != 0) {
            free(*left);
            *left = NULL;
        }
    }
    return QF_OK;
}

qf_status qf_manifest_check(const char *folder, const char *name, const qf_layout *layout,
                            qf_error *err)
{
    char *path = qf_stage_path(folder, name), *text = NULL, *left = NULL;
    size_t length;
    bool exhausted = false;
    struct stat st;
    if (!path)
        return qf_fail_memory(err);
    if (stat(path, &st) != 0 || !S_ISREG(st.st_mode) || (uint64_t)st.st_size > MANIFEST_MOST ||
        access(path, R_OK) != 0) {
        free(path);
        return QF_OK; /* what cannot be read is dealt with when this run's takes its place */
    }
    qf_status status =
        qf_file_read_text(path, "manifest", MANIFEST_MOST, &text, &length, NULL, err);
    cJSON *manifest = status == QF_OK && starts_manifest(text)
                          ? qf_json_parse(text, length, NULL, false, &exhausted)
                          : NULL;
    if (status == QF_OK)
        status = exhausted ? qf_fail_memory(err) : find_left(manifest, folder, layout, &left, err);
    if (status == QF_OK && left)
        status = qf_fail_at(err, QF_ERR_INPUT, (qf_where){.file = path},
                            "this manifest is of '%s', which this run leaves as it is and would "
                            "leave without one; write all models at once, choose another save "
                            "path, or do without a manifest",
                            left);
    cJSON_Delete(manifest);
    qf_spill_free(text);
    free(left);
    free(path);
    return status;
}

/* Whether `text` has a name as JSON writes it. */
static bool has_name(const char *text, const char *name, bool *exhausted)
{
    cJSON *object = cJSON_CreateObject();
    bool ok = object && qf_json_add_text(object, "name", name);
    char *quoted = ok ? cJSON_PrintUnformatted(object->child) : NULL;
    bool found = quoted && strstr(text, quoted);
    *exhausted |= !quoted;
    cJSON_free(quoted);
    cJSON_Delete(object);
    return found;
}

/* Whether the manifest of an earlier run is of a model that this one writes. A runnable model can
 * be put beside what a manifest describes. */
static qf_status is_replaced(const qf_stage *stage, const char *name, bool *replaced, qf_error *err)
{
    char *path = qf_stage_path(stage->folder, name), *text;
    size_t length;
    bool models = false, exhausted = false;
    if (!path)
        return qf_fail_memory(err);
    qf_status status =
        qf_file_read_text(path, "manifest", MANIFEST_MOST, &text, &length, NULL, err);
    free(path);
    if (status != QF_OK) { /* too large to be looked into: it goes */
        *replaced = status == QF_ERR_INPUT;
        return *replaced ? QF_OK : status;
    }
    *replaced = false;
    for (size_t i = 0; i < stage->count; i++) {
        const char *file = stage->files[i].name;
        bool model = qf_ends_with(file, ".onnx");
        models |= model;
        *replaced |= model && has_name(text, file, &exhausted);
    }
    qf_spill_free(text);
    *replaced |= !models; /* a checkpoint */
    return exhausted ? qf_fail_memory(err) : QF_OK;
}

qf_status qf_manifest_drop(qf_stage *stage, const char *name, qf_error *err)
{
    char text[64] = "";
    struct stat st;
    if (fstatat(stage->folder_fd, name, &st, AT_SYMLINK_NOFOLLOW) == 0) {
        if (!S_ISREG(st.st_mode))
            return QF_OK;
        int fd = qf_open_at(stage->folder_fd, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW, 0);
        ssize_t got = fd < 0 ? -1 : qf_read_all_at(fd, text, sizeof text - 1, 0);
        int e = errno;
        if (fd >= 0)
            close(fd);
        errno = e;
        if (got >= 0) {
            bool replaced = false;
            qf_status status =
                starts_manifest(text) ? is_replaced(stage, name, &replaced, err) : QF_OK;
            return status == QF_OK && replaced ? qf_stage_remove(stage, name, err) : status;
        }
    }
    if (qf_is_absent(errno) || errno == EACCES)
        return QF_OK;
    return qf_fail_at(err, QF_ERR_SYSTEM,
                      (qf_where){.file = stage->folder, .item = name, .sys_errno = errno},
                      "cannot examine the manifest of an earlier run");
}
