/* SPDX-License-Identifier: Apache-2.0 */
#include "exec/output.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/json.h"
#include "base/retry.h"
#include "base/spill.h"
#include "exec/fingerprint.h"
#include "exec/manifest.h"
#include "exec/report.h"
#include "exec/share.h"

#define PLAN "plan.json"
#define PLAN_PART "plan.part"

typedef struct outcome {
    const qf_output *output;
    const qf_run_options *options;
    bool sharded;
    bool kept; /* what is staged outlives a run that ends early */
    qf_part *pieces;
    size_t piece_count, weight_count;
    uint32_t *owners;
    qf_hash fingerprint;
    cJSON *manifest; /* template */
    qf_stage stage;
    bool staged;
    qf_journal journal;
    bool noted; /* the journal is open */
    qf_report_totals totals;
} outcome;

/* ---- the plan in the staging folder ---- */

static uint32_t shards_of(const outcome *o)
{
    return o->sharded ? o->options->shard_count : 1;
}

/* What `quantfold commit` needs to know. */
static cJSON *plan_json(const outcome *o)
{
    char hash[QF_HASH_TEXT];
    const qf_layout *layout = o->output->layout;
    cJSON *root = cJSON_CreateObject();
    qf_hash_text(&o->fingerprint, hash);
    bool ok = root && qf_json_add_text(root, "fingerprint", hash) &&
              qf_json_add_number(root, "shards", shards_of(o)) &&
              qf_json_add_number(root, "pieces", (double)o->piece_count) &&
              qf_json_add_number(root, "bytes_read", (double)o->totals.bytes_read);
    cJSON *files = ok ? cJSON_AddArrayToObject(root, "files") : NULL;
    ok = files != NULL;
    for (size_t i = 0; ok && i < layout->file_count; i++) {
        cJSON *file = cJSON_CreateObject();
        ok = file && cJSON_AddItemToArray(files, file) &&
             cJSON_AddStringToObject(file, "name", layout->files[i].name) &&
             qf_json_add_number(file, "bytes", (double)layout->files[i].size);
    }
    ok = ok && qf_json_add_text(root, "manifest_name", o->output->manifest_name);
    if (ok && o->manifest) {
        cJSON *copy = cJSON_Duplicate(o->manifest, true);
        ok = ok && copy && cJSON_AddItemToObject(root, "manifest", copy);
    }
    if (ok)
        return root;
    cJSON_Delete(root);
    return NULL;
}

/* *plan is NULL if there is none or it is not sound. */
static qf_status read_plan(const qf_stage *stage, cJSON **plan, qf_error *err)
{
    enum { MOST = 1 << 30 };
    struct stat st;
    *plan = NULL;
    int fd = qf_open_at(stage->run_fd, PLAN, O_RDONLY | O_CLOEXEC | O_NOFOLLOW, 0);
    if (fd < 0 && errno == ENOENT)
        return QF_OK;
    char *text = NULL;
    ssize_t got = -1;
    bool examined = fd >= 0 && fstat(fd, &st) == 0;
    bool plain = examined && S_ISREG(st.st_mode) && st.st_size < MOST;
    if (plain)
        text = qf_spill_alloc((size_t)st.st_size + 1);
    if (text)
        got = qf_read_all_at(fd, text, (size_t)st.st_size, 0);
    int e = errno;
    bool exhausted = plain && !text;
    if (got >= 0)
        *plan = qf_json_parse(text, (size_t)got, NULL, false, &exhausted);
    qf_spill_free(text);
    if (fd >= 0)
        close(fd);
    if (exhausted)
        return qf_fail_memory(err);
    if (!examined || (plain && got < 0))
        return qf_fail_errno(err, stage->partial, e, "cannot read the plan in the staging folder");
    return QF_OK;
}

/* What the plan in the staging folder is to this run. */
typedef enum claim_state {
    CLAIM_FOREIGN,          /* another output's, or none */
    CLAIM_SHARED_OTHERWISE, /* of this output, among another number of shards */
    CLAIM_OURS,
} claim_state;

