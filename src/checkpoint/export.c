/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "base/json.h"
#include "checkpoint/plan.h"
#include "exec/journal.h"
#include "exec/output.h"

static bool add_input(cJSON *root, const char *key, const char *path, uint64_t size,
                      const char *hash)
{
    const char *slash = strrchr(path, '/');
    cJSON *item = cJSON_AddObjectToObject(root, key);
    return item && qf_json_add_text(item, "name", slash ? slash + 1 : path) &&
           qf_json_add_number(item, "bytes", (double)size) && qf_json_add_text(item, "hash", hash);
}

static bool add_scales(cJSON *root, const qf_scales *scales)
{
    const qf_file_id *record = scales->record ? qf_record_id(scales->record) : NULL;
    const qf_file *file = &scales->file;
    if (record)
        return add_input(root, "record", qf_record_path(scales->record), record->size,
                         record->hash);
    qf_hash digest = qf_hash_of(file->data, (size_t)file->size);
    char hash[QF_HASH_TEXT];
    qf_hash_text(&digest, hash);
    return add_input(root, "scales", file->path, file->size, hash);
}

/* What the manifest says of the request: what else than the weights decided the output. NULL when
 * memory is exhausted. */
static cJSON *describe(const qf_checkpoint_plan *p)
{
    const qf_checkpoint_options *o = &p->options;
    const qf_checkpoint *c = p->checkpoint;
    cJSON *about = cJSON_CreateObject();
    bool ok = about && qf_json_add_text(about, "scheme", o->scheme);
    if (ok && o->include)
        ok = qf_json_add_text(about, "include", o->include);
    if (ok && o->exclude)
        ok = qf_json_add_text(about, "exclude", o->exclude);
    if (ok && p->has_scales)
        ok = add_scales(about, &p->scales);
    if (ok && add_input(about, "config", QF_CONFIG_NAME, c->config_id.size, c->config_id.hash))
        return about;
    cJSON_Delete(about);
    return NULL;
}

qf_status qf_checkpoint_export(qf_checkpoint_plan *p, qf_report **out, qf_error *err)
{
    if (!p || p->ran)
        return qf_fail(err, QF_ERR_USAGE,
                       "qf_checkpoint_export takes a plan that has not been run");
    p->ran = true;
    const qf_checkpoint_options *o = &p->options;
    const qf_run_options how = {.threads = o->threads,
                                .io = o->io,
                                .memory_limit = o->memory_limit,
                                .no_sync = o->no_sync,
                                .manifest = o->manifest,
                                .stats = o->stats,
                                .resume = o->resume,
                                .shard = o->shard,
                                .shard_count = o->shard_count,
                                .progress = o->progress,
                                .progress_user = o->progress_user};
    bool told = o->manifest || o->stats;
    cJSON *about = told ? describe(p) : NULL;
    if (told && !about)
        return qf_fail_memory(err);
    qf_status status = qf_files_check(&p->scales.file, 1, QF_OK, err);
    if (status != QF_OK) {
        cJSON_Delete(about);
        return status;
    }
    const qf_output what = {.folder = p->folder,
                            .prefix = "",
                            .layout = &p->layout,
                            .jobs = p->jobs,
                            .job_count = p->job_count,
                            .sources = p->checkpoint->files,
                            .source_count = p->checkpoint->file_count,
                            .manifest_name = QF_MANIFEST_NAME,
                            .about = about};
    status = qf_output_run(&what, &how, out, err);
    cJSON_Delete(about);
    return status;
}
