/* SPDX-License-Identifier: Apache-2.0 */
/* Running a plan, and the one-call form of the whole. */
#include <stdlib.h>
#include <string.h>

#include "exec/output.h"
#include "kernels.h"
#include "quant/describe.h"
#include "quant/plan.h"

const char *qf_version(void)
{
    return QF_VERSION;
}

const char *qf_kernels_active(void)
{
    return qf_kernels_get()->name;
}

void qf_export_options_init_sized(qf_export_options *options, size_t size)
{
    qf_export_options defaults = {.struct_size = size, .external_threshold = UINT64_C(2000000000)};
    if (size > sizeof defaults)
        memset((char *)options + sizeof defaults, 0, size - sizeof defaults);
    memcpy(options, &defaults, size < sizeof defaults ? size : sizeof defaults);
}

qf_status qf_export(qf_plan *plan, qf_report **out, qf_error *err)
{
    if (!plan || plan->ran)
        return qf_fail(err, QF_ERR_USAGE, "qf_export takes a plan that has not been run");
    plan->ran = true;
    const qf_export_options *o = &plan->options;
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
    char *name =
        qf_arena_printf(&plan->arena, "%s%smanifest.json", plan->prefix, *plan->prefix ? "." : "");
    /* a job whose outputs no model asked for (folded, then quantized) has nothing to do */
    qf_job **jobs = malloc((plan->job_count + 1) * sizeof *jobs);
    bool told = o->manifest || o->stats;
    cJSON *about = told ? qf_plan_describe(plan, o->stats) : NULL;
    if (!jobs || !name || (told && !about)) {
        cJSON_Delete(about);
        free(jobs);
        return qf_fail_memory(err);
    }
    qf_output what = {.folder = plan->folder,
                      .prefix = plan->prefix,
                      .layout = &plan->layout,
                      .jobs = jobs,
                      .sources = plan->model->files,
                      .source_count = plan->model->file_count,
                      .manifest_name = name,
                      .about = about};
    for (size_t i = 0; i < plan->job_count; i++) {
        if (plan->jobs[i]->out[QF_DEPLOY].placed || plan->jobs[i]->out[QF_FAKE_QUANT].placed)
            jobs[what.job_count++] = plan->jobs[i];
    }
    qf_status status = qf_output_run(&what, &how, out, err);
    cJSON_Delete(about);
    free(jobs);
    return status;
}

qf_status qf_save_quant_retrain_model(const char *config_file, const char *model_file,
                                      const char *record_file, const qf_export_options *options,
                                      const qf_io_spec *io, qf_report **out, qf_error *err)
{
    qf_model *model = NULL;
    qf_record *record = NULL;
    qf_config *config = NULL;
    qf_plan *plan = NULL;
    if (!model_file)
        return qf_fail(err, QF_ERR_USAGE, "model_file must not be NULL");
    qf_status status = qf_model_open(model_file, &model, err);
    if (status == QF_OK && record_file)
        status = qf_record_open(record_file, &record, err);
    if (status == QF_OK && config_file)
        status = qf_config_open(config_file, &config, NULL, err);
    if (status == QF_OK)
        status = qf_plan_create(model, config, record, io, options, NULL, &plan, err);
    if (status == QF_OK)
        status = qf_export(plan, out, err);
    qf_plan_free(plan);
    qf_config_close(config);
    qf_record_close(record);
    qf_model_close(model);
    return status;
}
