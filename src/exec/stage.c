/* SPDX-License-Identifier: Apache-2.0 */
#include "exec/stage.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>
#include <xxhash.h>

#include "base/file.h"

#define RUN "run"
#define COMPLETE "complete"
enum {
    FOLDER_MODE = 0750,
    FILE_MODE = 0640,
    PLAIN_PREFIX_MAX = 200,
    KEPT_OPEN = 200, /* files; later ones are opened for each write, or descriptors would run out */
    DIRECT_MIN = 1024 * 1024, /* bytes: smaller files gain nothing from direct I/O */
};

static char *join(const char *a, const char *b)
{
    size_t n = strlen(a) + strlen(b) + 2;
    char *path = malloc(n);
    if (path)
        snprintf(path, n, "%s/%s", a, b);
    return path;
}

/* ---- save path ---- */

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

/* Calls `visit` for each regular entry of an open folder. */
static bool each_entry(int fd, bool (*visit)(void *user, const char *name), void *user)
{
    int copy = openat(fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *dir = copy < 0 ? NULL : fdopendir(copy);
    if (!dir) {
        if (copy >= 0)
            close(copy);
        return false;
    }
    bool ok = true;
    for (const struct dirent *e; ok && (e = readdir(dir));) {
        if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0)
            ok = visit(user, e->d_name);
    }
    closedir(dir);
    return ok;
}

/* ---- names in the staging folder ---- */

enum { SLASH = 1 }; /* what stands for '/': a control character, which no output's name has */

/* Files of subfolders are staged in the one folder; what is called as the run's own folder gives
 * way to it. */
static void staged_name(const char *name, char out[NAME_MAX + 1])
{
    int n = snprintf(out, NAME_MAX + 1, "%s%s", strcmp(name, RUN) == 0 ? "/" : "", name);
    for (int i = 0; i < n && i <= NAME_MAX; i++)
        out[i] = out[i] == '/' ? SLASH : out[i];
}

static void final_name(const char *staged, char out[NAME_MAX + 1])
{
    snprintf(out, NAME_MAX + 1, "%s", staged + (staged[0] == SLASH));
    for (char *p = out; *p; p++)
        *p = *p == SLASH ? '/' : *p;
}

/* Makes the subfolders of the target folder that `name` lies in. */
static bool make_subfolders(const qf_stage *stage, char *name)
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

static bool move_entry(const qf_stage *stage, const char *staged)
{
    char name[NAME_MAX + 1];
    final_name(staged, name);
    return make_subfolders(stage, name) &&
           renameat(stage->partial_fd, staged, stage->folder_fd, name) == 0;
}

/* ---- what an earlier run left ---- */

static bool remove_entry(void *user, const char *name)
{
    const int *fd = user;
    return strcmp(name, RUN) == 0 || unlinkat(*fd, name, 0) == 0 || errno == ENOENT;
}

bool qf_stage_empty(qf_stage *stage)
{
    return each_entry(stage->partial_fd, remove_entry, &stage->partial_fd) &&
           (stage->run_fd < 0 || each_entry(stage->run_fd, remove_entry, &stage->run_fd));
}

/* Graphs and descriptions name other files, so they come last. */
static bool names_others(const char *name)
{
    return qf_ends_with(name, ".onnx") || qf_ends_with(name, ".json");
}

static bool move_first(void *user, const char *name)
{
    return strcmp(name, RUN) == 0 || names_others(name) || move_entry(user, name);
}

static bool move_last(void *user, const char *name)
{
    return !names_others(name) || move_entry(user, name);
}

static qf_status fail_recovery(const qf_stage *stage, qf_error *err)
{
    return qf_fail_errno(err, stage->partial, errno,
                         "cannot clean up after an earlier run that was killed");
}

/* Files move into place if the run that left them was complete; the rest goes unless it is to be
 * taken up again. */
