/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What has been written so far, so that a run that was killed can be taken up again and shards can
 * be brought together. Beside the staged files (stage.h), in `run/`:
 *
 *     plan.json                what is being written: its fingerprint and its files
 *     journal.<shard>-of-<n>   an entry for each piece that is whole, and one when all are
 *
 * An entry holds the hashes of the piece's bytes. Whoever takes the run up again reads the bytes
 * back and compares, so that nothing depends on the order in which a crash let data reach the disk.
 */
#ifndef QF_EXEC_JOURNAL_H
#define QF_EXEC_JOURNAL_H

#include <xxhash.h>

#include "exec/blocks.h"
#include "exec/order.h"
#include "exec/stage.h"

/* An XXH3-128 in canonical (big-endian) form. */
typedef struct qf_hash {
    unsigned char bytes[16];
} qf_hash;
enum { QF_HASH_TEXT = 33 };
void qf_hash_text(const qf_hash *hash, char out[QF_HASH_TEXT]);
qf_hash qf_hash_of(const void *data, size_t n);
qf_hash qf_hash_digest(const XXH3_state_t *state);

/* What is known of a piece once it is written: the hash of what went to each slot, and the error
 * statistics of a quantized one. */
typedef struct qf_result {
    uint64_t piece;
    qf_hash hashes[QF_SLOTS];
    double signal, noise;
    float max_error;
    uint32_t known; /* 1: the piece is written */
    uint64_t clipped;
} qf_result;

enum { QF_SHARDS_MOST = 100000 };

typedef struct qf_journal {
    qf_result *results; /* by piece, of this run and of those it takes up */
    size_t count;
    int fd;
    int folder; /* borrowed: `run` of the stage */
    uint32_t shard, shard_count;
    qf_hash fingerprint;
    char name[64];
} qf_journal;

/* Opens the journal of a shard (0 of 1: of the whole), alone in doing so, for `count` pieces of the
 * output that `fingerprint` stands for; with `resume`, reads what the journals of earlier runs say
 * of it. */
qf_status qf_journal_open(const qf_stage *stage, const qf_hash *fingerprint, uint32_t shard,
                          uint32_t shard_count, size_t count, bool resume, qf_journal *out,
                          qf_error *err);
/* Notes a piece that is written. May be called by several threads. */
qf_status qf_journal_add(qf_journal *journal, const qf_result *result, qf_error *err);
/* Notes that all pieces of the shard are written and on the disk if the run waits for that. */
qf_status qf_journal_finish(qf_journal *journal, bool sync, qf_error *err);
void qf_journal_close(qf_journal *journal);

/* Reads all journals of an output. If no shard is missing, *results are those of its `count`
 * pieces, to be freed by qf_spill_free; else NULL. *missing is a text that names the shards that
 * are not done, malloc'ed; NULL if some number of shards is whole. */
qf_status qf_journal_gather(const qf_stage *stage, const qf_hash *fingerprint, size_t count,
                            qf_result **results, char **missing, qf_error *err);

#endif
