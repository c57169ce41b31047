/* SPDX-License-Identifier: Apache-2.0 */
#include "quant/plan.h"

#include <errno.h>
#include <fenv.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/file.h"
#include "base/spill.h"
#include "exec/stage.h"
#include "kernels.h"
#include "passes/passes.h"
#include "quant/qdq.h"

/* ---- shared by the steps ---- */

void qf_plan_report(qf_plan *plan, qf_severity severity, size_t record, const char *item,
                    const char *format, ...)
{
    char message[900];
    va_list args;
    va_start(args, format);
    vsnprintf(message, sizeof message, format, args);
    va_end(args);
    qf_where where = {.file = qf_record_path(plan->record), .item = item};
    if (record != SIZE_MAX) {
        where.line = qf_record_line(plan->record, record);
        where.column = 1;
    }
    qf_diag_add(plan->diag, severity, where, "%s", message);
}

unsigned qf_plan_flags(const qf_plan *plan, const char *node)
{
    return (unsigned)(uintptr_t)qf_strmap_get(&plan->node_flags, node);
}

size_t qf_plan_add_bytes(qf_plan *plan, int field, const void *bytes, uint64_t length,
                         bool was_external)
{
    return qf_payloads_add(&plan->payloads, (qf_payload){.kind = QF_PAYLOAD_BYTES,
                                                         .field = field,
                                                         .bytes = bytes,
                                                         .raw_length = length,
                                                         .was_external = was_external});
}

/* ---- steps on linked graphs ---- */

static qf_status open_prepared(const qf_plan *plan, qf_linked *out, qf_error *err)
{
    return qf_linked_open(plan->skeleton, plan->skeleton_length, plan->model->files[0].path, out,
                          err);
}

static qf_status plan_on_graph(qf_plan *plan, const qf_config *config, qf_ir *ir, qf_error *err)
{
    qf_status status = plan->from_deploy ? QF_OK : qf_plan_layers(plan, ir, err);
    if (status == QF_OK && config)
        status = qf_plan_consistency(plan, config, ir, err);
    return status;
}

static qf_status lay_out_target(qf_plan *plan, qf_target target, qf_linked *linked, qf_error *err)
{
    const qf_export_options *o = &plan->options;
    qf_layout_request request = {target,
                                 plan->prefix,
                                 o->external,
                                 o->external_threshold,
                                 o->external_layout,
                                 plan->model->files[0].path,
                                 o->fake_quant_weights == QF_FAKE_QUANT_SHARED,
                                 o->dedup,
                                 plan->model->files,
                                 o->emit == QF_EMIT_RUNNABLE};
    qf_status status = qf_passes_run(plan, &linked->ir, target, err);
    if (status == QF_OK)
        status = qf_ir_finish(&linked->ir, plan->model->files[0].path, err);
    if (status == QF_OK)
        status = qf_layout_add(&plan->layout, linked->model, &plan->payloads, &request, err);
    return status;
}

static bool wants(const qf_plan *plan, qf_target target)
{
    qf_emit emit = plan->options.emit; /* a runnable model is what becomes of the deploy model */
    return emit == QF_EMIT_BOTH || (emit == QF_EMIT_FAKE_QUANT) == (target == QF_FAKE_QUANT);
}

/* A model in which nothing is to change is copied byte for byte, if it is one file. */
static bool is_verbatim(const qf_plan *plan, const qf_io_spec *io)
{
    const qf_export_options *o = &plan->options;
    bool renamed = io && (io->input_name_count || io->output_name_count || io->dynamic_axis_count);
    return o->emit != QF_EMIT_RUNNABLE && !plan->layer_count && !plan->float_layer_count &&
           !renamed && !plan->had_markers && plan->model->file_count == 1 &&
           o->external != QF_EXTERNAL_ALWAYS &&
           (o->external == QF_EXTERNAL_NEVER || plan->model->files[0].size < o->external_threshold);
}

static qf_status lay_out_verbatim(qf_plan *plan, qf_error *err)
{
    qf_status status = QF_OK;
    for (int t = 0; status == QF_OK && t < QF_TARGETS; t++) {
        qf_layout_request request = {.target = (qf_target)t, .prefix = plan->prefix};
        if (wants(plan, (qf_target)t))
            status = qf_layout_add_verbatim(&plan->layout, &plan->model->files[0], &request, err);
    }
    return status;
}

