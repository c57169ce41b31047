/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Weights of the runnable model. The stored tensor is the deploy model's, byte for byte; INT4 is
 * unpacked by a node behind it.
 *
 * Two forms of INT4 are in use (facts 4.3): an int8 tensor with half as many input channels, each
 * byte a pair of them; and a native INT4 tensor, two neighbours in a byte, which operators read
 * only from opset 21 on: here its bytes become a uint8 vector. That an int8 tensor is of the first
 * form is written nowhere in a deploy model. It follows from the number of channels of the layer's
 * input, from the graph where it tells that, else when the model runs.
 */
#include <string.h>

#include "passes/run_function.h"

#define DATA(type) ONNX__TENSOR_PROTO__DATA_TYPE__##type

/* ---- functions ---- */

/* v mod 16 as a signed number: (v + 8) mod 16 - 8 */
static void build_unpack(qf_body *b, const qf_function *f)
{
    (void)f;
    qf_body_number(b, "n8", DATA(INT32), 8);
    qf_body_number(b, "n16", DATA(INT32), 16);
    qf_body_number(b, "n256", DATA(INT32), 256);
    qf_body_tensor(b, "pair_dims", "pair_shape");
    qf_body_tensor(b, "full_dims", "shape");
    qf_body_tensor(b, "full_count", "count");
    const int64_t start[] = {0}, flat[] = {-1};
    qf_body_int64s(b, "start", start, 1);
    qf_body_int64s(b, "flat_dims", flat, 1);
    qf_body_cast(b, "stored", "w", DATA(INT32));
    qf_body_step(b, "Mod", "byte", "stored n256");
    qf_body_step(b, "Mod", "low", "byte n16");
    qf_body_step(b, "Div", "high", "byte n16");
    qf_body_step(b, "Reshape", "low_pair", "low pair_dims");
    qf_body_step(b, "Reshape", "high_pair", "high pair_dims");
    qf_body_step(b, "Concat", "pairs", "low_pair high_pair");
    qf_body_ref(b, "axis", "pair_axis", ONNX__ATTRIBUTE_PROTO__ATTRIBUTE_TYPE__INT);
    qf_body_step(b, "Reshape", "flat", "pairs flat_dims");
    qf_body_step(b, "Slice", "elements", "flat start full_count"); /* an odd number ends in half */
    qf_body_step(b, "Reshape", "nibbles", "elements full_dims");
    qf_body_step(b, "Add", "above", "nibbles n8");
    qf_body_step(b, "Mod", "wrapped", "above n16");
    qf_body_step(b, "Sub", "signed", "wrapped n8");
    qf_body_cast(b, "y", "signed", DATA(INT8));
}

/* Of the n channels of w and the 2n of `unpacked`, those that are as many as x has: both lie behind
 * one another, and the slice from (channels - n) of so many is one or the other. */
static void build_choose(qf_body *b, const qf_function *f)
{
    (void)f;
    qf_body_tensor(b, "axes", "weight_axis");
    qf_body_tensor(b, "x_axes", "input_axis");
    qf_body_tensor(b, "groups", "divisor");
    qf_body_step(b, "Concat", "both", "w unpacked");
    qf_body_ref(b, "axis", "axis", ONNX__ATTRIBUTE_PROTO__ATTRIBUTE_TYPE__INT);
    qf_body_step(b, "Shape", "x_shape", "x");
    qf_body_step(b, "Gather", "x_extent", "x_shape x_axes");
    qf_body_step(b, "Div", "channels", "x_extent groups");
    qf_body_step(b, "Shape", "w_shape", "w");
    qf_body_step(b, "Gather", "stored", "w_shape axes");
    qf_body_step(b, "Sub", "start", "channels stored");
    qf_body_step(b, "Add", "end", "start channels");
    qf_body_step(b, "Slice", "y", "both start end axes");
}

/* ---- nodes ---- */

static uint64_t product(const int64_t *dims, size_t rank)
{
    uint64_t n = 1;
    for (size_t i = 0; i < rank; i++)
        n *= (uint64_t)dims[i];
    return n;
}

/* Where new nodes that read `stored` go: right behind what makes it. */
static qf_node *place_behind(const qf_value *stored)
{
    return stored->producer ? stored->producer->next : stored->graph->first;
}

/* UnpackInt4 of `stored`, whose bytes are pairs along `axis`; `dims` of the result. */
static qf_value *add_unpack(qf_runner *r, qf_value *stored, const int64_t *pair, size_t pair_rank,
                            size_t pair_axis, const int64_t *dims, size_t rank)
{
    static const qf_function function = {.name = "UnpackInt4",
                                         .build = build_unpack,
                                         .inputs = "w",
                                         .outputs = "y",
                                         .attributes = "pair_shape pair_axis shape count"};
    const int64_t count[] = {(int64_t)product(dims, rank)};
    qf_node *node = qf_run_add_node(r, stored->graph, stored->name, "unpack", place_behind(stored));
    if (!node || !qf_node_add_input(r->p->ir, node, stored) ||
        !qf_run_set_int64s(r, node, "pair_shape", pair, pair_rank) ||
        !qf_node_set_int(r->p->ir, node, "pair_axis", (int64_t)pair_axis) ||
        !qf_run_set_int64s(r, node, "shape", dims, rank) ||
        !qf_run_set_int64s(r, node, "count", count, 1) || !qf_run_call(r, node, &function))
        return NULL;
    return node->outputs[0];
}