static qf_status read_claim(const outcome *o, claim_state *state, qf_error *err)
{
    char hash[QF_HASH_TEXT];
    uint64_t shards;
    cJSON *plan;
    qf_status status = read_plan(&o->stage, &plan, err);
    qf_hash_text(&o->fingerprint, hash);
    const char *theirs =
        cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(plan, "fingerprint"));
    *state = CLAIM_FOREIGN;
    if (theirs && strcmp(theirs, hash) == 0)
        *state = qf_json_get_integer(plan, "shards", &shards) && shards == shards_of(o)
                     ? CLAIM_OURS
                     : CLAIM_SHARED_OTHERWISE;
    cJSON_Delete(plan);
    return status;
}

/* Under a name of the process's own first, for other shards may be reading. */
static qf_status write_plan(const outcome *o, qf_error *err)
{
    char part[64];
    cJSON *plan = plan_json(o);
    char *text = plan ? cJSON_PrintUnformatted(plan) : NULL;
    cJSON_Delete(plan);
    if (!text)
        return qf_fail_memory(err);
    snprintf(part, sizeof part, "%s.%ld", PLAN_PART, (long)getpid());
    size_t n = strlen(text);
    int fd = qf_open_at(o->stage.run_fd, part, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0640);
    int e = fd < 0 ? errno : qf_write_all(fd, text, n);
    free(text);
    if (!e && !o->stage.unsynced && qf_sync(fd) != 0)
        e = errno;
    if (fd >= 0 && qf_close(fd) != 0 && !e)
        e = errno;
    if (!e && renameat(o->stage.run_fd, part, o->stage.run_fd, PLAN) != 0)
        e = errno;
    return e ? qf_fail_errno(err, o->stage.partial, e, "cannot write the plan") : QF_OK;
}

/* Not as long as others who wait for the same. */
static void wait_a_little(void)
{
    enum { MOST = 40 * 1000 * 1000 };
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    t = (struct timespec){.tv_nsec = t.tv_nsec % MOST};
    nanosleep(&t, NULL);
}

/* Makes the plan this run's, alone in the folder. Of the same output among another number of
 * shards, only what says that they are done goes: files that one of them has written may be about
 * to be written again. */
static qf_status take_over(outcome *o, claim_state state, qf_error *err)
{
    qf_status status = QF_OK;
    if (state == CLAIM_OURS)
        return QF_OK;
    if (state == CLAIM_SHARED_OTHERWISE)
        status = qf_journal_void(&o->stage, &o->fingerprint, o->piece_count, err);
    else if (!qf_stage_empty(&o->stage))
        status =
            qf_fail_errno(err, o->stage.partial, errno, "cannot clean up after an earlier run");
    return status == QF_OK ? write_plan(o, err) : status;
}

static qf_status fail_lock(const qf_stage *stage, qf_error *err)
{
    return qf_fail_errno(err, stage->partial, errno, "cannot lock the staging folder");
}

/* The staging folder becomes that of this output. What is there of another goes, unless somebody is
 * writing it: a shard tries for a while, for others may be about to do the same. It waits without a
 * lock: of shards that wait with one, none would ever get the folder for itself. */
static qf_status claim_shared(outcome *o, qf_error *err)
{
    enum { TRIES = 500 };
    qf_stage *stage = &o->stage;
    for (int i = 0; i < TRIES; i++) {
        claim_state state;
        if (i > 0 && qf_stage_lock(stage->partial_fd, LOCK_SH | LOCK_NB) != 0) {
            if (errno != EWOULDBLOCK)
                return fail_lock(stage, err);
            wait_a_little();
            continue;
        }
        qf_status status = read_claim(o, &state, err);
        if (status != QF_OK || state == CLAIM_OURS)
            return status;
        if (qf_stage_lock(stage->partial_fd, LOCK_EX | LOCK_NB) == 0) {
            status = read_claim(o, &state, err);
            if (status == QF_OK)
                status = take_over(o, state, err);
            if (qf_stage_lock(stage->partial_fd, LOCK_SH) != 0 && status == QF_OK)
                status = fail_lock(stage, err);
            return status;
        }
        if (errno != EWOULDBLOCK)
            return fail_lock(stage, err);
        qf_stage_lock(stage->partial_fd, LOCK_UN);
        wait_a_little();
    }
    return qf_fail_at(err, QF_ERR_INPUT, (qf_where){.file = stage->partial},
                      "shards of another output, or of the same one from other inputs or in "
                      "another number, are being written to the same save path");
}

