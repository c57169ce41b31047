/* SPDX-License-Identifier: Apache-2.0 */
/* Bringing shards together: what is staged is held against the plan and the journals, and put in
 * place. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/json.h"
#include "base/spill.h"
#include "exec/manifest.h"
#include "exec/outcome.h"
#include "exec/report.h"

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
    qf_status status = qf_staged_plan_read(stage, &plan, err);
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
    qf_status status = qf_staged_plan_read(stage, &plan, err);
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
        status = qf_manifest_drop(stage, name, err);
    if (status == QF_OK && manifest)
        status = qf_manifest_stage(stage, name, manifest, results, (size_t)count, &stats, err);
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
        stage.keep |= status != QF_OK &&
                      (faccessat(stage.run_fd, QF_STAGED_PLAN, F_OK, 0) == 0 || errno != ENOENT);
        qf_stage_close(&stage);
    }
    free(folder);
    free(prefix);
    totals.seconds = qf_monotonic_seconds() - start;
    return status == QF_OK ? qf_report_make(&totals, out, err) : status;
}