static qf_status recover(qf_stage *stage, qf_error *err)
{
    bool complete = faccessat(stage->run_fd, COMPLETE, F_OK, 0) == 0;
    if (complete && stage->mode == QF_STAGE_SHARD)
        return qf_fail_at(err, QF_ERR_INPUT, (qf_where){.file = stage->partial},
                          "an earlier output is half in place; finish it with 'quantfold commit', "
                          "then start the shards again");
    if (complete &&
        !(each_entry(stage->partial_fd, move_first, stage) &&
          each_entry(stage->partial_fd, move_last, stage) && fsync(stage->folder_fd) == 0))
        return fail_recovery(stage, err);
    if ((complete || stage->mode == QF_STAGE_FRESH) && !qf_stage_empty(stage))
        return fail_recovery(stage, err);
    return QF_OK;
}

/* A shard waits a while: another one may have the folder for itself for a moment, to make it that
 * of their output. */
static int lock_folder(int fd, qf_stage_mode mode)
{
    enum { TRIES = 500 };
    const struct timespec pause = {.tv_nsec = 20 * 1000 * 1000};
    int result = flock(fd, (mode == QF_STAGE_SHARD ? LOCK_SH : LOCK_EX) | LOCK_NB);
    for (int i = 0; mode == QF_STAGE_SHARD && result != 0 && errno == EWOULDBLOCK && i < TRIES;
         i++) {
        nanosleep(&pause, NULL);
        result = flock(fd, LOCK_SH | LOCK_NB);
    }
    return result;
}

