/* SPDX-License-Identifier: Apache-2.0 */
/* tensor_balance_factor (DMQ): the layer's input is multiplied by 1 / factor per input channel; the
 * trained weights are already scaled the other way (facts 3.5, pass 2). */
#include <string.h>

#include "base/half.h"
#include "passes/passes.h"

/* The constant has the activations' dtype; for float16 the reference stores raw halves. */
static bool set_type(qf_pass *p, Onnx__TensorProto *tensor, int32_t type)
{
    size_t n = tensor->n_float_data;
    uint8_t *raw = qf_arena_array(p->ir->arena, n, 8);
    if (!raw)
        return false;
    for (size_t i = 0; i < n; i++) {
        float f = tensor->float_data[i];
        if (type == ONNX__TENSOR_PROTO__DATA_TYPE__DOUBLE) {
            double d = (double)f;
            memcpy(raw + 8 * i, &d, sizeof d);
        } else {
            uint16_t h = type == ONNX__TENSOR_PROTO__DATA_TYPE__FLOAT16 ? qf_float_to_half(f)
                                                                        : qf_float_to_bfloat(f);
            memcpy(raw + 2 * i, &h, sizeof h);
        }
    }
    tensor->data_type = type;
    tensor->n_float_data = 0;
    tensor->has_raw_data = 1;
    tensor->raw_data.data = raw;
    tensor->raw_data.len = (size_t)qf_raw_bytes(type, n);
    return true;
}

static qf_status balance(qf_pass *p, const qf_layer *layer)
{
    qf_node *node = qf_pass_node(p, layer);
    size_t n = layer->balance_count, rank = layer->weights[0].rank;
    float *inverse = qf_arena_array(p->ir->arena, n, sizeof *inverse);
    if (!inverse)
        return qf_fail_memory(p->err);
    for (size_t i = 0; i < n; i++)
        inverse[i] = 1.0f / layer->balance[i];
    int64_t dims[5] = {1, (int64_t)n, 1, 1, 1};
    if (rank < 3 || rank > 5)
        rank = 2;
    const char *constant = qf_pass_name(p, layer->name, "tensor_balance_factor");
    const char *name = qf_pass_name(p, layer->name, "mul");
    if (!constant || !name)
        return qf_fail_memory(p->err);
    qf_value *factor =
        qf_pass_add_constant(p, constant, inverse, dims, rank, "tensor_balance_factor", node);
    qf_node *mul = factor ? qf_ir_add_node(p->ir, node->graph, "Mul", name, node) : NULL;
    const char *output = mul ? qf_pass_name(p, name, "output0") : NULL;
    qf_value *product = output ? qf_node_add_output(p->ir, mul, output) : NULL;
    if (!product ||
        !(mul->proto->doc_string = qf_arena_strdup(p->ir->arena, "mul of the dmq_balancer")) ||
        !qf_node_add_input(p->ir, mul, node->inputs[0]) || !qf_node_add_input(p->ir, mul, factor) ||
        !qf_node_set_input(p->ir, node, 0, product))
        return qf_fail_memory(p->err);
    if (layer->float_type != ONNX__TENSOR_PROTO__DATA_TYPE__FLOAT &&
        !set_type(p, qf_value_constant(factor), layer->float_type))
        return qf_fail_memory(p->err);
    return QF_OK;
}

qf_status qf_pass_balance_activations(qf_pass *p)
{
    qf_status status = QF_OK;
    for (size_t i = 0; status == QF_OK && i < p->plan->layer_count; i++) {
        if (p->plan->layers[i].balance)
            status = balance(p, &p->plan->layers[i]);
    }
    return status;
}
