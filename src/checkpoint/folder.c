/* SPDX-License-Identifier: Apache-2.0 */
#include "checkpoint/folder.h"

#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/json.h"
#include "base/spill.h"
#include "checkpoint/json_text.h"

enum {
    TEXT_MOST = 256 * 1024 * 1024, /* bytes of an index or a config */
    DEPTH_MOST = 4,                /* of subfolders */
    FILES_MOST = 10000,
};

/* Weights in other formats, which would be twice the model. */
static bool is_other_weight(const char *name)
{
    static const char *const ends[] = {".bin",  ".pth",       ".pt", ".gguf", ".msgpack",
                                       ".onnx", ".onnx_data", ".h5", ".ot",   ".safetensors"};
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++) {
        if (qf_ends_with(name, ends[i]))
            return true;
    }
    return qf_ends_with(name, ".index.json");
}

/* Of which the stage makes slashes, so that such a name would lead out of the target. */
static bool has_control_character(const char *name)
{
    while (*name && (unsigned char)*name >= ' ')
        name++;
    return *name != '\0';
}

/* ---- paths ---- */

/* Whether `path` may be read as a file of the folder: links must not lead out of it, but into the
 * `blobs` of a Hugging Face cache, whose `snapshots/<revision>` are made of such links. */
static bool is_inside(char *real_folder, const char *real)
{
    size_t n = strlen(real_folder);
    if (strncmp(real, real_folder, n) == 0 && real[n] == '/')
        return true;
    char *revision = strrchr(real_folder, '/');
    if (!revision)
        return false;
    *revision = '\0';
    char *snapshots = strrchr(real_folder, '/');
    if (!snapshots || strcmp(snapshots, "/snapshots") != 0)
        return false;
    n = (size_t)(snapshots - real_folder);
    return strncmp(real, real_folder, n) == 0 && strncmp(real + n, "/blobs/", 7) == 0;
}

static char *path_of(const qf_checkpoint *f, const char *name)
{
    size_t n = strlen(f->path) + strlen(name) + 2;
    char *path = malloc(n);
    if (path)
        snprintf(path, n, "%s/%s", f->path, name);
    return path;
}

static qf_status refuse_link(const char *path, qf_error *err)
{
    return qf_fail_at(
        err, QF_ERR_INPUT, (qf_where){.file = path},
        "the file is a link that leads out of the model's folder; copy what it points "
        "to into the folder");
}

/* What is not there is left to those who open it. */
static qf_status check_inside(const qf_checkpoint *f, const char *path, qf_error *err)
{
    char folder[PATH_MAX], real[PATH_MAX];
    if (!realpath(path, real))
        return qf_is_absent(errno) ? QF_OK
                                   : qf_fail_errno(err, path, errno, "cannot resolve the path");
    if (!realpath(f->path, folder))
        return qf_fail_errno(err, f->path, errno, "cannot resolve the path");
    return is_inside(folder, real) ? QF_OK : refuse_link(path, err);
}

qf_status qf_folder_text(const qf_checkpoint *f, const char *name, char **out, size_t *length,
                         qf_file_id *id, qf_error *err)
{
    char *path = path_of(f, name);
    if (!path)
        return qf_fail_memory(err);
    qf_status status = check_inside(f, path, err);
    if (status == QF_OK)
        status = qf_file_read_text(path, name, TEXT_MOST, out, length, id, err);
    free(path);
    return status;
}

/* ---- files ---- */

static qf_status add_file(qf_checkpoint *f, const char *name, bool shard, qf_error *err)
{
    qf_file file;
    char *path = path_of(f, name);
    if (f->file_count == FILES_MOST) {
        free(path);
        return qf_fail_at(err, QF_ERR_INPUT, (qf_where){.file = f->path},
                          "the folder has more than %d files", FILES_MOST);
    }
    if (!path || !qf_grow((void **)&f->files, &f->file_cap, f->file_count + 1, sizeof file) ||
        !qf_grow((void **)&f->infos, &f->info_cap, f->file_count + 1, sizeof *f->infos)) {
        free(path);
        return qf_fail_memory(err);
    }
    qf_status status = check_inside(f, path, err);
    if (status == QF_OK)
        status = qf_file_open(path, shard ? "checkpoint file" : "file", &file, err);
    free(path);
    if (status != QF_OK)
        return status;
    f->files[f->file_count] = file;
    f->infos[f->file_count] = (qf_folder_file){qf_arena_strdup(&f->arena, name), shard, NULL};
    f->file_count++;
    return f->infos[f->file_count - 1].name ? QF_OK : qf_fail_memory(err);
}

