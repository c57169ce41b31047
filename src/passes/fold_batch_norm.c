/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Conv + BatchNormalization -> Conv, in float32 as the reference's torch code computes it (facts
 * 3.4): r = 1 / sqrt(var + eps), W' = W * (gamma * r), b' = (b - mean) * r * gamma + beta. W is not
 * computed here: its payload becomes a job that multiplies by gamma * r as it streams.
 */
#include <math.h>
#include <string.h>

#include "base/spill.h"
#include "passes/passes.h"
#include "quant/constants.h"

typedef struct fold {
    qf_node *conv, *bn;
    Onnx__TensorProto *weight;
    size_t channels;
    const float *gamma, *beta, *mean, *var, *bias;
    bool quantized; /* the conv has a record */
} fold;

static const AMCTPytorchProto__SingleLayerRecord *record_of(const qf_plan *plan, const char *node)
{
    const AMCTPytorchProto__ScaleOffsetRecord *message = qf_record_message(plan->record);
    const size_t *index = qf_strmap_get(&plan->record_of_node, node);
    return index ? message->record[*index]->value : NULL;
}

/* Reads a per-channel parameter; NULL in *out, with status QF_OK, if it is not one. */
static qf_status read_parameter(qf_plan *plan, qf_value *value, size_t channels, const float **out,
                                qf_error *err)
{
    const char *why;
    uint64_t count = 0;
    const Onnx__TensorProto *tensor = value ? qf_value_constant(value) : NULL;
    *out = NULL;
    if (!tensor)
        return QF_OK;
    qf_status status = qf_plan_read_floats(plan, tensor, out, NULL, &count, &why, err);
    if (count != channels)
        *out = NULL;
    return status;
}

/* Whether the pair can be folded at all: one conv, read by the batch norm alone. */
static bool matches(const qf_plan *plan, qf_node *bn, fold *f)
{
    if (!qf_node_is(bn, "BatchNormalization") || bn->input_count != 5 || !bn->inputs[0] ||
        qf_node_int(bn, "training_mode", 0) != 0 || !qf_node_output(bn))
        return false;
    for (size_t i = 1; i < bn->output_count; i++) {
        if (bn->outputs[i] && (bn->outputs[i]->use_count || bn->outputs[i]->result_count))
            return false;
    }
    qf_node *conv = bn->inputs[0]->producer;
    if (!conv || !qf_node_is(conv, "Conv") || conv->graph != bn->graph ||
        qf_node_output(conv) != bn->inputs[0] || qf_value_only_user(bn->inputs[0]) != bn ||
        conv->input_count < 2 || !conv->inputs[1] ||
        (qf_plan_flags(plan, conv->name) & (QF_NODE_PADDED | QF_NODE_REUSED)))
        return false;
    const AMCTPytorchProto__SingleLayerRecord *record = record_of(plan, conv->name);
    if (record && record->has_skip_fusion && record->skip_fusion)
        return false;
    f->conv = conv;
    f->bn = bn;
    f->quantized = record != NULL;
    f->weight = qf_value_constant(conv->inputs[1]);
    if (!f->weight || f->weight->n_dims < 3 || f->weight->dims[0] <= 0)
        return false;
    f->channels = (size_t)f->weight->dims[0];
    /* a float conv keeps its dtype, so only float32 can be folded there */
    return f->weight->data_type == ONNX__TENSOR_PROTO__DATA_TYPE__FLOAT ||
           (f->quantized && qf_dtype_is_float(f->weight->data_type));
}

static qf_status read_parameters(qf_plan *plan, fold *f, bool *usable, qf_error *err)
{
    const float **slots[] = {&f->gamma, &f->beta, &f->mean, &f->var};
    qf_status status = QF_OK;
    *usable = true;
    for (size_t i = 0; status == QF_OK && i < 4; i++) {
        status = read_parameter(plan, f->bn->inputs[i + 1], f->channels, slots[i], err);
        *usable &= *slots[i] != NULL;
    }
    bool has_bias = f->conv->input_count > 2 && f->conv->inputs[2];
    if (status == QF_OK && has_bias) {
        status = read_parameter(plan, f->conv->inputs[2], f->channels, &f->bias, err);
        *usable &= f->bias != NULL;
    }
    return status;
}

