/* SPDX-License-Identifier: Apache-2.0 */
/* From a record and a node to a layer: the field rules of facts 1.4. Every rule that is broken is a
 * finding with layer, field, value and what is allowed. */
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/spill.h"
#include "kernels.h"
#include "quant/plan.h"
#include "quant/qdq.h"

typedef AMCTPytorchProto__SingleLayerRecord record_value;

typedef struct checker {
    qf_plan *plan;
    size_t record;
    const char *key;
    const record_value *v;
    const qf_probe *probe;
    qf_layer *layer;
} checker;

/* ---- single values ---- */

static void check_scale(checker *c, const char *field, size_t index, size_t count, float scale)
{
    if (isnormal(scale) && scale > 0)
        return;
    char place[32] = "";
    if (count > 1)
        snprintf(place, sizeof place, "[%zu]", index);
    qf_plan_report(c->plan, QF_ERROR, c->record, c->key,
                   "%s%s is %.9g; a scale must be a positive, finite, normal float32", field, place,
                   (double)scale);
}

/* Only the first bad value of a list is reported: a list that is wrong is wrong everywhere. */
static void check_scales(checker *c, const char *field, const float *scales, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (!(isnormal(scales[i]) && scales[i] > 0)) {
            check_scale(c, field, i, n, scales[i]);
            return;
        }
    }
}

static void check_zero_offsets(checker *c, const char *field, const int32_t *offsets, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (offsets[i]) {
            qf_plan_report(c->plan, QF_ERROR, c->record, c->key,
                           "%s[%zu] is %d; weight offsets must be 0", field, i, offsets[i]);
            return;
        }
    }
}

static void check_activation(checker *c, const char *scale_field, const char *offset_field,
                             bool has_scale, float scale, bool has_offset, int32_t offset)
{
    if (!has_scale)
        qf_plan_report(c->plan, QF_ERROR, c->record, c->key, "cannot find %s of the layer",
                       scale_field);
    else
        check_scale(c, scale_field, 0, 1, scale);
    if (!has_offset) {
        qf_plan_report(c->plan, QF_ERROR, c->record, c->key,
                       "cannot find %s of the layer; write it even where it is 0", offset_field);
        return;
    }
    int lo = c->layer->act_bits == 16 ? -32768 : -128, hi = -lo - 1;
    if (offset < lo || offset > hi)
        qf_plan_report(c->plan, QF_ERROR, c->record, c->key,
                       "%s is %d; for %d-bit activations it must be in [%d, %d]", offset_field,
                       offset, c->layer->act_bits, lo, hi);
    else if (c->layer->act_bits == 4 && (offset < -8 || offset > 7))
        qf_plan_report(c->plan, QF_WARNING, c->record, c->key,
                       "%s is %d, outside the 4-bit range [-8, 7]; most activations will saturate",
                       offset_field, offset);
}

/* ---- types and bits ---- */

static int bits_of(const char *type)
{
    static const struct {
        const char *name;
        int bits;
    } types[] = {{"INT4", 4}, {"INT6", 6}, {"INT7", 7}, {"INT8", 8}, {"INT16", 16}};
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        if (strcmp(type, types[i].name) == 0)
            return types[i].bits;
    }
    return 0;
}

/* Bits of a type field; 0 if it is absent, and a finding if it is not among the allowed. */
static int check_type(checker *c, const char *field, const char *value, const char *allowed)
{
    if (!value)
        return 0;
    int bits = bits_of(value);
    char word[16];
    snprintf(word, sizeof word, " %s ", value);
    char list[64];
    snprintf(list, sizeof list, " %s ", allowed);
    if (bits && strstr(list, word))
        return bits;
    qf_plan_report(c->plan, QF_ERROR, c->record, c->key, "%s is '%s'; it must be one of %s", field,
                   value, allowed);
    return 0;
}

