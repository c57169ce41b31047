/* SPDX-License-Identifier: Apache-2.0 */
/* What an earlier run has left in the staging folder: finished, taken back, or removed. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "base/retry.h"
#include "exec/staging.h"

static bool remove_staged(void *user, const char *name)
{
    const qf_stage *stage = user;
    return strcmp(name, QF_STAGE_RUN) == 0 || unlinkat(stage->partial_fd, name, 0) == 0 ||
           errno == ENOENT;
}

static bool remove_old(void *user, const char *name)
{
    const qf_stage *stage = user;
    return unlinkat(stage->old_fd, name, 0) == 0 || errno == ENOENT;
}

static bool remove_own(void *user, const char *name)
{
    const qf_stage *stage = user;
    return strcmp(name, QF_STAGE_OLD) == 0 || strcmp(name, QF_STAGE_COMPLETE) == 0 ||
           unlinkat(stage->run_fd, name, 0) == 0 || errno == ENOENT;
}

/* `complete` goes last: without it, replaced files that are still there would be put back. */
bool qf_stage_empty(qf_stage *stage)
{
    if (!qf_stage_each(stage->partial_fd, remove_staged, stage))
        return false;
    if (stage->run_fd < 0)
        return true;
    return (stage->old_fd < 0 || qf_stage_each(stage->old_fd, remove_old, stage)) &&
           qf_stage_each(stage->run_fd, remove_own, stage) &&
           (unlinkat(stage->run_fd, QF_STAGE_COMPLETE, 0) == 0 || errno == ENOENT);
}

/* Graphs and descriptions name other files, so they come last. */
static bool names_others(const char *name)
{
    return qf_ends_with(name, ".onnx") || qf_ends_with(name, ".json");
}

static bool move_first(void *user, const char *name)
{
    return strcmp(name, QF_STAGE_RUN) == 0 || names_others(name) || qf_stage_move(user, name);
}

static bool move_last(void *user, const char *name)
{
    return !names_others(name) || qf_stage_move(user, name);
}

static qf_status fail_recovery(const qf_stage *stage, qf_error *err)
{
    return qf_fail_errno(err, stage->partial, errno,
                         "cannot clean up after an earlier run that was killed");
}

/* The file that a complete run takes away, "" if there is none: what `complete` holds. */
static bool read_going(const qf_stage *stage, char name[NAME_MAX + 2])
{
    int fd = qf_open_at(stage->run_fd, QF_STAGE_COMPLETE, O_RDONLY | O_CLOEXEC | O_NOFOLLOW, 0);
    ssize_t got = fd < 0 ? -1 : qf_read_all(fd, name, NAME_MAX + 1);
    int e = errno;
    if (fd >= 0)
        close(fd);
    errno = e;
    name[got < 0 ? 0 : got] = '\0';
    return got >= 0;
}

static bool remove_going(const qf_stage *stage)
{
    char name[NAME_MAX + 2];
    return read_going(stage, name) &&
           (!*name || unlinkat(stage->folder_fd, name, 0) == 0 || qf_is_absent(errno));
}

static bool stop_at_unsafe(void *user, const char *staged)
{
    bool *safe = user;
    char name[NAME_MAX + 1];
    qf_final_name(staged, name);
    *safe &= qf_name_is_safe(name);
    return true;
}

/* What lies in the folder may be anybody's, and its names become paths. */
static qf_status check_names(const qf_stage *stage, bool complete, qf_error *err)
{
    char going[NAME_MAX + 2] = "";
    if (complete && !read_going(stage, going))
        return fail_recovery(stage, err);
    bool safe = !*going || (qf_name_is_safe(going) && !strchr(going, '/'));
    if ((complete && !qf_stage_each(stage->partial_fd, stop_at_unsafe, &safe)) ||
        (stage->old_fd >= 0 && !qf_stage_each(stage->old_fd, stop_at_unsafe, &safe)))
        return fail_recovery(stage, err);
    return safe ? QF_OK
                : qf_fail_at(err, QF_ERR_INPUT, (qf_where){.file = stage->partial},
                             "a name in the staging folder leads out of the target folder, so "
                             "quantfold has not written it; remove the staging folder");
}

/* Puts a replaced file back whose successor could not be put in place. */
static bool restore(void *user, const char *name)
{
    const qf_stage *stage = user;
    char final[NAME_MAX + 1];
    qf_final_name(name, final);
    return qf_stage_subfolders(stage, final) &&
           renameat(stage->old_fd, name, stage->folder_fd, final) == 0 &&
           (unlinkat(stage->old_fd, name, 0) == 0 || errno == ENOENT);
}

static bool stop_at_entry(void *user, const char *name)
{
    bool *any = user;
    (void)name;
    *any = true;
    return true;
}

/* *complete, *replaced: whether the run that left the folder was complete, and whether it holds
 * files that it replaced. */
static bool examine(qf_stage *stage, bool *complete, bool *replaced)
{
    *replaced = false;
    *complete = faccessat(stage->run_fd, QF_STAGE_COMPLETE, F_OK, 0) == 0;
    if (!*complete && errno != ENOENT)
        return false;
    stage->old_fd =
        qf_open_at(stage->run_fd, QF_STAGE_OLD, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW, 0);
    if (stage->old_fd < 0)
        return errno == ENOENT;
    return qf_stage_each(stage->old_fd, stop_at_entry, replaced);
}

qf_status qf_stage_recover(qf_stage *stage, bool *half, qf_error *err)
{
    bool complete, replaced;
    if (!examine(stage, &complete, &replaced))
        return fail_recovery(stage, err);
    qf_status status = check_names(stage, complete, err);
    if (status != QF_OK)
        return status;
    *half = (complete || replaced) && stage->mode == QF_STAGE_SHARD;
    if (*half)
        return QF_OK;
    if (complete && !(qf_stage_each(stage->partial_fd, move_first, stage) &&
                      qf_stage_each(stage->partial_fd, move_last, stage) && remove_going(stage)))
        return fail_recovery(stage, err);
    if (!complete && replaced && !qf_stage_each(stage->old_fd, restore, stage))
        return fail_recovery(stage, err);
    if ((complete || replaced) && qf_sync(stage->folder_fd) != 0)
        return fail_recovery(stage, err);
    if (stage->mode == QF_STAGE_FRESH && !qf_stage_empty(stage))
        return fail_recovery(stage, err);
    stage->recovered = complete;
    return QF_OK;
}
