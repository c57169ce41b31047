/* SPDX-License-Identifier: Apache-2.0 */
#include "checkpoint/plan.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/half.h"
#include "base/spill.h"
#include "exec/source.h"
#include "exec/stage.h"

void qf_checkpoint_options_init_sized(qf_checkpoint_options *options, size_t size)
{
    qf_checkpoint_options defaults = {.struct_size = size};
    if (size > sizeof defaults)
        memset((char *)options + sizeof defaults, 0, size - sizeof defaults);
    memcpy(options, &defaults, size < sizeof defaults ? size : sizeof defaults);
}

/* ---- tensors of the output ---- */

static qf_status add_tensor(qf_checkpoint_plan *p, qf_out_tensor tensor, qf_error *err)
{
    if (!qf_table_grow((void **)&p->tensors, &p->tensor_cap, p->tensor_count + 1, sizeof tensor))
        return qf_fail_memory(err);
    tensor.order = p->tensor_count;
    p->tensors[p->tensor_count++] = tensor;
    return QF_OK;
}

static qf_status add_info(qf_checkpoint_plan *p, qf_checkpoint_tensor info, qf_error *err)
{
    if (!qf_table_grow((void **)&p->infos, &p->info_cap, p->info_count + 1, sizeof info))
        return qf_fail_memory(err);
    p->infos[p->info_count++] = info;
    return QF_OK;
}

static qf_status copy_tensor(qf_checkpoint_plan *p, const qf_safetensor *t, qf_error *err)
{
    unsigned bits = qf_safetensor_bits(t->dtype);
    return add_tensor(p,
                      (qf_out_tensor){.name = t->name,
                                      .dtype = t->dtype,
                                      .copied = t,
                                      .length = t->length,
                                      .bits = bits ? bits : 8},
                      err);
}

/* ---- 8-bit floats ---- */

static bool is_f8(const qf_safetensor *t)
{
    return t->data_type == QF_DTYPE_F8_E4M3FN || t->data_type == QF_DTYPE_F8_E5M2;
}

static bool is_plain_float(const qf_safetensor *t)
{
    return t->data_type == ONNX__TENSOR_PROTO__DATA_TYPE__FLOAT ||
           t->data_type == ONNX__TENSOR_PROTO__DATA_TYPE__FLOAT16 ||
           t->data_type == ONNX__TENSOR_PROTO__DATA_TYPE__BFLOAT16;
}

/* The tensor with the scales of an 8-bit float weight, by either of its names. */
static const qf_safetensor *f8_scales(const qf_checkpoint_plan *p, const char *weight)
{
    static const char *const ends[] = {"_scale_inv", "_scale"};
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++) {
        char name[4096];
        int n = snprintf(name, sizeof name, "%s%s", weight, ends[i]);
        const qf_safetensor *t =
            n > 0 && (size_t)n < sizeof name ? qf_strmap_get(&p->checkpoint->by_name, name) : NULL;
        if (t)
            return t;
    }
    return NULL;
}

/* Whether a tensor is the scales of an 8-bit float weight, which go with it: also that of static
 * activations, for what stands in its place is not multiplied in 8-bit floats. */
static bool is_f8_scale(const qf_checkpoint_plan *p, const qf_safetensor *t)
{
    static const char *const ends[] = {".weight_scale", ".weight_scale_inv", ".input_scale"};
    char name[4096];
    const char *dot = strrchr(t->name, '.');
    bool known = false;
    for (size_t i = 0; dot && i < sizeof ends / sizeof *ends; i++)
        known |= strcmp(dot, ends[i]) == 0;
    if (!known)
        return false;
    int n = snprintf(name, sizeof name, "%.*s.weight", (int)(dot - t->name), t->name);
    const qf_safetensor *w =
        n > 0 && (size_t)n < sizeof name ? qf_strmap_get(&p->checkpoint->by_name, name) : NULL;
    return w && is_f8(w);
}

