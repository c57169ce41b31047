/* SPDX-License-Identifier: Apache-2.0 */
#ifndef QF_EXEC_FINGERPRINT_H
#define QF_EXEC_FINGERPRINT_H

#include "exec/journal.h"
#include "exec/output.h"

/* A hash over all that decides what is written: inputs by name, size and time of change, every
 * recipe with its numbers, every file and place, and the version of the program. Two runs with the
 * same one write the same bytes. */
qf_status qf_fingerprint(const qf_output *output, bool manifest, bool stats, qf_hash *out,
                         qf_error *err);

#endif
