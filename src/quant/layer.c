/* SPDX-License-Identifier: Apache-2.0 */
#include "quant/layer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "exec/source.h"

static const char *const op_names[] = {"",       "Conv",        "ConvTranspose", "Gemm",
                                       "MatMul", "AveragePool", "LSTM",          "GRU"};

qf_op qf_op_of(const qf_node *node)
{
    for (int op = QF_OP_CONV; op <= QF_OP_GRU; op++) {
        if (qf_node_is(node, op_names[op]))
            return (qf_op)op;
    }
    return QF_OP_NONE;
}

const char *qf_op_name(qf_op op)
{
    return op_names[op];
}

bool qf_op_is_rnn(qf_op op)
{
    return op == QF_OP_LSTM || op == QF_OP_GRU;
}

size_t qf_op_gates(qf_op op)
{
    return op == QF_OP_LSTM ? 4 : 3;
}

bool qf_dtype_is_float(int32_t data_type)
{
    return data_type == ONNX__TENSOR_PROTO__DATA_TYPE__FLOAT ||
           data_type == ONNX__TENSOR_PROTO__DATA_TYPE__FLOAT16 ||
           data_type == ONNX__TENSOR_PROTO__DATA_TYPE__BFLOAT16 ||
           data_type == ONNX__TENSOR_PROTO__DATA_TYPE__DOUBLE;
}

static void refuse(qf_probe *p, const char *reason)
{
    p->quantizable = false;
    snprintf(p->reason, sizeof p->reason, "%s", reason);
}

/* ---- weights ---- */

static Onnx__TensorProto *input_constant(const qf_node *node, size_t index)
{
    return index < node->input_count && node->inputs[index] ? qf_value_constant(node->inputs[index])
                                                            : NULL;
}

static void find_weight(const qf_node *node, qf_probe *p)
{
    qf_value *value = node->input_count > 1 ? node->inputs[1] : NULL;
    p->weight_user = (qf_node *)node;
    if (value && value->producer && qf_node_is(value->producer, "Transpose") &&
        value->producer->input_count == 1 && qf_node_output(value->producer) == value) {
        p->weight_user = value->producer;
        value = value->producer->inputs[0];
    }
    p->weight_value = value;
    p->weight = value ? qf_value_constant(value) : NULL;
    if (!p->weight) {
        refuse(p, "its weight is not a constant tensor");
        return;
    }
    if (!qf_dtype_is_float(p->weight->data_type) &&
        !(p->integers && qf_source_is_integer(p->weight->data_type))) {
        snprintf(p->reason, sizeof p->reason,
                 "its weight has dtype %s; float32, float16, bfloat16 "
                 "or float64 is needed",
                 qf_dtype_name(p->weight->data_type));
        p->quantizable = false;
    } else if (qf_tensor_payload(p->weight) == SIZE_MAX) {
        refuse(p, "its weight tensor is empty or stored in an unusual way (unpacked float_data); "
                  "save the model again with the onnx package");
    } else if (p->weight->n_dims > QF_MAX_RANK) {
        refuse(p, "its weight has more than 8 dimensions");
    }
}

static uint64_t dim(const Onnx__TensorProto *tensor, size_t i)
{
    return i < tensor->n_dims && tensor->dims[i] > 0 ? (uint64_t)tensor->dims[i] : 0;
}

/* ---- operators ---- */

static void check_kernel_shape(const qf_node *node, qf_probe *p)
{
    const Onnx__AttributeProto *a = qf_node_attribute(node, "kernel_shape");
    size_t spatial = p->weight && p->weight->n_dims > 2 ? p->weight->n_dims - 2 : 0;
    /* the reference needs the attribute; where it is absent ONNX infers it from the weight */
    size_t n = a ? a->n_ints : spatial;
    if (n < 1 || n > 3)
        refuse(p, "only 1, 2 or 3 spatial dimensions are supported");
    else if (p->weight && n != spatial)
        refuse(p, "kernel_shape and the weight's rank do not fit together");
}