/* Per-channel factors for the weight, and the new bias; false if they are of no use. */
static bool compute(const fold *f, float *factor, float *bias)
{
    float eps = qf_node_float(f->bn, "epsilon", 1e-5f);
    bool finite = true;
    for (size_t c = 0; c < f->channels; c++) {
        float r = 1.0f / sqrtf(f->var[c] + eps);
        factor[c] = f->gamma[c] * r;
        float centred = (f->bias ? f->bias[c] : 0.0f) - f->mean[c];
        float scaled = centred * r;
        scaled = scaled * f->gamma[c];
        bias[c] = scaled + f->beta[c];
        /* beyond 2^64 a factor takes ordinary weights out of float32 */
        finite &= fabsf(factor[c]) < 0x1p64f && isfinite(bias[c]);
    }
    return finite;
}

/* Whether nothing but the conv reads the weight. */
static bool owns_weight(const fold *f)
{
    const qf_value *value = f->conv->inputs[1], *source = qf_value_source(f->conv->inputs[1]);
    return value->use_count == 1 && !value->result_count && source->use_count == 1 &&
           !source->result_count;
}

/* <x>.weight -> <x>.bias as the exporter would name it, else <layer>.bias. */
static const char *bias_name(qf_ir *ir, const fold *f)
{
    const char *weight = qf_value_source(f->conv->inputs[1])->name;
    size_t n = strlen(weight);
    if (n > 7 && qf_ends_with(weight, ".weight"))
        return qf_arena_printf(ir->arena, "%.*s.bias", (int)(n - 7), weight);
    return qf_arena_printf(ir->arena, "%s.bias", f->conv->name);
}

static bool set_weight(qf_plan *plan, qf_ir *ir, const fold *f, const float *factor)
{
    size_t index = qf_tensor_payload(f->weight);
    const qf_payload source = plan->payloads.items[index];
    uint64_t count;
    qf_job *job = qf_arena_alloc(&plan->arena, sizeof *job);
    if (!job || !qf_dims_count(f->weight->dims, f->weight->n_dims, &count))
        return false;
    *job = (qf_job){.file = plan->model->files[0].path,
                    .layer = qf_arena_strdup(&plan->arena, f->conv->name),
                    .tensor = qf_arena_strdup(&plan->arena, f->weight->name ? f->weight->name : ""),
                    .source = source.span,
                    .data_type = f->weight->data_type,
                    .rows = f->channels,
                    .cols = count / f->channels,
                    .fold = factor,
                    .fold_div = 1};
    for (int t = 0; t < QF_TARGETS; t++)
        job->out[t].format = QF_FORMAT_FLOAT_FOLDED;
    qf_payload folded = {.kind = QF_PAYLOAD_JOB,
                         .field = QF_FIELD_RAW_DATA,
                         .span = source.span,
                         .raw_length = source.raw_length,
                         .job = job,
                         .was_external = source.was_external};
    size_t payload = qf_payloads_add(&plan->payloads, folded);
    if (!job->layer || !job->tensor || payload == SIZE_MAX ||
        !qf_table_grow((void **)&plan->jobs, &plan->job_cap, plan->job_count + 1,
                       sizeof *plan->jobs))
        return false;
    plan->jobs[plan->job_count++] = job;
    if (owns_weight(f))
        return qf_tensor_set_payload(ir->arena, f->weight, payload);
    /* others keep the weight as it is */
    const char *name = qf_arena_printf(ir->arena, "%s.weight", f->conv->name);
    Onnx__TensorProto *own =
        qf_tensor_new(ir->arena, f->weight->data_type, f->weight->dims, f->weight->n_dims);
    if (!name || !own || !qf_tensor_set_payload(ir->arena, own, payload))
        return false;
    qf_value *value = qf_ir_add_initializer(ir, f->conv->graph, name, own);
    qf_value *old = f->conv->inputs[1];
    if (!value || !qf_node_set_input(ir, f->conv, 1, value))
        return false;
    qf_ir_drop_unused(ir, old);
    return true;
}

