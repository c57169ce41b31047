/* SPDX-License-Identifier: Apache-2.0 */
#include "exec/journal.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/retry.h"
#include "base/spill.h"

static const char magic[8] = "QFJOURN2";

typedef struct header {
    char magic[8];
    qf_hash fingerprint;
    uint64_t pieces;
} header;

enum {
    ENTRY_PIECE = 1,
    ENTRY_DONE = 2,
    ENTRY_MEASURED = 3, /* a piece; `measures` follow */
    ENTRY_BEGUN = 4,    /* what was done is being written again: an earlier ENTRY_DONE is void */
};
typedef struct entry {
    qf_result result;
    uint64_t kind;
    uint64_t check; /* XXH3-64 of what is before it: an end that was torn off is no entry */
} entry;

typedef struct measures {
    qf_stats stats;
    uint64_t check; /* likewise */
} measures;

bool qf_stats_table_init(qf_stats_table *table, size_t room)
{
    *table =
        (qf_stats_table){.items = qf_spill_alloc((room + 1) * sizeof *table->items), .room = room};
    return table->items != NULL;
}

void qf_stats_table_release(qf_stats_table *table)
{
    qf_spill_free(table->items);
    *table = (qf_stats_table){0};
}

uint64_t qf_stats_table_add(qf_stats_table *table, const qf_stats *stats)
{
    size_t at = atomic_load(&table->used);
    do {
        if (at >= table->room)
            return 0;
    } while (!atomic_compare_exchange_weak(&table->used, &at, at + 1));
    table->items[at] = *stats;
    return at + 1;
}

void qf_hash_text(const qf_hash *hash, char out[QF_HASH_TEXT])
{
    for (size_t i = 0; i < sizeof hash->bytes; i++)
        snprintf(out + 2 * i, 3, "%02x", hash->bytes[i]);
}

static qf_hash canonical(XXH128_hash_t value)
{
    qf_hash hash;
    XXH128_canonical_t c;
    XXH128_canonicalFromHash(&c, value);
    memcpy(hash.bytes, c.digest, sizeof hash.bytes);
    return hash;
}

qf_hash qf_hash_of(const void *data, size_t n)
{
    return canonical(XXH3_128bits(data, n));
}

qf_hash qf_hash_digest(const XXH3_state_t *state)
{
    return canonical(XXH3_128bits_digest(state));
}

/* ---- reading ---- */

enum { NAME_ROOM = sizeof(((qf_journal *)NULL)->name) };

static void make_name(uint32_t shard, uint32_t count, char out[NAME_ROOM])
{
    snprintf(out, NAME_ROOM, "journal.%u-of-%u", shard, count);
}

/* One journal's name: journal.<shard>-of-<count>, without leading zeros. */
static bool parse_name(const char *name, uint32_t *shard, uint32_t *count)
{
    char wanted[NAME_ROOM];
    if (sscanf(name, "journal.%9u-of-%9u", shard, count) != 2)
        return false;
    make_name(*shard, *count, wanted);
    return strcmp(name, wanted) == 0 && *shard < *count;
}

/* Of two entries of a piece, the later one counts, in the place of the earlier one. */
static void take_entry(const entry *e, const measures *m, qf_result *results, qf_stats_table *stats)
{
    qf_result *result = &results[e->result.piece];
    uint64_t place = result->stats;
    *result = e->result;
    result->stats = m ? place : 0;
    if (m && place)
        stats->items[place - 1] = m->stats;
    else if (m)
        result->stats = qf_stats_table_add(stats, &m->stats);
}

/* Takes the whole entries of a journal into `results` and `stats`; into neither if those are NULL.
 * Returns the length of what is sound; 0 if it is of another output; -1 with errno set if it cannot
 * be read. */