/* The first target takes the linked graph, the other one opens its own. Closes `linked`. */
static qf_status lay_out(qf_plan *plan, qf_linked *linked, qf_error *err)
{
    qf_status status = QF_OK;
    bool open = true;
    for (int t = 0; status == QF_OK && t < QF_TARGETS; t++) {
        if (!wants(plan, (qf_target)t))
            continue;
        if (!open) {
            status = open_prepared(plan, linked, err);
            open = status == QF_OK;
        }
        if (status == QF_OK)
            status = lay_out_target(plan, (qf_target)t, linked, err);
        if (open)
            qf_linked_close(linked);
        open = false;
    }
    return status;
}

static qf_status plan_layers_and_files(qf_plan *plan, const qf_config *config, const qf_io_spec *io,
                                       qf_diag_mark before, qf_error *err)
{
    qf_linked linked;
    qf_status status = open_prepared(plan, &linked, err);
    if (status != QF_OK)
        return status;
    status = plan_on_graph(plan, config, &linked.ir, err);
    if (status == QF_OK)
        status = qf_diag_status(plan->diag, before, err);
    if (status == QF_OK && !is_verbatim(plan, io))
        return lay_out(plan, &linked, err);
    qf_linked_close(&linked);
    return status == QF_OK ? lay_out_verbatim(plan, err) : status;
}

/* ---- the target folder ---- */

static bool is_that(const qf_file_id *id, const struct stat *st)
{
    return id && id->device == st->st_dev && id->inode == st->st_ino;
}

static bool is_input(const qf_plan *plan, const qf_config *config, const struct stat *st)
{
    return qf_model_is_file(plan->model, st) || is_that(qf_record_id(plan->record), st) ||
           (config && is_that(qf_config_id(config), st));
}

static qf_status list_outputs(qf_plan *plan, const qf_config *config, qf_error *err)
{
    const qf_layout *layout = &plan->layout;
    bool had_model = false;
    plan->outputs = qf_arena_array(&plan->arena, layout->file_count, sizeof *plan->outputs);
    if (!plan->outputs)
        return qf_fail_memory(err);
    for (size_t i = layout->file_count; i-- > 0;) { /* each model before its external files */
        qf_output_file *out = &plan->outputs[i];
        struct stat st;
        char *path =
            qf_arena_printf(&plan->arena, "%s%s%s", plan->folder,
                            qf_ends_with(plan->folder, "/") ? "" : "/", layout->files[i].name);
        if (!path)
            return qf_fail_memory(err);
        *out = (qf_output_file){path, layout->files[i].size, stat(path, &st) == 0};
        if (!out->exists && !qf_is_absent(errno))
            return qf_fail_errno(err, path, errno, "cannot examine the output's place");
        plan->bytes_out += out->bytes;
        bool model = qf_ends_with(path, ".onnx");
        if (model)
            had_model = out->exists;
        if (!out->exists || plan->options.ignore_target)
            continue;
        if (!S_ISREG(st.st_mode))
            qf_diag_add(plan->diag, QF_ERROR, (qf_where){.file = path},
                        "the output cannot be written: something that is not a regular file has "
                        "its name");
        else if (is_input(plan, config, &st))
            qf_diag_add(plan->diag, QF_ERROR, (qf_where){.file = path},
                        "the output is one of the inputs; choose another save path");
        else if (model)
            qf_diag_add(plan->diag, QF_WARNING, (qf_where){.file = path},
                        "the file already exists and will be overwritten");
        else if (!had_model)
            qf_diag_add(plan->diag, QF_WARNING, (qf_where){.file = path},
                        "this external file exists, but not the model it would belong to; another "
                        "model in the folder may use it (--external-layout single gives each "
                        "model a file of its own)");
    }
    return QF_OK;
}

/* Fails before anything is touched; a disk that fills up later is caught when the files are made.
 */
