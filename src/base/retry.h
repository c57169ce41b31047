/* SPDX-License-Identifier: Apache-2.0 */
/* System calls that a signal can interrupt, tried again until they are done. Results and errno are
 * those of the calls. */
#ifndef QF_BASE_RETRY_H
#define QF_BASE_RETRY_H

#include <stdint.h>
#include <sys/types.h>

/* openat; AT_FDCWD opens in the working directory. */
int qf_open_at(int folder, const char *path, int flags, mode_t mode);
/* close, to which EINTR is no failure: Linux has closed the descriptor then, and may have given its
 * number to another thread. */
int qf_close(int fd);
int qf_sync(int fd);
int qf_lock(int fd, int operation);
int qf_set_length(int fd, uint64_t length);
int qf_allocate(int fd, uint64_t from, uint64_t length);
/* All `n` bytes, from the descriptor's position or from `offset`. 0 or an errno; ENOSPC where the
 * system writes nothing and says no reason. */
int qf_write_all(int fd, const void *data, size_t n);
int qf_write_all_at(int fd, const void *data, size_t n, uint64_t offset);
/* Up to `n` bytes, fewer only at the end of the file; -1 with errno set. */
ssize_t qf_read_all(int fd, void *out, size_t n);
ssize_t qf_read_all_at(int fd, void *out, size_t n, uint64_t offset);

#endif
