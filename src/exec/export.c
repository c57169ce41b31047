/* SPDX-License-Identifier: Apache-2.0 */
/* Running a plan, and the one-call form of the whole. */
#include <stdlib.h>
#include <string.h>

#include "exec/run.h"
#include "exec/stage.h"
#include "kernels.h"
#include "quant/plan.h"

struct qf_report {
    qf_report_totals totals;
};

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

/* A job whose outputs no model asked for (folded, then quantized) has nothing to do. */
static bool is_wanted(const qf_job *job)
{
    bool wanted = false;
    for (int t = 0; t < QF_TARGETS; t++)
        wanted |= job->out[t].placed || (job->found && job->found->out[t].placed);
    return wanted;
}

static qf_status write_files(const qf_plan *plan, qf_stage *stage, qf_error *err)
{
    const qf_layout *layout = &plan->layout;
    qf_status status = QF_OK;
    qf_io io = qf_io_choose(plan->options.io, !plan->options.no_sync, plan->bytes_out);
    stage->direct = io == QF_IO_DIRECT;
    stage->unsynced = plan->options.no_sync;
    for (size_t i = 0; status == QF_OK && i < layout->file_count; i++) {
        size_t index;
        status = qf_stage_create(stage, layout->files[i].name, layout->files[i].size, &index, err);
    }
    if (status != QF_OK)
        return status;
    qf_job **jobs = malloc((plan->job_count + 1) * sizeof *jobs);
    size_t count = 0;
    if (!jobs)
        return qf_fail_memory(err);
    for (size_t i = 0; i < plan->job_count; i++) {
        if (is_wanted(plan->jobs[i]))
            jobs[count++] = plan->jobs[i];
    }
    qf_work work = {.jobs = jobs,
                    .job_count = count,
                    .layout = layout,
                    .sources = plan->model->files,
                    .source_count = plan->model->file_count,
                    .io = io,
                    .memory_limit = plan->options.memory_limit,
                    .threads = plan->options.threads,
                    .progress = plan->options.progress,
                    .progress_user = plan->options.progress_user};
    status = qf_work_run(&work, stage, err);
    free(jobs);
    return status;
}

static uint64_t bytes_read(const qf_plan *plan)
{
    uint64_t n = 0;
    for (size_t i = 0; i < plan->job_count; i++) {
        if (is_wanted(plan->jobs[i]))
            n += plan->jobs[i]->source.length;
    }
    for (size_t i = 0; i < plan->layout.copy_count; i++)
        n += plan->layout.copies[i].source.length;
    return n;
}

qf_status qf_export(qf_plan *plan, qf_report **out, qf_error *err)
{
    if (!plan || plan->ran)
        return qf_fail(err, QF_ERR_USAGE, "qf_export takes a plan that has not been run");
    plan->ran = true;
    double start = qf_monotonic_seconds();
    qf_report *report = calloc(1, sizeof *report);
    qf_stage stage;
    if (!report)
        return qf_fail_memory(err);
    qf_status status = qf_stage_open(plan->folder, plan->prefix, &stage, err);
    if (status == QF_OK) {
        status = write_files(plan, &stage, err);
        if (status == QF_OK)
            status = qf_stage_commit(&stage, err);
        qf_stage_close(&stage);
    }
    if (status != QF_OK) {
        free(report);
        return status;
    }
    report->totals =
        (qf_report_totals){bytes_read(plan), plan->bytes_out, qf_monotonic_seconds() - start};
    if (out)
        *out = report;
    else
        free(report);
    return QF_OK;
}

qf_report_totals qf_report_get(const qf_report *report)
{
    return report->totals;
}

void qf_report_free(qf_report *report)
{
    free(report);
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