static qf_status claim(outcome *o, qf_error *err)
{
    qf_status status;
    claim_state state;
    if (o->sharded) {
        status = claim_shared(o, err);
        o->stage.resumed = o->options->resume;
        return status;
    }
    if (!o->options->resume)
        return QF_OK;
    status = read_claim(o, &state, err);
    o->stage.resumed = status == QF_OK && state != CLAIM_FOREIGN;
    return status == QF_OK ? take_over(o, state, err) : status;
}

/* ---- writing ---- */

static bool is_ours(const outcome *o, size_t file)
{
    return !o->owners || o->owners[file] == o->options->shard;
}

static qf_status create_files(outcome *o, qf_error *err)
{
    const qf_layout *layout = o->output->layout;
    qf_status status = QF_OK;
    for (size_t i = 0; status == QF_OK && i < layout->file_count; i++) {
        size_t index;
        const qf_layout_file *f = &layout->files[i];
        status = is_ours(o, i) ? qf_stage_create(&o->stage, f->name, f->size, &index, err)
                               : qf_stage_expect(&o->stage, f->name, f->size, err);
    }
    return status;
}

static void count_bytes(outcome *o)
{
    const qf_layout *layout = o->output->layout;
    for (size_t i = 0; i < layout->file_count; i++)
        o->totals.bytes_written += is_ours(o, i) ? layout->files[i].size : 0;
    for (size_t i = 0; i < o->piece_count; i++) {
        qf_part p = o->pieces[i];
        qf_place places[QF_SLOTS];
        qf_part_places(p, o->output->jobs, layout, places);
        bool ours = false;
        for (int s = 0; s < QF_SLOTS; s++)
            ours |= places[s].used && is_ours(o, (size_t)places[s].file);
        if (ours && p.kind != QF_PART_LITERAL)
            o->totals.bytes_read += p.kind == QF_PART_JOB ? o->output->jobs[p.index]->source.length
                                                          : layout->copies[p.index].source.length;
    }
}

static qf_status write_pieces(outcome *o, qf_error *err)
{
    const qf_run_options *options = o->options;
    qf_work work = {.jobs = o->output->jobs,
                    .job_count = o->output->job_count,
                    .layout = o->output->layout,
                    .pieces = o->pieces,
                    .piece_count = o->piece_count,
                    .journal = o->noted ? &o->journal : NULL,
                    .owners = o->owners,
                    .shard = options->shard,
                    .statistics = o->manifest != NULL,
                    .stats = options->stats,
                    .sources = o->output->sources,
                    .source_count = o->output->source_count,
                    .io = qf_io_choose(options->io, !options->no_sync, o->totals.bytes_written),
                    .memory_limit = options->memory_limit,
                    .threads = options->threads,
                    .progress = options->progress,
                    .progress_user = options->progress_user};
    o->stage.direct = work.io == QF_IO_DIRECT;
    qf_status status = create_files(o, err);
    if (status == QF_OK)
        status = qf_work_run(&work, &o->stage, &o->totals.bytes_kept, err);
    return qf_files_check(work.sources, work.source_count, status, err);
}