static void choose_bits(checker *c)
{
    const record_value *v = c->v;
    qf_layer *layer = c->layer;
    int dst = check_type(c, "dst_type", v->dst_type, "INT4 INT8");
    int act = check_type(c, "act_type", v->act_type, "INT4 INT8 INT16");
    int wts = check_type(c, "wts_type", v->wts_type, "INT4 INT6 INT7 INT8");
    layer->dst_type_set = v->dst_type != NULL;
    layer->act_bits = dst ? dst : act ? act : 8;
    if (qf_op_is_rnn(layer->op)) /* the reference looks at act_type alone: facts 4.6, 5.6 */
        layer->act_bits = act ? act : 8;
    layer->wts_bits = dst ? dst : wts ? wts : 8;
    layer->act_type = v->act_type ? v->act_type : "UNSET";
    if (dst == 4 && strstr(c->key, "AvgPool"))
        qf_plan_report(c->plan, QF_ERROR, c->record, c->key,
                       "dst_type is INT4, which average pooling does not support");
    if (qf_op_is_rnn(layer->op) && layer->act_bits == 4)
        qf_plan_report(c->plan, QF_ERROR, c->record, c->key,
                       "the activations of %s can have 8 or 16 bits, not 4", qf_op_name(layer->op));
    const char *mode = v->fakequant_precision_mode;
    layer->dequant_mask = UINT32_MAX;
    if (mode && strcmp(mode, "FORCE_FP16_QUANT") == 0)
        layer->dequant_mask = 0xFFFFE000u; /* facts 4.2 */
    else if (mode && strcmp(mode, "DEFAULT") != 0)
        qf_plan_report(c->plan, QF_ERROR, c->record, c->key,
                       "fakequant_precision_mode is '%s'; it must be DEFAULT or FORCE_FP16_QUANT",
                       mode);
}

/* ---- lists ---- */

static void check_weight_list(checker *c, const char *scale_field, const char *offset_field,
                              const float *scales, size_t n, const int32_t *offsets,
                              size_t n_offsets)
{
    const qf_probe *p = c->probe;
    uint64_t single = qf_op_is_rnn(p->op) ? qf_op_gates(p->op) : 1;
    if (!n || !n_offsets) {
        qf_plan_report(c->plan, QF_ERROR, c->record, c->key, "cannot find %s of the layer",
                       n ? offset_field : scale_field);
        return;
    }
    if (n != n_offsets)
        qf_plan_report(c->plan, QF_ERROR, c->record, c->key,
                       "%s has %zu values and %s has %zu; they must have the same number",
                       scale_field, n, offset_field, n_offsets);
    if (n != single && n != p->channels) {
        if (p->op == QF_OP_AVERAGE_POOL)
            qf_plan_report(c->plan, QF_ERROR, c->record, c->key,
                           "%s has %zu values; average pooling takes 1", scale_field, n);
        else
            qf_plan_report(c->plan, QF_ERROR, c->record, c->key,
                           "%s has %zu values; the layer takes %llu (per %s) or %llu (per output "
                           "channel)",
                           scale_field, n, (unsigned long long)single,
                           qf_op_is_rnn(p->op) ? "gate" : "tensor",
                           (unsigned long long)p->channels);
    }
    check_scales(c, scale_field, scales, n);
    check_zero_offsets(c, offset_field, offsets, n_offsets);
}

static void check_balance(checker *c)
{
    const record_value *v = c->v;
    const float least = FLT_EPSILON, most = 1 / FLT_EPSILON;
    size_t n = v->n_tensor_balance_factor;
    if (!n)
        return;
    if (c->probe->op == QF_OP_AVERAGE_POOL || qf_op_is_rnn(c->probe->op)) {
        qf_plan_report(c->plan, QF_ERROR, c->record, c->key,
                       "tensor_balance_factor is not supported for %s", qf_op_name(c->probe->op));
        return;
    }
    if (n != c->probe->input_channels)
        qf_plan_report(c->plan, QF_ERROR, c->record, c->key,
                       "tensor_balance_factor has %zu values; the layer has %llu input channels", n,
                       (unsigned long long)c->probe->input_channels);
    for (size_t i = 0; i < n; i++) {
        float f = v->tensor_balance_factor[i];
        if (!(f >= least && f <= most)) {
            qf_plan_report(c->plan, QF_ERROR, c->record, c->key,
                           "tensor_balance_factor[%zu] is %.9g; it must be in [%.9g, %.9g]", i,
                           (double)f, (double)least, (double)most);
            break;
        }
    }
    c->layer->balance = v->tensor_balance_factor;
    c->layer->balance_count = n;
}

