/* SPDX-License-Identifier: Apache-2.0 */
#include "verify/place.h"

#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/file.h"
#include "checkpoint/folder.h"
#include "exec/stage.h"

static qf_status look_at(const char *path, bool *exists, bool *folder, qf_error *err)
{
    struct stat st;
    *exists = stat(path, &st) == 0;
    *folder = *exists && S_ISDIR(st.st_mode);
    if (*exists || qf_is_absent(errno))
        return QF_OK;
    return qf_fail_errno(err, path, errno, "cannot look for the file");
}

qf_status qf_exists(const char *path, bool *exists, qf_error *err)
{
    bool folder;
    return look_at(path, exists, &folder, err);
}

/* The arena's copies of malloc'ed texts. */
static bool keep(qf_place *p, char *folder, char *prefix)
{
    p->folder = qf_arena_strdup(&p->arena, folder);
    p->prefix = qf_arena_strdup(&p->arena, prefix);
    free(folder);
    free(prefix);
    return p->folder && p->prefix;
}

static const char *path_of(qf_place *p, const char *name)
{
    return name ? qf_arena_printf(&p->arena, "%s/%s", p->folder, name) : NULL;
}

static const char *name_of(qf_place *p, const char *end)
{
    return qf_arena_printf(&p->arena, "%s%s%s", p->prefix, *p->prefix ? "_" : "", end);
}

static qf_status name_models(qf_place *p, const char *save_path, qf_error *err)
{
    static const char *const ends[QF_PLACE_MODELS] = {"deploy_model.onnx", "fake_quant_model.onnx"};
    char *folder, *prefix;
    qf_status status = qf_save_path_split(save_path, &folder, &prefix, err);
    if (status != QF_OK)
        return status;
    if (!keep(p, folder, prefix))
        return qf_fail_memory(err);
    p->save_path = save_path;
    for (int t = 0; status == QF_OK && t < QF_PLACE_MODELS; t++) {
        p->names[t] = name_of(p, ends[t]);
        p->paths[t] = path_of(p, p->names[t]);
        if (!p->paths[t])
            return qf_fail_memory(err);
        status = qf_exists(p->paths[t], &p->exists[t], err);
    }
    if (status != QF_OK)
        return status;
    p->runnable_name = name_of(p, "runnable_model.onnx");
    p->runnable = path_of(p, p->runnable_name);
    return p->runnable ? qf_exists(p->runnable, &p->runnable_exists, err) : qf_fail_memory(err);
}

static bool any(const qf_place *p)
{
    return p->exists[QF_PLACE_DEPLOY] || p->exists[QF_PLACE_FAKE_QUANT] || p->runnable_exists;
}

/* The folder of a file as a save path; NULL when memory is exhausted. */
static char *folder_of(qf_place *p, const char *file)
{
    const char *slash = strrchr(file, '/');
    return slash ? qf_arena_strndup(&p->arena, file, (size_t)(slash - file) + 1)
                 : qf_arena_strdup(&p->arena, "./");
}

static bool is_of_checkpoint(const char *file)
{
    const char *slash = strrchr(file, '/'), *name = slash ? slash + 1 : file;
    return strcmp(name, QF_MANIFEST_NAME) == 0 || strcmp(name, QF_INDEX_NAME) == 0 ||
           qf_ends_with(name, ".safetensors");
}

qf_status qf_place_find(const char *given, qf_place *out, qf_error *err)
{
    bool exists, folder = false;
    *out = (qf_place){0};
    qf_arena_init(&out->arena);
    const char *save_path = qf_arena_strdup(&out->arena, given);
    qf_status status = save_path ? name_models(out, save_path, err) : qf_fail_memory(err);
    if (status == QF_OK)
        status = look_at(save_path, &exists, &folder, err);
    if (status != QF_OK || any(out) || qf_ends_with(save_path, "/"))
        return status;
    char *other = folder ? qf_arena_printf(&out->arena, "%s/", save_path)
                         : qf_save_path_of(&out->arena, save_path);
    if (folder && !other)
        return qf_fail_memory(err);
    if (other)
        status = name_models(out, other, err);
    bool of_checkpoint = exists && !folder && is_of_checkpoint(save_path);
    if (status != QF_OK || any(out) || !of_checkpoint)
        return status;
    other = folder_of(out, save_path);
    return other ? name_models(out, other, err) : qf_fail_memory(err);
}

qf_status qf_place_suggest(qf_place *p, const char **save_path, qf_error *err)
{
    const char *best = NULL;
    DIR *dir = *p->prefix ? NULL : opendir(p->folder);
    *save_path = NULL;
    if (!dir)
        return QF_OK; /* there is nothing to suggest */
    for (const struct dirent *e; (e = readdir(dir));) {
        size_t n = qf_model_stem(e->d_name);
        char *stem = n ? qf_arena_strndup(&p->arena, e->d_name, n) : NULL;
        if (n && !stem) {
            closedir(dir);
            return qf_fail_memory(err);
        }
        if (stem && (!best || strcmp(stem, best) < 0))
            best = stem;
    }
    closedir(dir);
    if (best)
        *save_path = path_of(p, best);
    return best && !*save_path ? qf_fail_memory(err) : QF_OK;
}

void qf_place_release(qf_place *place)
{
    qf_arena_release(&place->arena);
}