static qf_status make_prescale(qf_checkpoint_plan *p, const qf_safetensor *t, qf_job *job,
                               qf_error *err)
{
    const qf_safetensor *s = f8_scales(p, t->name);
    uint64_t count = 0, block_rows, block_cols;
    int32_t type;
    if (!s || !is_plain_float(s) || !qf_dims_count(s->dims, s->rank, &count) || !count)
        return qf_fail_at(err, QF_ERR_INPUT, (qf_where){.file = job->file, .item = t->name},
                          "the weight is of 8-bit floats, and there are no float scales "
                          "'%s_scale_inv' or '%s_scale' for it",
                          t->name, t->name);
    qf_status status =
        qf_checkpoint_source_blocks(p->checkpoint, &block_rows, &block_cols, &type, err);
    if (status != QF_OK)
        return status;
    qf_prescale *pre = qf_arena_alloc(&p->arena, sizeof *pre);
    float *values = qf_arena_array(&p->arena, (size_t)count, sizeof *values);
    if (!pre || !values)
        return qf_fail_memory(err);
    const qf_span span = qf_safetensor_span(s, p->checkpoint->files);
    const qf_varint_index none = {0};
    qf_source_floats(&span, &none, s->data_type, 0, (size_t)count, values);
    *pre = (qf_prescale){.scales = values, .rows = job->rows, .cols = job->cols, .across = 1};
    if (count == job->rows && count > 1)
        pre->rows = 1;
    uint64_t down = 0, across = 0;
    if (block_rows && block_cols && s->rank == 2) {
        down = (job->rows + block_rows - 1) / block_rows;
        across = (job->cols + block_cols - 1) / block_cols;
    }
    bool blocks = down && (uint64_t)s->dims[0] == down && (uint64_t)s->dims[1] == across;
    if (blocks)
        *pre = (qf_prescale){values, block_rows, block_cols, across};
    if (!blocks && count != 1 && count != job->rows)
        return qf_fail_at(err, QF_ERR_INPUT, (qf_where){.file = job->file, .item = s->name},
                          "there are %llu scales, which are neither one, nor one a row, nor one "
                          "for each block that config.json's weight_block_size makes",
                          (unsigned long long)count);
    job->prescale = pre;
    return QF_OK;
}

/* ---- quantized weights ---- */

static int32_t scale_type_of(const qf_checkpoint_plan *p, const qf_safetensor *t)
{
    if (is_f8(t))
        return p->fp8_scale_type;
    return t->data_type == ONNX__TENSOR_PROTO__DATA_TYPE__DOUBLE
               ? ONNX__TENSOR_PROTO__DATA_TYPE__FLOAT
               : t->data_type;
}

static qf_job *new_job(qf_checkpoint_plan *p, const qf_safetensor *t)
{
    qf_job *job = qf_arena_alloc(&p->arena, sizeof *job);
    if (!job || !qf_table_grow((void **)&p->jobs, &p->job_cap, p->job_count + 1, sizeof *p->jobs))
        return NULL;
    int stem = (int)(strlen(t->name) - strlen(".weight"));
    *job = (qf_job){.file = p->checkpoint->files[t->file].path,
                    .layer = qf_arena_printf(&p->arena, "%.*s", stem, t->name),
                    .source = qf_safetensor_span(t, p->checkpoint->files),
                    .data_type = t->data_type,
                    .rows = (uint64_t)t->dims[0],
                    .cols = (uint64_t)t->dims[1],
                    .bits = p->scheme.weight_bits};
    if (!job->layer)
        return NULL;
    p->jobs[p->job_count++] = job;
    return job;
}

/* Scales that the job finds, or that were given. */
static qf_status set_scales(qf_checkpoint_plan *p, const qf_safetensor *t, qf_job *job,
                            const unsigned char **bytes, qf_error *err)
{
    uint64_t group = p->scheme.group ? p->scheme.group : job->cols;
    uint64_t across = job->cols / group, count = job->rows * across;
    int32_t type = scale_type_of(p, t);
    *bytes = NULL;
    if (!p->has_scales) {
        qf_found *found = qf_arena_alloc(&p->arena, sizeof *found);
        if (!found)
            return qf_fail_memory(err);
        *found = (qf_found){
            .steps = (float)(1 << (job->bits - 1)) - 0.5f, .scale_type = type, .group = group};
        job->found = found;
        return QF_OK;
    }
    const float *scales;
    qf_status status = qf_scales_find(&p->scales, &p->arena, t->name, count, type, &scales, err);
    unsigned char *stored =
        status == QF_OK ? qf_arena_alloc(&p->arena, (size_t)qf_raw_bytes(type, count)) : NULL;
    if (status == QF_OK && !stored)
        status = qf_fail_memory(err);
    if (status != QF_OK)
        return status;
    qf_scales_write(scales, count, type, stored);
    *bytes = stored;
    job->scales = scales;
    job->scale_count = (size_t)count;
    job->row_div = job->row_mod = 1;
    job->row_mul = across;
    job->col_div = group;
    job->grouping = QF_GROUPED_ROWS;
    return QF_OK;
}