static qf_status lock_partial(qf_stage *stage, qf_error *err)
{
    for (;;) {
        struct stat held, named;
        if (mkdirat(stage->folder_fd, strrchr(stage->partial, '/') + 1, 0700) != 0 &&
            errno != EEXIST)
            return qf_fail_errno(err, stage->partial, errno, "cannot write to the target folder");
        int fd = open(stage->partial, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
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
            if (e != ENOTSUP && e != ENOSYS && e != ENOLCK)
                return qf_fail_errno(err, stage->partial, e, "cannot lock the staging folder");
            fd = open(stage->partial, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
            if (fd < 0)
                return qf_fail_errno(err, stage->partial, errno, "cannot open the staging folder");
        }
        /* a run that ended between our open and our lock may have removed the folder */
        if (fstat(fd, &held) == 0 && lstat(stage->partial, &named) == 0 &&
            held.st_ino == named.st_ino && held.st_dev == named.st_dev) {
            stage->partial_fd = fd;
            return QF_OK;
        }
        close(fd);
    }
}

static qf_status open_run(qf_stage *stage, qf_error *err)
{
    if (mkdirat(stage->partial_fd, RUN, 0700) == 0 || errno == EEXIST)
        stage->run_fd =
            openat(stage->partial_fd, RUN, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
    if (stage->run_fd < 0)
        return qf_fail_errno(err, stage->partial, errno, "cannot open the staging folder");
    return QF_OK;
}

qf_status qf_stage_open(const char *folder, const char *prefix, qf_stage_mode mode, qf_stage *out,
                        qf_error *err)
{
    *out = (qf_stage){.mode = mode, .folder_fd = -1, .partial_fd = -1, .run_fd = -1};
    char name[NAME_MAX + 1];
    if (strlen(prefix) <= PLAIN_PREFIX_MAX)
        snprintf(name, sizeof name, ".%s%squantfold-partial", prefix, *prefix ? "." : "");
    else
        snprintf(name, sizeof name, ".%016llx.quantfold-partial",
                 (unsigned long long)XXH3_64bits(prefix, strlen(prefix)));
    out->folder = strdup(folder);
    out->partial = join(folder, name);
    qf_status status = out->folder && out->partial ? make_folders(out, err) : qf_fail_memory(err);
    if (status == QF_OK) {
        out->folder_fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (out->folder_fd < 0)
            status = qf_fail_errno(err, folder, errno, "cannot open the target folder");
    }
    if (status == QF_OK)
        status = lock_partial(out, err);
    if (status == QF_OK)
        status = open_run(out, err);
    if (status == QF_OK)
        status = recover(out, err);
    if (status != QF_OK)
        qf_stage_close(out);
    return status;
}

/* ---- files ---- */

/* Space is taken before anything is written, so that a full disk shows at once. *whole: it was. */
static int allocate(int fd, uint64_t size, bool *whole)
{
    *whole = false;
    if (!size)
        return 0;
    int result;
    do
        result = fallocate(fd, 0, 0, (off_t)size);
    while (result != 0 && errno == EINTR);
    *whole = result == 0;
    if (result == 0)
        return 0;
    if (errno != EOPNOTSUPP && errno != ENOSYS)
        return errno;
    return ftruncate(fd, (off_t)size) == 0 ? 0 : errno;
}

/* A file of the right size that an earlier run has left is taken as it is. 0 or an errno. */
static int create_staged(const qf_stage *stage, const char *staged, qf_stage_file *file)
{
    struct stat st;
    file->fd = openat(stage->partial_fd, staged, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    if (file->fd >= 0 && stage->resumed && fstat(file->fd, &st) == 0 && S_ISREG(st.st_mode) &&
        (uint64_t)st.st_size == file->size)
        return allocate(file->fd, file->size, &file->mappable);
    if (file->fd >= 0)
        close(file->fd);
    unlinkat(stage->partial_fd, staged, 0);
    file->fd = openat(stage->partial_fd, staged, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, FILE_MODE);
    if (file->fd < 0)
        return errno;
    /* some file systems have no modes */
    if (fchmod(file->fd, FILE_MODE) != 0 && errno != EPERM && errno != ENOTSUP)
        return errno;
    return allocate(file->fd, file->size, &file->mappable);
}

qf_status qf_stage_expect(qf_stage *stage, const char *name, uint64_t size, qf_error *err)
{
    qf_stage_file file = {
        .name = strdup(name), .size = size, .fd = -1, .direct_fd = -1, .foreign = true};
    if (!file.name ||
        !qf_grow((void **)&stage->files, &stage->cap, stage->count + 1, sizeof file)) {
        free(file.name);
        return qf_fail_memory(err);
    }
    stage->files[stage->count++] = file;
    return QF_OK;
}

static int open_direct(const qf_stage *stage, const qf_stage_file *file)
{
    char staged[NAME_MAX + 1];
    staged_name(file->name, staged);
    return openat(stage->partial_fd, staged, O_WRONLY | O_DIRECT | O_CLOEXEC | O_NOFOLLOW);
}

qf_status qf_stage_create(qf_stage *stage, const char *name, uint64_t size, size_t *index,
                          qf_error *err)
{
    qf_stage_file file = {.name = strdup(name), .size = size, .fd = -1, .direct_fd = -1};
    if (!file.name ||
        !qf_grow((void **)&stage->files, &stage->cap, stage->count + 1, sizeof file)) {
        free(file.name);
        return qf_fail_memory(err);
    }
    char staged[NAME_MAX + 1];
    staged_name(name, staged);
    int e = create_staged(stage, staged, &file);
    if (e) {
        if (file.fd >= 0)
            close(file.fd);
        free(file.name);
        char *path = join(stage->folder, name);
        qf_status status =
            qf_fail_errno(err, path ? path : name, e, "cannot create an output file of %llu bytes",
                          (unsigned long long)size);
        free(path);
        return status;
    }
    file.direct = stage->direct && size >= DIRECT_MIN;
    if (stage->count >= KEPT_OPEN) {
        close(file.fd);
        file.fd = -1;
    } else if (file.direct) {
        file.direct_fd = open_direct(stage, &file);
        file.direct = file.direct_fd >= 0;
    }
    *index = stage->count;
    stage->files[stage->count++] = file;
    return QF_OK;
}

/* The file's descriptor, opened if it is not kept; -1 with errno set. */
static int acquire(const qf_stage *stage, const qf_stage_file *file)
{
    if (file->fd >= 0)
        return file->fd;
    char staged[NAME_MAX + 1];
    staged_name(file->name, staged);
    return openat(stage->partial_fd, staged, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
}

static int release(const qf_stage_file *file, int fd)
{
    return file->fd >= 0 || close(fd) == 0 ? 0 : errno;
}

/* 0 or an errno. */
static int write_all(int fd, const char *at, size_t n, uint64_t offset)
{
    while (n) {
        ssize_t done = pwrite(fd, at, n, (off_t)offset);
        if (done < 0 && errno == EINTR)
            continue;
        if (done <= 0)
            return done < 0 ? errno : ENOSPC;
        at += done;
        offset += (uint64_t)done;
        n -= (size_t)done;
    }
    return 0;
}

static qf_status fail_write(const qf_stage *stage, const qf_stage_file *file, int e, qf_error *err)
{
    char *path = join(stage->folder, file->name);
    qf_status status =
        qf_fail_errno(err, path ? path : file->name, e, "cannot write the output file");
    free(path);
    return status;
}

qf_status qf_stage_write(const qf_stage *stage, size_t index, uint64_t offset, const void *data,
                         size_t n, qf_error *err)
{
    const qf_stage_file *file = &stage->files[index];
    int fd = acquire(stage, file);
    int e = fd < 0 ? errno : write_all(fd, data, n, offset);
    if (fd >= 0) {
        int closed = release(file, fd);
        e = e ? e : closed;
    }
    return e ? fail_write(stage, file, e, err) : QF_OK;
}

bool qf_stage_write_direct(const qf_stage *stage, size_t index, uint64_t offset, const void *data,
                           size_t n, qf_status *status, qf_error *err)
{
    const qf_stage_file *file = &stage->files[index];
    int fd = file->direct_fd >= 0 ? file->direct_fd : open_direct(stage, file);
    *status = QF_OK;
    if (fd < 0)
        return false;
    int e = write_all(fd, data, n, offset);
    if (file->direct_fd < 0 && close(fd) != 0 && !e)
        e = errno;
    if (e == EINVAL) /* the file system wants another alignment, or no direct I/O here */
        return false;
    if (e)
        *status = fail_write(stage, file, e, err);
    return true;
}

void *qf_stage_map(const qf_stage *stage, size_t index, uint64_t offset, size_t n)
{
    const qf_stage_file *file = &stage->files[index];
    int fd = file->mappable ? acquire(stage, file) : -1;
    if (fd < 0)
        return NULL;
    void *map = mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_SHARED, fd, (off_t)offset);
    release(file, fd);
    return map == MAP_FAILED ? NULL : map;
}

bool qf_stage_size(const qf_stage *stage, size_t index, uint64_t *size)
{
    char staged[NAME_MAX + 1];
    struct stat st;
    staged_name(stage->files[index].name, staged);
    if (fstatat(stage->partial_fd, staged, &st, AT_SYMLINK_NOFOLLOW) != 0 || !S_ISREG(st.st_mode))
        return false;
    *size = (uint64_t)st.st_size;
    return true;
}

bool qf_stage_read(const qf_stage *stage, size_t index, uint64_t offset, void *out, size_t n)
{
    const qf_stage_file *file = &stage->files[index];
    int fd = acquire(stage, file);
    char *at = out;
    while (fd >= 0 && n) {
        ssize_t got = pread(fd, at, n, (off_t)offset);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            break;
        at += got;
        offset += (uint64_t)got;
        n -= (size_t)got;
    }
    return fd >= 0 && release(file, fd) == 0 && !n;
}

bool qf_stage_copy(const qf_stage *stage, size_t index, uint64_t offset, int source, uint64_t from,
                   uint64_t n)
{
    const qf_stage_file *file = &stage->files[index];
    int fd = acquire(stage, file);
    off64_t in = (off64_t)from, out = (off64_t)offset;
    while (fd >= 0 && n) {
        ssize_t done = copy_file_range(source, &in, fd, &out, (size_t)n, 0);
        if (done < 0 && errno == EINTR)
            continue;
        if (done <= 0)
            break;
        n -= (uint64_t)done;
    }
    return fd >= 0 && release(file, fd) == 0 && !n;
}

qf_status qf_stage_finish(qf_stage *stage, qf_error *err)
{
    /* only a start: the waits that follow then overlap */
    for (size_t i = 0; i < stage->count && !stage->unsynced; i++) {
        if (stage->files[i].fd >= 0)
            sync_file_range(stage->files[i].fd, 0, 0, SYNC_FILE_RANGE_WRITE);
    }
    for (size_t i = 0; i < stage->count; i++) {
        qf_stage_file *file = &stage->files[i];
        if (file->direct_fd >= 0)
            close(file->direct_fd);
        file->direct_fd = -1;
        if (file->foreign || (stage->unsynced && file->fd < 0))
            continue;
        int fd = acquire(stage, file);
        int result = fd < 0 || (!stage->unsynced && fsync(fd) != 0) ? errno : 0;
        if (fd >= 0 && close(fd) != 0 && !result)
            result = errno;
        file->fd = -1;
        if (result)
            return qf_fail_errno(err, file->name, result, "cannot bring the output file to disk");
    }
    return QF_OK;
}

enum { BACKUP_NAME = 32 };

/* Short, because the output's own name may be as long as names can be. */
static void backup_name(size_t index, char out[BACKUP_NAME])
{
    snprintf(out, BACKUP_NAME, "%zu.old", index);
}

/* The file that is replaced stays reachable under another name until all renames are done: by a
 * link, so that it is never missing, or by moving it where the file system has no links. */
static bool move_with_backup(const qf_stage *stage, size_t index)
{
    char backup[BACKUP_NAME], staged[NAME_MAX + 1];
    const char *name = stage->files[index].name;
    backup_name(index, backup);
    struct stat st;
    bool file =
        fstatat(stage->folder_fd, name, &st, AT_SYMLINK_NOFOLLOW) == 0 && !S_ISDIR(st.st_mode);
    if (file && linkat(stage->folder_fd, name, stage->run_fd, backup, 0) != 0)
        renameat(stage->folder_fd, name, stage->run_fd, backup);
    staged_name(name, staged);
    return move_entry(stage, staged);
}

/* Undoes the first `count` renames; the one after them failed but may have moved the old file. */
static void roll_back(const qf_stage *stage, size_t count)
{
    for (size_t i = count + 1; i-- > 0;) {
        char backup[BACKUP_NAME];
        const char *name = stage->files[i].name;
        backup_name(i, backup);
        if (renameat(stage->run_fd, backup, stage->folder_fd, name) != 0 && i < count)
            unlinkat(stage->folder_fd, name, 0);
    }
}

qf_status qf_stage_commit(qf_stage *stage, qf_error *err)
{
    qf_status status = qf_stage_finish(stage, err);
    if (status != QF_OK)
        return status;
    int fd = openat(stage->run_fd, COMPLETE, O_WRONLY | O_CREAT | O_CLOEXEC, FILE_MODE);
    bool sync = !stage->unsynced;
    if (fd < 0 ||
        (sync && (fsync(fd) != 0 || fsync(stage->run_fd) != 0 || fsync(stage->partial_fd) != 0))) {
        int e = errno;
        if (fd >= 0)
            close(fd);
        return qf_fail_errno(err, stage->partial, e, "cannot complete the output");
    }
    close(fd);
    /* from here on, a run that dies is finished by the next one */
    size_t moved = 0;
    while (moved < stage->count && move_with_backup(stage, moved))
        moved++;
    if (moved < stage->count) {
        int e = errno;
        char *path = join(stage->folder, stage->files[moved].name);
        unlinkat(stage->run_fd, COMPLETE, 0);
        roll_back(stage, moved);
        status = qf_fail_errno(err, path ? path : stage->files[moved].name, e,
                               "cannot put the output file in place");
        free(path);
        return status;
    }
    if (sync && fsync(stage->folder_fd) != 0)
        status = qf_fail_errno(err, stage->folder, errno,
                               "the output is in place, but its names may not be on the disk yet");
    unlinkat(stage->run_fd, COMPLETE, 0);
    for (size_t i = 0; i < stage->made_count; i++)
        free(stage->made[i]);
    stage->made_count = 0; /* they are the output's now */
    return status;
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
    if (stage->partial_fd >= 0 && !stage->keep) {
        qf_stage_empty(stage);
        unlinkat(stage->partial_fd, RUN, AT_REMOVEDIR);
        rmdir(stage->partial);
    }
    if (stage->run_fd >= 0)
        close(stage->run_fd);
    if (stage->partial_fd >= 0)
        close(stage->partial_fd);
    if (stage->folder_fd >= 0)
        close(stage->folder_fd);
    for (size_t i = stage->made_count; i-- > 0;) {
        if (!stage->keep)
            rmdir(stage->made[i]); /* only goes if it is empty */
        free(stage->made[i]);
    }
    free(stage->made);
    free(stage->folder);
    free(stage->partial);
    *stage = (qf_stage){.folder_fd = -1, .partial_fd = -1, .run_fd = -1};
}