static int by_text(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* Names in a subfolder ("" for the folder itself), sorted; hidden ones are nobody's. */
static qf_status list_folder(qf_checkpoint *f, const char *sub, const char ***names, size_t *count,
                             qf_error *err)
{
    size_t cap = 0;
    *names = NULL;
    *count = 0;
    char *path = path_of(f, sub);
    DIR *dir = path ? opendir(path) : NULL;
    if (!dir) {
        int e = errno;
        qf_status status =
            !path ? qf_fail_memory(err)
            : e == ENOENT || e == ENOTDIR
                ? qf_fail_at(err, QF_ERR_INPUT, (qf_where){.file = f->path, .sys_errno = e},
                             "cannot find the model's folder; check the path")
                : qf_fail_errno(err, path, e, "cannot read the model's folder");
        free(path);
        return status;
    }
    free(path);
    qf_status status = QF_OK;
    for (const struct dirent *e; status == QF_OK && (errno = 0, e = readdir(dir));) {
        if (e->d_name[0] == '.')
            continue;
        const char *name = qf_arena_printf(&f->arena, "%s%s%s", sub, *sub ? "/" : "", e->d_name);
        if (!name || !qf_grow((void **)names, &cap, *count + 1, sizeof **names))
            status = qf_fail_memory(err);
        else if (*count == FILES_MOST)
            status = qf_fail_at(err, QF_ERR_INPUT, (qf_where){.file = f->path},
                                "the folder has more than %d files", FILES_MOST);
        else
            (*names)[(*count)++] = name;
    }
    if (status == QF_OK && errno)
        status = qf_fail_errno(err, f->path, errno, "cannot read the model's folder");
    closedir(dir);
    if (status == QF_OK && *count)
        qsort(*names, *count, sizeof **names, by_text);
    return status;
}

static qf_status pass_over(qf_checkpoint *f, const char *name, qf_error *err)
{
    if (!qf_grow((void **)&f->passed, &f->passed_cap, f->passed_count + 1, sizeof *f->passed))
        return qf_fail_memory(err);
    f->passed[f->passed_count++] = name;
    return QF_OK;
}

/* Takes along what is neither weights nor written anew, nor the manifest of what was there. Links
 * to folders stay behind: they may lead out of the folder, or back into it. */
static qf_status add_others(qf_checkpoint *f, const char *sub, int depth, qf_error *err)
{
    const char **names;
    size_t count;
    qf_status status = list_folder(f, sub, &names, &count, err);
    for (size_t i = 0; status == QF_OK && i < count; i++) {
        struct stat st, link;
        char *path = path_of(f, names[i]);
        bool there = path && lstat(path, &link) == 0 && stat(path, &st) == 0;
        if (!path)
            status = qf_fail_memory(err);
        else if (!there && !qf_is_absent(errno))
            status = qf_fail_errno(err, path, errno, "cannot examine the file");
        free(path);
        if (!there || strcmp(names[i], QF_CONFIG_NAME) == 0 || strcmp(names[i], QF_INDEX_NAME) == 0)
            continue;
        bool plain = S_ISREG(st.st_mode) && strlen(names[i]) < NAME_MAX - 1 &&
                     !has_control_character(names[i]) && strcmp(names[i], QF_MANIFEST_NAME) != 0;
        bool shard = false;
        for (size_t k = 0; k < f->shard_count; k++)
            shard |= strcmp(f->infos[k].name, names[i]) == 0;
        if (shard)
            continue;
        if (S_ISDIR(st.st_mode) && !S_ISLNK(link.st_mode) && depth < DEPTH_MOST)
            status = add_others(f, names[i], depth + 1, err);
        else if (plain && !is_other_weight(names[i]))
            status = add_file(f, names[i], false, err);
        else
            status = pass_over(f, names[i], err);
    }
    free(names);
    return status;
}

/* ---- shards ---- */

static bool is_plain_name(const char *name)
{
    return *name && name[0] != '.' && !strchr(name, '/') && !has_control_character(name) &&
           qf_ends_with(name, ".safetensors");
}

/* The shards that the index names, each once. */
static qf_status add_indexed(qf_checkpoint *f, const cJSON *map, qf_error *err)
{
    const cJSON *item;
    const char **names = NULL;
    size_t count = 0, cap = 0;
    qf_status status = QF_OK;
    cJSON_ArrayForEach(item, map)
    {
        const char *name = cJSON_GetStringValue(item);
        if (!name || !is_plain_name(name)) {
            status = qf_fail_at(err, QF_ERR_INPUT,
                                (qf_where){.file = QF_INDEX_NAME, .item = item->string},
                                "the index must name a .safetensors file of the folder, without a "
                                "path");
            break;
        }
        if (count && strcmp(names[count - 1], name) == 0)
            continue;
        if (!qf_grow((void **)&names, &cap, count + 1, sizeof *names)) {
            status = qf_fail_memory(err);
            break;
        }
        names[count++] = name;
    }
    if (count)
        qsort(names, count, sizeof *names, by_text);
    for (size_t i = 0; status == QF_OK && i < count; i++) {
        if (!i || strcmp(names[i], names[i - 1]) != 0)
            status = add_file(f, names[i], true, err);
    }
    free(names);
    return status;
}

/* Every tensor of the index is in the shard that it says, and every tensor is in the index. */
static qf_status check_index(const qf_checkpoint *f, const cJSON *map, qf_error *err)
{
    const cJSON *item;
    size_t count = 0;
    cJSON_ArrayForEach(item, map)
    {
        const qf_safetensor *t = qf_strmap_get(&f->by_name, item->string);
        if (!t || strcmp(f->infos[t->file].name, item->valuestring) != 0)
            return qf_fail_at(err, QF_ERR_INPUT,
                              (qf_where){.file = QF_INDEX_NAME, .item = item->string},
                              "the tensor is not in '%s', where the index says it is; the download "
                              "is not complete, or files of two models are mixed",
                              item->valuestring);
        count++;
    }
    if (count != f->tensors.count)
        return qf_fail_at(err, QF_ERR_INPUT, (qf_where){.file = QF_INDEX_NAME},
                          "the index names %zu tensors, the shards have %zu; the download is not "
                          "complete, or files of two models are mixed",
                          count, f->tensors.count);
    return QF_OK;
}

static qf_status read_tensors(qf_checkpoint *f, qf_error *err)
{
    qf_status status = QF_OK;
    for (size_t i = 0; status == QF_OK && i < f->file_count; i++)
        status = qf_safetensors_read(&f->files[i], (int)i, &f->arena, &f->tensors,
                                     &f->infos[i].metadata, err);
    for (size_t i = 0; status == QF_OK && i < f->tensors.count; i++) {
        qf_safetensor *t = &f->tensors.items[i];
        void *held = qf_strmap_add(&f->by_name, t->name, t);
        if (!held)
            status = qf_fail_memory(err);
        else if (held != t)
            status = qf_fail_at(err, QF_ERR_INPUT,
                                (qf_where){.file = f->files[t->file].path, .item = t->name},
                                "the checkpoint has two tensors of this name");
    }
    return status;
}

static qf_status add_unindexed(qf_checkpoint *f, qf_error *err)
{
    const char **names;
    size_t count, shards = 0;
    qf_status status = list_folder(f, "", &names, &count, err);
    bool single = false;
    for (size_t i = 0; status == QF_OK && i < count; i++)
        single |= strcmp(names[i], QF_SINGLE_NAME) == 0;
    for (size_t i = 0; status == QF_OK && i < count; i++) {
        if (single ? strcmp(names[i], QF_SINGLE_NAME) == 0 : is_plain_name(names[i])) {
            status = add_file(f, names[i], true, err);
            shards++;
        }
    }
    free(names);
    if (status == QF_OK && !shards)
        status = qf_fail_at(err, QF_ERR_INPUT, (qf_where){.file = f->path},
                            "the folder has no .safetensors file; other formats are converted with "
                            "transformers' save_pretrained(..., safe_serialization=True)");
    return status;
}

static qf_status read_shards(qf_checkpoint *f, qf_error *err)
{
    char *text = NULL;
    size_t length;
    struct stat st;
    char *path = path_of(f, QF_INDEX_NAME);
    if (!path)
        return qf_fail_memory(err);
    f->indexed = stat(path, &st) == 0;
    qf_status status = f->indexed || qf_is_absent(errno)
                           ? QF_OK
                           : qf_fail_errno(err, path, errno, "cannot examine the file");
    free(path);
    if (status != QF_OK)
        return status;
    if (!f->indexed) {
        status = add_unindexed(f, err);
        return status == QF_OK ? read_tensors(f, err) : status;
    }
    status = qf_folder_text(f, QF_INDEX_NAME, &text, &length, NULL, err);
    if (status != QF_OK)
        return status;
    const char *why;
    cJSON *index = qf_json_object(text, length, &why);
    bool exhausted = !index && !why;
    const cJSON *map = cJSON_GetObjectItemCaseSensitive(index, "weight_map");
    qf_spill_free(text);
    if (exhausted)
        status = qf_fail_memory(err);
    else if (!cJSON_IsObject(map) || !map->child)
        status = qf_fail_at(err, QF_ERR_INPUT, (qf_where){.file = QF_INDEX_NAME},
                            "the index is not a JSON object with a 'weight_map' of tensors to "
                            "files: %s",
                            why ? why : "'weight_map' is missing or empty");
    if (status == QF_OK)
        status = add_indexed(f, map, err);
    if (status == QF_OK)
        status = read_tensors(f, err);
    if (status == QF_OK)
        status = check_index(f, map, err);
    cJSON_Delete(index);
    return status;
}

qf_status qf_find_entry(const char *folder, const char *end,
                        bool (*known)(const qf_checkpoint_plan *plan, const char *name),
                        const qf_checkpoint_plan *plan, qf_arena *arena, const char **found,
                        qf_error *err)
{
    const struct dirent *e;
    *found = NULL;
    DIR *dir = opendir(folder);
    if (!dir)
        return qf_is_absent(errno)
                   ? QF_OK
                   : qf_fail_errno(err, folder, errno, "cannot read the target folder");
    qf_status status = QF_OK;
    while (status == QF_OK && !*found && (errno = 0, e = readdir(dir))) {
        if (e->d_name[0] == '.' || !qf_ends_with(e->d_name, end) || known(plan, e->d_name))
            continue;
        *found = qf_arena_strdup(arena, e->d_name);
        status = *found ? QF_OK : qf_fail_memory(err);
    }
    if (status == QF_OK && !*found && errno)
        status = qf_fail_errno(err, folder, errno, "cannot read the target folder");
    closedir(dir);
    return status;
}

/* ---- the whole ---- */

static qf_status read_config(qf_checkpoint *f, qf_error *err)
{
    qf_status status =
        qf_folder_text(f, QF_CONFIG_NAME, &f->config, &f->config_length, &f->config_id, err);
    if (status != QF_OK)
        return status;
    const char *why;
    cJSON *config = qf_json_object(f->config, f->config_length, &why);
    if (!config && !why)
        status = qf_fail_memory(err);
    else if (!config)
        status = qf_fail_at(err, QF_ERR_INPUT, (qf_where){.file = QF_CONFIG_NAME},
                            "the configuration cannot be read: %s", why);
    cJSON_Delete(config);
    return status;
}

qf_status qf_checkpoint_open(const char *path, qf_checkpoint **out, qf_error *err)
{
    if (!path || !out)
        return qf_fail(err, QF_ERR_USAGE, "path and out must not be NULL");
    qf_checkpoint *f = calloc(1, sizeof *f);
    if (!f)
        return qf_fail_memory(err);
    qf_arena_init(&f->arena);
    f->path = strdup(*path ? path : ".");
    qf_status status = f->path ? QF_OK : qf_fail_memory(err);
    for (size_t n = f->path ? strlen(f->path) : 0; n > 1 && f->path[n - 1] == '/'; n--)
        f->path[n - 1] = '\0';
    if (status == QF_OK)
        status = read_shards(f, err);
    f->shard_count = f->file_count;
    if (status == QF_OK)
        status = read_config(f, err);
    if (status == QF_OK)
        status = add_others(f, "", 0, err);
    status = qf_files_check(f->files, f->file_count, status, err);
    if (status == QF_OK)
        *out = f;
    else
        qf_checkpoint_close(f);
    return status;
}

void qf_checkpoint_close(qf_checkpoint *f)
{
    if (!f)
        return;
    for (size_t i = 0; i < f->file_count; i++)
        qf_file_close(&f->files[i]);
    free(f->files);
    free(f->infos);
    free(f->passed);
    qf_spill_free(f->tensors.items);
    qf_strmap_release(&f->by_name);
    qf_spill_free(f->config);
    qf_arena_release(&f->arena);
    free(f->path);
    free(f);
}
