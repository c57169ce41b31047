/* SPDX-License-Identifier: Apache-2.0 */
/*
 * QuantizeLinear (Q) and DequantizeLinear (DQ) around layers that have a record go into the layers:
 * a layer reads what Q read, and the constant behind its weight's DQ. Pairs of Q and DQ that are
 * then redundant go as well; others are left to replace_qdq.c.
 */
#include <math.h>
#include <string.h>

#include "passes/passes.h"
#include "quant/qdq.h"
#include "quant/record.h"

typedef struct absorber {
    qf_plan *plan;
    qf_ir *ir;
    qf_qdq q;
    qf_error *err;
} absorber;

/* ---- removing what nothing reads ---- */

static bool may_go(const qf_node *node)
{
    return node->output_count == 1 && node->input_count &&
           (qf_is_quantize(node) || qf_is_dequantize(node) || qf_node_is(node, "Clip") ||
            qf_node_is(node, "Transpose") || qf_node_is(node, "Identity") ||
            qf_node_is(node, "Cast") || qf_node_is(node, "ConstantOfShape"));
}

/* Goes up first inputs; other inputs are constants at this depth. */
static void drop_chain(qf_ir *ir, qf_value *value, void (*drop_other)(qf_ir *, qf_value *))
{
    while (value && !value->use_count && !value->result_count) {
        qf_node *node = value->producer;
        if (!node || !may_go(node)) {
            qf_ir_drop_unused(ir, value);
            return;
        }
        qf_ir_remove_node(ir, node);
        for (size_t i = 1; i < node->input_count; i++)
            drop_other(ir, node->inputs[i]);
        value = node->inputs[0];
    }
}

static void drop_parameter(qf_ir *ir, qf_value *value)
{
    drop_chain(ir, value, qf_ir_drop_unused);
}

static void drop_dead(qf_ir *ir, qf_value *value)
{
    drop_chain(ir, value, drop_parameter);
}

static bool read_instead(qf_ir *ir, qf_node *node, size_t input, qf_value *value)
{
    qf_value *old = node->inputs[input];
    if (!qf_node_set_input(ir, node, input, value))
        return false;
    drop_dead(ir, old);
    return true;
}

/* ---- Q -> Clip -> DQ ---- */

/* The integers that a Clip leaves; false if they are not constant. */
static qf_status read_bound(absorber *a, const qf_node *clip, size_t input, double missing,
                            double *out, bool *known)
{
    qf_value *value = input < clip->input_count ? clip->inputs[input] : NULL;
    Onnx__TensorProto *tensor = value ? qf_value_constant(value) : NULL;
    qf_constant constant = {0};
    const char *why = NULL;
    *out = missing;
    *known = !value || tensor;
    if (!tensor)
        return QF_OK;
    qf_status status =
        qf_constant_read(tensor, a->q.payloads, a->q.path, a->q.arena, &constant, &why, a->err);
    *known = status == QF_OK && !why && constant.count == 1;
    if (*known)
        *out = constant.values[0];
    return status;
}

static qf_value *add_scalar(absorber *a, qf_graph *graph, const char *name, float value)
{
    float *copy = qf_arena_alloc(&a->plan->arena, sizeof *copy);
    Onnx__TensorProto *tensor =
        qf_tensor_new(a->ir->arena, ONNX__TENSOR_PROTO__DATA_TYPE__FLOAT, NULL, 0);
    if (!copy || !tensor)
        return NULL;
    *copy = value;
    size_t payload = qf_plan_add_bytes(a->plan, QF_FIELD_RAW_DATA, copy, sizeof *copy, false);
    if (payload == SIZE_MAX || !qf_tensor_set_payload(a->ir->arena, tensor, payload))
        return NULL;
    return qf_ir_add_initializer(a->ir, graph, name, tensor);
}