static off_t read_journal(int fd, const qf_hash *fingerprint, size_t count, qf_result *results,
                          qf_stats_table *stats, bool *done)
{
    header h;
    entry e;
    measures m;
    *done = false;
    ssize_t got = qf_read_all(fd, &h, sizeof h);
    if (got < 0)
        return -1;
    if (got < (ssize_t)sizeof h || memcmp(h.magic, magic, sizeof magic) != 0 ||
        memcmp(&h.fingerprint, fingerprint, sizeof *fingerprint) != 0 || h.pieces != count)
        return 0;
    off_t sound = sizeof h;
    while ((got = qf_read_all(fd, &e, sizeof e)) == (ssize_t)sizeof e &&
           XXH3_64bits(&e, offsetof(entry, check)) == e.check) {
        bool measured = e.kind == ENTRY_MEASURED;
        if (measured && ((got = qf_read_all(fd, &m, sizeof m)) < (ssize_t)sizeof m ||
                         XXH3_64bits(&m, offsetof(measures, check)) != m.check))
            break;
        sound += (off_t)(sizeof e + (measured ? sizeof m : 0));
        if (e.kind == ENTRY_DONE || e.kind == ENTRY_BEGUN)
            *done = e.kind == ENTRY_DONE;
        else if (results && e.result.piece < count)
            take_entry(&e, measured ? &m : NULL, results, stats);
    }
    return got < 0 ? -1 : sound;
}

/* Calls `visit`, which returns 0 or an errno, for the journals in `run`. */
static qf_status each_journal(const qf_stage *stage,
                              int (*visit)(void *user, int fd, uint32_t shard, uint32_t count),
                              void *user, qf_error *err)
{
    int copy = qf_open_at(stage->run_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0), e = 0;
    DIR *dir = copy < 0 ? NULL : fdopendir(copy);
    const struct dirent *d;
    if (!dir) {
        e = errno;
        if (copy >= 0)
            close(copy);
    }
    while (dir && !e && (errno = 0, d = readdir(dir))) {
        uint32_t shard, count;
        if (!parse_name(d->d_name, &shard, &count))
            continue;
        int fd = qf_open_at(stage->run_fd, d->d_name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW, 0);
        e = fd < 0 ? errno : visit(user, fd, shard, count);
        if (fd >= 0)
            close(fd);
    }
    e = e ? e : errno;
    if (dir)
        closedir(dir);
    return e ? qf_fail_errno(err, stage->partial, e, "cannot read the staging folder") : QF_OK;
}

typedef struct gathering {
    const qf_hash *fingerprint;
    size_t count;
    qf_result *results; /* NULL: only counting */
    qf_stats_table *stats;
    uint64_t entries;
    uint32_t shards, done;
    unsigned char *which; /* by shard: it is done */
} gathering;

/* Pieces count wherever they are noted; what is done, only of as many shards as the plan has. */
static int gather_one(void *user, int fd, uint32_t shard, uint32_t count)
{
    gathering *g = user;
    bool done;
    off_t sound = read_journal(fd, g->fingerprint, g->count, g->results, g->stats, &done);
    if (sound < 0)
        return errno;
    g->entries += (uint64_t)sound / sizeof(entry);
    if (sound > 0 && done && count == g->shards && !g->which[shard]) {
        g->which[shard] = 1;
        g->done++;
    }
    return 0;
}

/* "2, 5 of 8", at most a line. */
static char *name_missing(const gathering *g)
{
    enum { ROOM = 256, NUMBER = 24 };
    char *text = malloc(ROOM);
    size_t at = 0;
    for (uint32_t i = 0; text && i < g->shards; i++) {
        if (g->which[i])
            continue;
        if (at + 2 * NUMBER > ROOM) {
            at += (size_t)snprintf(text + at, ROOM - at, ", ...");
            break;
        }
        at += (size_t)snprintf(text + at, ROOM - at, "%s%u", at ? ", " : "", i);
    }
    if (text)
        snprintf(text + at, ROOM - at, " of %u", g->shards);
    return text;
}

/* Room for `count` results only if there are so many: the number is from a file. */
static qf_status read_results(const qf_stage *stage, gathering *g, qf_result **results,
                              qf_error *err)
{
    if (g->entries < g->count)
        return qf_fail_at(err, QF_ERR_INPUT, (qf_where){.file = stage->partial},
                          "the journals have %llu entries and the plan has %zu pieces; run the "
                          "shards again",
                          (unsigned long long)g->entries, g->count);
    *results = g->results = qf_spill_alloc((g->count + 1) * sizeof *g->results);
    return g->results ? each_journal(stage, gather_one, g, err) : qf_fail_memory(err);
}