/* Adds the filled manifest to the files to be put in place. */
static qf_status stage_manifest(qf_stage *stage, const char *name, cJSON *manifest,
                                const qf_result *results, size_t count, const qf_stats_table *stats,
                                qf_error *err)
{
    size_t index;
    qf_status status = qf_manifest_fill(manifest, results, count, stats->items, err);
    char *text = status == QF_OK ? cJSON_Print(manifest) : NULL;
    if (status == QF_OK && !text)
        status = qf_fail_memory(err);
    size_t n = text ? strlen(text) : 0;
    if (status == QF_OK)
        text[n] = '\n'; /* in place of the NUL */
    if (status == QF_OK)
        status = qf_stage_create(stage, name, n + 1, &index, err);
    if (status == QF_OK)
        status = qf_stage_write(stage, index, 0, text, n + 1, err);
    free(text);
    return status;
}

static bool starts_manifest(const char *text)
{
    static const char first[] = "\"quantfold\"";
    if (*text != '{')
        return false;
    text++;
    return strncmp(text + strspn(text, " \t\r\n"), first, sizeof first - 1) == 0;
}

/* Whether `text` has a name as JSON writes it. */
static bool has_name(const char *text, const char *name, bool *exhausted)
{
    cJSON *object = cJSON_CreateObject();
    bool ok = object && qf_json_add_text(object, "name", name);
    char *quoted = ok ? cJSON_PrintUnformatted(object->child) : NULL;
    bool found = quoted && strstr(text, quoted);
    *exhausted |= !quoted;
    cJSON_free(quoted);
    cJSON_Delete(object);
    return found;
}

/* Whether the manifest of an earlier run is of a model that this one writes. A runnable model can
 * be put beside what a manifest describes. */
static qf_status is_replaced(const qf_stage *stage, const char *name, bool *replaced, qf_error *err)
{
    enum { MOST = 1 << 28 };
    char *path = qf_stage_path(stage->folder, name), *text;
    size_t length;
    bool models = false, exhausted = false;
    if (!path)
        return qf_fail_memory(err);
    qf_status status = qf_file_read_text(path, "manifest", MOST, &text, &length, NULL, err);
    free(path);
    if (status != QF_OK) { /* too large to be looked into: it goes */
        *replaced = status == QF_ERR_INPUT;
        return *replaced ? QF_OK : status;
    }
    *replaced = false;
    for (size_t i = 0; i < stage->count; i++) {
        const char *file = stage->files[i].name;
        bool model = qf_ends_with(file, ".onnx");
        models |= model;
        *replaced |= model && has_name(text, file, &exhausted);
    }
    qf_spill_free(text);
    *replaced |= !models; /* a checkpoint */
    return exhausted ? qf_fail_memory(err) : QF_OK;
}

/* A manifest that an earlier run has left describes other output: it goes with the commit. A file
 * of that name that is none stays. */
static qf_status drop_manifest(qf_stage *stage, const char *name, qf_error *err)
{
    char text[64] = "";
    struct stat st;
    if (fstatat(stage->folder_fd, name, &st, AT_SYMLINK_NOFOLLOW) == 0) {
        if (!S_ISREG(st.st_mode))
            return QF_OK;
        int fd = qf_open_at(stage->folder_fd, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW, 0);
        ssize_t got = fd < 0 ? -1 : qf_read_all_at(fd, text, sizeof text - 1, 0);
        int e = errno;
        if (fd >= 0)
            close(fd);
        errno = e;
        if (got >= 0) {
            bool replaced = false;
            qf_status status =
                starts_manifest(text) ? is_replaced(stage, name, &replaced, err) : QF_OK;
            return status == QF_OK && replaced ? qf_stage_remove(stage, name, err) : status;
        }
    }
    if (qf_is_absent(errno) || errno == EACCES)
        return QF_OK;
    return qf_fail_at(err, QF_ERR_SYSTEM,
                      (qf_where){.file = stage->folder, .item = name, .sys_errno = errno},
                      "cannot examine the manifest of an earlier run");
}