/* Clips the floats before Q where the integers were clipped behind it. */
static bool clip_floats(absorber *a, qf_node *clip, qf_node *quantize, float lo, float hi)
{
    qf_ir *ir = a->ir;
    const char *name = qf_arena_printf(ir->arena, "%s.float", clip->name);
    const char *output = name ? qf_arena_printf(ir->arena, "%s.output0", name) : NULL;
    const char *least = name ? qf_arena_printf(ir->arena, "%s.min", name) : NULL;
    const char *most = name ? qf_arena_printf(ir->arena, "%s.max", name) : NULL;
    if (!output || !least || !most)
        return false;
    qf_node *floats = qf_ir_add_node(ir, quantize->graph, "Clip", name, quantize);
    qf_value *out = floats ? qf_node_add_output(ir, floats, output) : NULL;
    qf_value *min = out ? add_scalar(a, quantize->graph, least, lo) : NULL;
    qf_value *max = min ? add_scalar(a, quantize->graph, most, hi) : NULL;
    if (!max || !qf_node_add_input(ir, floats, quantize->inputs[0]) ||
        !qf_node_add_input(ir, floats, min) || !qf_node_add_input(ir, floats, max) ||
        !qf_node_set_input(ir, quantize, 0, out) ||
        !qf_value_move_uses(ir, clip->outputs[0], quantize->outputs[0], NULL))
        return false;
    drop_dead(ir, clip->outputs[0]);
    return true;
}

/* A narrower range of integers, as PyTorch writes for its 7-bit activations, becomes the same range
 * of floats: the bounds are on the grid, so the integers stay the same. */
static qf_status lower_clip(absorber *a, qf_node *clip)
{
    qf_node *quantize = clip->input_count ? clip->inputs[0]->producer : NULL;
    if (!qf_node_is(clip, "Clip") || !quantize || !qf_is_quantize(quantize) ||
        clip->outputs[0]->result_count || qf_value_only_user(clip->inputs[0]) != clip ||
        clip->graph != quantize->graph)
        return QF_OK;
    qf_quantizer z;
    const char *why;
    double lo, hi;
    bool has_lo = false, has_hi = false;
    qf_status status = qf_quantizer_read(&a->q, quantize, &z, &why, a->err);
    if (status != QF_OK || why || z.count != 1 ||
        z.float_type != ONNX__TENSOR_PROTO__DATA_TYPE__FLOAT)
        return status;
    double least = -(double)(1 << (z.bits - 1)), zero = (double)z.zeros[0];
    double shift = qf_dtype_is_unsigned(z.data_type) ? least : 0;
    status = read_bound(a, clip, 1, least - shift, &lo, &has_lo);
    if (status == QF_OK)
        status = read_bound(a, clip, 2, -least - 1 - shift, &hi, &has_hi);
    if (status != QF_OK || !has_lo || !has_hi || lo > hi)
        return status;
    float scale = z.scales[0];
    float from = (float)(lo + shift - zero) * scale, to = (float)(hi + shift - zero) * scale;
    return clip_floats(a, clip, quantize, from, to) ? QF_OK : qf_fail_memory(a->err);
}

/* ---- layers ---- */

/* Q behind a DQ that reads just its integers; NULL if there is none or they do not fit. */
static qf_status paired_quantize(absorber *a, const qf_node *dq, qf_node **out)
{
    qf_quantizer first, second;
    const char *why_first, *why_second;
    *out = NULL;
    qf_status status = qf_quantizer_read(&a->q, dq, &second, &why_second, a->err);
    qf_node *quantize = qf_qdq_integers(dq->inputs[0], second.data_type)->producer;
    if (status != QF_OK || why_second || !quantize || !qf_is_quantize(quantize) ||
        quantize->graph != dq->graph)
        return status;
    status = qf_quantizer_read(&a->q, quantize, &first, &why_first, a->err);
    if (status == QF_OK && !why_first && first.count == 1 && first.data_type == second.data_type &&
        qf_quantizer_same(&first, &second))
        *out = quantize;
    return status;
}

/* The layer quantizes its input itself, so Q and DQ right before it have nothing left to do. */
static qf_status absorb_activation(absorber *a, qf_node *node, size_t input)
{
    const qf_node *dq = qf_value_source(node->inputs[input])->producer;
    qf_node *quantize = NULL;
    qf_status status = dq && qf_is_dequantize(dq) ? paired_quantize(a, dq, &quantize) : QF_OK;
    if (status != QF_OK || !quantize)
        return status;
    return read_instead(a->ir, node, input, quantize->inputs[0]) ? QF_OK : qf_fail_memory(a->err);
}

