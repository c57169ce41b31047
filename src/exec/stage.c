/* SPDX-License-Identifier: Apache-2.0 */
#include "exec/staging.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include <xxhash.h>

#include "base/retry.h"

enum { FOLDER_MODE = 0750, PLAIN_PREFIX_MAX = 200 };

char *qf_stage_path(const char *a, const char *b)
{
    size_t n = strlen(a) + strlen(b) + 2;
    char *path = malloc(n);
    if (path)
        snprintf(path, n, "%s/%s", a, b);
    return path;
}

/* ---- folders ---- */

/* mkdir -p that remembers what it made. */
static qf_status make_folders(qf_stage *stage, qf_error *err)
{
    char path[PATH_MAX];
    size_t n = strlen(stage->folder);
    if (n >= sizeof path)
        return qf_fail_at(err, QF_ERR_INPUT, (qf_where){.file = stage->folder},
                          "the target folder's path is too long");
    memcpy(path, stage->folder, n + 1);
    for (size_t i = 1; i <= n; i++) {
        if (path[i] != '/' && path[i] != '\0')
            continue;
        char end = path[i];
        path[i] = '\0';
        if (mkdir(path, FOLDER_MODE) == 0) {
            if (!qf_grow((void **)&stage->made, &stage->made_cap, stage->made_count + 1,
                         sizeof *stage->made) ||
                !(stage->made[stage->made_count] = strdup(path))) {
                rmdir(path);
                return qf_fail_memory(err);
            }
            stage->made_count++;
        } else if (errno != EEXIST) {
            return qf_fail_errno(err, path, errno, "cannot make the target folder");
        }
        path[i] = end;
    }
    return QF_OK;
}

