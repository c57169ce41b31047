/* SPDX-License-Identifier: Apache-2.0 */
/* A sink before a sink: hashes what goes through, slot by slot, as long as it goes in order. */
#ifndef QF_EXEC_HASHER_H
#define QF_EXEC_HASHER_H

#include "exec/journal.h"

typedef struct qf_hash_slot {
    XXH3_state_t *state;
    const unsigned char *at; /* room that was given and may still be written to */
    size_t length;
    int file;
    uint64_t next; /* offset of what continues it */
    bool used, broken;
} qf_hash_slot;

typedef struct qf_hasher {
    qf_sink inner;
    qf_hash_slot slots[QF_SLOTS];
} qf_hasher;

/* False when memory is exhausted. Release in any case. */
bool qf_hasher_init(qf_hasher *hasher, qf_sink inner);
void qf_hasher_release(qf_hasher *hasher);
/* The hasher as a sink; the sink borrows it. */
qf_sink qf_hasher_sink(qf_hasher *hasher);
/* Begins a piece. */
void qf_hasher_begin(qf_hasher *hasher);
/* Ends it. False for a slot whose bytes did not come one behind the other; they are then to be read
 * back (qf_hash_staged). */
bool qf_hasher_end(qf_hasher *hasher, int slot, qf_hash *out);

/* The hash of staged bytes; false if they cannot be read. */
bool qf_hash_staged(const qf_stage *stage, const qf_place *place, qf_hash *out);

#endif
