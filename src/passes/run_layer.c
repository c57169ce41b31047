/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Layers between AscendQuant and AscendDequant. Conv, Gemm and MatMul become functions over
 * ConvInteger and MatMulInteger, whose sums are int32; ConvTranspose, which has no integer
 * operator, is in run_transpose.c. The int32 bias is added to the int32 sum. Sums that leave int32
 * wrap; what the NPU does then is not known, so there is a warning where a sum can get so far.
 *
 * AveragePool stays what it is: it works on the integers less their offset as float32, which is how
 * the fake_quant model defines it, the mean of exact sums.
 */
#include <string.h>

#include "passes/run_function.h"

#define DATA(type) ONNX__TENSOR_PROTO__DATA_TYPE__##type

/* A layer of which the pass knows what it is, and the parts of the graph around it. */
typedef struct layer {
    qf_node *node, *dequant, *quant;
    const qf_layer *plan; /* NULL for a deploy model that was read */
    qf_value *bias;
    bool wide;
    size_t rank; /* of the weight */
} layer;

/* ---- functions ---- */

static void add_bias(qf_body *b, bool shaped)
{
    qf_body_cast(b, "bias_i32", "bias", DATA(INT32)); /* float behind a Cast for INT4 activations */
    if (shaped) {
        qf_body_tensor(b, "bias_dims", "bias_shape");
        qf_body_step(b, "Reshape", "bias_shaped", "bias_i32 bias_dims");
    }
    qf_body_step(b, "Add", "y", shaped ? "sum bias_shaped" : "sum bias_i32");
}

static void build_conv(qf_body *b, const qf_function *f)
{
    qf_body_integers(b);
    qf_body_multiply(b, f->bias ? "sum" : "y", "ConvInteger", "q", "zero", "w", f->wide);
    if (f->bias)
        add_bias(b, true);
}

static void build_matrix(qf_body *b, const qf_function *f)
{
    qf_body_integers(b);
    qf_body_multiply(b, f->bias ? "sum" : "y", "MatMulInteger", "q", "zero", "w", f->wide);
    if (f->bias)
        add_bias(b, false);
}

static void build_integers(qf_body *b, const qf_function *f)
{
    (void)f;
    qf_body_cast(b, "q_float", "q", DATA(FLOAT));
    qf_body_cast(b, "zero_float", "zero", DATA(FLOAT));
    qf_body_step(b, "Sub", "y", "q_float zero_float");
}

/* ---- shared by the layers ---- */

/* The node's inputs become (q, zero, w, bias), and the node a call of `f`, whose name gets what
 * tells its variants apart. */
static qf_status call(qf_runner *r, const layer *l, qf_value *weight, qf_function f)
{
    qf_value *inputs[] = {l->node->inputs[0], l->quant->outputs[1], weight, l->bias};
    f.wide = l->wide;
    f.bias = l->bias != NULL;
    f.inputs = f.bias ? "q zero w bias" : "q zero w";
    f.outputs = "y";
    f.name = qf_arena_printf(r->p->ir->arena, "%s%s%s", f.name, f.wide ? "Int16" : "",
                             f.bias ? "" : "NoBias");
    l->node->outputs[0]->retyped = true;
    if (!f.name || !qf_run_set_inputs(r, l->node, inputs, f.bias ? 4 : 3) ||
        !qf_run_call(r, l->node, &f))
        return qf_fail_memory(r->p->err);
    return QF_OK;
}

/* Remembers a layer whose sum of `terms` products may leave int32. */
static void note_range(qf_runner *r, const layer *l, int64_t terms)
{
    int64_t most = (l->wide ? 65535 : 255) * INT64_C(128);
    if (terms <= INT32_MAX / most)
        return;
    r->first_wrap = r->wraps++ ? r->first_wrap : l->node->name;
}

/* How many input channels the weight has when it is unpacked: the plan knows, else the input tells.
 */
static qf_weight_place place_of(const layer *l, size_t axis, int64_t x_axis, int64_t group)
{
    qf_weight_place place = {.index = 1, .axis = axis, .x_axis = x_axis, .group = group};
    if (!l->plan) {
        place.x = l->node->inputs[0];
        place.extent = qf_run_extent(place.x, x_axis) / group;
        return place;
    }
    const qf_weight *w = &l->plan->weights[0];
    for (size_t i = 0; i < w->rank; i++) {
        if (w->dims[i] != w->packed_dims[i])
            place.extent = w->dims[i];
    }
    return place; /* with no extent and no x: as it is stored */
}

static int64_t product(const int64_t *dims, size_t from, size_t to)
{
    int64_t n = 1;
    for (size_t i = from; i < to; i++)
        n *= dims[i];
    return n;
}