static bool absorb_weight(absorber *a, qf_node *node, size_t input, const qf_qdq_weight *w)
{
    qf_ir *ir = a->ir;
    if (!w->transpose)
        return read_instead(ir, node, input, w->source);
    const char *name = qf_arena_printf(ir->arena, "%s.weight_transpose", node->name);
    const char *output = name ? qf_arena_printf(ir->arena, "%s.output0", name) : NULL;
    qf_node *own = output ? qf_ir_add_node(ir, node->graph, "Transpose", name, node) : NULL;
    qf_value *out = own ? qf_node_add_output(ir, own, output) : NULL;
    if (!out || !qf_node_add_input(ir, own, w->source))
        return false;
    own->proto->n_attribute = w->transpose->proto->n_attribute;
    own->proto->attribute = w->transpose->proto->attribute;
    return read_instead(ir, node, input, out);
}

static bool flag_integers(absorber *a, const qf_node *node)
{
    qf_plan *plan = a->plan;
    uintptr_t flags = qf_plan_flags(plan, node->name) | QF_NODE_INTEGERS;
    const char *name = qf_arena_strdup(&plan->arena, node->name);
    return name && qf_strmap_set(&plan->node_flags, name, (void *)flags);
}

/* Where the bias of a layer is read: an input of the node, or of the Add behind a MatMul. */
static qf_use bias_of(qf_node *node)
{
    qf_op op = qf_op_of(node);
    qf_use use = {node, qf_op_is_rnn(op) ? 3 : 2};
    if (op == QF_OP_MATMUL) {
        qf_node *add = qf_value_only_user(node->outputs[0]);
        use = (qf_use){add && qf_node_is(add, "Add") ? add : NULL, 1};
    }
    if (!use.node || use.input >= use.node->input_count || !use.node->inputs[use.input])
        use.node = NULL;
    return use;
}

/* ---- dequantizing constants ---- */

/* A constant that is small enough to be calculated while the export is planned. */
enum { SMALL_CONSTANT = 1 << 20 };

typedef struct dequantized {
    qf_constant x, scale, zero;
    Onnx__TensorProto *tensor;
    int64_t axis;
} dequantized;

/* PyTorch writes the zero point of a bias as zeros of a shape, cast. */
static qf_status is_zeros(absorber *a, qf_value *value, bool *zeros)
{
    qf_constant constant = {0};
    const char *why = NULL;
    value = qf_value_source(value);
    if (value->producer && qf_node_is(value->producer, "Cast") && value->producer->input_count &&
        value->producer->inputs[0])
        value = qf_value_source(value->producer->inputs[0]);
    *zeros = value->producer && qf_node_is(value->producer, "ConstantOfShape");
    const Onnx__AttributeProto *fill = *zeros ? qf_node_attribute(value->producer, "value") : NULL;
    if (!fill)
        return QF_OK; /* zeros are the default */
    qf_status status = fill->t ? qf_constant_read(fill->t, a->q.payloads, a->q.path, a->q.arena,
                                                  &constant, &why, a->err)
                               : QF_OK;
    *zeros = fill->t && status == QF_OK && !why && constant.count == 1 && constant.values[0] == 0;
    return status;
}