static void probe_conv(const qf_node *node, qf_probe *p)
{
    p->group = qf_node_int(node, "group", 1);
    find_weight(node, p);
    if (!p->quantizable)
        return;
    check_kernel_shape(node, p);
    const Onnx__TensorProto *w = p->weight;
    if (p->weight_user != node) {
        refuse(p, "its weight is behind a Transpose node; store it transposed");
    } else if (p->group < 1) {
        refuse(p, "its group attribute is not positive");
    } else if (p->op == QF_OP_CONV) {
        p->channels = dim(w, 0);
        p->input_channels = dim(w, 1) * (uint64_t)p->group;
        if (dim(w, 0) % (uint64_t)p->group)
            refuse(p, "its output channels are not divisible by group");
    } else {
        p->channels = dim(w, 1) * (uint64_t)p->group;
        p->input_channels = dim(w, 0);
        if (dim(w, 0) % (uint64_t)p->group)
            refuse(p, "its input channels are not divisible by group");
    }
}

/* Whether a Transpose of two dimensions swaps them, which is the default. */
static bool swaps(const qf_node *transpose)
{
    const Onnx__AttributeProto *perm = qf_node_attribute(transpose, "perm");
    return !perm || perm->n_ints != 2 || perm->ints[0] != 0;
}

static void probe_matrix(const qf_node *node, qf_probe *p)
{
    find_weight(node, p);
    if (!p->quantizable)
        return;
    const Onnx__TensorProto *w = p->weight;
    if (w->n_dims != 2) {
        refuse(p, "its weight does not have two dimensions");
        return;
    }
    p->turned = p->weight_user != node && swaps(p->weight_user);
    bool transposed = p->turned;
    if (p->op == QF_OP_GEMM) {
        if (qf_node_int(node, "transA", 0) == 1)
            refuse(p, "transA = 1 is not supported");
        transposed ^= qf_node_int(node, "transB", 0) != 0;
    }
    p->channels = dim(w, transposed ? 0 : 1);
    /* the reference looks at the stored tensor alone, not at a Transpose node behind it */
    p->input_channels = dim(w, p->op == QF_OP_GEMM && qf_node_int(node, "transB", 0) != 0);
}

static bool connected(const qf_node *node, size_t input)
{
    return input < node->input_count && node->inputs[input];
}

/* Pushes what makes `value`, once. */
static bool push_producer(const qf_value *value, const qf_node ***stack, size_t *count, size_t *cap,
                          qf_strmap *seen)
{
    const qf_node *node = value->producer;
    if (!node || qf_strmap_get(seen, node->name))
        return true;
    if (!qf_grow((void **)stack, cap, *count + 1, sizeof **stack) ||
        !qf_strmap_set(seen, node->name, (void *)node))
        return false;
    (*stack)[(*count)++] = node;
    return true;
}

/* Whether a value depends on a graph input, however far away. */
static bool from_graph_input(const qf_value *value)
{
    const qf_node **stack = NULL;
    size_t count = 0, cap = 0;
    qf_strmap seen = {0};
    bool found = value->input != NULL;
    bool memory = push_producer(value, &stack, &count, &cap, &seen);
    while (memory && !found && count) {
        const qf_node *node = stack[--count];
        for (size_t i = 0; memory && i < node->input_count; i++) {
            const qf_value *in = node->inputs[i];
            found |= in && in->input;
            memory = !in || push_producer(in, &stack, &count, &cap, &seen);
        }
    }
    free(stack);
    qf_strmap_release(&seen);
    return found;
}

static bool string_is(const qf_node *node, const char *name, const char *missing, const char *want)
{
    const Onnx__AttributeProto *a = qf_node_attribute(node, name);
    if (!a)
        return strcmp(missing, want) == 0;
    return a->s.len == strlen(want) && memcmp(a->s.data, want, a->s.len) == 0;
}

static void check_rnn_state(const qf_node *node, size_t input, const char *name, qf_probe *p)
{
    if (!connected(node, input))
        snprintf(p->reason, sizeof p->reason, "its %s is not connected", name);
    else if (!from_graph_input(node->inputs[input]))
        snprintf(p->reason, sizeof p->reason, "its %s does not come from a graph input", name);
    else
        return;
    p->quantizable = false;
}