/* The weight as the convention has it: `weight`, or words in `weight_packed` with the shape that
 * they had. */
static qf_status add_integers(qf_checkpoint_plan *p, qf_job *job, qf_error *err)
{
    bool packed = p->scheme.activation_bits == 16;
    qf_arena *a = &p->arena;
    job->tensor = qf_arena_printf(a, packed ? "%s.weight_packed" : "%s.weight", job->layer);
    job->out[0].format = packed ? QF_FORMAT_WORDS : QF_FORMAT_INT8;
    int64_t words = (int64_t)((job->cols * (unsigned)job->bits + 31) / 32);
    qf_out_tensor t = {.name = job->tensor,
                       .dtype = packed ? "I32" : "I8",
                       .dims = {(int64_t)job->rows, packed ? words : (int64_t)job->cols},
                       .job = job,
                       .length = qf_job_bytes(job, job->out[0].format),
                       .bits = packed ? 32 : 8};
    qf_status status = job->tensor ? add_tensor(p, t, err) : qf_fail_memory(err);
    if (status != QF_OK || !packed)
        return status;
    int64_t *shape = qf_arena_array(a, 2, sizeof *shape);
    qf_out_tensor s = {.name = qf_arena_printf(a, "%s.weight_shape", job->layer),
                       .dtype = "I64",
                       .dims = {2, -1},
                       .bytes = (const unsigned char *)shape,
                       .length = 2 * sizeof *shape,
                       .bits = 64};
    if (!shape || !s.name)
        return qf_fail_memory(err);
    shape[0] = (int64_t)job->rows;
    shape[1] = (int64_t)job->cols;
    return add_tensor(p, s, err);
}

static qf_status quantize_tensor(qf_checkpoint_plan *p, const qf_safetensor *t, qf_error *err)
{
    const unsigned char *given;
    qf_job *job = new_job(p, t);
    qf_status status = job ? QF_OK : qf_fail_memory(err);
    if (status == QF_OK && is_f8(t))
        status = make_prescale(p, t, job, err);
    if (status == QF_OK)
        status = set_scales(p, t, job, &given, err);
    if (status == QF_OK)
        status = add_integers(p, job, err);
    if (status != QF_OK)
        return status;
    int32_t type = scale_type_of(p, t);
    uint64_t across = p->scheme.group ? job->cols / p->scheme.group : 1;
    job->scale_tensor = qf_arena_printf(&p->arena, "%s.weight_scale", job->layer);
    if (!job->scale_tensor)
        return qf_fail_memory(err);
    return add_tensor(p,
                      (qf_out_tensor){.name = job->scale_tensor,
                                      .dtype = qf_safetensor_dtype(type),
                                      .dims = {(int64_t)job->rows, (int64_t)across},
                                      .job = given ? NULL : job,
                                      .scales = !given,
                                      .bytes = given,
                                      .length = qf_raw_bytes(type, job->rows * across),
                                      .bits = qf_dtype_bits(type)},
                      err);
}

static qf_status take_tensor(qf_checkpoint_plan *p, const qf_safetensor *t, qf_error *err)
{
    if (is_f8_scale(p, t))
        return QF_OK;
    const char *reason = qf_selection_judge(&p->selection, t);
    bool chosen = reason && !*reason;
    qf_checkpoint_tensor info = {.name = t->name, .dtype = t->dtype, .reason = reason};
    if (reason) {
        info.rows = (uint64_t)t->dims[0];
        info.cols = (uint64_t)t->dims[1];
    }
    info.bits = chosen ? p->scheme.weight_bits : 0;
    info.group = chosen ? p->scheme.group : 0;
    qf_status status = add_info(p, info, err);
    if (chosen && !qf_is_grouped(p, &info)) /* qf_refuse_groups says it of all of them at once */
        return status;
    if (status == QF_OK && !chosen && is_f8(t))
        status = qf_fail_at(err, QF_ERR_INPUT,
                            (qf_where){.file = p->checkpoint->files[t->file].path, .item = t->name},
                            "the tensor is of 8-bit floats and is not quantized (%s); the "
                            "convention has no form for both in one checkpoint: choose it with "
                            "--include, or give a checkpoint that has it in 16 bits",
                            reason ? reason : "it is no weight matrix");
    if (status == QF_OK)
        status = chosen ? quantize_tensor(p, t, err) : copy_tensor(p, t, err);
    return status;
}

