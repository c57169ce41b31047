/* SPDX-License-Identifier: Apache-2.0 */
/* What a deploy graph tells about its tensors without being run: from the shapes and types that are
 * written in it, and behind operators that keep them. */
#include <string.h>

#include "passes/run_function.h"

#define DATA(type) ONNX__TENSOR_PROTO__DATA_TYPE__##type

enum { VISITS = 400 }; /* what lies further away is not known */

static const Onnx__TypeProto__Tensor *tensor_type(const qf_value *value)
{
    const Onnx__ValueInfoProto *info = value->input          ? value->input
                                       : value->info         ? value->info
                                       : value->result_count ? value->results[0]
                                                             : NULL;
    return info && info->type ? info->type->tensor_type : NULL;
}

static bool one_of(const qf_node *node, const char *const *names)
{
    for (; *names; names++) {
        if (qf_node_is(node, *names) || qf_run_is(node, *names))
            return true;
    }
    return false;
}

/* ---- extents ---- */

static int64_t written_extent(const qf_value *value, int64_t axis)
{
    const Onnx__TypeProto__Tensor *type = tensor_type(value);
    size_t rank = type && type->shape ? type->shape->n_dim : 0;
    size_t at = axis < 0 ? rank - 1 : (size_t)axis;
    const Onnx__TensorShapeProto__Dimension *d = at < rank ? type->shape->dim[at] : NULL;
    return d && d->value_case == ONNX__TENSOR_SHAPE_PROTO__DIMENSION__VALUE_DIM_VALUE &&
                   d->dim_value > 0
               ? d->dim_value
               : 0;
}

/* The weight of a layer, before or after its node became a call; packed if it is so stored. */
static const Onnx__TensorProto *layer_weight(const qf_node *layer, bool call)
{
    size_t index = call ? 2 : 1;
    qf_value *value = layer->input_count > index ? layer->inputs[index] : NULL;
    if (value && value->producer && qf_run_is(value->producer, "UnpackInt4"))
        value = value->producer->inputs[0];
    return value ? qf_value_constant(value) : NULL;
}

/* What a layer makes: its channels, or its columns. Packing halves another axis. */
static int64_t layer_extent(const qf_node *layer, int64_t axis)
{
    bool call = qf_run_is(layer, "");
    bool transposed = qf_node_is(layer, "ConvTranspose") || qf_run_is(layer, "ConvTranspose");
    bool conv = qf_node_is(layer, "Conv") || (!transposed && qf_run_is(layer, "Conv"));
    bool matrix = qf_node_is(layer, "MatMul") || qf_run_is(layer, "MatMul") ||
                  qf_run_is(layer, "Gemm") ||
                  (qf_node_is(layer, "Gemm") && !qf_node_int(layer, "transB", 0));
    const Onnx__TensorProto *w = conv || transposed || matrix ? layer_weight(layer, call) : NULL;
    if (!w || w->n_dims < 2)
        return 0;
    if (matrix)
        return axis < 0 && w->n_dims == 2 ? w->dims[1] : 0;
    if (axis != 1 || w->n_dims < 3)
        return 0;
    return conv ? w->dims[0] : w->dims[1] * qf_node_int(layer, "group", 1);
}

static bool is_keeper(const qf_node *node)
{
    static const char *const keepers[] = {"Identity",
                                          "Relu",
                                          "LeakyRelu",
                                          "PRelu",
                                          "Clip",
                                          "Sigmoid",
                                          "Tanh",
                                          "Elu",
                                          "HardSigmoid",
                                          "HardSwish",
                                          "Softplus",
                                          "Dropout",
                                          "Cast",
                                          "Softmax",
                                          "AscendQuant",
                                          "AscendAntiQuant",
                                          "AscendDequant",
                                          "Gelu",
                                          "Erf",
                                          "BatchNormalization",
                                          "LayerNormalization",
                                          NULL};
    return one_of(node, keepers);
}

static bool is_pool(const qf_node *node)
{
    static const char *const pools[] = {"MaxPool", "AveragePool", "GlobalAveragePool", NULL};
    return one_of(node, pools);
}

static bool is_pair(const qf_node *node)
{
    static const char *const pairs[] = {"Add", "Sub", "Mul", "Div", NULL};
    return one_of(node, pairs) && node->input_count == 2 && node->inputs[0] && node->inputs[1];
}

/* The number of dims; -1: not known. */
static int64_t find_rank(const qf_value *value, int *visits)
{
    const Onnx__TypeProto__Tensor *type = tensor_type(value);
    const qf_node *node = value->producer;
    if (value->init)
        return (int64_t)value->init->n_dims;
    if (type && type->shape)
        return (int64_t)type->shape->n_dim;
    if (!node || !node->input_count || !node->inputs[0] || --*visits < 0)
        return -1;
    if (is_keeper(node) || is_pool(node))
        return find_rank(node->inputs[0], visits);
    if (is_pair(node)) {
        int64_t a = find_rank(node->inputs[0], visits), b = find_rank(node->inputs[1], visits);
        return a < 0 || b < 0 ? -1 : a > b ? a : b;
    }
    static const char *const layers[] = {"Conv", "ConvTranspose", NULL};
    const Onnx__TensorProto *w =
        one_of(node, layers) ? layer_weight(node, qf_run_is(node, "")) : NULL;
    return w && w->n_dims > 2 ? (int64_t)w->n_dims : -1;
}

