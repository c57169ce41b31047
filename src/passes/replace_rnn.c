/* SPDX-License-Identifier: Apache-2.0 */
/* Deploy: LSTM and GRU become the NPU's operators with all quantization parameters on the node
 * (facts 4.6). The reference writes the attributes in an order that changes from run to run; here
 * it is the order of the facts. */
#include <string.h>

#include "passes/passes.h"

enum { NONE = -1, PARAM = -2 };

/* Inputs of the new node as inputs of the ONNX operator. */
static const int lstm_inputs[] = {0, 1, 2, 5, 6, 3, 4, NONE, PARAM};
static const int gru_inputs[] = {0, 1, 2, 5, 3, 4, NONE, PARAM};

static bool set_inputs(qf_pass *p, const qf_layer *layer, qf_node *node)
{
    bool lstm = layer->op == QF_OP_LSTM;
    const int *order = lstm ? lstm_inputs : gru_inputs;
    size_t count =
        lstm ? sizeof lstm_inputs / sizeof *lstm_inputs : sizeof gru_inputs / sizeof *gru_inputs;
    qf_value *param = qf_pass_add_dequant_param(p, layer, node->graph), *old[8] = {0};
    if (!param)
        return false;
    size_t before = node->input_count < 8 ? node->input_count : 8;
    for (size_t i = 0; i < node->input_count; i++) {
        if (i < before)
            old[i] = node->inputs[i];
        if (!qf_node_set_input(p->ir, node, i, NULL))
            return false;
    }
    while (node->input_count < count) {
        if (!qf_node_add_input(p->ir, node, NULL))
            return false;
    }
    for (size_t i = 0; i < count; i++) {
        qf_value *value = order[i] == PARAM ? param : order[i] == NONE ? NULL : old[order[i]];
        if (!qf_node_set_input(p->ir, node, i, value))
            return false;
    }
    return true;
}

static bool default_attribute(qf_pass *p, qf_node *node, const char *name)
{
    if (strcmp(name, "clip") == 0)
        return qf_node_set_float(p->ir, node, name, -1.0f);
    if (strcmp(name, "direction") == 0)
        return qf_node_set_string(p->ir, node, name, "forward");
    if (strcmp(name, "input_forget") == 0)
        return qf_node_set_int(p->ir, node, name, 0);
    if (strcmp(name, "hidden_size") == 0 || strcmp(name, "linear_before_reset") == 0)
        return true; /* always there: the layer table asks for it */
    return qf_node_set_empty(p->ir, node, name,
                             strcmp(name, "activations") == 0
                                 ? ONNX__ATTRIBUTE_PROTO__ATTRIBUTE_TYPE__STRINGS
                                 : ONNX__ATTRIBUTE_PROTO__ATTRIBUTE_TYPE__FLOATS);
}

/* Keeps the attributes that the new operator knows and adds the defaults of those that are absent.
 */
static bool set_attributes(qf_pass *p, const qf_layer *layer, qf_node *node)
{
    static const char *const lstm_names[] = {
        "hidden_size", "activation_alpha", "activation_beta", "activations",
        "clip",        "direction",        "input_forget"};
    static const char *const gru_names[] = {
        "hidden_size", "activation_alpha", "activation_beta",    "activations",
        "clip",        "direction",        "linear_before_reset"};
    const char *const *names = layer->op == QF_OP_LSTM ? lstm_names : gru_names;
    enum { NAMES = 7 };
    Onnx__AttributeProto *kept[NAMES] = {0};
    for (size_t i = 0; i < NAMES; i++)
        kept[i] = qf_node_attribute(node, names[i]);
    node->proto->attribute = qf_arena_array(p->ir->arena, NAMES, sizeof *kept);
    node->proto->n_attribute = 0;
    if (!node->proto->attribute)
        return false;
    for (size_t i = 0; i < NAMES; i++) {
        if (kept[i])
            node->proto->attribute[node->proto->n_attribute++] = kept[i];
    }
    for (size_t i = 0; i < NAMES; i++) {
        if (!kept[i] && !default_attribute(p, node, names[i]))
            return false;
    }
    return layer->op == QF_OP_LSTM || qf_node_set_int(p->ir, node, "linear_before_reset", 1);
}

static bool set_quantization(qf_pass *p, const qf_layer *layer, qf_node *node)
{
    qf_ir *ir = p->ir;
    enum { ASCEND_INT8 = 2, ASCEND_INT16 = 6 };
    return qf_node_set_int(ir, node, "quant_sqrt_mode_x", 0) &&
           qf_node_set_int(ir, node, "quant_sqrt_mode_h", 0) &&
           qf_node_set_float(ir, node, "quant_scale_x", 1.0f / layer->scale_d) &&
           qf_node_set_float(ir, node, "quant_offset_x", (float)layer->offset_d) &&
           qf_node_set_float(ir, node, "quant_scale_h", 1.0f / layer->scale_h) &&
           qf_node_set_float(ir, node, "quant_offset_h", (float)layer->offset_h) &&
           qf_node_set_int(ir, node, "quant_dtype",
                           layer->act_bits == 16 ? ASCEND_INT16 : ASCEND_INT8);
}

/* hidden_size is optional in ONNX, but the NPU's operator needs it. */
static bool complete_hidden_size(qf_pass *p, const qf_layer *layer, qf_node *node)
{
    return qf_node_attribute(node, "hidden_size") ||
           qf_node_set_int(p->ir, node, "hidden_size",
                           layer->weights[0].dims[1] / (int64_t)qf_op_gates(layer->op));
}

qf_status qf_pass_replace_rnn(qf_pass *p)
{
    for (size_t i = 0; i < p->plan->layer_count; i++) {
        const qf_layer *layer = &p->plan->layers[i];
        if (!qf_op_is_rnn(layer->op))
            continue;
        qf_node *node = qf_pass_node(p, layer);
        const char *type = layer->op == QF_OP_LSTM ? "BasicLSTMInplaceFillWindowCache"
                                                   : "BasicGRUInplaceFillWindowCache";
        node->proto->op_type = qf_arena_strdup(p->ir->arena, type);
        if (!node->proto->op_type || !complete_hidden_size(p, layer, node) ||
            !set_inputs(p, layer, node) || !set_attributes(p, layer, node) ||
            !set_quantization(p, layer, node))
            return qf_fail_memory(p->err);
    }
    return QF_OK;
}