/* The UnpackInt4 that another layer has put behind the tensor. */
static qf_value *find_unpack(const qf_value *stored)
{
    for (size_t i = 0; i < stored->use_count; i++) {
        if (qf_run_is(stored->uses[i].node, "UnpackInt4"))
            return stored->uses[i].node->outputs[0];
    }
    return NULL;
}

static qf_value *unpack_pairs(qf_runner *r, qf_value *stored, const int64_t *dims, size_t rank,
                              size_t axis)
{
    int64_t pair[QF_MAX_RANK + 1], full[QF_MAX_RANK];
    qf_value *known = find_unpack(stored);
    if (known)
        return known;
    memcpy(full, dims, rank * sizeof *dims);
    full[axis] *= 2;
    for (size_t i = 0; i <= rank; i++)
        pair[i] = i == axis + 1 ? 1 : dims[i > axis ? i - 1 : i];
    return add_unpack(r, stored, pair, rank + 1, axis + 1, full, rank);
}

/* The bytes of a native INT4 tensor as a vector, unpacked. */
static qf_value *unpack_native(qf_runner *r, qf_value *stored, Onnx__TensorProto *tensor)
{
    qf_value *known = find_unpack(stored);
    if (known)
        return known;
    int64_t dims[QF_MAX_RANK];
    memcpy(dims, tensor->dims, tensor->n_dims * sizeof *dims);
    size_t rank = tensor->n_dims;
    const int64_t bytes[] = {(int64_t)((product(dims, rank) + 1) / 2)}, pair[] = {bytes[0], 1};
    tensor->data_type = DATA(UINT8);
    tensor->dims = qf_arena_array(r->p->ir->arena, 1, sizeof *tensor->dims);
    if (!tensor->dims)
        return NULL;
    tensor->dims[0] = bytes[0];
    tensor->n_dims = 1;
    stored->retyped = true;
    return add_unpack(r, stored, pair, 2, 1, dims, rank);
}

/* The tensor or its unpacked form, whichever has as many channels as the input. */
static qf_value *choose(qf_runner *r, qf_value *stored, qf_value *unpacked, const qf_node *node,
                        const qf_weight_place *place, size_t axis)
{
    static const qf_function function = {.name = "ChooseChannels",
                                         .build = build_choose,
                                         .inputs = "w unpacked x",
                                         .outputs = "y",
                                         .attributes = "axis weight_axis input_axis divisor"};
    const int64_t axes[] = {(int64_t)axis};
    qf_value *inputs[] = {stored, unpacked, place->x};
    qf_node *chooser =
        qf_run_add_node(r, node->graph, node->name, "weight_channels", (qf_node *)(uintptr_t)node);
    if (!chooser || !qf_run_set_inputs(r, chooser, inputs, 3) ||
        !qf_node_set_int(r->p->ir, chooser, "axis", axes[0]) ||
        !qf_run_set_int64s(r, chooser, "weight_axis", axes, 1) ||
        !qf_run_set_int64s(r, chooser, "input_axis", &place->x_axis, 1) ||
        !qf_run_set_int64s(r, chooser, "divisor", &place->group, 1) ||
        !qf_run_call(r, chooser, &function))
        return NULL;
    return chooser->outputs[0];
}

/* ---- reading ---- */

/* The stored tensor behind a value, which may be unpacked for another layer already. */
static qf_value *stored_behind(qf_value *value)
{
    value = qf_value_source(value);
    if (value->producer && qf_run_is(value->producer, "UnpackInt4"))
        value = value->producer->inputs[0];
    return value;
}

/* The Transpose before a constant matrix. */
static qf_node *transpose_before(const qf_value *value)
{
    qf_node *node = value->producer;
    bool found = node && qf_node_is(node, "Transpose") && node->input_count == 1 && node->inputs[0];
    return found && qf_value_constant(stored_behind(node->inputs[0])) ? node : NULL;
}

/* Whether a Transpose of a matrix swaps its dimensions, as it does unless told otherwise. */
static bool swaps(const qf_node *transpose)
{
    const Onnx__AttributeProto *a = transpose ? qf_node_attribute(transpose, "perm") : NULL;
    return transpose && !(a && a->n_ints == 2 && a->ints[0] == 0 && a->ints[1] == 1);
}