static qf_status check_space(const qf_plan *plan, qf_error *err)
{
    /* what an earlier run or another shard has taken already is not known here */
    bool fresh = !plan->options.resume && !plan->options.shard_count;
    uint64_t available = fresh ? qf_free_space(plan->folder) : UINT64_MAX;
    if (plan->bytes_out <= available)
        return QF_OK;
    return qf_fail_at(err, QF_ERR_SYSTEM, (qf_where){.file = plan->folder},
                      "not enough space: the output needs %llu bytes, %llu are free",
                      (unsigned long long)plan->bytes_out, (unsigned long long)available);
}

/* ---- creating ---- */

static qf_status check_sharing(const qf_export_options *o, qf_error *err)
{
    if (o->fake_quant_weights != QF_FAKE_QUANT_SHARED)
        return QF_OK;
    if (o->emit != QF_EMIT_BOTH)
        return qf_fail(err, QF_ERR_USAGE,
                       "--fake-quant-weights shared needs both models; to write one of them "
                       "(--emit), use --fake-quant-weights int8");
    if (o->external == QF_EXTERNAL_NEVER)
        return qf_fail(err, QF_ERR_USAGE,
                       "--fake-quant-weights shared needs .external files; with --external never, "
                       "use --fake-quant-weights int8");
    return QF_OK;
}

/* Takes over what the caller's struct has; what it is too short for keeps its default. */
static qf_status read_options(const qf_export_options *given, qf_export_options *o, qf_error *err)
{
    const size_t least = offsetof(qf_export_options, ignore_target);
    if (!given || given->struct_size < least)
        return qf_fail(err, QF_ERR_USAGE,
                       "export options must be initialised with qf_export_options_init");
    qf_export_options_init(o);
    memcpy(o, given, given->struct_size < sizeof *o ? given->struct_size : sizeof *o);
    if (!o->save_path)
        return qf_fail(err, QF_ERR_USAGE, "save_path is not set");
    if ((unsigned)o->emit > QF_EMIT_RUNNABLE || (unsigned)o->external > QF_EXTERNAL_NEVER ||
        (unsigned)o->external_layout > QF_LAYOUT_SINGLE || (unsigned)o->io > QF_IO_DIRECT ||
        (unsigned)o->fake_quant_weights > QF_FAKE_QUANT_SHARED ||
        (unsigned)o->source > QF_SOURCE_QDQ || (unsigned)o->on_unsupported > QF_UNSUPPORTED_FLOAT ||
        (unsigned)o->free_qdq > QF_FREE_QDQ_DROP || o->threads < 0 || o->threads > 1024)
        return qf_fail(err, QF_ERR_USAGE, "an export option is outside its range");
    return check_sharing(o, err);
}

/* Weights can be quantized without any record. */
static qf_status empty_record(qf_plan *plan, qf_error *err)
{
    AMCTPytorchProto__ScaleOffsetRecord *none = qf_arena_alloc(&plan->arena, sizeof *none);
    if (!none)
        return qf_fail_memory(err);
    amctpytorch_proto__scale_offset_record__init(none);
    qf_status status = qf_record_wrap("(no record)", none, &plan->own_record, err);
    plan->record = plan->own_record;
    return status;
}

/* A deploy model is made runnable as it is: its layers are quantized already. */
static qf_status check_deploy(qf_plan *plan, qf_error *err)
{
    qf_status status =
        plan->options.emit == QF_EMIT_RUNNABLE ? qf_plan_find_deploy(plan, err) : QF_OK;
    if (status != QF_OK || !plan->from_deploy)
        return status;
    if (plan->record || plan->scheme.on)
        return qf_fail_at(err, QF_ERR_USAGE, (qf_where){.file = plan->model->files[0].path},
                          "this is a deploy model, which is quantized already; make it runnable "
                          "without --record and --weight-only");
    if (plan->options.stats)
        return qf_fail_at(err, QF_ERR_USAGE, (qf_where){.file = plan->model->files[0].path},
                          "statistics are taken while weights are quantized, and those of a deploy "
                          "model are; do without --stats");
    plan->options.source = QF_SOURCE_FLOAT; /* a Q or DQ that is left in it stays */
    return empty_record(plan, err);
}