static int64_t find_extent(const qf_value *value, int64_t axis, int *visits);

/* An axis of what two operands make together: their dims are aligned at the last, and 1 gives way
 * to any other. */
static int64_t pair_extent(const qf_node *node, int64_t axis, int *visits)
{
    int64_t ranks[2] = {0, 0}, extents[2] = {0, 0};
    for (size_t i = 0; axis >= 0 && i < 2; i++) {
        ranks[i] = find_rank(node->inputs[i], visits);
        if (ranks[i] < 0)
            return 0;
    }
    int64_t most = ranks[0] > ranks[1] ? ranks[0] : ranks[1];
    for (size_t i = 0; i < 2; i++) {
        int64_t at = axis - (most - ranks[i]);
        bool absent = axis >= 0 && at < 0;
        extents[i] = absent ? 1 : find_extent(node->inputs[i], at, visits);
        if (extents[i] > 1)
            return extents[i];
    }
    return extents[0] == 1 && extents[1] == 1 ? 1 : 0;
}

/* The columns that Flatten makes of [N, C, ...]: C, if a global pool has left nothing else. */
static int64_t flattened_extent(const qf_node *flatten, int *visits)
{
    const qf_node *before = flatten->inputs[0]->producer;
    bool pooled = before && qf_node_is(before, "GlobalAveragePool") && before->input_count &&
                  before->inputs[0];
    return pooled && qf_node_int(flatten, "axis", 1) == 1
               ? find_extent(before->inputs[0], 1, visits)
               : 0;
}

static int64_t find_extent(const qf_value *value, int64_t axis, int *visits)
{
    int64_t extent = written_extent(value, axis);
    const qf_node *node = value->producer;
    if (extent || !node || !node->input_count || !node->inputs[0] || --*visits < 0)
        return extent;
    if (is_keeper(node) || (axis == 1 && is_pool(node)))
        return find_extent(node->inputs[0], axis, visits);
    if (axis < 0 && qf_node_is(node, "Flatten"))
        return flattened_extent(node, visits);
    if (is_pair(node))
        return pair_extent(node, axis, visits);
    return layer_extent(node, axis);
}

int64_t qf_run_extent(const qf_value *value, int64_t axis)
{
    int visits = VISITS;
    return find_extent(value, axis, &visits);
}

/* ---- types ---- */

static bool is_float(int32_t type)
{
    return type == DATA(FLOAT) || type == DATA(FLOAT16) || type == DATA(DOUBLE) ||
           type == DATA(BFLOAT16);
}

static int32_t written_type(const qf_value *value)
{
    const Onnx__TypeProto__Tensor *type = tensor_type(value);
    const qf_node *node = value->producer;
    const Onnx__AttributeProto *a =
        node && qf_node_is(node, "Constant") ? qf_node_attribute(node, "value") : NULL;
    if (value->init)
        return value->init->data_type;
    if (type && !value->retyped)
        return type->elem_type;
    if (node && qf_node_is(node, "Cast"))
        return (int32_t)qf_node_int(node, "to", 0);
    return a && a->t ? a->t->data_type : 0;
}

static int32_t find_type(const qf_value *value, int *visits)
{
    int32_t type = written_type(value);
    const qf_node *node = value->producer;
    if (is_float(type) || --*visits < 0)
        return is_float(type) ? type : 0;
    type = 0;
    for (size_t i = 0; node && !type && i < node->input_count; i++)
        type = node->inputs[i] ? find_type(node->inputs[i], visits) : 0;
    return type;
}

int32_t qf_run_float_type(const qf_runner *r, const qf_value *value)
{
    int visits = VISITS;
    int32_t type = r->mixed ? find_type(value, &visits) : 0;
    return type ? type : DATA(FLOAT);
}

/* ---- integers ---- */

qf_node *qf_run_quant_of(qf_value *value)
{
    static const char *const movers[] = {"Identity", "Reshape",   "Transpose", "Flatten",
                                         "Squeeze",  "Unsqueeze", NULL};
    for (int visits = VISITS; value && value->producer && visits; visits--) {
        qf_node *node = value->producer;
        value->retyped = true; /* a type that is written for it was of floats */
        if (qf_run_is(node, "AscendQuant"))
            return value == node->outputs[0] ? node : NULL;
        if (!one_of(node, movers) || !node->input_count)
            return NULL;
        value = node->inputs[0];
    }
    return NULL;
}