/* Native INT4 became bytes for an earlier layer; its dims are with the UnpackInt4. */
static qf_value *known_native(const qf_value *stored, const Onnx__TensorProto *tensor,
                              int64_t dims[QF_MAX_RANK], size_t *rank)
{
    qf_value *unpacked = tensor && tensor->data_type == DATA(UINT8) ? find_unpack(stored) : NULL;
    const Onnx__AttributeProto *a =
        unpacked ? qf_node_attribute(unpacked->producer, "shape") : NULL;
    if (!a)
        return NULL;
    *rank = (size_t)a->t->dims[0];
    memcpy(dims, a->t->raw_data.data, *rank * sizeof *dims);
    return unpacked;
}

static qf_status check(const qf_runner *r, const qf_node *node, const qf_weight_place *place,
                       const Onnx__TensorProto *tensor)
{
    if (!tensor)
        return qf_run_refuse(r, node, "its weight is no constant");
    uint64_t count;
    if (tensor->n_dims < 2 || tensor->n_dims > QF_MAX_RANK || place->axis >= tensor->n_dims ||
        !qf_dims_count(tensor->dims, tensor->n_dims, &count) || !count)
        return qf_run_refuse(r, node, "its weight '%s' has no shape that a layer can have",
                             tensor->name ? tensor->name : "");
    if (tensor->data_type != DATA(INT8) && tensor->data_type != QF_DTYPE_INT4)
        return qf_run_refuse(r, node, "its weight '%s' is %s, not int8 or int4",
                             tensor->name ? tensor->name : "", qf_dtype_name(tensor->data_type));
    return QF_OK;
}

/* A native INT4 tensor that a DequantizeLinear reads too must stay one. */
static bool has_other_users(const qf_value *stored, const qf_node *user)
{
    for (size_t i = 0; i < stored->use_count; i++) {
        const qf_node *node = stored->uses[i].node;
        if (node != user && qf_node_is(node, "DequantizeLinear"))
            return true;
    }
    return stored->result_count > 0;
}

/* The int8 form of `stored`; dims[axis] becomes what it is then, or can be. */
static qf_value *int8_form(qf_runner *r, qf_node *node, qf_value *stored,
                           const qf_weight_place *place, size_t axis, int64_t *dims, size_t rank)
{
    if (place->extent == dims[axis] || (!place->extent && !place->x))
        return stored;
    qf_value *unpacked = unpack_pairs(r, stored, dims, rank, axis);
    dims[axis] *= 2;
    return unpacked && !place->extent ? choose(r, stored, unpacked, node, place, axis) : unpacked;
}

/* The int8 tensor of `stored`, with its dims. */
static qf_status read_stored(qf_runner *r, qf_node *node, qf_value *stored, qf_node *transpose,
                             const qf_weight_place *place, qf_value **out,
                             int64_t dims[QF_MAX_RANK], size_t *rank)
{
    Onnx__TensorProto *tensor = qf_value_constant(stored);
    *out = known_native(stored, tensor, dims, rank);
    if (*out)
        return QF_OK;
    qf_status status = check(r, node, place, tensor);
    if (status != QF_OK)
        return status;
    if (transpose && tensor->n_dims != 2)
        return qf_run_refuse(r, node, "the Transpose of its weight is not that of a matrix");
    size_t axis = swaps(transpose) ? 1 - place->axis : place->axis;
    *rank = tensor->n_dims;
    memcpy(dims, tensor->dims, *rank * sizeof *dims);
    bool native = tensor->data_type == QF_DTYPE_INT4;
    if (native && has_other_users(stored, transpose ? transpose : node))
        return qf_run_refuse(r, node, "its INT4 weight '%s' has other users", stored->name);
    if (!native && place->extent && place->extent != dims[axis] && place->extent != 2 * dims[axis])
        return qf_run_refuse(r, node, "its weight has %lld input channels, its input %lld",
                             (long long)dims[axis], (long long)place->extent);
    *out = native ? unpack_native(r, stored, tensor)
                  : int8_form(r, node, stored, place, axis, dims, *rank);
    return *out ? QF_OK : qf_fail_memory(r->p->err);
}

qf_status qf_run_read_weight(qf_runner *r, qf_node *node, const qf_weight_place *place,
                             qf_value **weight, int64_t dims[QF_MAX_RANK], size_t *rank)
{
    qf_value *value = node->input_count > place->index ? node->inputs[place->index] : NULL;
    if (!value)
        return qf_run_refuse(r, node, "it has no weight");
    qf_node *transpose = transpose_before(value);
    qf_value *stored = stored_behind(transpose ? transpose->inputs[0] : value);
    qf_status status = read_stored(r, node, stored, transpose, place, weight, dims, rank);
    if (status != QF_OK || !transpose)
        return status;
    if (*rank != 2) /* native INT4, met before */
        return qf_run_refuse(r, node, "the Transpose of its weight is not that of a matrix");
    if (swaps(transpose)) {
        int64_t first = dims[0];
        dims[0] = dims[1];
        dims[1] = first;
    }
    transpose->outputs[0]->retyped = true;
    if (!qf_node_set_input(r->p->ir, transpose, 0, *weight))
        return qf_fail_memory(r->p->err);
    *weight = transpose->outputs[0];
    return QF_OK;
}
