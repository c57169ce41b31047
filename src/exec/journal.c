/* SPDX-License-Identifier: Apache-2.0 */
#include "exec/journal.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/spill.h"

static const char magic[8] = "QFJOURN1";

typedef struct header {
    char magic[8];
    qf_hash fingerprint;
    uint64_t pieces;
} header;

enum { ENTRY_PIECE = 1, ENTRY_DONE = 2 };
typedef struct entry {
    qf_result result;
    uint64_t kind;
    uint64_t check; /* XXH3-64 of what is before it: an end that was torn off is no entry */
} entry;

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

/* One journal's name: journal.<shard>-of-<count>. */
static bool parse_name(const char *name, uint32_t *shard, uint32_t *count)
{
    int end = 0;
    return sscanf(name, "journal.%9u-of-%9u%n", shard, count, &end) == 2 && !name[end] &&
           *shard < *count;
}

static bool read_all(int fd, void *out, size_t n)
{
    char *at = out;
    while (n) {
        ssize_t got = read(fd, at, n);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return false;
        at += got;
        n -= (size_t)got;
    }
    return true;
}

/* Takes the whole entries of a journal into `results`, which may be NULL. Returns the length of
 * what is sound; 0 if it is of another output. */
static off_t read_journal(int fd, const qf_hash *fingerprint, size_t count, qf_result *results,
                          bool *done)
{
    header h;
    entry e;
    *done = false;
    if (!read_all(fd, &h, sizeof h) || memcmp(h.magic, magic, sizeof magic) != 0 ||
        memcmp(&h.fingerprint, fingerprint, sizeof *fingerprint) != 0 || h.pieces != count)
        return 0;
    off_t sound = sizeof h;
    while (read_all(fd, &e, sizeof e) && XXH3_64bits(&e, offsetof(entry, check)) == e.check) {
        sound += (off_t)sizeof e;
        *done |= e.kind == ENTRY_DONE;
        if (results && e.kind == ENTRY_PIECE && e.result.piece < count)
            results[e.result.piece] = e.result;
    }
    return sound;
}

