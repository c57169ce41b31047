/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory for what grows with the number of tensors in a model: arena blocks and tables.
 *
 * Small pieces come from malloc. Large ones, from QF_SPILL_LARGE bytes on, are mapped: anonymously
 * while the process holds less than a fixed amount of them, and beyond it from a temporary file
 * that has no name. The kernel keeps the file's pages in memory as long as there is enough and can
 * write them out when there is not, so that a model of any size can be planned under a fixed memory
 * limit. The file's space is taken before it is mapped: a full disk is no SIGBUS. Where there is no
 * such file ($TMPDIR, /var/tmp and /tmp are tried; file systems in memory do not count), or its
 * file system is full or takes no space in advance, everything is anonymous.
 *
 * All functions may be called by several threads. The file is shared with a child process: after a
 * fork, only one of the two may go on using what was allocated before.
 */
#ifndef QF_BASE_SPILL_H
#define QF_BASE_SPILL_H

#include <stdbool.h>
#include <stddef.h>

enum { QF_SPILL_LARGE = 512 * 1024 };

/* `size` bytes, aligned for any type, zeroed; NULL when memory is exhausted. */
void *qf_spill_alloc(size_t size);
/* NULL is fine. */
void qf_spill_free(void *memory);

/* Makes room for at least `need` elements of `size` bytes in the array *items from here, with room
 * for *cap. New elements are not initialised. False when memory is exhausted; the array is
 * unchanged then. */
bool qf_table_grow(void **items, size_t *cap, size_t need, size_t size);

#endif
