/* SPDX-License-Identifier: Apache-2.0 */
#include "verify/place.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "base/file.h"
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
    p->runnable = path_of(p, name_of(p, "runnable_model.onnx"));
    return p->runnable ? status : qf_fail_memory(err);
}

qf_status qf_place_find(const char *given, qf_place *out, qf_error *err)
{
    bool exists, folder;
    *out = (qf_place){0};
    qf_arena_init(&out->arena);
    const char *save_path = qf_arena_strdup(&out->arena, given);
    qf_status status = save_path ? name_models(out, save_path, err) : qf_fail_memory(err);
    if (status == QF_OK)
        status = look_at(save_path, &exists, &folder, err);
    if (status != QF_OK || out->exists[0] || out->exists[1] || !folder ||
        qf_ends_with(save_path, "/"))
        return status;
    char *path = qf_arena_printf(&out->arena, "%s/", save_path);
    return path ? name_models(out, path, err) : qf_fail_memory(err);
}

void qf_place_release(qf_place *place)
{
    qf_arena_release(&place->arena);
}