/* False if DQ is not of a constant, or of one that is not for us. */
static qf_status read_constant_dq(absorber *a, const qf_node *dq, dequantized *d, bool *usable)
{
    Onnx__TensorProto *tensors[3] = {NULL};
    qf_constant *parts[3] = {&d->x, &d->scale, &d->zero};
    uint64_t count = 0;
    *d = (dequantized){.axis = qf_node_int(dq, "axis", 1)};
    *usable = qf_node_int(dq, "block_size", 0) == 0;
    for (size_t i = 0; i < 3 && i < dq->input_count; i++) {
        tensors[i] = dq->inputs[i] ? qf_value_constant(dq->inputs[i]) : NULL;
        bool zeros = i == 2 && !dq->inputs[i];
        qf_status status =
            i == 2 && dq->inputs[i] && !tensors[i] ? is_zeros(a, dq->inputs[i], &zeros) : QF_OK;
        if (status != QF_OK)
            return status;
        *usable &= tensors[i] || zeros;
    }
    d->tensor = tensors[0]; /* a DQ that comes here has two inputs, so with *usable two tensors */
    /* NOLINTBEGIN(clang-analyzer-core.NullDereference) */
    *usable = *usable && qf_dims_count(d->tensor->dims, d->tensor->n_dims, &count) &&
              count <= SMALL_CONSTANT && tensors[1]->n_dims <= 1 &&
              tensors[1]->data_type == ONNX__TENSOR_PROTO__DATA_TYPE__FLOAT;
    /* NOLINTEND(clang-analyzer-core.NullDereference) */
    for (size_t i = 0; *usable && i < 3; i++) {
        const char *why = NULL;
        qf_status status = tensors[i] ? qf_constant_read(tensors[i], a->q.payloads, a->q.path,
                                                         a->q.arena, parts[i], &why, a->err)
                                      : QF_OK;
        if (status != QF_OK)
            return status;
        *usable = !why;
    }
    return QF_OK;
}

/* How many neighbouring elements share a scale, or 0 if the scales do not fit the tensor. */
static size_t elements_per_scale(const dequantized *d)
{
    const Onnx__TensorProto *t = d->tensor;
    int64_t rank = (int64_t)t->n_dims, axis = d->axis < 0 ? d->axis + rank : d->axis;
    size_t inner = 1;
    if (d->zero.count > 1 && d->zero.count != d->scale.count)
        return 0;
    if (d->scale.count == 1)
        return d->x.count;
    if (rank == 1)
        axis = 0; /* the only one; the attribute's default is 1 */
    if (axis < 0 || axis >= rank || (uint64_t)t->dims[axis] != d->scale.count)
        return 0;
    for (int64_t i = axis + 1; i < rank; i++)
        inner *= (size_t)t->dims[i];
    return inner;
}

/* In float64, where the product of an int32 and a float32 is exact up to 2^29 and near enough
 * beyond: a bias that is divided by the same scale again must give the same integers. */
static double *dequantize(absorber *a, const dequantized *d, size_t per_scale)
{
    double *y = qf_arena_array(&a->plan->arena, d->x.count, sizeof *y);
    for (size_t i = 0; y && i < d->x.count; i++) {
        size_t c = i / per_scale % d->scale.count;
        double zero = d->zero.count ? d->zero.values[d->zero.count > 1 ? c : 0] : 0;
        y[i] = (d->x.values[i] - zero) * d->scale.values[c];
    }
    return y;
}

static qf_value *add_dequantized(absorber *a, qf_graph *graph, const dequantized *d, int32_t type,
                                 const void *data, size_t width, const char *name)
{
    size_t payload = qf_plan_add_bytes(a->plan, QF_FIELD_RAW_DATA, data, d->x.count * width, false);
    Onnx__TensorProto *t = qf_tensor_new(a->ir->arena, type, d->tensor->dims, d->tensor->n_dims);
    if (payload == SIZE_MAX || !t || !qf_tensor_set_payload(a->ir->arena, t, payload))
        return NULL;
    return qf_ir_add_initializer(a->ir, graph, name, t);
}

static qf_status absorb_bias(absorber *a, qf_node *node)
{
    qf_use use = bias_of(node);
    const qf_node *dq = use.node ? qf_value_source(use.node->inputs[use.input])->producer : NULL;
    dequantized d;
    bool usable;
    if (!dq || !qf_is_dequantize(dq))
        return QF_OK;
    qf_status status = read_constant_dq(a, dq, &d, &usable);
    size_t per_scale = status == QF_OK && usable ? elements_per_scale(&d) : 0;
    if (!per_scale)
        return status;
    const char *name = qf_arena_printf(a->ir->arena, "%s.bias", node->name);
    double *y = dequantize(a, &d, per_scale);
    qf_value *value =
        y && name ? add_dequantized(a, use.node->graph, &d, ONNX__TENSOR_PROTO__DATA_TYPE__DOUBLE,
                                    y, sizeof *y, name)
                  : NULL;
    return value && read_instead(a->ir, use.node, use.input, value) ? QF_OK
                                                                    : qf_fail_memory(a->err);
}