static void check_fields(checker *c)
{
    const record_value *v = c->v;
    qf_layer *layer = c->layer;
    choose_bits(c);
    if (v->n_shift_bit)
        qf_plan_report(c->plan, QF_ERROR, c->record, c->key,
                       "shift_bit is not supported; delete it from the record");
    check_activation(c, "scale_d", "offset_d", v->has_scale_d, v->scale_d, v->has_offset_d,
                     v->offset_d);
    check_weight_list(c, "scale_w", "offset_w", v->scale_w, v->n_scale_w, v->offset_w,
                      v->n_offset_w);
    if (qf_op_is_rnn(layer->op)) {
        check_activation(c, "scale_h", "offset_h", v->has_scale_h, v->scale_h, v->has_offset_h,
                         v->offset_h);
        check_weight_list(c, "scale_r", "offset_r", v->scale_r, v->n_scale_r, v->offset_r,
                          v->n_offset_r);
    }
    check_balance(c);
    layer->scale_d = v->scale_d;
    layer->offset_d = v->offset_d;
    layer->scale_h = v->scale_h;
    layer->offset_h = v->offset_h;
}

/* ---- derived numbers ---- */

/* dtype of a value where the model tells it. */
static int32_t value_type(const qf_value *value)
{
    const Onnx__ValueInfoProto *info = value->input ? value->input : value->info;
    if (!info && value->result_count)
        info = value->results[0];
    if (info && info->type && info->type->value_case == ONNX__TYPE_PROTO__VALUE_TENSOR_TYPE)
        return info->type->tensor_type->elem_type;
    return 0;
}

/* The dtype that a node gives its first output, where its type or attributes tell; 0 else. */
static int32_t result_type(const qf_node *node)
{
    if (qf_node_is(node, "Cast"))
        return (int32_t)qf_node_int(node, "to", 0);
    qf_op op = qf_op_of(node);
    bool scaled = qf_is_dequantize(node); /* gives the dtype of its scale */
    if ((op == QF_OP_NONE && !scaled) || op == QF_OP_AVERAGE_POOL || node->input_count < 2 ||
        !node->inputs[1])
        return 0;
    const Onnx__TensorProto *weight = qf_value_constant(node->inputs[1]);
    return weight ? weight->data_type : 0;
}

/* Walks up first inputs, through operators that keep the dtype of theirs, to one that is known. */
static int32_t inferred_type(const qf_value *value)
{
    for (unsigned steps = 0; value && steps < 1000; steps++) {
        int32_t type = value_type(value);
        if (!type && value->init)
            type = value->init->data_type;
        if (!type && value->producer)
            type = result_type(value->producer);
        if (type || !value->producer || !value->producer->input_count)
            return type;
        value = value->producer->inputs[0];
    }
    return 0;
}

static int32_t activation_type(const qf_node *node, const qf_probe *probe)
{
    if (probe->weight && qf_dtype_is_float(probe->weight->data_type))
        return probe->weight->data_type;
    const Onnx__AttributeProto *a = qf_node_attribute(node, "op_data_type");
    if (a && a->s.len == 7 && memcmp(a->s.data, "float16", 7) == 0)
        return ONNX__TENSOR_PROTO__DATA_TYPE__FLOAT16;
    int32_t type = node->outputs[0] ? value_type(node->outputs[0]) : 0;
    if (!type)
        type = inferred_type(node->inputs[0]);
    return qf_dtype_is_float(type) ? type : ONNX__TENSOR_PROTO__DATA_TYPE__FLOAT;
}

static bool make_dequant(checker *c)
{
    const qf_kernels *k = qf_kernels_get();
    const record_value *v = c->v;
    qf_layer *layer = c->layer;
    size_t n = v->n_scale_w, r = qf_op_is_rnn(layer->op) ? v->n_scale_r : 0;
    float *deq = qf_arena_array(&c->plan->arena, n + r, sizeof *deq);
    if (!deq)
        return false;
    k->dequant_scale(v->scale_w, n, v->scale_d, deq);
    k->dequant_scale(v->scale_r, r, v->scale_h, deq + n);
    for (size_t i = 0; i < n + r; i++) {
        if (isfinite(deq[i]) && deq[i] > 0)
            continue;
        qf_plan_report(c->plan, QF_ERROR, c->record, c->key,
                       "scale_%c[%zu] times scale_%c is %g, outside the range of float32",
                       i < n ? 'w' : 'r', i < n ? i : i - n, i < n ? 'd' : 'h', (double)deq[i]);
        break;
    }
    layer->dequant = deq;
    layer->dequant_count = n + r;
    return true;
}

