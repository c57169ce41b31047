/* SPDX-License-Identifier: Apache-2.0 */
#include "base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "base/retry.h"
#include "base/spill.h"

bool qf_is_absent(int error)
{
    return error == ENOENT || error == ENOTDIR || error == ENAMETOOLONG || error == ELOOP;
}

/* Opens without blocking, so that a FIFO given by mistake is an error and not a hang. A path that
 * names nothing is the caller's mistake; anything else is the system's refusal. */
static qf_status open_regular(const char *path, const char *what, int *fd, struct stat *st,
                              qf_error *err)
{
    *fd = qf_open_at(AT_FDCWD, path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY, 0);
    if (*fd < 0) {
        int e = errno;
        if (qf_is_absent(e))
            return qf_fail_at(err, QF_ERR_INPUT, (qf_where){.file = path, .sys_errno = e},
                              "cannot find the %s; check the path", what);
        return qf_fail_errno(err, path, e, "cannot open the %s", what);
    }
    if (fstat(*fd, st) != 0) {
        int e = errno;
        close(*fd);
        return qf_fail_errno(err, path, e, "cannot examine the %s", what);
    }
    if (!S_ISREG(st->st_mode)) {
        close(*fd);
        return qf_fail_at(err, QF_ERR_INPUT, (qf_where){.file = path},
                          "the %s is %s, not a regular file", what,
                          S_ISDIR(st->st_mode) ? "a folder" : "a device or pipe");
    }
    return QF_OK;
}

static int64_t modified(const struct stat *st)
{
    return (int64_t)st->st_mtim.tv_sec * 1000000000 + st->st_mtim.tv_nsec;
}

qf_status qf_file_open(const char *path, const char *what, qf_file *out, qf_error *err)
{
    int fd;
    struct stat st;
    qf_status status = open_regular(path, what, &fd, &st, err);
    if (status != QF_OK)
        return status;
    qf_file file = {.size = (uint64_t)st.st_size, .device = st.st_dev, .inode = st.st_ino};
    file.modified = modified(&st);
    file.path = strdup(path);
    if (!file.path) {
        close(fd);
        return qf_fail_memory(err);
    }
    if (file.size) {
        void *map = mmap(NULL, (size_t)file.size, PROT_READ, MAP_SHARED, fd, 0);
        if (map == MAP_FAILED) {
            int e = errno;
            close(fd);
            free(file.path);
            return qf_fail_errno(err, path, e, "cannot map the %s", what);
        }
        file.data = map;
        file.guard = qf_guard_add(map, (size_t)file.size, false);
        if (!file.guard) {
            munmap(map, (size_t)file.size);
            close(fd);
            free(file.path);
            return qf_fail_memory(err);
        }
    }
    close(fd);
    *out = file;
    return QF_OK;
}

void qf_file_close(qf_file *file)
{
    if (!file->path)
        return;
    qf_guard_remove(file->guard);
    if (file->data)
        munmap((void *)file->data, (size_t)file->size);
    free(file->path);
    *file = (qf_file){0};
}

/* Of a file that has taken the place of ours under its name, nothing is to be learned. */
static bool look_again(const qf_file *file, struct stat *st)
{
    return file->path && stat(file->path, st) == 0 && st->st_dev == file->device &&
           st->st_ino == file->inode;
}

static qf_status fail_short(const qf_file *file, const struct stat *st, qf_error *err)
{
    return qf_fail_at(err, QF_ERR_INPUT, (qf_where){.file = file->path},
                      "the file became shorter while it was read: it had %llu bytes, now %llu; run "
                      "again when nothing writes to it",
                      (unsigned long long)file->size, (unsigned long long)st->st_size);
}

qf_status qf_files_check_faults(const qf_file *files, size_t count, qf_error *err)
{
    for (size_t i = 0; i < count; i++) {
        struct stat st;
        if (!qf_guard_struck(files[i].guard))
            continue;
        if (look_again(&files[i], &st) && (uint64_t)st.st_size < files[i].size)
            return fail_short(&files[i], &st, err);
        return qf_fail_errno(err, files[i].path, EIO,
                             "a part of the file could not be read, or was cut off meanwhile");
    }
    return QF_OK;
}

qf_status qf_files_check(const qf_file *files, size_t count, qf_status status, qf_error *err)
{
    if (status != QF_OK && status != QF_ERR_INPUT)
        return status;
    qf_status found = qf_files_check_faults(files, count, err);
    for (size_t i = 0; found == QF_OK && i < count; i++) {
        struct stat st;
        if (!look_again(&files[i], &st))
            continue;
        if ((uint64_t)st.st_size < files[i].size)
            found = fail_short(&files[i], &st, err);
        else if ((uint64_t)st.st_size != files[i].size || modified(&st) != files[i].modified)
            found = qf_fail_at(err, QF_ERR_INPUT, (qf_where){.file = files[i].path},
                               "the file was changed while it was read; run again when nothing "
                               "writes to it");
    }
    return found == QF_OK ? status : found;
}

void qf_file_advise(const qf_file *file, const unsigned char *from, const unsigned char *to,
                    int advice)
{
    const uintptr_t huge = (uintptr_t)2 * 1024 * 1024;
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), data = (uintptr_t)file->data;
    uintptr_t end = (data + file->size) & ~(page - 1);
    uintptr_t first = (uintptr_t)from & ~(huge - 1);
    uintptr_t last = ((uintptr_t)to + huge - 1) & ~(huge - 1);
    first = first > data ? first : data;
    last = last < end ? last : end;
    if (file->data && last > first)
        madvise((void *)first, last - first, advice);
}

static void identify(const struct stat *st, const char *text, size_t size, qf_file_id *id)
{
    XXH128_canonical_t hash;
    XXH128_canonicalFromHash(&hash, XXH3_128bits(text, size));
    *id = (qf_file_id){.device = st->st_dev, .inode = st->st_ino, .size = size};
    for (size_t i = 0; i < sizeof hash.digest; i++)
        snprintf(id->hash + 2 * i, 3, "%02x", hash.digest[i]);
}

qf_status qf_file_read_text(const char *path, const char *what, uint64_t max, char **out,
                            size_t *length, qf_file_id *id, qf_error *err)
{
    int fd;
    struct stat st;
    qf_status status = open_regular(path, what, &fd, &st, err);
    if (status != QF_OK)
        return status;
    if ((uint64_t)st.st_size > max) {
        close(fd);
        return qf_fail_at(err, QF_ERR_INPUT, (qf_where){.file = path},
                          "the %s has %llu bytes; at most %llu are accepted", what,
                          (unsigned long long)st.st_size, (unsigned long long)max);
    }
    size_t size = (size_t)st.st_size;
    char *text = qf_spill_alloc(size + 1);
    if (!text) {
        close(fd);
        return qf_fail_memory(err);
    }
    ssize_t got = qf_read_all(fd, text, size);
    if (got < (ssize_t)size) {
        int e = errno;
        qf_spill_free(text);
        close(fd);
        if (got < 0)
            return qf_fail_errno(err, path, e, "cannot read the %s", what);
        return qf_fail_at(err, QF_ERR_INPUT, (qf_where){.file = path},
                          "the %s became shorter while it was read", what);
    }
    close(fd);
    text[size] = '\0';
    *out = text;
    *length = size;
    if (id)
        identify(&st, text, size, id);
    return QF_OK;
}

bool qf_ends_with(const char *text, const char *end)
{
    size_t n = strlen(text), m = strlen(end);
    return n >= m && strcmp(text + n - m, end) == 0;
}
