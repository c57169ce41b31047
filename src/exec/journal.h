/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What has been written so far, so that a run that was killed can be taken up again and shards can
 * be brought together. Beside the staged files (stage.h), in `run/`:
 *
 *     plan.json                what is being written: its fingerprint, files and number of shards
 *     journal.<shard>-of-<n>   an entry for each piece that is whole, one when all are, and
 *                              one when the shard is begun again, which takes that back
 *
 * An entry holds the hashes of the piece's bytes, and behind it are a weight's statistics. Whoever
 * takes the run up again reads the bytes back and compares, so that nothing depends on the order in
 * which a crash let data reach the disk.
 */
#ifndef QF_EXEC_JOURNAL_H
#define QF_EXEC_JOURNAL_H

#include <pthread.h>
#include <xxhash.h>
#ifdef QF_XXHASH_DISPATCH
#include <xxh_x86dispatch.h> /* the same hashes, with the instructions that the machine has */
#endif

#include "exec/blocks.h"
#include "exec/order.h"
#include "exec/stage.h"
#include "exec/stats.h"

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
    uint64_t stats; /* index + 1 of its qf_stats; 0: there are none */
} qf_result;

/* Room for the statistics of weights; taken by several threads. */
typedef struct qf_stats_table {
    qf_stats *items;
    size_t room;
    _Atomic size_t used;
} qf_stats_table;
/* False when memory is exhausted. */
bool qf_stats_table_init(qf_stats_table *table, size_t room);
void qf_stats_table_release(qf_stats_table *table);
/* Takes the next place and returns its index + 1; 0 if there is none. */
uint64_t qf_stats_table_add(qf_stats_table *table, const qf_stats *stats);

enum { QF_SHARDS_MOST = 100000 };

typedef struct qf_journal {
    qf_result *results; /* by piece, of this run and of those it takes up */
    size_t count;
    qf_stats_table stats;
    int fd;     /* -1: in memory alone */
    int folder; /* borrowed: `run` of the stage */
    uint32_t shard, shard_count;
    qf_hash fingerprint;
    const char *place; /* borrowed: path of the staging folder */
    char name[64];
    pthread_mutex_t lock; /* of writing */
} qf_journal;

/* A journal for `count` pieces, of which `weights` have statistics. It is in memory alone until it
 * is opened: all that a run needs whose work nobody takes up. */
qf_status qf_journal_init(const qf_stage *stage, size_t count, size_t weights, qf_journal *out,
                          qf_error *err);
/* Opens the file of a shard's journal (0 of 1: of the whole), alone in doing so, of the output that
 * `fingerprint` stands for; with `resume`, reads what the journals of earlier runs say of it. The
 * journal is to be closed whether that succeeds or not. */
qf_status qf_journal_open(const qf_stage *stage, const qf_hash *fingerprint, uint32_t shard,
                          uint32_t shard_count, bool resume, qf_journal *journal, qf_error *err);
/* Keeps the statistics of a piece that is going to be noted; returns qf_result's `stats`. May be
 * called by several threads. */
uint64_t qf_journal_measure(qf_journal *journal, size_t piece, const qf_stats *stats);
/* Notes a piece that is written. May be called by several threads. */
qf_status qf_journal_add(qf_journal *journal, const qf_result *result, qf_error *err);
/* Notes that all pieces of the shard are written and on the disk if the run waits for that. */
qf_status qf_journal_finish(qf_journal *journal, bool sync, qf_error *err);
void qf_journal_close(qf_journal *journal);

/* Takes back, in all journals of an output, that shards are done: for a caller that has the staging
 * folder for itself and shares the files out anew. What they say of pieces stays. */
qf_status qf_journal_void(const qf_stage *stage, const qf_hash *fingerprint, size_t count,
                          qf_error *err);

/* Reads all journals of an output of `shards` shards. If none is missing, *results are those of its
 * `count` pieces, to be freed by qf_spill_free, and `stats` takes their statistics; else *results
 * is NULL and *missing a text that names the shards that are not done, malloc'ed. */
qf_status qf_journal_gather(const qf_stage *stage, const qf_hash *fingerprint, size_t count,
                            uint32_t shards, qf_result **results, qf_stats_table *stats,
                            char **missing, qf_error *err);

#endif
