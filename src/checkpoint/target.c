/* SPDX-License-Identifier: Apache-2.0 */
/* The folder that is written to, and the files that will stand there. */
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "checkpoint/plan.h"

bool qf_is_read_only(const char *folder)
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