static qf_status put_in_place(outcome *o, qf_error *err)
{
    qf_status status = QF_OK;
    if (o->manifest)
        status = stage_manifest(&o->stage, o->output->manifest_name, o->manifest,
                                o->journal.results, o->piece_count, &o->journal.stats, err);
    else
        status = drop_manifest(&o->stage, o->output->manifest_name, err);
    return status == QF_OK ? qf_stage_commit(&o->stage, err) : status;
}

static qf_status finish_shard(outcome *o, qf_error *err)
{
    qf_status status = qf_stage_finish(&o->stage, err);
    return status == QF_OK ? qf_journal_finish(&o->journal, !o->options->no_sync, err) : status;
}

/* ---- the whole ---- */

static qf_status check_options(const qf_run_options *options, qf_error *err)
{
    if (options->shard_count > QF_SHARDS_MOST || (options->shard && !options->shard_count) ||
        (options->shard_count && options->shard >= options->shard_count))
        return qf_fail(err, QF_ERR_USAGE,
                       "there is no shard %u of %u: shards are numbered from 0, and there are at "
                       "most %d",
                       options->shard, options->shard_count, QF_SHARDS_MOST);
    return QF_OK;
}

static qf_status prepare(outcome *o, qf_error *err)
{
    const qf_output *out = o->output;
    const qf_run_options *options = o->options;
    qf_status status = check_options(options, err);
    if (status == QF_OK)
        status = qf_order_build(out->jobs, out->job_count, out->layout, &o->pieces, &o->piece_count,
                                err);
    if (status == QF_OK && o->sharded)
        status = qf_share_files(out->layout, out->jobs, o->pieces, o->piece_count,
                                options->shard_count, &o->owners, err);
    if (status == QF_OK && o->kept)
        status = qf_fingerprint(out, options->manifest || options->stats, options->stats,
                                &o->fingerprint, err);
    if (status == QF_OK && (options->manifest || options->stats))
        status = qf_manifest_template(out, o->pieces, o->piece_count, &o->manifest, err);
    for (size_t i = 0; status == QF_OK && options->stats && i < o->piece_count; i++)
        o->weight_count +=
            o->pieces[i].kind == QF_PART_JOB && out->jobs[o->pieces[i].index]->bits != 0;
    count_bytes(o);
    return status;
}

/* Whether the earlier run whose files have just been put in place was one of this very output. */
static qf_status find_whole(outcome *o, bool *whole, qf_error *err)
{
    claim_state state = CLAIM_FOREIGN;
    bool asked = o->stage.recovered && o->options->resume && !o->sharded;
    qf_status status = asked ? read_claim(o, &state, err) : QF_OK;
    *whole = status == QF_OK && state != CLAIM_FOREIGN;
    if (*whole) {
        o->totals.bytes_kept = o->totals.bytes_written;
        o->stage.keep = false;
    }
    return status;
}

static qf_status run(outcome *o, qf_error *err)
{
    bool whole = false;
    const qf_run_options *options = o->options;
    qf_stage_mode mode = o->sharded        ? QF_STAGE_SHARD
                         : options->resume ? QF_STAGE_RESUME
                                           : QF_STAGE_FRESH;
    qf_status status = prepare(o, err);
    if (status == QF_OK)
        status = qf_stage_open(o->output->folder, o->output->prefix, mode, &o->stage, err);
    if (status != QF_OK)
        return status;
    o->staged = true;
    o->stage.unsynced = options->no_sync;
    o->stage.keep = o->kept;
    status = find_whole(o, &whole, err);
    if (status != QF_OK || whole)
        return status;
    status = claim(o, err);
    if (status == QF_OK && (o->kept || o->manifest)) {
        status = qf_journal_init(&o->stage, o->piece_count, o->weight_count, &o->journal, err);
        o->noted = status == QF_OK;
    }
    if (status == QF_OK && o->kept)
        status = qf_journal_open(&o->stage, &o->fingerprint, options->shard, shards_of(o),
                                 o->stage.resumed, &o->journal, err);
    if (status == QF_OK)
        status = write_pieces(o, err);
    if (status != QF_OK)
        return status;
    status = o->sharded ? finish_shard(o, err) : put_in_place(o, err);
    if (status == QF_OK && !o->sharded)
        o->stage.keep = false;
    return status;
}

