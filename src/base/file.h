/* SPDX-License-Identifier: Apache-2.0 */
/* Input files: read-only mappings, and small texts read whole. */
#ifndef QF_BASE_FILE_H
#define QF_BASE_FILE_H

#include <sys/types.h>

#include "base/error.h"
#include "base/mapguard.h"

/* A regular file mapped read-only; the mapping needs no open file. It is guarded (mapguard.h): what
 * cannot be read is zeroes, and whoever has read it calls qf_files_check before it counts. `data`
 * is NULL when the file is empty. */
typedef struct qf_file {
    char *path;
    const unsigned char *data;
    uint64_t size;
    dev_t device;
    ino_t inode;
    int64_t modified; /* nanoseconds since 1970 */
    qf_guard *guard;
} qf_file;

/* `what` names the role in messages: "model", "record file", "external data". */
qf_status qf_file_open(const char *path, const char *what, qf_file *out, qf_error *err);
void qf_file_close(qf_file *file);
/* For the end of whatever has read `count` files: fails if one of them could not be read where it
 * was mapped, or has been cut or written to since it was opened. `status` is how it ended so far;
 * it is returned if all is well, and stays if it does not come from what was read. */
qf_status qf_files_check(const qf_file *files, size_t count, qf_status status, qf_error *err);
/* The first half of that: whether what was read of the mappings was there. */
qf_status qf_files_check_faults(const qf_file *files, size_t count, qf_error *err);
/* madvise for what lies in [from, to) of the mapping and for all of the huge pages that it shares
 * with its neighbours: the kernel maps those as a whole, also when a neighbour was let go of. With
 * MADV_DONTNEED the pages stop counting as the process's; they are read again when they are needed.
 */
void qf_file_advise(const qf_file *file, const unsigned char *from, const unsigned char *to,
                    int advice);

/* Which file a text came from, and what it was. */
typedef struct qf_file_id {
    dev_t device;
    ino_t inode;
    uint64_t size;
    char hash[33]; /* XXH3-128 in canonical form, hexadecimal */
} qf_file_id;

/* Reads a regular file of at most `max` bytes into NUL-terminated memory, to be freed by
 * qf_spill_free. `id` may be NULL. */
qf_status qf_file_read_text(const char *path, const char *what, uint64_t max, char **out,
                            size_t *length, qf_file_id *id, qf_error *err);

/* Whether an errno says that a path names nothing. */
bool qf_is_absent(int error);

/* Whether `text` ends in `end`; for file names. */
bool qf_ends_with(const char *text, const char *end);

#endif
