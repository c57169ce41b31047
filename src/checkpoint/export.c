/* SPDX-License-Identifier: Apache-2.0 */
#include "checkpoint/plan.h"
#include "exec/output.h"

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
    cJSON *about = cJSON_CreateObject();
    if (!about || !cJSON_AddStringToObject(about, "scheme", o->scheme)) {
        cJSON_Delete(about);
        return qf_fail_memory(err);
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
    qf_status status = qf_output_run(&what, &how, out, err);
    cJSON_Delete(about);
    return status;
}
