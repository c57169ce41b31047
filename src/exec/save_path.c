/* SPDX-License-Identifier: Apache-2.0 */
/* Where a save path leads to, and a single file that goes there. */
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/file.h"
#include "exec/stage.h"

/* The reference splits the real path, so a link at the end of the save path is followed, whether or
 * not what it names exists. */
static bool follow_last_link(char path[PATH_MAX])
{
    enum { MAX_LINKS = 40 };
    for (int i = 0; i < MAX_LINKS; i++) {
        char target[PATH_MAX], joined[2 * PATH_MAX];
        ssize_t n = readlink(path, target, sizeof target - 1);
        if (n < 0)
            return true; /* not a link */
        target[n] = '\0';
        const char *slash = strrchr(path, '/');
        int head = target[0] == '/' || !slash ? 0 : (int)(slash - path) + 1;
        int length = snprintf(joined, sizeof joined, "%.*s%s", head, path, target);
        if (length < 0 || length >= PATH_MAX)
            return false;
        memcpy(path, joined, (size_t)length + 1);
    }
    return false;
}

static qf_status refuse_save_path(const char *save_path, const char *why, qf_error *err)
{
    return qf_fail_at(err, QF_ERR_INPUT, (qf_where){.file = save_path}, "%s", why);
}

qf_status qf_save_path_split(const char *save_path, char **folder, char **prefix, qf_error *err)
{
    char path[PATH_MAX], real[PATH_MAX];
    int length = snprintf(path, sizeof path, "%s", save_path);
    if (length < 0 || length >= PATH_MAX || !follow_last_link(path))
        return refuse_save_path(save_path, "the save path is too long or links in a circle", err);
    const char *slash = strrchr(path, '/');
    const char *base = slash ? slash + 1 : path;
    if (strcmp(base, ".") == 0 || strcmp(base, "..") == 0) {
        /* without a slash behind them these name a folder, whose own name becomes the prefix */
        if (!realpath(path, real))
            return refuse_save_path(save_path, "the save path names a folder that does not exist",
                                    err);
        snprintf(path, sizeof path, "%s", real);
        slash = strrchr(path, '/');
        base = slash + 1;
    }
    if (strlen(base) > 241 || strchr(base, '\n'))
        return refuse_save_path(save_path,
                                "the file name prefix at the end of the save path must have at "
                                "most 241 bytes and no line break",
                                err);
    size_t head = (size_t)(base - path); /* with the slash */
    char *folder_copy = head == 0 ? strdup(".") : strndup(path, head > 1 ? head - 1 : 1);
    char *prefix_copy = strdup(base);
    if (!folder_copy || !prefix_copy) {
        free(folder_copy);
        free(prefix_copy);
        return qf_fail_memory(err);
    }
    *folder = folder_copy;
    *prefix = prefix_copy;
    return QF_OK;
}

/* What an export's files are called behind the prefix; models first. */
enum { MODELS = 3, NAMES };
static const char *const ends[NAMES] = {"deploy_model.onnx", "fake_quant_model.onnx",
                                        "runnable_model.onnx", "manifest.json"};

char *qf_save_path_of(qf_arena *arena, const char *file)
{
    const char *slash = strrchr(file, '/');
    size_t head = slash ? (size_t)(slash - file) + 1 : 0, n = strlen(file);
    for (size_t i = 0; i < NAMES; i++) {
        size_t m = strlen(ends[i]);
        char mark = i < MODELS ? '_' : '.';
        if (!qf_ends_with(file + head, ends[i]))
            continue;
        if (n - m == head)
            return qf_arena_printf(arena, "%.*s", head ? (int)head : 2, head ? file : "./");
        if (file[n - m - 1] == mark && n - m - 1 > head)
            return qf_arena_strndup(arena, file, n - m - 1);
    }
    return NULL;
}

size_t qf_model_stem(const char *name)
{
    for (size_t i = 0; i < MODELS; i++) {
        size_t n = strlen(name), m = strlen(ends[i]);
        if (qf_ends_with(name, ends[i]) && n > m && name[n - m - 1] == '_')
            return n - m - 1;
    }
    return 0;
}

uint64_t qf_free_space(const char *folder)
{
    char path[PATH_MAX];
    struct statvfs st;
    int n = snprintf(path, sizeof path, "%s", folder);
    if (n < 0 || (size_t)n >= sizeof path)
        return UINT64_MAX;
    while (statvfs(path, &st) != 0) {
        char *slash = strrchr(path, '/');
        if (errno != ENOENT)
            return UINT64_MAX;
        if (slash && slash != path)
            *slash = '\0';
        else
            snprintf(path, sizeof path, "%s", slash ? "/" : ".");
    }
    return (uint64_t)st.f_bavail * st.f_frsize;
}

/* A device or a pipe would give way to a file. */
static qf_status refuse_no_file(const char *path, const char *what, qf_error *err)
{
    struct stat st;
    if (stat(path, &st) != 0)
        return qf_is_absent(errno) ? QF_OK
                                   : qf_fail_errno(err, path, errno, "cannot examine the target");
    if (S_ISREG(st.st_mode))
        return QF_OK;
    return qf_fail_at(err, QF_ERR_INPUT, (qf_where){.file = path},
                      "the %s cannot be written there: %s has its name; choose another one, or "
                      "standard output",
                      what, S_ISDIR(st.st_mode) ? "a folder" : "a device or pipe");
}

qf_status qf_save_text(const char *path, const char *what, const char *text, size_t length,
                       qf_error *err)
{
    char *folder, *name;
    size_t index;
    qf_stage stage;
    qf_status status = refuse_no_file(path, what, err);
    if (status == QF_OK)
        status = qf_save_path_split(path, &folder, &name, err);
    if (status != QF_OK)
        return status;
    if (!*name)
        status = qf_fail_at(err, QF_ERR_INPUT, (qf_where){.file = path},
                            "the %s needs a file name, not only a folder", what);
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
