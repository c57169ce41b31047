/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Files of an earlier export to the save path that no model uses any more. Those of one file for a
 * model carry its prefix. Those of one file for a tensor do not: they may be another model's, and
 * are told of only where the folder has no other.
 */
#include <dirent.h>
#include <errno.h>
#include <string.h>

#include "base/file.h"
#include "verify/place.h"

enum { KINDS = 3 };
static const char *const tensor_ends[KINDS] = {"_deploy.external", "_fakequant.external",
                                               "_runnable.external"};
static const char *const model_ends[KINDS] = {"deploy_model.external", "fake_quant_model.external",
                                              "runnable_model.external"};

typedef struct leftovers {
    qf_place *place;
    const qf_strmap *used;
    const char *single[KINDS]; /* names of the files of one for a model */
    const char *first[KINDS];  /* of the tensors' files that nothing uses, by name */
    size_t count[KINDS];
    bool found[KINDS]; /* `single` is there and unused */
    bool others;       /* there are models that are not the output's */
} leftovers;

static bool is_own_model(const qf_place *p, const char *name)
{
    return strcmp(name, p->runnable_name) == 0 || strcmp(name, p->names[QF_PLACE_DEPLOY]) == 0 ||
           strcmp(name, p->names[QF_PLACE_FAKE_QUANT]) == 0;
}

/* False when memory is exhausted. */
static bool look_at(leftovers *l, const char *name)
{
    if (qf_ends_with(name, ".onnx") && !is_own_model(l->place, name))
        l->others = true;
    for (int i = 0; i < KINDS; i++) {
        if (strcmp(name, l->single[i]) == 0 && !qf_strmap_get(l->used, name))
            l->found[i] = true;
        if (!qf_ends_with(name, tensor_ends[i]) || qf_strmap_get(l->used, name))
            continue;
        l->count[i]++;
        if (!l->first[i] || strcmp(name, l->first[i]) < 0)
            l->first[i] = qf_arena_strdup(&l->place->arena, name);
        if (!l->first[i])
            return false;
    }
    return true;
}

static qf_status list_folder(leftovers *l, qf_error *err)
{
    DIR *dir = opendir(l->place->folder);
    bool memory = true;
    if (!dir && errno == EACCES)
        return QF_OK; /* it may be entered, which is enough for all but a warning */
    if (!dir)
        return qf_fail_errno(err, l->place->folder, errno, "cannot list the folder");
    for (struct dirent *e; memory && (errno = 0, e = readdir(dir));)
        memory = look_at(l, e->d_name);
    int e = memory ? errno : 0;
    closedir(dir);
    if (e)
        return qf_fail_errno(err, l->place->folder, e, "cannot list the folder");
    return memory ? QF_OK : qf_fail_memory(err);
}

static bool warn(const leftovers *l, const char *name, size_t others, const char *end,
                 qf_diagnostics *findings)
{
    char *path = qf_arena_printf(&l->place->arena, "%s/%s", l->place->folder, name);
    if (!path)
        return false;
    if (others)
        qf_diag_add(findings, QF_WARNING, (qf_where){.file = path},
                    "no model of the folder uses this file, nor %zu other%s whose names end in "
                    "'%s'; left over from an earlier export, they can be removed",
                    others, others == 1 ? "" : "s", end);
    else
        qf_diag_add(findings, QF_WARNING, (qf_where){.file = path},
                    "no model of the folder uses this file; left over from an earlier export, it "
                    "can be removed");
    return true;
}

qf_status qf_check_leftovers(qf_place *place, const qf_strmap *used, qf_diagnostics *findings,
                             qf_error *err)
{
    leftovers l = {.place = place, .used = used};
    for (int i = 0; i < KINDS; i++) {
        l.single[i] = qf_arena_printf(&place->arena, "%s%s%s", place->prefix,
                                      *place->prefix ? "_" : "", model_ends[i]);
        if (!l.single[i])
            return qf_fail_memory(err);
    }
    qf_status status = list_folder(&l, err);
    bool memory = true;
    for (int i = 0; status == QF_OK && memory && i < KINDS; i++) {
        if (l.found[i])
            memory = warn(&l, l.single[i], 0, NULL, findings);
        if (memory && l.count[i] && !l.others)
            memory = warn(&l, l.first[i], l.count[i] - 1, tensor_ends[i], findings);
    }
    return memory ? status : qf_fail_memory(err);
}