static qf_status add_layer(qf_plan *plan, size_t record, const qf_node *node, qf_error *err)
{
    const AMCTPytorchProto__MapFiledEntry *entry = qf_record_message(plan->record)->record[record];
    qf_probe probe;
    qf_layer_probe(node, qf_plan_flags(plan, node->name), &probe);
    if (!probe.quantizable) {
        qf_plan_report(plan, QF_ERROR, record, entry->key, "layer '%s' cannot be quantized: %s",
                       node->name, probe.reason);
        return QF_OK;
    }
    qf_layer *layer = &plan->layers[plan->layer_count];
    *layer = (qf_layer){.key = entry->key,
                        .node_id = node->id,
                        .graph = node->graph->index,
                        .op = probe.op,
                        .record = entry->value,
                        .float_type = activation_type(node, &probe),
                        .folded = qf_strmap_get(&plan->folded, node->name) != NULL};
    layer->name = qf_arena_strdup(&plan->arena, node->name);
    if (!layer->name)
        return qf_fail_memory(err);
    checker c = {plan, record, entry->key, entry->value, &probe, layer};
    size_t errors = qf_diagnostics_errors(plan->diag);
    check_fields(&c);
    if (qf_diagnostics_errors(plan->diag) > errors)
        return QF_OK;
    if (!make_dequant(&c))
        return qf_fail_memory(err);
    plan->layer_count++;
    return qf_plan_tensors(plan, node, &probe, layer, err);
}

/* `why` NULL: what speaks against quantizing it, or that nobody asked for it. */
static qf_status note_skipped(qf_plan *plan, const qf_node *node, const char *why, qf_error *err)
{
    qf_probe probe;
    qf_layer_probe(node, qf_plan_flags(plan, node->name), &probe);
    if (!qf_table_grow((void **)&plan->skipped, &plan->skipped_cap, plan->skipped_count + 1,
                       sizeof *plan->skipped))
        return qf_fail_memory(err);
    qf_skipped_layer *s = &plan->skipped[plan->skipped_count];
    s->name = qf_arena_strdup(&plan->arena, node->name);
    s->op_type = qf_op_name(probe.op);
    s->reason = why                 ? why
                : probe.quantizable ? "it has no record"
                                    : qf_arena_strdup(&plan->arena, probe.reason);
    if (!s->name || !s->reason)
        return qf_fail_memory(err);
    plan->skipped_count++;
    return QF_OK;
}

static qf_status add_without_record(qf_plan *plan, const qf_ir *ir, const qf_node *node,
                                    qf_error *err)
{
    bool taken;
    const char *why;
    qf_status status = qf_plan_weight_only(plan, ir, node, &taken, &why, err);
    return status == QF_OK && !taken ? note_skipped(plan, node, why, err) : status;
}

/* A scheme that finds no weight was meant otherwise. */
static void check_scheme(qf_plan *plan, size_t errors)
{
    const char *path = plan->model->files[0].path;
    if (!plan->scheme.on || plan->float_layer_count || qf_diagnostics_errors(plan->diag) > errors)
        return;
    if (plan->scheme.from_record)
        qf_diag_add(plan->diag, QF_ERROR, (qf_where){.file = qf_record_path(plan->record)},
                    "--weight-only record finds no weight: no entry that is chosen has scale_w and "
                    "no scale_d; leave the option out, or write such entries");
    else
        qf_diag_add(plan->diag, QF_ERROR, (qf_where){.file = path},
                    "--weight-only finds no weight: no MatMul or Gemm that has no record%s has a "
                    "constant float matrix; `quantfold inspect` lists the layers",
                    plan->scheme.has_include || plan->scheme.has_exclude
                        ? " and that --include and --exclude choose"
                        : "");
}

qf_status qf_plan_layers(qf_plan *plan, qf_ir *ir, qf_error *err)
{
    size_t records = qf_record_message(plan->record)->n_record;
    size_t errors = qf_diagnostics_errors(plan->diag);
    plan->layers = qf_arena_array(&plan->arena, records, sizeof *plan->layers);
    qf_status status = plan->layers ? QF_OK : qf_fail_memory(err);
    /* in graph order, so that names and fusion do not depend on the order of the records */
    for (size_t id = 0; status == QF_OK && id < ir->node_count; id++) {
        const qf_node *node = ir->by_id[id];
        const size_t *record = qf_strmap_get(&plan->record_of_node, node->name);
        if (record)
            status = add_layer(plan, *record, node, err);
        else if (qf_op_of(node) != QF_OP_NONE)
            status = add_without_record(plan, ir, node, err);
    }
    if (status == QF_OK)
        check_scheme(plan, errors);
    return status;
}
