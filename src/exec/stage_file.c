/* SPDX-License-Identifier: Apache-2.0 */
/* The files in the staging folder: made, written, read back and brought to disk. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/retry.h"
#include "exec/stage.h"

enum {
    KEPT_OPEN = 200, /* files; later ones are opened for each write, or descriptors would run out */
    DIRECT_MIN = 1024 * 1024, /* bytes: smaller files gain nothing from direct I/O */
};

/* Space is taken before anything is written, so that a full disk shows at once. *whole: it was. */
static int allocate(int fd, uint64_t size, bool *whole)
{
    *whole = false;
    if (!size)
        return 0;
    *whole = qf_allocate(fd, 0, size) == 0;
    if (*whole)
        return 0;
    if (errno != EOPNOTSUPP && errno != ENOSYS)
        return errno;
    return qf_set_length(fd, size) == 0 ? 0 : errno;
}

/* A file of the right size that an earlier run has left is taken as it is. 0 or an errno. */
static int create_staged(const qf_stage *stage, const char *staged, qf_stage_file *file)
{
    struct stat st;
    file->fd = qf_open_at(stage->partial_fd, staged, O_RDWR | O_CLOEXEC | O_NOFOLLOW, 0);
    if (file->fd >= 0 && stage->resumed && fstat(file->fd, &st) == 0 && S_ISREG(st.st_mode) &&
        (uint64_t)st.st_size == file->size)
        return allocate(file->fd, file->size, &file->mappable);
    if (file->fd >= 0)
        close(file->fd);
    unlinkat(stage->partial_fd, staged, 0);
    file->fd =
        qf_open_at(stage->partial_fd, staged, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, QF_FILE_MODE);
    if (file->fd < 0)
        return errno;
    /* some file systems have no modes */
    if (fchmod(file->fd, QF_FILE_MODE) != 0 && errno != EPERM && errno != ENOTSUP)
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

qf_status qf_stage_remove(qf_stage *stage, const char *name, qf_error *err)
{
    qf_status status = qf_stage_expect(stage, name, 0, err);
    if (status == QF_OK)
        stage->files[stage->count - 1].goes = true;
    return status;
}

static int open_direct(const qf_stage *stage, const qf_stage_file *file)
{
    char staged[NAME_MAX + 1];
    qf_staged_name(file->name, staged);
    return qf_open_at(stage->partial_fd, staged, O_WRONLY | O_DIRECT | O_CLOEXEC | O_NOFOLLOW, 0);
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
    qf_staged_name(name, staged);
    int e = create_staged(stage, staged, &file);
    if (e) {
        if (file.fd >= 0)
            close(file.fd);
        free(file.name);
        char *path = qf_stage_path(stage->folder, name);
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
    qf_staged_name(file->name, staged);
    return qf_open_at(stage->partial_fd, staged, O_RDWR | O_CLOEXEC | O_NOFOLLOW, 0);
}

static int release(const qf_stage_file *file, int fd)
{
    return file->fd >= 0 || qf_close(fd) == 0 ? 0 : errno;
}

static qf_status fail_write(const qf_stage *stage, const qf_stage_file *file, int e, qf_error *err)
{
    char *path = qf_stage_path(stage->folder, file->name);
    qf_status status =
        qf_fail_errno(err, path ? path : file->name, e, "cannot write the output file");
    free(path);
    return status;
}

qf_status qf_stage_fail_write(const qf_stage *stage, size_t index, int e, qf_error *err)
{
    return fail_write(stage, &stage->files[index], e, err);
}

qf_status qf_stage_write(const qf_stage *stage, size_t index, uint64_t offset, const void *data,
                         size_t n, qf_error *err)
{
    const qf_stage_file *file = &stage->files[index];
    int fd = acquire(stage, file);
    int e = fd < 0 ? errno : qf_write_all_at(fd, data, n, offset);
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
    int e = qf_write_all_at(fd, data, n, offset);
    if (file->direct_fd < 0 && qf_close(fd) != 0 && !e)
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
    qf_staged_name(stage->files[index].name, staged);
    if (fstatat(stage->partial_fd, staged, &st, AT_SYMLINK_NOFOLLOW) != 0)
        return false;
    errno = ENOENT;
    if (!S_ISREG(st.st_mode))
        return false;
    *size = (uint64_t)st.st_size;
    return true;
}

bool qf_stage_read(const qf_stage *stage, size_t index, uint64_t offset, void *out, size_t n)
{
    const qf_stage_file *file = &stage->files[index];
    int fd = acquire(stage, file);
    bool whole = fd >= 0 && qf_read_all_at(fd, out, n, offset) == (ssize_t)n;
    return fd >= 0 && release(file, fd) == 0 && whole;
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
        int result = fd < 0 || (!stage->unsynced && qf_sync(fd) != 0) ? errno : 0;
        if (fd >= 0 && qf_close(fd) != 0 && !result)
            result = errno;
        file->fd = -1;
        if (result)
            return fail_write(stage, file, result, err);
    }
    return QF_OK;
}
