/* SPDX-License-Identifier: Apache-2.0 */
/* How much memory the process has and may have. */
#ifndef QF_BASE_MEMORY_H
#define QF_BASE_MEMORY_H

#include <stdint.h>

/* Resident bytes of the process, mapped parts of files included; 0 if that cannot be told. */
uint64_t qf_memory_resident(void);
/* Bytes that the process may use: the machine's memory, or less where a cgroup (version 1 or 2) or
 * RLIMIT_DATA says so. */
uint64_t qf_memory_available(void);

#endif