qf_status qf_journal_gather(const qf_stage *stage, const qf_hash *fingerprint, size_t count,
                            uint32_t shards, qf_result **results, qf_stats_table *stats,
                            char **missing, qf_error *err)
{
    gathering g = {.fingerprint = fingerprint,
                   .count = count,
                   .stats = stats,
                   .shards = shards,
                   .which = calloc(shards, 1)};
    *results = NULL;
    *missing = NULL;
    qf_status status = g.which ? each_journal(stage, gather_one, &g, err) : qf_fail_memory(err);
    if (status == QF_OK && g.done < shards) {
        *missing = name_missing(&g);
        status = *missing ? QF_OK : qf_fail_memory(err);
    } else if (status == QF_OK) {
        status = read_results(stage, &g, results, err);
    }
    free(g.which);
    return status;
}

/* ---- writing ---- */

static qf_status fail_journal(const qf_journal *journal, int e, qf_error *err)
{
    return qf_fail_at(err, QF_ERR_SYSTEM,
                      (qf_where){.file = journal->place, .item = journal->name, .sys_errno = e},
                      "cannot write the journal in the staging folder");
}

/* An entry that a short write has cut is not followed by another thread's. */
static qf_status write_whole(qf_journal *journal, const void *data, size_t n, qf_error *err)
{
    pthread_mutex_lock(&journal->lock);
    int e = qf_write_all(journal->fd, data, n);
    pthread_mutex_unlock(&journal->lock);
    return e ? fail_journal(journal, e, err) : QF_OK;
}

static qf_status write_entry(qf_journal *journal, uint64_t kind, const qf_result *result,
                             qf_error *err)
{
    struct {
        entry e;
        measures m;
    } both;
    memset(&both, 0, sizeof both); /* padding is hashed and written too */
    if (result)
        both.e.result = *result;
    if (kind == ENTRY_MEASURED) {
        both.m.stats = journal->stats.items[result->stats - 1];
        both.m.check = XXH3_64bits(&both.m, offsetof(measures, check));
    }
    both.e.kind = kind;
    both.e.check = XXH3_64bits(&both.e, offsetof(entry, check));
    size_t n = sizeof both.e + (kind == ENTRY_MEASURED ? sizeof both.m : 0);
    return write_whole(journal, &both, n, err);
}

static int read_one(void *user, int fd, uint32_t shard, uint32_t count)
{
    qf_journal *journal = user;
    bool done;
    (void)shard;
    (void)count;
    off_t sound = read_journal(fd, &journal->fingerprint, journal->count, journal->results,
                               &journal->stats, &done);
    return sound < 0 ? errno : 0;
}

/* Begins the shard's own journal, or goes on behind its last whole entry. What it said of being
 * done is void, and that is on the disk before any file is touched. */
static qf_status begin(qf_journal *journal, bool resume, bool sync, qf_error *err)
{
    bool done;
    off_t sound = 0;
    struct stat st;
    if (fstat(journal->fd, &st) != 0)
        return fail_journal(journal, errno, err);
    bool had = st.st_size > 0;
    if (resume)
        sound = read_journal(journal->fd, &journal->fingerprint, journal->count, NULL, NULL, &done);
    if (sound < 0)
        return fail_journal(journal, errno, err);
    if (qf_set_length(journal->fd, (uint64_t)sound) != 0 || lseek(journal->fd, sound, SEEK_SET) < 0)
        return fail_journal(journal, errno, err);
    header h = {.fingerprint = journal->fingerprint, .pieces = journal->count};
    memcpy(h.magic, magic, sizeof magic);
    qf_status status = sound ? write_entry(journal, ENTRY_BEGUN, NULL, err)
                             : write_whole(journal, &h, sizeof h, err);
    if (status == QF_OK && sync && had && qf_sync(journal->fd) != 0)
        status = fail_journal(journal, errno, err);
    return status;
}

typedef struct voiding {
    const qf_stage *stage;
    const qf_hash *fingerprint;
    size_t count;
} voiding;