/* Without a record, the model's own. */
static qf_status own_record(qf_plan *plan, qf_error *err)
{
    qf_status checked = check_deploy(plan, err);
    if (checked != QF_OK || plan->from_deploy)
        return checked;
    if (plan->record)
        return QF_OK;
    if (plan->scheme.from_record)
        return qf_fail(err, QF_ERR_USAGE, "--weight-only record needs a record");
    bool quantized = plan->options.source != QF_SOURCE_FLOAT;
    qf_status searched = plan->scheme.on && plan->options.source == QF_SOURCE_AUTO
                             ? qf_model_has_node(plan->model, qf_is_quantize, &quantized, err)
                             : QF_OK;
    if (searched != QF_OK)
        return searched;
    if (plan->scheme.on && !quantized)
        return empty_record(plan, err);
    if (plan->options.source == QF_SOURCE_FLOAT)
        return qf_fail(err, QF_ERR_USAGE,
                       "a record is needed, unless it is to be taken from the "
                       "model's QuantizeLinear nodes");
    qf_status status = qf_record_from_qdq(plan->model, plan->options.on_unsupported, plan->diag,
                                          &plan->own_record, err);
    plan->record = plan->own_record;
    return status;
}

static qf_status build(qf_plan *plan, const qf_config *config, const qf_io_spec *io, qf_error *err)
{
    qf_diag_mark before = qf_diag_now(plan->diag);
    qf_status status = qf_scheme_read(&plan->options, &plan->scheme, err);
    if (status == QF_OK)
        status = own_record(plan, err);
    if (status != QF_OK)
        return status;
    qf_record_report(plan->record, plan->diag);
    status = qf_save_path_split(plan->options.save_path, &plan->folder, &plan->prefix, err);
    if (status == QF_OK)
        status = qf_plan_prepare(plan, io, err);
    if (status == QF_OK)
        status = plan_layers_and_files(plan, config, io, before, err);
    if (status == QF_OK)
        status = list_outputs(plan, config, err);
    if (status == QF_OK)
        status = qf_diag_status(plan->diag, before, err);
    if (status == QF_OK && !plan->options.ignore_target)
        status = check_space(plan, err);
    return status;
}

qf_status qf_plan_start(qf_model *model, const qf_record *record, const qf_export_options *options,
                        qf_diagnostics *diagnostics, qf_plan **out, qf_error *err)
{
    qf_plan *plan = calloc(1, sizeof *plan);
    if (!plan)
        return qf_fail_memory(err);
    qf_arena_init(&plan->arena);
    plan->model = model;
    plan->record = record;
    plan->diag = diagnostics;
    plan->options = *options;
    plan->layout.arena = &plan->arena;
    if (!qf_payloads_copy(&plan->payloads, &model->payloads)) {
        qf_plan_free(plan);
        return qf_fail_memory(err);
    }
    *out = plan;
    return QF_OK;
}

qf_status qf_plan_check_sources(qf_plan *plan, qf_status status, qf_error *err)
{
    qf_error found;
    const qf_model *m = plan->model;
    if ((status != QF_OK && status != QF_ERR_INPUT) ||
        qf_files_check(m->files, m->file_count, QF_OK, &found) == QF_OK)
        return status;
    qf_diagnostics_add_error(plan->diag, &found);
    if (err)
        *err = found;
    return found.code;
}