/* Calls `visit` for the journals in `run`. */
static qf_status each_journal(const qf_stage *stage,
                              void (*visit)(void *user, int fd, uint32_t shard, uint32_t count),
                              void *user, qf_error *err)
{
    int copy = openat(stage->run_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *dir = copy < 0 ? NULL : fdopendir(copy);
    if (!dir) {
        int e = errno;
        if (copy >= 0)
            close(copy);
        return qf_fail_errno(err, stage->partial, e, "cannot read the staging folder");
    }
    for (const struct dirent *d; (d = readdir(dir));) {
        uint32_t shard, count;
        if (!parse_name(d->d_name, &shard, &count))
            continue;
        int fd = openat(stage->run_fd, d->d_name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
        if (fd < 0)
            continue;
        visit(user, fd, shard, count);
        close(fd);
    }
    closedir(dir);
    return QF_OK;
}

typedef struct gathering {
    const qf_hash *fingerprint;
    size_t count;
    qf_result *results; /* NULL: only counting */
    uint64_t entries;
    /* by number of shards: which are done */
    struct tally {
        uint32_t of, done;
        unsigned char *which;
    } * tallies;
    size_t tally_count, tally_cap;
    bool failed;
} gathering;

static struct tally *tally_of(gathering *g, uint32_t of)
{
    for (size_t i = 0; i < g->tally_count; i++) {
        if (g->tallies[i].of == of)
            return &g->tallies[i];
    }
    struct tally t = {.of = of, .which = calloc(of, 1)};
    if (!t.which || !qf_grow((void **)&g->tallies, &g->tally_cap, g->tally_count + 1, sizeof t)) {
        free(t.which);
        return NULL;
    }
    g->tallies[g->tally_count] = t;
    return &g->tallies[g->tally_count++];
}

static void gather_one(void *user, int fd, uint32_t shard, uint32_t count)
{
    gathering *g = user;
    bool done;
    off_t sound = read_journal(fd, g->fingerprint, g->count, g->results, &done);
    g->entries += (uint64_t)sound / sizeof(entry);
    if (!sound || count > QF_SHARDS_MOST)
        return;
    struct tally *t = tally_of(g, count);
    g->failed |= !t;
    if (t && done && !t->which[shard]) {
        t->which[shard] = 1;
        t->done++;
    }
}

/* "2, 5 of 8", at most a line. */
static char *name_missing(const struct tally *t)
{
    enum { ROOM = 256, NUMBER = 24 };
    char *text = malloc(ROOM);
    size_t at = 0;
    for (uint32_t i = 0; text && i < t->of; i++) {
        if (t->which[i])
            continue;
        if (at + 2 * NUMBER > ROOM) {
            at += (size_t)snprintf(text + at, ROOM - at, ", ...");
            break;
        }
        at += (size_t)snprintf(text + at, ROOM - at, "%s%u", at ? ", " : "", i);
    }
    if (text)
        snprintf(text + at, ROOM - at, " of %u", t->of);
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
                            qf_result **results, char **missing, qf_error *err)
{
    gathering g = {.fingerprint = fingerprint, .count = count};
    *results = NULL;
    qf_status status = each_journal(stage, gather_one, &g, err);
    const struct tally *best = NULL; /* the whole one, or else that with the least missing */
    for (size_t i = 0; i < g.tally_count; i++) {
        const struct tally *t = &g.tallies[i];
        if (!best || t->of - t->done < best->of - best->done)
            best = t;
    }
    *missing = NULL;
    if (status == QF_OK && !g.failed && !best)
        *missing = strdup("all");
    else if (status == QF_OK && !g.failed && best->done < best->of)
        *missing = name_missing(best);
    if (status == QF_OK && (g.failed || (!*missing && (!best || best->done < best->of))))
        status = qf_fail_memory(err);
    if (status == QF_OK && !*missing)
        status = read_results(stage, &g, results, err);
    for (size_t i = 0; i < g.tally_count; i++)
        free(g.tallies[i].which); /* NOLINT(clang-analyzer-core.NullDereference): there are some */
    free(g.tallies);
    return status;
}

/* ---- writing ---- */

static qf_status fail_journal(const qf_journal *journal, int e, qf_error *err)
{
    return qf_fail_errno(err, journal->name, e, "cannot write the journal in the staging folder");
}

static qf_status write_whole(const qf_journal *journal, const void *data, size_t n, qf_error *err)
{
    ssize_t done;
    do
        done = write(journal->fd, data, n);
    while (done < 0 && errno == EINTR);
    if (done == (ssize_t)n)
        return QF_OK;
    return fail_journal(journal, done < 0 ? errno : ENOSPC, err);
}

static qf_status write_entry(const qf_journal *journal, uint64_t kind, const qf_result *result,
                             qf_error *err)
{
    entry e;
    memset(&e, 0, sizeof e); /* padding is hashed and written too */
    if (result)
        e.result = *result;
    e.kind = kind;
    e.check = XXH3_64bits(&e, offsetof(entry, check));
    return write_whole(journal, &e, sizeof e, err);
}

static void read_one(void *user, int fd, uint32_t shard, uint32_t count)
{
    qf_journal *journal = user;
    bool done;
    (void)shard;
    (void)count;
    read_journal(fd, &journal->fingerprint, journal->count, journal->results, &done);
}

/* Begins the shard's own journal, or goes on behind its last whole entry. */
static qf_status begin(qf_journal *journal, bool resume, qf_error *err)
{
    bool done;
    qf_result *ignored = qf_spill_alloc((journal->count + 1) * sizeof *ignored);
    if (!ignored)
        return qf_fail_memory(err);
    off_t sound = 0;
    if (resume)
        sound = read_journal(journal->fd, &journal->fingerprint, journal->count, ignored, &done);
    qf_spill_free(ignored);
    if (ftruncate(journal->fd, sound) != 0 || lseek(journal->fd, sound, SEEK_SET) < 0)
        return fail_journal(journal, errno, err);
    if (sound)
        return QF_OK;
    header h = {.fingerprint = journal->fingerprint, .pieces = journal->count};
    memcpy(h.magic, magic, sizeof magic);
    return write_whole(journal, &h, sizeof h, err);
}

qf_status qf_journal_open(const qf_stage *stage, const qf_hash *fingerprint, uint32_t shard,
                          uint32_t shard_count, size_t count, bool resume, qf_journal *out,
                          qf_error *err)
{
    *out = (qf_journal){.count = count,
                        .folder = stage->run_fd,
                        .shard = shard,
                        .shard_count = shard_count,
                        .fingerprint = *fingerprint};
    snprintf(out->name, sizeof out->name, "journal.%u-of-%u", shard, shard_count);
    out->results = qf_spill_alloc((count + 1) * sizeof *out->results);
    out->fd = openat(stage->run_fd, out->name, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0640);
    qf_status status = QF_OK;
    if (!out->results)
        status = qf_fail_memory(err);
    else if (out->fd < 0)
        status = fail_journal(out, errno, err);
    else if (flock(out->fd, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK)
        status =
            qf_fail_at(err, QF_ERR_INPUT, (qf_where){.file = stage->partial},
                       "shard %u of %u is being written by another process", shard, shard_count);
    if (status == QF_OK && resume)
        status = each_journal(stage, read_one, out, err);
    if (status == QF_OK)
        status = begin(out, resume, err);
    if (status != QF_OK)
        qf_journal_close(out);
    return status;
}

qf_status qf_journal_add(qf_journal *journal, const qf_result *result, qf_error *err)
{
    qf_result whole = *result;
    whole.known = 1;
    journal->results[result->piece] = whole;
    return write_entry(journal, ENTRY_PIECE, &whole, err);
}

qf_status qf_journal_finish(qf_journal *journal, bool sync, qf_error *err)
{
    if (sync && fsync(journal->fd) != 0)
        return fail_journal(journal, errno, err);
    qf_status status = write_entry(journal, ENTRY_DONE, NULL, err);
    if (status == QF_OK && sync && (fsync(journal->fd) != 0 || fsync(journal->folder) != 0))
        status = fail_journal(journal, errno, err);
    return status;
}

void qf_journal_close(qf_journal *journal)
{
    if (journal->fd >= 0)
        close(journal->fd);
    qf_spill_free(journal->results);
    *journal = (qf_journal){.fd = -1};
}