bool qf_stage_each(int fd, bool (*visit)(void *user, const char *name), void *user)
{
    int copy = qf_open_at(fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
    DIR *dir = copy < 0 ? NULL : fdopendir(copy);
    if (!dir) {
        int e = errno;
        if (copy >= 0)
            close(copy);
        errno = e;
        return false;
    }
    const struct dirent *entry;
    bool ok = true;
    while (ok && (errno = 0, entry = readdir(dir))) {
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            ok = visit(user, entry->d_name);
    }
    int e = errno;
    ok = ok && !e;
    closedir(dir);
    errno = e;
    return ok;
}

/* ---- names in the staging folder ---- */

enum { SLASH = 1 }; /* what stands for '/': a control character, which no output's name has */

/* Files of subfolders are staged in the one folder; what is called as the run's own folder gives
 * way to it. */
void qf_staged_name(const char *name, char out[NAME_MAX + 1])
{
    int n = snprintf(out, NAME_MAX + 1, "%s%s", strcmp(name, QF_STAGE_RUN) == 0 ? "/" : "", name);
    for (int i = 0; i < n && i <= NAME_MAX; i++)
        out[i] = out[i] == '/' ? SLASH : out[i];
}

void qf_final_name(const char *staged, char out[NAME_MAX + 1])
{
    snprintf(out, NAME_MAX + 1, "%s", staged + (staged[0] == SLASH));
    for (char *p = out; *p; p++)
        *p = *p == SLASH ? '/' : *p;
}

bool qf_name_is_safe(const char *name)
{
    if (strlen(name) > NAME_MAX)
        return false;
    for (const char *part = name;; part++) {
        size_t n = strcspn(part, "/");
        if (!n || (n == 1 && part[0] == '.') || (n == 2 && part[0] == '.' && part[1] == '.'))
            return false;
        part += n;
        if (!*part)
            return true;
    }
}

bool qf_stage_subfolders(const qf_stage *stage, char *name)
{
    for (char *p = name; (p = strchr(p, '/')); p++) {
        struct stat st;
        *p = '\0';
        bool ok = mkdirat(stage->folder_fd, name, FOLDER_MODE) == 0 || errno == EEXIST;
        ok = ok && fstatat(stage->folder_fd, name, &st, AT_SYMLINK_NOFOLLOW) == 0;
        if (ok && !S_ISDIR(st.st_mode)) {
            errno = ENOTDIR;
            ok = false;
        }
        *p = '/';
        if (!ok)
            return false;
    }
    return true;
}

bool qf_stage_move(const qf_stage *stage, const char *staged)
{
    char name[NAME_MAX + 1];
    qf_final_name(staged, name);
    return qf_stage_subfolders(stage, name) &&
           renameat(stage->partial_fd, staged, stage->folder_fd, name) == 0;
}

/* ---- opening ---- */

int qf_stage_lock(int fd, int operation)
{
    int result = qf_lock(fd, operation);
    bool none = result != 0 && (errno == ENOTSUP || errno == ENOSYS || errno == ENOLCK);
    return none ? 0 : result;
}

/* A shard waits a while: another one may have the folder for itself for a moment, to make it that
 * of their output. */
static int lock_folder(int fd, qf_stage_mode mode)
{
    enum { TRIES = 500 };
    const struct timespec pause = {.tv_nsec = 20 * 1000 * 1000};
    int result = qf_stage_lock(fd, (mode == QF_STAGE_SHARD ? LOCK_SH : LOCK_EX) | LOCK_NB);
    for (int i = 0; mode == QF_STAGE_SHARD && result != 0 && errno == EWOULDBLOCK && i < TRIES;
         i++) {
        nanosleep(&pause, NULL);
        result = qf_stage_lock(fd, LOCK_SH | LOCK_NB);
    }
    return result;
}

static int open_folder(const char *path)
{
    return qf_open_at(AT_FDCWD, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW, 0);
}

static qf_status lock_partial(qf_stage *stage, qf_error *err)
{
    for (;;) {
        struct stat held, named;
        if (mkdirat(stage->folder_fd, strrchr(stage->partial, '/') + 1, 0700) != 0 &&
            errno != EEXIST)
            return qf_fail_errno(err, stage->partial, errno, "cannot write to the target folder");
        int fd = open_folder(stage->partial);
        if (fd < 0) {
            if (errno == ENOENT) /* removed by another run at this moment */
                continue;
            return qf_fail_errno(err, stage->partial, errno, "cannot open the staging folder");
        }
        if (lock_folder(fd, stage->mode) != 0) {
            int e = errno;
            close(fd);
            if (e == EWOULDBLOCK)
                return qf_fail_at(err, QF_ERR_INPUT, (qf_where){.file = stage->partial},
                                  "another export to the same save path is running");
            return qf_fail_errno(err, stage->partial, e, "cannot lock the staging folder");
        }
        /* a run that ended between our open and our lock may have removed the folder */
        bool known = fstat(fd, &held) == 0, there = known && lstat(stage->partial, &named) == 0;
        if (there && held.st_ino == named.st_ino && held.st_dev == named.st_dev) {
            stage->partial_fd = fd;
            return QF_OK;
        }
        int e = errno;
        close(fd);
        if (!known || (!there && e != ENOENT))
            return qf_fail_errno(err, stage->partial, e, "cannot examine the staging folder");
    }
}

static qf_status open_run(qf_stage *stage, qf_error *err)
{
    if (mkdirat(stage->partial_fd, QF_STAGE_RUN, 0700) == 0 || errno == EEXIST)
        stage->run_fd = qf_open_at(stage->partial_fd, QF_STAGE_RUN,
                                   O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW, 0);
    if (stage->run_fd < 0)
        return qf_fail_errno(err, stage->partial, errno, "cannot open the staging folder");
    return QF_OK;
}

void qf_stage_name(const char *prefix, char out[NAME_MAX + 1])
{
    if (strlen(prefix) <= PLAIN_PREFIX_MAX)
        snprintf(out, NAME_MAX + 1, ".%s%squantfold-partial", prefix, *prefix ? "." : "");
    else
        snprintf(out, NAME_MAX + 1, ".%016llx.quantfold-partial",
                 (unsigned long long)XXH3_64bits(prefix, strlen(prefix)));
}

static qf_status open_stage(const char *folder, const char *prefix, qf_stage_mode mode,
                            qf_stage *out, bool *half, qf_error *err)
{
    *half = false;
    *out = (qf_stage){.mode = mode, .folder_fd = -1, .partial_fd = -1, .run_fd = -1, .old_fd = -1};
    char name[NAME_MAX + 1];
    qf_stage_name(prefix, name);
    out->folder = strdup(folder);
    out->partial = qf_stage_path(folder, name);
    qf_status status = out->folder && out->partial ? make_folders(out, err) : qf_fail_memory(err);
    if (status == QF_OK) {
        out->folder_fd = qf_open_at(AT_FDCWD, folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
        if (out->folder_fd < 0)
            status = qf_fail_errno(err, folder, errno, "cannot open the target folder");
    }
    if (status == QF_OK)
        status = lock_partial(out, err);
    if (status == QF_OK)
        status = open_run(out, err);
    if (status == QF_OK)
        status = qf_stage_recover(out, half, err);
    if (status != QF_OK || *half) {
        out->keep = true; /* nobody knows what is in there */
        qf_stage_close(out);
    }
    return status;
}

/* What an earlier run of another process left half in place is dealt with alone, before the folder
 * is shared; another shard that is at it is waited for. */
qf_status qf_stage_open(const char *folder, const char *prefix, qf_stage_mode mode, qf_stage *out,
                        qf_error *err)
{
    enum { TRIES = 100 };
    const struct timespec pause = {.tv_nsec = 100 * 1000 * 1000};
    bool half;
    qf_status status = open_stage(folder, prefix, mode, out, &half, err);
    for (int i = 0; status == QF_OK && half && i < TRIES; i++) {
        status = open_stage(folder, prefix, QF_STAGE_RESUME, out, &half, err);
        if (status == QF_ERR_INPUT)
            nanosleep(&pause, NULL);
        else if (status != QF_OK)
            return status;
        else {
            out->keep = !out->recovered;
            qf_stage_close(out);
        }
        status = open_stage(folder, prefix, mode, out, &half, err);
    }
    if (status == QF_OK && half)
        return qf_fail_at(err, QF_ERR_INPUT, (qf_where){.file = folder},
                          "an earlier output is half in place, and another process is at it");
    return status;
}

/* ---- putting files in place ---- */

/* The file that is replaced stays reachable under another name until all renames are done: by a
 * link, so that it is never missing, or by moving it where the file system has no links. */
static bool move_with_backup(const qf_stage *stage, size_t index)
{
    char staged[NAME_MAX + 1];
    struct stat st;
    const char *name = stage->files[index].name;
    qf_staged_name(name, staged);
    bool there = fstatat(stage->folder_fd, name, &st, AT_SYMLINK_NOFOLLOW) == 0;
    if (!there && errno != ENOENT && errno != ENOTDIR)
        return false;
    if (stage->files[index].goes)
        return !there || renameat(stage->folder_fd, name, stage->old_fd, staged) == 0;
    if (there && !S_ISDIR(st.st_mode) &&
        linkat(stage->folder_fd, name, stage->old_fd, staged, 0) != 0 &&
        renameat(stage->folder_fd, name, stage->old_fd, staged) != 0)
        return false;
    return qf_stage_move(stage, staged);
}

/* Undoes one rename, or that of which only the old file may have been moved: the new file goes back
 * into staging, by a link if there are any, so that the name is never without a file. */
static bool move_back(const qf_stage *stage, size_t index, bool moved)
{
    char staged[NAME_MAX + 1];
    const char *name = stage->files[index].name;
    qf_staged_name(name, staged);
    if (moved && linkat(stage->folder_fd, name, stage->partial_fd, staged, 0) != 0)
        renameat(stage->folder_fd, name, stage->partial_fd, staged);
    struct stat st;
    if (fstatat(stage->old_fd, staged, &st, AT_SYMLINK_NOFOLLOW) != 0)
        return errno == ENOENT &&
               (!moved || unlinkat(stage->folder_fd, name, 0) == 0 || errno == ENOENT);
    /* between two links to one file a rename does nothing */
    return renameat(stage->old_fd, staged, stage->folder_fd, name) == 0 &&
           (unlinkat(stage->old_fd, staged, 0) == 0 || errno == ENOENT);
}

/* Undoes the first `count` renames and what the one after them, which failed, has done. If that
 * fails too, the staging folder stays, and with it what the next run needs to go on. */
static bool roll_back(qf_stage *stage, size_t count)
{
    bool undone = unlinkat(stage->run_fd, QF_STAGE_COMPLETE, 0) == 0;
    if (undone && !stage->unsynced)
        qf_sync(stage->run_fd);
    bool started = undone;
    for (size_t i = count + 1; started && i-- > 0;)
        undone &= move_back(stage, i, i < count);
    stage->keep |= !undone;
    return undone;
}

/* From here on, a run that dies is finished by the next one. */
static qf_status mark_complete(qf_stage *stage, qf_error *err)
{
    int fd =
        qf_open_at(stage->run_fd, QF_STAGE_COMPLETE, O_WRONLY | O_CREAT | O_CLOEXEC, QF_FILE_MODE);
    bool ok = fd >= 0;
    for (size_t i = 0; ok && i < stage->count; i++) {
        const char *name = stage->files[i].name;
        errno = stage->files[i].goes ? qf_write_all(fd, name, strlen(name)) : 0;
        ok = !errno;
    }
    if (ok && !stage->unsynced)
        ok = qf_sync(fd) == 0 && qf_sync(stage->old_fd) == 0 && qf_sync(stage->run_fd) == 0 &&
             qf_sync(stage->partial_fd) == 0;
    int e = errno;
    if (fd >= 0 && qf_close(fd) != 0 && ok) {
        e = errno;
        ok = false;
    }
    if (ok)
        return QF_OK;
    if (fd >= 0 && unlinkat(stage->run_fd, QF_STAGE_COMPLETE, 0) != 0)
        stage->keep = true; /* it counts, then: the next run puts the files in place */
    return qf_fail_errno(err, stage->partial, e, "cannot complete the output");
}

static qf_status open_old(qf_stage *stage, qf_error *err)
{
    if (mkdirat(stage->run_fd, QF_STAGE_OLD, 0700) == 0 || errno == EEXIST)
        stage->old_fd = qf_open_at(stage->run_fd, QF_STAGE_OLD,
                                   O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW, 0);
    if (stage->old_fd < 0)
        return qf_fail_errno(err, stage->partial, errno, "cannot open the staging folder");
    return QF_OK;
}

qf_status qf_stage_commit(qf_stage *stage, qf_error *err)
{
    qf_status status = qf_stage_finish(stage, err);
    if (status == QF_OK)
        status = open_old(stage, err);
    if (status == QF_OK)
        status = mark_complete(stage, err);
    if (status != QF_OK)
        return status;
    size_t moved = 0;
    while (moved < stage->count && move_with_backup(stage, moved))
        moved++;
    if (moved < stage->count) {
        int e = errno;
        char *path = qf_stage_path(stage->folder, stage->files[moved].name);
        bool undone = roll_back(stage, moved);
        status = qf_fail_errno(err, path ? path : stage->files[moved].name, e,
                               "cannot put the output file in place%s",
                               undone ? ""
                                      : " or take the others back; the next run to the same save "
                                        "path does one of the two");
        free(path);
        return status;
    }
    if (!stage->unsynced && qf_sync(stage->folder_fd) != 0)
        status = qf_fail_errno(err, stage->folder, errno,
                               "the output is in place, but its names may not be on the disk yet");
    stage->keep = false;
    for (size_t i = 0; i < stage->made_count; i++)
        free(stage->made[i]);
    stage->made_count = 0; /* they are the output's now */
    return status;
}

/* Closes the folders, and removes those that are empty. Shards may be about to use them. */
static void close_folders(qf_stage *stage)
{
    bool shared = stage->mode == QF_STAGE_SHARD;
    if (stage->old_fd >= 0)
        close(stage->old_fd);
    if (stage->run_fd >= 0) {
        if (!shared)
            unlinkat(stage->run_fd, QF_STAGE_OLD, AT_REMOVEDIR);
        close(stage->run_fd);
    }
    if (stage->partial_fd >= 0) {
        if (!shared &&
            (unlinkat(stage->partial_fd, QF_STAGE_RUN, AT_REMOVEDIR) == 0 || errno == ENOENT))
            rmdir(stage->partial);
        close(stage->partial_fd);
    }
    if (stage->folder_fd >= 0)
        close(stage->folder_fd);
    for (size_t i = stage->made_count; i-- > 0;) {
        if (!shared)
            rmdir(stage->made[i]); /* only goes if it is empty */
        free(stage->made[i]);
    }
}

void qf_stage_close(qf_stage *stage)
{
    for (size_t i = 0; i < stage->count; i++) {
        if (stage->files[i].fd >= 0)
            close(stage->files[i].fd);
        if (stage->files[i].direct_fd >= 0)
            close(stage->files[i].direct_fd);
        free(stage->files[i].name);
    }
    free(stage->files);
    if (stage->partial_fd >= 0 && !stage->keep)
        qf_stage_empty(stage);
    close_folders(stage);
    free(stage->made);
    free(stage->folder);
    free(stage->partial);
    *stage = (qf_stage){.folder_fd = -1, .partial_fd = -1, .run_fd = -1, .old_fd = -1};
}
