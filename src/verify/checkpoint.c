/* SPDX-License-Identifier: Apache-2.0 */
/* An exported checkpoint: its index, headers and configuration. Its payloads are hashed alone. */
#include "verify/checkpoint.h"

#include <dirent.h>
#include <errno.h>
#include <string.h>

#include "checkpoint/folder.h"
#include "verify/finding.h"

static const char *const marks[] = {QF_MANIFEST_NAME, QF_INDEX_NAME, QF_SINGLE_NAME};

qf_status qf_is_checkpoint(qf_place *place, bool *found, qf_error *err)
{
    qf_status status = QF_OK;
    *found = false;
    if (place->exists[QF_PLACE_DEPLOY] || place->exists[QF_PLACE_FAKE_QUANT] || *place->prefix)
        return QF_OK;
    for (size_t i = 0; status == QF_OK && i < sizeof marks / sizeof *marks && !*found; i++) {
        const char *path = qf_arena_printf(&place->arena, "%s/%s", place->folder, marks[i]);
        status = path ? qf_exists(path, found, err) : qf_fail_memory(err);
    }
    return status;
}

qf_status qf_list_shards(qf_place *place, qf_manifest_files *files, qf_error *err)
{
    DIR *dir = opendir(place->folder);
    bool memory = true;
    if (!dir)
        return qf_fail_errno(err, place->folder, errno, "cannot list the folder");
    for (struct dirent *e; memory && (errno = 0, e = readdir(dir));) {
        if (!qf_ends_with(e->d_name, ".safetensors") && strcmp(e->d_name, QF_INDEX_NAME) != 0)
            continue;
        char *name = qf_arena_strdup(&place->arena, e->d_name);
        memory = name && qf_manifest_files_add(files, name);
    }
    int e = memory ? errno : 0;
    closedir(dir);
    if (e)
        return qf_fail_errno(err, place->folder, e, "cannot list the folder");
    return memory ? QF_OK : qf_fail_memory(err);
}

/* Whether the tensor is the integers of a weight (docs/checkpoint.md), its scales beside it. */
static bool is_quantized(qf_checkpoint *c, const qf_safetensor *t, bool *memory)
{
    static const char packed[] = ".weight_packed", plain[] = ".weight";
    const char *end = qf_ends_with(t->name, packed)                                 ? packed
                      : qf_ends_with(t->name, plain) && strcmp(t->dtype, "I8") == 0 ? plain
                                                                                    : NULL;
    if (!end)
        return false;
    char *scale = qf_arena_printf(&c->arena, "%.*s.weight_scale",
                                  (int)(strlen(t->name) - strlen(end)), t->name);
    *memory = *memory && scale;
    return scale && qf_strmap_get(&c->by_name, scale) != NULL;
}

qf_status qf_check_checkpoint(const qf_place *place, qf_diagnostics *findings,
                              qf_verify_result *result, qf_error *err)
{
    qf_checkpoint *c = NULL;
    qf_error found;
    bool memory = true;
    qf_status status = qf_checkpoint_open(place->folder, &c, &found);
    if (status == QF_ERR_INPUT)
        qf_note_error(findings, NULL, &found);
    else if (status != QF_OK && err)
        *err = found;
    result->models = c != NULL;
    result->shards = c ? c->shard_count : 0;
    result->tensors = c ? c->tensors.count : 0;
    for (size_t i = 0; c && i < c->tensors.count; i++)
        result->layers += is_quantized(c, &c->tensors.items[i], &memory);
    qf_checkpoint_close(c);
    if (!memory)
        return qf_fail_memory(err);
    return status == QF_ERR_INPUT ? QF_OK : status;
}
