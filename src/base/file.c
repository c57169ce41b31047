/* SPDX-License-Identifier: Apache-2.0 */
#include "base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/spill.h"

/* Opens without blocking, so that a FIFO given by mistake is an error and not a hang. A path that
 * names nothing is the caller's mistake; anything else is the system's refusal. */
static qf_status open_regular(const char *path, const char *what, int *fd, struct stat *st,
                              qf_error *err)
{
    *fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (*fd < 0) {
        int e = errno;
        if (e == ENOENT || e == ENOTDIR || e == ENAMETOOLONG || e == ELOOP)
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

qf_status qf_file_open(const char *path, const char *what, qf_file *out, qf_error *err)
{
    int fd;
    struct stat st;
    qf_status status = open_regular(path, what, &fd, &st, err);
    if (status != QF_OK)
        return status;
    qf_file file = {.size = (uint64_t)st.st_size, .device = st.st_dev, .inode = st.st_ino};
    file.modified = (int64_t)st.st_mtim.tv_sec * 1000000000 + st.st_mtim.tv_nsec;
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
    }
    close(fd);
    *out = file;
    return QF_OK;
}

void qf_file_close(qf_file *file)
{
    if (!file->path)
        return;
    if (file->data)
        munmap((void *)file->data, (size_t)file->size);
    free(file->path);
    *file = (qf_file){0};
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

qf_status qf_file_read_text(const char *path, const char *what, uint64_t max, char **out,
                            size_t *length, dev_t *device, ino_t *inode, qf_error *err)
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
    size_t size = (size_t)st.st_size, got = 0;
    char *text = qf_spill_alloc(size + 1);
    if (!text) {
        close(fd);
        return qf_fail_memory(err);
    }
    while (got < size) {
        ssize_t n = read(fd, text + got, size - got);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            int e = errno;
            qf_spill_free(text);
            close(fd);
            if (n < 0)
                return qf_fail_errno(err, path, e, "cannot read the %s", what);
            return qf_fail_at(err, QF_ERR_INPUT, (qf_where){.file = path},
                              "the %s became shorter while it was read", what);
        }
        got += (size_t)n;
    }
    close(fd);
    text[size] = '\0';
    *out = text;
    *length = size;
    if (device)
        *device = st.st_dev;
    if (inode)
        *inode = st.st_ino;
    return QF_OK;
}

bool qf_ends_with(const char *text, const char *end)
{
    size_t n = strlen(text), m = strlen(end);
    return n >= m && strcmp(text + n - m, end) == 0;
}