static qf_status take_tensors(qf_checkpoint_plan *p, qf_error *err)
{
    qf_status status = QF_OK;
    for (size_t i = 0; status == QF_OK && i < p->checkpoint->tensors.count; i++)
        status = take_tensor(p, &p->checkpoint->tensors.items[i], err);
    if (status == QF_OK)
        status = qf_refuse_groups(p, err);
    if (status == QF_OK && !p->job_count)
        status = qf_refuse_unchosen(p, err);
    return status;
}

/* Every name once: a name that quantizing makes may be there already. */
static qf_status check_names(const qf_checkpoint_plan *p, qf_error *err)
{
    qf_strmap seen = {0};
    qf_status status = QF_OK;
    for (size_t i = 0; status == QF_OK && i < p->tensor_count; i++) {
        void *held = qf_strmap_add(&seen, p->tensors[i].name, &p->tensors[i]);
        if (!held)
            status = qf_fail_memory(err);
        else if (held != &p->tensors[i])
            status = qf_fail_at(err, QF_ERR_INPUT,
                                (qf_where){.file = p->checkpoint->path, .item = p->tensors[i].name},
                                "the checkpoint has a tensor of this name already: it seems to be "
                                "quantized");
    }
    qf_strmap_release(&seen);
    return status;
}

/* ---- the target ---- */

static bool is_output(const qf_checkpoint_plan *p, const char *name)
{
    for (size_t i = 0; i < p->layout.file_count; i++) {
        if (strcmp(p->layout.files[i].name, name) == 0)
            return true;
    }
    return false;
}

static qf_status check_target(qf_checkpoint_plan *p, qf_error *err)
{
    struct stat source, target;
    uint64_t bytes = 0;
    bool there = stat(p->folder, &target) == 0;
    if (!there && !qf_is_absent(errno))
        return qf_fail_errno(err, p->folder, errno, "cannot examine the target folder");
    if (there && !S_ISDIR(target.st_mode))
        return qf_fail_at(err, QF_ERR_INPUT, (qf_where){.file = p->folder},
                          "the target is a file; choose a folder");
    if (stat(p->checkpoint->path, &source) != 0)
        return qf_fail_errno(err, p->checkpoint->path, errno, "cannot examine the model's folder");
    if (there && source.st_dev == target.st_dev && source.st_ino == target.st_ino)
        return qf_fail_at(err, QF_ERR_INPUT, (qf_where){.file = p->folder},
                          "the target is the checkpoint's own folder; choose another");
    const char *stale;
    qf_status status =
        qf_find_entry(p->folder, ".safetensors", is_output, p, &p->arena, &stale, err);
    if (status == QF_OK && !stale)
        status = qf_find_entry(p->folder, ".safetensors.index.json", is_output, p, &p->arena,
                               &stale, err);
    if (status != QF_OK)
        return status;
    if (stale)
        return qf_fail_at(err, QF_ERR_INPUT, (qf_where){.file = p->folder, .item = stale},
                          "the target folder has weights, or an index of weights, that this run "
                          "would not replace and loaders may read; choose an empty folder");
    for (size_t i = 0; i < p->layout.file_count; i++)
        bytes += p->layout.files[i].size;
    bool fresh = !p->options.resume && !p->options.shard_count;
    uint64_t available = fresh ? qf_free_space(p->folder) : UINT64_MAX;
    if (bytes > available && qf_is_read_only(p->folder)) /* such a mount has nothing free either */
        return qf_fail_errno(err, p->folder, EROFS, "cannot write into the target folder");
    if (bytes > available)
        return qf_fail_at(err, QF_ERR_SYSTEM, (qf_where){.file = p->folder},
                          "not enough space: the output needs %llu bytes, %llu are free",
                          (unsigned long long)bytes, (unsigned long long)available);
    return QF_OK;
}

/* ---- the whole ---- */

static qf_status copy_options(qf_checkpoint_plan *p, const qf_checkpoint_options *o, qf_error *err)
{
    qf_checkpoint_options_init(&p->options);
    memcpy(&p->options, o, o->struct_size < sizeof *o ? o->struct_size : sizeof *o);
    if (!p->options.out || !*p->options.out || !p->options.scheme)
        return qf_fail(err, QF_ERR_USAGE, "out and scheme must be given");
    p->folder = qf_arena_strdup(&p->arena, p->options.out);
    char *scheme = qf_arena_strdup(&p->arena, p->options.scheme);
    if (!p->folder || !scheme)
        return qf_fail_memory(err);
    for (char *c = scheme; *c; c++) /* W8A16 is the same request, with the same manifest */
        *c = (char)tolower((unsigned char)*c);
    p->options.scheme = scheme;
    for (size_t n = strlen(p->folder); n > 1 && p->folder[n - 1] == '/'; n--)
        p->folder[n - 1] = '\0';
    return QF_OK;
}