qf_status qf_output_run(const qf_output *output, const qf_run_options *options, qf_report **out,
                        qf_error *err)
{
    double start = qf_monotonic_seconds();
    outcome o = {.output = output, .options = options, .sharded = options->shard_count > 0};
    o.kept = o.sharded || options->resume;
    qf_status status = run(&o, err);
    o.totals.seconds = qf_monotonic_seconds() - start;
    if (o.noted)
        qf_journal_close(&o.journal);
    if (o.staged)
        qf_stage_close(&o.stage);
    cJSON_Delete(o.manifest);
    qf_spill_free(o.owners);
    qf_spill_free(o.pieces);
    return status == QF_OK ? qf_report_make(&o.totals, out, err) : status;
}

/* ---- bringing shards together ---- */

static qf_status refuse_plan(const qf_stage *stage, qf_error *err)
{
    return qf_fail_at(err, QF_ERR_INPUT, (qf_where){.file = stage->partial},
                      "no shards of this output have been written, or their plan is not sound; run "
                      "them with the same save path first");
}

static qf_status check_name(const qf_stage *stage, const char *name, qf_error *err)
{
    if (!name)
        return refuse_plan(stage, err);
    if (qf_name_is_safe(name))
        return QF_OK;
    return qf_fail_at(
        err, QF_ERR_INPUT, (qf_where){.file = stage->partial, .item = name},
        "the plan names a file that is not inside the target folder, or whose name is "
        "too long");
}

/* The files of the plan, which the shards have written. */
static qf_status expect_files(qf_stage *stage, const cJSON *plan, uint64_t *bytes, qf_error *err)
{
    const cJSON *file;
    qf_status status = QF_OK;
    *bytes = 0;
    cJSON_ArrayForEach(file, cJSON_GetObjectItemCaseSensitive(plan, "files"))
    {
        uint64_t size, found;
        const char *name = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(file, "name"));
        status = check_name(stage, name, err);
        if (status != QF_OK)
            return status;
        if (!qf_json_get_integer(file, "bytes", &size))
            return refuse_plan(stage, err);
        status = qf_stage_expect(stage, name, size, err);
        if (status != QF_OK)
            return status;
        bool there = qf_stage_size(stage, stage->count - 1, &found);
        if (!there && errno != ENOENT)
            return qf_fail_errno(err, stage->partial, errno, "cannot examine the staged '%s'",
                                 name);
        if (!there || found != size)
            return qf_fail_at(err, QF_ERR_INPUT, (qf_where){.file = stage->partial, .item = name},
                              "the file is not there in the length that was planned; run its shard "
                              "again");
        *bytes += size;
    }
    return stage->count ? QF_OK : refuse_plan(stage, err);
}

static qf_status parse_hash(const cJSON *plan, qf_hash *out)
{
    const char *text = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(plan, "fingerprint"));
    if (!text || strlen(text) != QF_HASH_TEXT - 1 || strspn(text, "0123456789abcdef") != 32)
        return QF_ERR_INPUT;
    for (size_t i = 0; i < sizeof out->bytes; i++) {
        const char digits[3] = {text[2 * i], text[2 * i + 1], 0};
        out->bytes[i] = (unsigned char)strtoul(digits, NULL, 16);
    }
    return QF_OK;
}