/* ---- Conv and ConvTranspose ---- */

/* Channels along axis 1, as the output has them. */
static bool set_bias_shape(qf_runner *r, const layer *l)
{
    int64_t shape[QF_MAX_RANK] = {1, -1, 1, 1, 1, 1, 1, 1};
    return !l->bias || qf_run_set_int64s(r, l->node, "bias_shape", shape, l->rank);
}

static qf_status run_conv(qf_runner *r, layer *l)
{
    static const qf_function function = {
        .name = "Conv",
        .build = build_conv,
        .attributes = "auto_pad dilations group kernel_shape pads strides bias_shape"};
    int64_t dims[QF_MAX_RANK], group = qf_node_int(l->node, "group", 1);
    if (group < 1)
        return qf_run_refuse(r, l->node, "its group is %lld", (long long)group);
    qf_weight_place place = place_of(l, 1, 1, group);
    qf_value *weight;
    qf_status status = qf_run_read_weight(r, l->node, &place, &weight, dims, &l->rank);
    if (status != QF_OK)
        return status;
    note_range(r, l, product(dims, 1, l->rank));
    return set_bias_shape(r, l) ? call(r, l, weight, function) : qf_fail_memory(r->p->err);
}

static qf_status run_conv_transpose(qf_runner *r, layer *l)
{
    int64_t dims[QF_MAX_RANK], group = qf_node_int(l->node, "group", 1);
    if (group < 1)
        return qf_run_refuse(r, l->node, "its group is %lld", (long long)group);
    qf_weight_place place = place_of(l, 0, 1, 1);
    qf_value *weight;
    qf_status status = qf_run_read_weight(r, l->node, &place, &weight, dims, &l->rank);
    if (status != QF_OK)
        return status;
    int64_t terms = dims[0] / group * product(dims, 2, l->rank);
    note_range(r, l, terms);
    qf_value *all[] = {l->node->inputs[0], l->quant->outputs[1], weight, l->bias};
    l->node->outputs[0]->retyped = true;
    if (!set_bias_shape(r, l) || !qf_run_set_inputs(r, l->node, all, l->bias ? 4 : 3))
        return qf_fail_memory(r->p->err);
    return qf_run_conv_transpose(r, l->node, terms, l->wide, l->bias != NULL);
}

/* ---- Gemm and MatMul ---- */

/* Puts a Transpose behind a weight that Gemm would have transposed. */
static qf_value *transposed(qf_runner *r, const layer *l, qf_value *weight)
{
    qf_node *node = qf_run_add_node(r, l->node->graph, l->node->name, "weight_turned", l->node);
    if (!node || !qf_node_add_input(r->p->ir, node, weight))
        return NULL;
    node->proto->op_type = qf_arena_strdup(r->p->ir->arena, "Transpose");
    return node->proto->op_type ? node->outputs[0] : NULL;
}

static qf_status run_matrix(qf_runner *r, layer *l)
{
    qf_function function = {.name = "MatMul", .build = build_matrix, .attributes = ""};
    bool gemm = qf_node_is(l->node, "Gemm");
    bool trans_b = gemm && qf_node_int(l->node, "transB", 0) != 0;
    if (gemm && qf_node_int(l->node, "transA", 0))
        return qf_run_refuse(r, l->node, "it transposes its input (transA)");
    if (gemm && (qf_node_float(l->node, "alpha", 1) != 1 ||
                 (l->bias && qf_node_float(l->node, "beta", 1) != 1)))
        return qf_run_refuse(r, l->node,
                             "with alpha or beta other than 1 its sums are no integers");
    qf_weight_place place = place_of(l, trans_b ? 1 : 0, -1, 1);
    int64_t dims[QF_MAX_RANK];
    qf_value *weight;
    qf_status status = qf_run_read_weight(r, l->node, &place, &weight, dims, &l->rank);
    if (status != QF_OK)
        return status;
    note_range(r, l, dims[trans_b ? 1 : 0]);
    weight = trans_b ? transposed(r, l, weight) : weight;
    if (!weight)
        return qf_fail_memory(r->p->err);
    if (gemm) {
        l->node->proto->n_attribute = 0;
        function.name = "Gemm";
    }
    return call(r, l, weight, function);
}

/* ---- AveragePool ---- */