/* Words of 32 bits begin with a group. */
static qf_status read_scheme(qf_checkpoint_plan *p, qf_error *err)
{
    if (qf_form_read(p->options.scheme, &p->scheme) && p->scheme.group % 8 == 0 &&
        (!p->scheme.group || p->scheme.activation_bits == 16))
        return QF_OK;
    return qf_fail(err, QF_ERR_USAGE,
                   "there is no scheme '%.60s'; schemes are w8a8, w8a16 and w4a16, the last two "
                   "also with a group of a multiple of 8 behind them, as in w4a16:group=128",
                   p->options.scheme);
}

static qf_status make_plan(qf_checkpoint_plan *p, qf_error *err)
{
    const qf_checkpoint_options *o = &p->options;
    uint64_t rows, cols;
    qf_status status = read_scheme(p, err);
    if (status == QF_OK)
        status = qf_checkpoint_source_blocks(p->checkpoint, &rows, &cols, &p->fp8_scale_type, err);
    if (status == QF_OK)
        status = qf_selection_open(o->include, o->exclude, p->checkpoint->config,
                                   p->checkpoint->config_length, &p->selection, err);
    p->has_scales = o->scales && strcmp(o->scales, "minmax") != 0;
    if (status == QF_OK && p->has_scales)
        status = qf_scales_open(o->scales, &p->arena, &p->scales, err);
    if (status == QF_OK)
        status = take_tensors(p, err);
    if (status == QF_OK)
        status = check_names(p, err);
    if (status == QF_OK)
        status = qf_checkpoint_layout(p, err);
    if (status == QF_OK && !o->ignore_target)
        status = check_target(p, err);
    if (status == QF_OK)
        status = qf_checkpoint_list_outputs(p, err);
    return status;
}

qf_status qf_checkpoint_plan_create(qf_checkpoint *checkpoint, const qf_checkpoint_options *options,
                                    qf_checkpoint_plan **out, qf_error *err)
{
    if (!checkpoint || !options || !out)
        return qf_fail(err, QF_ERR_USAGE, "checkpoint, options and out must not be NULL");
    qf_checkpoint_plan *p = calloc(1, sizeof *p);
    if (!p)
        return qf_fail_memory(err);
    qf_arena_init(&p->arena);
    p->checkpoint = checkpoint;
    qf_status status = copy_options(p, options, err);
    if (status == QF_OK)
        status = make_plan(p, err);
    if (p->selection.include.exhausted || p->selection.exclude.exhausted)
        status = qf_fail_memory(err);
    status = qf_files_check(checkpoint->files, checkpoint->file_count, status, err);
    status = qf_files_check(&p->scales.file, 1, status, err);
    if (status == QF_OK)
        *out = p;
    else
        qf_checkpoint_plan_free(p);
    return status;
}

void qf_checkpoint_plan_free(qf_checkpoint_plan *p)
{
    if (!p)
        return;
    qf_selection_close(&p->selection);
    qf_scales_close(&p->scales);
    qf_spill_free(p->tensors);
    qf_spill_free(p->jobs);
    qf_spill_free(p->infos);
    qf_layout_release(&p->layout);
    qf_arena_release(&p->arena);
    free(p);
}

size_t qf_checkpoint_plan_tensor_count(const qf_checkpoint_plan *plan)
{
    return plan->info_count;
}

qf_checkpoint_tensor qf_checkpoint_plan_tensor(const qf_checkpoint_plan *plan, size_t index)
{
    return plan->infos[index];
}

size_t qf_checkpoint_plan_output_count(const qf_checkpoint_plan *plan)
{
    return plan->layout.file_count;
}

qf_output_file qf_checkpoint_plan_output(const qf_checkpoint_plan *plan, size_t index)
{
    return plan->outputs[index];
}

size_t qf_checkpoint_plan_passed_count(const qf_checkpoint_plan *plan)
{
    return plan->checkpoint->passed_count;
}

const char *qf_checkpoint_plan_passed(const qf_checkpoint_plan *plan, size_t index)
{
    return plan->checkpoint->passed[index];
}