static qf_status gather(qf_stage *stage, const cJSON *plan, qf_result **results, uint64_t *count,
                        qf_stats_table *stats, qf_error *err)
{
    enum { PIECES_MOST = QF_PART_INDEX_MAX };
    qf_hash fingerprint;
    uint64_t shards;
    char *missing = NULL;
    if (parse_hash(plan, &fingerprint) != QF_OK || !qf_json_get_integer(plan, "pieces", count) ||
        *count > PIECES_MOST || !qf_json_get_integer(plan, "shards", &shards) || !shards ||
        shards > QF_SHARDS_MOST)
        return refuse_plan(stage, err);
    const cJSON *manifest = cJSON_GetObjectItemCaseSensitive(plan, "manifest");
    int weights = cJSON_GetArraySize(cJSON_GetObjectItemCaseSensitive(manifest, "weights"));
    if (!qf_stats_table_init(stats, (size_t)weights))
        return qf_fail_memory(err);
    qf_status status = qf_journal_gather(stage, &fingerprint, (size_t)*count, (uint32_t)shards,
                                         results, stats, &missing, err);
    if (status == QF_OK && missing)
        status = qf_fail_at(err, QF_ERR_INPUT, (qf_where){.file = stage->partial},
                            "shards are missing: %s; run them (with --resume where they were "
                            "interrupted), then commit again",
                            missing);
    free(missing);
    return status;
}

/* A commit that died between two renames, and that opening the stage has finished. */
static qf_status report_recovered(const qf_stage *stage, qf_report_totals *totals, qf_error *err)
{
    const cJSON *file;
    cJSON *plan;
    qf_status status = read_plan(stage, &plan, err);
    cJSON_ArrayForEach(file, cJSON_GetObjectItemCaseSensitive(plan, "files"))
    {
        uint64_t size;
        totals->bytes_written += qf_json_get_integer(file, "bytes", &size) ? size : 0;
    }
    qf_json_get_integer(plan, "bytes_read", &totals->bytes_read);
    cJSON_Delete(plan);
    return status;
}

static qf_status commit(qf_stage *stage, qf_report_totals *totals, qf_error *err)
{
    uint64_t count;
    qf_result *results = NULL;
    qf_stats_table stats = {0};
    cJSON *plan;
    qf_status status = read_plan(stage, &plan, err);
    cJSON *manifest = cJSON_GetObjectItemCaseSensitive(plan, "manifest");
    const char *name =
        cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(plan, "manifest_name"));
    if (status == QF_OK && !plan)
        status = refuse_plan(stage, err);
    if (status == QF_OK)
        status = gather(stage, plan, &results, &count, &stats, err);
    if (status == QF_OK)
        status = expect_files(stage, plan, &totals->bytes_written, err);
    if (status == QF_OK)
        status = check_name(stage, name, err);
    if (status == QF_OK && !manifest)
        status = drop_manifest(stage, name, err);
    if (status == QF_OK && manifest)
        status = stage_manifest(stage, name, manifest, results, (size_t)count, &stats, err);
    qf_json_get_integer(plan, "bytes_read", &totals->bytes_read);
    if (status == QF_OK)
        status = qf_stage_commit(stage, err);
    cJSON_Delete(plan);
    qf_spill_free(results);
    qf_stats_table_release(&stats);
    return status;
}

qf_status qf_commit(const char *save_path, bool no_sync, qf_report **out, qf_error *err)
{
    char *folder, *prefix;
    qf_stage stage;
    qf_report_totals totals = {0};
    double start = qf_monotonic_seconds();
    if (!save_path)
        return qf_fail(err, QF_ERR_USAGE, "save_path must not be NULL");
    qf_status status = qf_save_path_split(save_path, &folder, &prefix, err);
    if (status != QF_OK)
        return status;
    status = qf_stage_open(folder, prefix, QF_STAGE_RESUME, &stage, err);
    if (status == QF_OK) {
        stage.unsynced = no_sync;
        status =
            stage.recovered ? report_recovered(&stage, &totals, err) : commit(&stage, &totals, err);
        /* a folder that this call made is empty; shards that are there stay */
        stage.keep |=
            status != QF_OK && (faccessat(stage.run_fd, PLAN, F_OK, 0) == 0 || errno != ENOENT);
        qf_stage_close(&stage);
    }
    free(folder);
    free(prefix);
    totals.seconds = qf_monotonic_seconds() - start;
    return status == QF_OK ? qf_report_make(&totals, out, err) : status;
}