static void check_rnn_attributes(const qf_node *node, qf_probe *p)
{
    static const char *const absent[] = {"activation_alpha", "activation_beta", "activations",
                                         "clip"};
    size_t n = p->op == QF_OP_LSTM ? 4 : 3; /* GRU may clip */
    for (size_t i = 0; i < n; i++) {
        if (qf_node_attribute(node, absent[i])) {
            snprintf(p->reason, sizeof p->reason, "attribute %s must be absent", absent[i]);
            p->quantizable = false;
        }
    }
    if (!string_is(node, "direction", "forward", "forward"))
        refuse(p, "only direction forward is supported");
    else if (qf_node_int(node, "layout", 0) != 0)
        refuse(p, "only layout 0 is supported");
    else if (p->op == QF_OP_LSTM && qf_node_int(node, "input_forget", 0) != 0)
        refuse(p, "input_forget must be 0");
    else if (p->op == QF_OP_GRU && qf_node_int(node, "linear_before_reset", 0) == 0)
        refuse(p, "linear_before_reset must not be 0");
}

static void probe_rnn(const qf_node *node, qf_probe *p)
{
    bool lstm = p->op == QF_OP_LSTM;
    find_weight(node, p);
    p->recurrence = input_constant(node, 2);
    if (!p->quantizable)
        return;
    const Onnx__TensorProto *w = p->weight, *r = p->recurrence;
    if (p->weight_user != node) {
        refuse(p, "its weight is behind a Transpose");
    } else if (!r || r->data_type != w->data_type || qf_tensor_payload(r) == SIZE_MAX) {
        refuse(p, "its recurrence weight is not a constant tensor of the weight's dtype");
    } else if (w->n_dims != 3 || r->n_dims != 3 || dim(w, 0) != 1 || dim(r, 0) != 1) {
        refuse(p, "W and R must have three dimensions, the first of them 1");
    } else if (dim(w, 1) != dim(r, 1) || !dim(w, 1) || dim(w, 1) % qf_op_gates(p->op)) {
        refuse(p, "W and R do not have the same whole number of gates");
    } else if (lstm && connected(node, 7)) {
        refuse(p, "peephole weights (P) are not supported");
    } else {
        if (node->output_count < (lstm ? 3u : 2u))
            refuse(p, lstm ? "it needs its three outputs Y, Y_h, Y_c"
                           : "it needs its two outputs Y, Y_h");
        check_rnn_state(node, 5, "initial_h", p);
        if (lstm)
            check_rnn_state(node, 6, "initial_c", p);
        check_rnn_attributes(node, p);
    }
    p->channels = dim(w, 1);
}

void qf_layer_probe(const qf_node *node, unsigned flags, qf_probe *out)
{
    *out = (qf_probe){.op = qf_op_of(node),
                      .quantizable = true,
                      .group = 1,
                      .channels = 1,
                      .integers = flags & QF_NODE_INTEGERS};
    switch (out->op) {
    case QF_OP_CONV:
    case QF_OP_CONV_TRANSPOSE:
        probe_conv(node, out);
        break;
    case QF_OP_GEMM:
    case QF_OP_MATMUL:
        probe_matrix(node, out);
        break;
    case QF_OP_LSTM:
    case QF_OP_GRU:
        probe_rnn(node, out);
        break;
    case QF_OP_AVERAGE_POOL:
        break;
    case QF_OP_NONE:
        snprintf(out->reason, sizeof out->reason, "operators of type %.60s are not quantized",
                 node->proto->op_type ? node->proto->op_type : "(none)");
        out->quantizable = false;
        break;
    }
    if (!connected(node, 0))
        refuse(out, "its input is not connected");
    if (!qf_op_is_rnn(out->op) && !qf_node_output(node))
        refuse(out, "its output has no name");
    if (flags & QF_NODE_REUSED)
        refuse(out, "its module is used more than once in the graph, so one record cannot describe "
                    "it");
    if (flags & QF_NODE_UNBATCHED)
        refuse(out, "its input has no batch axis");
    uint64_t count;
    if (out->quantizable && out->weight &&
        (!qf_dims_count(out->weight->dims, out->weight->n_dims, &count) || !count))
        refuse(out, "its weight has a zero or negative dimension");
}
