/* SPDX-License-Identifier: Apache-2.0 */
#include "base/retry.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <sys/file.h>
#include <unistd.h>

int qf_open_at(int folder, const char *path, int flags, mode_t mode)
{
    int fd;
    do
        fd = openat(folder, path, flags, mode);
    while (fd < 0 && errno == EINTR);
    return fd;
}

int qf_close(int fd)
{
    return close(fd) == 0 || errno == EINTR ? 0 : -1;
}

int qf_sync(int fd)
{
    int result;
    do
        result = fsync(fd);
    while (result != 0 && errno == EINTR);
    return result;
}

int qf_lock(int fd, int operation)
{
    int result;
    do
        result = flock(fd, operation);
    while (result != 0 && errno == EINTR);
    return result;
}

int qf_set_length(int fd, uint64_t length)
{
    int result;
    do
        result = ftruncate(fd, (off_t)length);
    while (result != 0 && errno == EINTR);
    return result;
}

int qf_allocate(int fd, uint64_t from, uint64_t length)
{
    int result;
    do
        result = fallocate(fd, 0, (off_t)from, (off_t)length);
    while (result != 0 && errno == EINTR);
    return result;
}

static int write_all(int fd, const char *at, size_t n, bool positioned, uint64_t offset)
{
    while (n) {
        ssize_t done = positioned ? pwrite(fd, at, n, (off_t)offset) : write(fd, at, n);
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

int qf_write_all(int fd, const void *data, size_t n)
{
    return write_all(fd, data, n, false, 0);
}

int qf_write_all_at(int fd, const void *data, size_t n, uint64_t offset)
{
    return write_all(fd, data, n, true, offset);
}

static ssize_t read_all(int fd, char *at, size_t n, bool positioned, uint64_t offset)
{
    size_t got = 0;
    while (got < n) {
        ssize_t done = positioned ? pread(fd, at + got, n - got, (off_t)(offset + got))
                                  : read(fd, at + got, n - got);
        if (done < 0 && errno == EINTR)
            continue;
        if (done < 0)
            return -1;
        if (done == 0)
            break;
        got += (size_t)done;
    }
    return (ssize_t)got;
}

ssize_t qf_read_all(int fd, void *out, size_t n)
{
    return read_all(fd, out, n, false, 0);
}

ssize_t qf_read_all_at(int fd, void *out, size_t n, uint64_t offset)
{
    return read_all(fd, out, n, true, offset);
}
