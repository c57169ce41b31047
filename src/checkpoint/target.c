/* SPDX-License-Identifier: Apache-2.0 */
/* The folder that is written to: what stands there, and what will. */
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "checkpoint/plan.h"
#include "exec/stage.h"

static bool is_output(const qf_checkpoint_plan *p, const char *name)
{
    for (size_t i = 0; i < p->layout.file_count; i++) {
        if (strcmp(p->layout.files[i].name, name) == 0)
            return true;
    }
    return false;
}

/* Of a folder, or of the nearest one above it that is there. */
static bool is_read_only(const char *folder)
{
    char path[PATH_MAX];
    int n = snprintf(path, sizeof path, "%s", folder);
    if (n < 0 || (size_t)n >= sizeof path)
        return false;
    while (access(path, W_OK) != 0) {
        char *slash = strrchr(path, '/');
        if (!qf_is_absent(errno))
            return errno == EROFS;
        if (slash && slash != path)
            *slash = '\0';
        else if (strcmp(path, ".") == 0 || strcmp(path, "/") == 0)
            return false;
        else
            snprintf(path, sizeof path, "%s", slash ? "/" : ".");
    }
    return false;
}

qf_status qf_checkpoint_check_target(qf_checkpoint_plan *p, qf_error *err)
{
    struct stat source, target;
    uint64_t bytes = 0;
    bool there = stat(p->folder, &target) == 0;
    if (!there && !qf_is_absent(errno))
        return qf_fail_errno(err, p->folder, errno, "cannot examine the target folder");
    if (there && !S_ISDIR(target.st_mode))
        return qf_fail_at(err, QF_ERR_INPUT, (qf_where){.file = p->folder},
                          "the target is a file; choose a folder");
    if (stat(p->checkpoint->path, &source) != 0)
        return qf_fail_errno(err, p->checkpoint->path, errno, "cannot examine the model's folder");
    if (there && source.st_dev == target.st_dev && source.st_ino == target.st_ino)
        return qf_fail_at(err, QF_ERR_INPUT, (qf_where){.file = p->folder},
                          "the target is the checkpoint's own folder; choose another");
    const char *stale;
    qf_status status =
        qf_find_entry(p->folder, ".safetensors", is_output, p, &p->arena, &stale, err);
    if (status == QF_OK && !stale)
        status = qf_find_entry(p->folder, ".safetensors.index.json", is_output, p, &p->arena,
                               &stale, err);
    if (status != QF_OK)
        return status;
    if (stale)
        return qf_fail_at(err, QF_ERR_INPUT, (qf_where){.file = p->folder, .item = stale},
                          "the target folder has weights, or an index of weights, that this run "
                          "would not replace and loaders may read; choose an empty folder");
    for (size_t i = 0; i < p->layout.file_count; i++)
        bytes += p->layout.files[i].size;
    bool fresh = !p->options.resume && !p->options.shard_count;
    uint64_t available = fresh ? qf_free_space(p->folder) : UINT64_MAX;
    if (bytes > available && is_read_only(p->folder)) /* such a mount has nothing free either */
        return qf_fail_errno(err, p->folder, EROFS, "cannot write into the target folder");
    if (bytes > available)
        return qf_fail_at(err, QF_ERR_SYSTEM, (qf_where){.file = p->folder},
                          "not enough space: the output needs %llu bytes, %llu are free",
                          (unsigned long long)bytes, (unsigned long long)available);
    return QF_OK;
}

qf_status qf_checkpoint_list_outputs(qf_checkpoint_plan *p, qf_error *err)
{
    p->outputs = qf_arena_array(&p->arena, p->layout.file_count + 1, sizeof *p->outputs);
    if (!p->outputs)
        return qf_fail_memory(err);
    for (size_t i = 0; i < p->layout.file_count; i++) {
        struct stat st;
        const char *path = qf_arena_printf(&p->arena, "%s/%s", p->folder, p->layout.files[i].name);
        if (!path)
            return qf_fail_memory(err);
        bool exists = !p->options.ignore_target && stat(path, &st) == 0;
        if (!exists && !p->options.ignore_target && !qf_is_absent(errno))
            return qf_fail_errno(err, path, errno, "cannot examine the output's place");
        if (exists && !S_ISREG(st.st_mode))
            return qf_fail_at(err, QF_ERR_INPUT, (qf_where){.file = path},
                              "there is something of this name that is no file; remove it");
        p->outputs[i] = (qf_output_file){path, p->layout.files[i].size, exists};
    }
    return QF_OK;
}