/* What is left of constants behind DQ, as of layers that stay float, becomes float: the deploy
 * format has no DQ. Those too large to calculate here stay. */
static qf_status make_float(absorber *a, qf_node *dq)
{
    dequantized d;
    bool usable;
    qf_status status = read_constant_dq(a, dq, &d, &usable);
    size_t per_scale = status == QF_OK && usable ? elements_per_scale(&d) : 0;
    if (!per_scale)
        return status;
    double *wide = dequantize(a, &d, per_scale);
    float *y = qf_arena_array(&a->plan->arena, d.x.count, sizeof *y);
    if (!wide || !y)
        return qf_fail_memory(a->err);
    for (size_t i = 0; i < d.x.count; i++)
        y[i] = (float)wide[i];
    qf_value *out = dq->outputs[0];
    const char *name = qf_arena_printf(a->ir->arena, "%s.float", out->name);
    qf_value *value = name ? add_dequantized(a, dq->graph, &d, ONNX__TENSOR_PROTO__DATA_TYPE__FLOAT,
                                             y, sizeof *y, name)
                           : NULL;
    if (!value || out->result_count || !qf_value_move_uses(a->ir, out, value, NULL))
        return value ? QF_OK : qf_fail_memory(a->err);
    drop_dead(a->ir, out);
    return QF_OK;
}

static qf_status absorb(absorber *a, qf_node *node, const qf_qdq_layer *layer)
{
    bool recurrent = qf_op_is_rnn(qf_op_of(node));
    qf_status status = absorb_activation(a, node, 0);
    if (status == QF_OK && recurrent)
        status = absorb_activation(a, node, 5);
    if (status == QF_OK)
        status = absorb_bias(a, node);
    if (status != QF_OK || !layer->weight.tensor)
        return status;
    if (!absorb_weight(a, node, 1, &layer->weight) ||
        (recurrent && !absorb_weight(a, node, 2, &layer->recurrence)) ||
        (layer->weight.integers && !flag_integers(a, node)))
        return qf_fail_memory(a->err);
    return QF_OK;
}

/* A layer that has a record and cannot be expressed. */
static void reject(absorber *a, const qf_node *node, size_t record, const char *problem)
{
    qf_plan *plan = a->plan;
    const char *key = qf_record_key(plan->record, record);
    if (plan->options.on_unsupported == QF_UNSUPPORTED_FLOAT) {
        qf_strmap_set(&plan->record_of_node, node->name, NULL);
        qf_plan_report(plan, QF_WARNING, record, key, "%s; the layer stays float", problem);
        return;
    }
    qf_plan_report(plan, QF_ERROR, record, key,
                   "%s; --on-unsupported float leaves such layers in float", problem);
}

static qf_status absorb_node(absorber *a, qf_node *node)
{
    const size_t *record = qf_strmap_get(&a->plan->record_of_node, node->name);
    qf_qdq_layer layer;
    qf_status status = record ? qf_qdq_layer_read(&a->q, node, &layer, a->err) : QF_OK;
    if (status != QF_OK || !record || !layer.quantized)
        return status;
    if (layer.problem[0]) {
        reject(a, node, *record, layer.problem);
        return QF_OK;
    }
    return absorb(a, node, &layer);
}

/* ---- redundant pairs ---- */

static int activation_bits(const AMCTPytorchProto__SingleLayerRecord *v)
{
    const char *type = v->dst_type ? v->dst_type : v->act_type ? v->act_type : "INT8";
    return strcmp(type, "INT4") == 0 ? 4 : strcmp(type, "INT16") == 0 ? 16 : 8;
}

/* Whether the layer quantizes this input of it just as `z` does. */
static bool quantizes_alike(const absorber *a, const qf_node *node, size_t input,
                            const qf_quantizer *z)
{
    const size_t *record = qf_strmap_get(&a->plan->record_of_node, node->name);
    if (!record || qf_op_of(node) == QF_OP_NONE)
        return false;
    const AMCTPytorchProto__SingleLayerRecord *v =
        qf_record_message(a->plan->record)->record[*record]->value;
    bool hidden = input == 5;
    if ((input != 0 && !(hidden && qf_op_is_rnn(qf_op_of(node)))) || activation_bits(v) != z->bits)
        return false;
    const float *scale = hidden ? &v->scale_h : &v->scale_d;
    return memcmp(scale, z->scales, sizeof *scale) == 0 &&
           (hidden ? v->offset_h : v->offset_d) == z->zeros[0];
}