static int void_one(void *user, int fd, uint32_t shard, uint32_t count)
{
    const voiding *v = user;
    char name[NAME_ROOM];
    entry e;
    bool done;
    off_t sound = read_journal(fd, v->fingerprint, v->count, NULL, NULL, &done);
    if (sound <= 0 || !done)
        return sound < 0 ? errno : 0;
    make_name(shard, count, name);
    int own = qf_open_at(v->stage->run_fd, name, O_WRONLY | O_CLOEXEC | O_NOFOLLOW, 0);
    if (own < 0)
        return errno;
    memset(&e, 0, sizeof e);
    e.kind = ENTRY_BEGUN;
    e.check = XXH3_64bits(&e, offsetof(entry, check));
    int failed = qf_set_length(own, (uint64_t)sound) != 0 ? errno : 0;
    failed = failed ? failed : qf_write_all_at(own, &e, sizeof e, (uint64_t)sound);
    if (!failed && !v->stage->unsynced && qf_sync(own) != 0)
        failed = errno;
    if (qf_close(own) != 0 && !failed)
        failed = errno;
    return failed;
}

qf_status qf_journal_void(const qf_stage *stage, const qf_hash *fingerprint, size_t count,
                          qf_error *err)
{
    voiding v = {.stage = stage, .fingerprint = fingerprint, .count = count};
    return each_journal(stage, void_one, &v, err);
}

qf_status qf_journal_init(const qf_stage *stage, size_t count, size_t weights, qf_journal *out,
                          qf_error *err)
{
    *out = (qf_journal){.count = count, .fd = -1, .folder = stage->run_fd, .place = stage->partial};
    out->results = qf_spill_alloc((count + 1) * sizeof *out->results);
    pthread_mutex_init(&out->lock, NULL);
    if (qf_stats_table_init(&out->stats, weights) && out->results)
        return QF_OK;
    qf_journal_close(out);
    return qf_fail_memory(err);
}

qf_status qf_journal_open(const qf_stage *stage, const qf_hash *fingerprint, uint32_t shard,
                          uint32_t shard_count, bool resume, qf_journal *journal, qf_error *err)
{
    qf_status status = QF_OK;
    journal->shard = shard;
    journal->shard_count = shard_count;
    journal->fingerprint = *fingerprint;
    make_name(shard, shard_count, journal->name);
    journal->fd =
        qf_open_at(stage->run_fd, journal->name, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0640);
    if (journal->fd < 0)
        status = fail_journal(journal, errno, err);
    else if (qf_stage_lock(journal->fd, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK)
        status =
            qf_fail_at(err, QF_ERR_INPUT, (qf_where){.file = stage->partial},
                       "shard %u of %u is being written by another process", shard, shard_count);
    if (status == QF_OK && resume)
        status = each_journal(stage, read_one, journal, err);
    return status == QF_OK ? begin(journal, resume, !stage->unsynced, err) : status;
}

uint64_t qf_journal_measure(qf_journal *journal, size_t piece, const qf_stats *stats)
{
    uint64_t place = journal->results[piece].stats; /* of an earlier run, whose bytes are gone */
    if (place)
        journal->stats.items[place - 1] = *stats;
    return place ? place : qf_stats_table_add(&journal->stats, stats);
}

qf_status qf_journal_add(qf_journal *journal, const qf_result *result, qf_error *err)
{
    qf_result whole = *result;
    whole.known = 1;
    journal->results[result->piece] = whole;
    if (journal->fd < 0)
        return QF_OK;
    return write_entry(journal, whole.stats ? ENTRY_MEASURED : ENTRY_PIECE, &whole, err);
}

qf_status qf_journal_finish(qf_journal *journal, bool sync, qf_error *err)
{
    if (sync && qf_sync(journal->fd) != 0)
        return fail_journal(journal, errno, err);
    qf_status status = write_entry(journal, ENTRY_DONE, NULL, err);
    if (status == QF_OK && sync && (qf_sync(journal->fd) != 0 || qf_sync(journal->folder) != 0))
        status = fail_journal(journal, errno, err);
    return status;
}

void qf_journal_close(qf_journal *journal)
{
    if (journal->fd >= 0)
        close(journal->fd);
    qf_spill_free(journal->results);
    qf_stats_table_release(&journal->stats);
    pthread_mutex_destroy(&journal->lock);
    *journal = (qf_journal){.fd = -1};
}