/* The pool, or the Pad before it, reads the integers as floats, so that padding with 0 is right. */
static qf_status run_pool(qf_runner *r, layer *l)
{
    static const qf_function function = {.name = "Integers",
                                         .build = build_integers,
                                         .inputs = "q zero",
                                         .outputs = "y",
                                         .attributes = ""};
    qf_node *reader = l->node;
    while (reader->inputs[0] != l->quant->outputs[0])
        reader = reader->inputs[0]->producer;
    qf_node *node = qf_run_add_node(r, reader->graph, l->node->name, "integers", reader);
    if (!node || !qf_run_set_inputs(r, node, l->quant->outputs, 2) ||
        !qf_run_call(r, node, &function) ||
        !qf_node_set_input(r->p->ir, reader, 0, node->outputs[0]))
        return qf_fail_memory(r->p->err);
    return QF_OK;
}

/* The AscendQuant of a pool, which may be before a Pad. */
static qf_node *quant_of_pool(const qf_node *pool)
{
    const qf_node *before = pool->inputs[0] ? pool->inputs[0]->producer : NULL;
    if (before && qf_node_is(before, "Pad") && before->input_count && before->inputs[0])
        return qf_run_quant_of(before->inputs[0]);
    return pool->inputs[0] ? qf_run_quant_of(pool->inputs[0]) : NULL;
}

/* ---- the layer of a dequant ---- */

/* The MatMul before an Add of its bias. */
static qf_node *behind_add(const qf_node *node)
{
    if (!qf_node_is(node, "Add") || node->input_count != 2)
        return NULL;
    for (size_t i = 0; i < 2; i++) {
        qf_node *producer = node->inputs[i] ? node->inputs[i]->producer : NULL;
        if (producer && qf_node_is(producer, "MatMul") && producer->outputs[0] == node->inputs[i])
            return producer;
    }
    return NULL;
}

/* The Add is one of int32; with INT4 activations there is a Cast to float before its bias. */
static qf_status keep_integers(qf_runner *r, qf_node *add, const qf_node *matrix)
{
    qf_value *bias = add->inputs[add->inputs[0] == matrix->outputs[0]];
    qf_node *cast =
        bias && bias->producer && qf_node_is(bias->producer, "Cast") ? bias->producer : NULL;
    const Onnx__TensorProto *tensor =
        bias ? qf_value_constant(cast && cast->input_count ? cast->inputs[0] : bias) : NULL;
    if (!tensor || tensor->data_type != DATA(INT32))
        return qf_run_refuse(r, matrix, "what is added to its sums is no constant of int32");
    add->outputs[0]->retyped = true;
    if (!cast)
        return QF_OK;
    if (qf_value_only_user(bias) != add)
        return qf_run_refuse(r, matrix, "its bias has other users");
    bias->retyped = true;
    return qf_node_set_int(r->p->ir, cast, "to", DATA(INT32)) ? QF_OK : qf_fail_memory(r->p->err);
}

static qf_status run_by_type(qf_runner *r, layer *l)
{
    l->rank = 2;
    if (qf_node_is(l->node, "Conv"))
        return run_conv(r, l);
    if (qf_node_is(l->node, "ConvTranspose"))
        return run_conv_transpose(r, l);
    if (qf_node_is(l->node, "Gemm") || qf_node_is(l->node, "MatMul"))
        return run_matrix(r, l);
    if (qf_node_is(l->node, "AveragePool"))
        return run_pool(r, l);
    return qf_run_refuse(r, l->node, "no integer form of this operator is known");
}

qf_status qf_run_layer(qf_runner *r, qf_node *dequant)
{
    if (dequant->input_count < 2 || !dequant->inputs[0] || !dequant->inputs[1] ||
        !dequant->inputs[0]->producer || !dequant->output_count || !dequant->outputs[0])
        return qf_run_refuse(r, dequant, "it is behind no layer, or has no parameter or output");
    qf_node *last = dequant->inputs[0]->producer, *matrix = behind_add(last);
    layer l = {.node = matrix ? matrix : last, .dequant = dequant, .plan = dequant->tag};
    if (!l.node->input_count || !l.node->inputs[0] || last->outputs[0] != dequant->inputs[0] ||
        dequant->inputs[0]->result_count)
        return qf_run_refuse(r, l.node, "it has no input, or its sum is an output of the graph");
    l.quant = qf_node_is(l.node, "AveragePool") ? quant_of_pool(l.node)
                                                : qf_run_quant_of(l.node->inputs[0]);
    if (!l.quant)
        return qf_run_refuse(r, l.node, "its input is no output of an AscendQuant");
    qf_status status = matrix ? keep_integers(r, last, matrix) : QF_OK;
    if (status != QF_OK)
        return status;
    l.wide = qf_run_is_wide(l.quant);
    if (l.node->input_count > 2 && !matrix)
        l.bias = l.node->inputs[2];
    status = run_by_type(r, &l);
    return status == QF_OK ? qf_run_dequant(r, dequant, l.rank) : status;
}
