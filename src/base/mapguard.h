/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Mapped files that cannot be read after all.
 *
 * A file that another process cuts while it is mapped, or a disk that fails under it, is a SIGBUS
 * at whatever instruction touches the page. As long as a mapping is guarded, the process has a
 * handler for that: it puts zeroes in the place of what is missing, notes that the mapping is not
 * sound any more, and lets the instruction go on. Whoever works with the mapping asks when it is
 * done, or before it keeps what it made, and fails then. Nothing is paid before a fault.
 *
 * Faults anywhere else go to the handler that was there before. It is back once no mapping is
 * guarded. qf_handle_sigbus (quantfold.h) turns it off.
 */
#ifndef QF_BASE_MAPGUARD_H
#define QF_BASE_MAPGUARD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct qf_guard qf_guard;

/* Guards a mapping, which begins at a page. NULL when memory is exhausted. */
qf_guard *qf_guard_add(void *from, size_t length, bool writable);
/* Call before munmap. NULL is fine. */
void qf_guard_remove(qf_guard *guard);
/* Whether a part of the mapping was missing. False for NULL. */
bool qf_guard_struck(const qf_guard *guard);
/* How many faults there were in the process, to see cheaply that there was none since. */
uint64_t qf_guard_faults(void);

#endif