/* Whether all that reads `value` quantizes it again with `z`, perhaps behind operators that make no
 * difference to that. */
static qf_status is_covered(absorber *a, const qf_value *value, const qf_quantizer *z,
                            unsigned *steps, bool *covered)
{
    qf_status status = QF_OK;
    *covered = !value->result_count;
    for (size_t i = 0; status == QF_OK && *covered && i < value->use_count; i++) {
        const qf_node *node = value->uses[i].node;
        size_t input = value->uses[i].input;
        qf_quantizer next;
        const char *why = "";
        if (!*steps || node->graph != value->graph) {
            *covered = false;
            break;
        }
        --*steps;
        if (quantizes_alike(a, node, input, z))
            continue;
        if (qf_is_quantize(node) && input == 0) {
            status = qf_quantizer_read(&a->q, node, &next, &why, a->err);
            *covered = !why && qf_quantizer_same(&next, z);
            continue;
        }
        *covered = qf_keeps_grid(node, input);
        for (size_t o = 0; status == QF_OK && *covered && o < node->output_count; o++) {
            if (node->outputs[o])
                status = is_covered(a, node->outputs[o], z, steps, covered);
        }
    }
    return status;
}

static qf_status reduce_pair(absorber *a, qf_node *dq)
{
    qf_node *quantize;
    qf_quantizer z;
    const char *why;
    unsigned steps = 1000;
    bool covered;
    qf_status status = paired_quantize(a, dq, &quantize);
    if (status != QF_OK || !quantize)
        return status;
    status = qf_quantizer_read(&a->q, dq, &z, &why, a->err);
    if (status == QF_OK)
        status = is_covered(a, dq->outputs[0], &z, &steps, &covered);
    if (status != QF_OK)
        return status;
    bool drop = a->plan->options.free_qdq == QF_FREE_QDQ_DROP && !dq->outputs[0]->result_count;
    if (!covered && !drop)
        return QF_OK;
    if (!qf_value_move_uses(a->ir, dq->outputs[0], quantize->inputs[0], NULL))
        return qf_fail_memory(a->err);
    drop_dead(a->ir, dq->outputs[0]);
    return QF_OK;
}

/* ---- the pass ---- */

typedef qf_status (*step)(absorber *a, qf_node *node);

static qf_status each(absorber *a, bool (*is)(const qf_node *node), step run)
{
    qf_status status = QF_OK;
    for (size_t i = 0; status == QF_OK && i < a->ir->node_count; i++) {
        qf_node *node = a->ir->by_id[i];
        if (node && is(node))
            status = run(a, node);
    }
    return status;
}

static bool is_clip(const qf_node *node)
{
    return qf_node_is(node, "Clip") && node->input_count && node->inputs[0] &&
           node->output_count == 1 && node->outputs[0];
}

static bool is_layer(const qf_node *node)
{
    return qf_op_of(node) != QF_OP_NONE;
}

qf_status qf_pass_absorb_qdq(qf_plan *plan, qf_ir *ir, qf_error *err)
{
    if (plan->options.source == QF_SOURCE_FLOAT || !plan->record_of_node.used)
        return QF_OK;
    if (!qf_qdq_any(ir)) {
        if (plan->options.source == QF_SOURCE_AUTO)
            return QF_OK;
        return qf_fail_at(err, QF_ERR_INPUT, (qf_where){.file = plan->model->files[0].path},
                          "the model has no QuantizeLinear or DequantizeLinear nodes; leave out "
                          "--from qdq");
    }
    absorber a = {plan, ir, {&plan->payloads, ir->arena, plan->model->files[0].path}, err};
    qf_status status = each(&a, is_clip, lower_clip);
    if (status == QF_OK)
        status = each(&a, is_layer, absorb_node);
    if (status == QF_OK)
        status = each(&a, qf_is_dequantize, reduce_pair);
    if (status == QF_OK)
        status = each(&a, qf_is_dequantize, make_float);
    return status;
}