static bool set_bias(qf_plan *plan, qf_ir *ir, const fold *f, const float *bias)
{
    int64_t dims[] = {(int64_t)f->channels};
    size_t payload =
        qf_plan_add_bytes(plan, QF_FIELD_RAW_DATA, bias, f->channels * sizeof *bias, false);
    Onnx__TensorProto *tensor =
        qf_tensor_new(ir->arena, ONNX__TENSOR_PROTO__DATA_TYPE__FLOAT, dims, 1);
    if (payload == SIZE_MAX || !tensor || !qf_tensor_set_payload(ir->arena, tensor, payload))
        return false;
    qf_value *old = f->conv->input_count > 2 ? f->conv->inputs[2] : NULL;
    if (old && old->init && old->use_count == 1 && !old->result_count) {
        size_t before = qf_tensor_payload(old->init);
        plan->payloads.items[payload].was_external =
            before < plan->payloads.count && plan->payloads.items[before].was_external;
        old->init = tensor;
        return true;
    }
    const char *name = bias_name(ir, f);
    qf_value *value = name ? qf_ir_add_initializer(ir, f->conv->graph, name, tensor) : NULL;
    if (!value || !(f->conv->input_count > 2 ? qf_node_set_input(ir, f->conv, 2, value)
                                             : qf_node_add_input(ir, f->conv, value)))
        return false;
    qf_ir_drop_unused(ir, old);
    return true;
}

static bool remove_bn(qf_ir *ir, const fold *f)
{
    qf_value *conv_out = f->conv->outputs[0], *out = f->bn->outputs[0];
    if (!qf_value_move_uses(ir, out, conv_out, NULL) ||
        !qf_value_move_results(ir, out, conv_out, out->name))
        return false;
    for (size_t i = 0; i < 5; i++) {
        qf_value *parameter = i ? f->bn->inputs[i] : NULL;
        if (!qf_node_set_input(ir, f->bn, i, NULL))
            return false;
        qf_ir_drop_unused(ir, parameter);
    }
    qf_ir_remove_node(ir, f->bn);
    return true;
}

static qf_status fold_one(qf_plan *plan, qf_ir *ir, fold *f, qf_error *err)
{
    bool usable;
    qf_status status = read_parameters(plan, f, &usable, err);
    size_t index = qf_tensor_payload(f->weight);
    uint64_t count;
    /* what is wrong with the weight is told when the layer is planned */
    if (status != QF_OK || !usable || index >= plan->payloads.count ||
        qf_constant_check(f->weight, &plan->payloads.items[index], &count))
        return status;
    float *factor = qf_arena_array(&plan->arena, f->channels, sizeof *factor);
    float *bias = qf_arena_array(&plan->arena, f->channels, sizeof *bias);
    if (!factor || !bias)
        return qf_fail_memory(err);
    if (!compute(f, factor, bias)) {
        qf_diag_add(plan->diag, QF_WARNING,
                    (qf_where){.file = plan->model->files[0].path, .item = f->conv->name},
                    "the batch norm '%s' behind it gives factors that are not finite or far "
                    "too large, and is not folded",
                    f->bn->name);
        return QF_OK;
    }
    const char *name = qf_arena_strdup(&plan->arena, f->conv->name);
    if (!name || !qf_strmap_set(&plan->folded, name, plan) || !set_bias(plan, ir, f, bias) ||
        !set_weight(plan, ir, f, factor) || !remove_bn(ir, f))
        return qf_fail_memory(err);
    return QF_OK;
}

qf_status qf_pass_fold_batch_norm(qf_plan *plan, qf_ir *ir, qf_error *err)
{
    bool any = plan->record_of_node.used > 0;
    for (size_t i = 0; any && i < ir->node_count; i++) {
        fold f = {0};
        if (!ir->by_id[i] || !matches(plan, ir->by_id[i], &f))
            continue;
        qf_status status = fold_one(plan, ir, &f, err);
        if (status != QF_OK)
            return status;
    }
    return QF_OK;
}