qf_status qf_plan_create(qf_model *model, const qf_config *config, const qf_record *record,
                         const qf_io_spec *io, const qf_export_options *options,
                         qf_diagnostics *diagnostics, qf_plan **out, qf_error *err)
{
    if (!model || !out)
        return qf_fail(err, QF_ERR_USAGE, "qf_plan_create: model and out must not be NULL");
    qf_export_options read;
    qf_status status = read_options(options, &read, err);
    if (status == QF_OK && qf_kernels_refused())
        status = qf_fail(err, QF_ERR_USAGE,
                         "QUANTFOLD_ISA=%s names no instruction set that this machine runs",
                         qf_kernels_refused());
    if (status != QF_OK)
        return status;
    qf_plan *plan = NULL;
    qf_diagnostics *own = diagnostics ? NULL : qf_diagnostics_create();
    status = diagnostics || own
                 ? qf_plan_start(model, record, &read, diagnostics ? diagnostics : own, &plan, err)
                 : qf_fail_memory(err);
    if (status != QF_OK) {
        qf_diagnostics_free(own);
        return status;
    }
    fenv_t host; /* which may flush subnormals or round otherwise */
    fegetenv(&host);
    fesetenv(FE_DFL_ENV);
    if (config) {
        plan->config_path = qf_arena_strdup(&plan->arena, qf_config_path(config));
        plan->config_id = *qf_config_id(config);
    }
    status = config && !plan->config_path ? qf_fail_memory(err) : build(plan, config, io, err);
    if (plan->scheme.include.exhausted || plan->scheme.exclude.exhausted)
        status = qf_fail_memory(err);
    fesetenv(&host);
    status = qf_plan_check_sources(plan, status, err);
    plan->diag = NULL;
    plan->options.save_path = plan->options.weight_only = NULL; /* the caller's */
    plan->options.include = plan->options.exclude = NULL;
    qf_diagnostics_free(own);
    if (status != QF_OK) {
        qf_plan_free(plan);
        return status;
    }
    *out = plan;
    return QF_OK;
}

void qf_plan_free(qf_plan *plan)
{
    if (!plan)
        return;
    qf_layout_release(&plan->layout);
    qf_payloads_release(&plan->payloads);
    qf_strmap_release(&plan->node_flags);
    qf_strmap_release(&plan->record_of_node);
    qf_strmap_release(&plan->weight_of_payload);
    qf_strmap_release(&plan->matrix_record_of_node);
    qf_strmap_release(&plan->matrix_of_payload);
    qf_strmap_release(&plan->matrix_of_bytes);
    qf_scheme_release(&plan->scheme);
    qf_spill_free(plan->matrices);
    qf_spill_free(plan->float_layers);
    qf_strmap_release(&plan->folded);
    qf_spill_free(plan->jobs);
    qf_spill_free(plan->skipped);
    qf_spill_free(plan->skeleton);
    free(plan->folder);
    free(plan->prefix);
    qf_record_close(plan->own_record);
    qf_arena_release(&plan->arena);
    free(plan);
}

/* ---- looking at a plan ---- */

size_t qf_plan_layer_count(const qf_plan *plan)
{
    return plan->layer_count + plan->float_layer_count;
}

static qf_layer_info describe_float_layer(const qf_plan *plan, const qf_float_layer *l)
{
    const qf_matrix *m = &plan->matrices[l->matrix];
    return (qf_layer_info){.name = l->name,
                           .key = l->key,
                           .op_type = qf_op_name(l->op),
                           .weight = m->job->tensor,
                           .weight_bits = m->job->bits,
                           .channels = m->scale_count,
                           .group = m->group};
}

qf_layer_info qf_plan_layer(const qf_plan *plan, size_t index)
{
    if (index >= plan->layer_count)
        return describe_float_layer(plan, &plan->float_layers[index - plan->layer_count]);
    const qf_layer *l = &plan->layers[index];
    return (qf_layer_info){.name = l->name,
                           .key = l->key,
                           .op_type = qf_op_name(l->op),
                           .weight = l->weight_count ? l->weights[0].job->tensor : "",
                           .activation_bits = l->act_bits,
                           .weight_bits = l->weight_count ? l->wts_bits : 0,
                           .channels = l->weight_count ? l->weights[0].scale_count : 1,
                           .scale_d = l->scale_d,
                           .offset_d = l->offset_d,
                           .has_bias = l->has_bias,
                           .batch_norm_folded = l->folded};
}

size_t qf_plan_skipped_count(const qf_plan *plan)
{
    return plan->skipped_count;
}

qf_skipped_layer qf_plan_skipped(const qf_plan *plan, size_t index)
{
    return plan->skipped[index];
}

size_t qf_plan_output_count(const qf_plan *plan)
{
    return plan->layout.file_count;
}

uint64_t qf_plan_bytes_saved(const qf_plan *plan)
{
    return plan->layout.saved;
}

qf_output_file qf_plan_output(const qf_plan *plan, size_t index)
{
    return plan->outputs[index];
}
