/* SPDX-License-Identifier: Apache-2.0 */
/* An AscendDequant behind each layer, with its packed scales (facts 4.2). */
#include <string.h>

#include "kernels.h"
#include "passes/passes.h"

qf_value *qf_pass_add_dequant_param(qf_pass *p, const qf_layer *layer, qf_graph *graph)
{
    int64_t dims[] = {(int64_t)layer->dequant_count};
    uint64_t *params = qf_arena_array(&p->plan->arena, layer->dequant_count, sizeof *params);
    const char *name = qf_pass_name(p, layer->name, "dequant.param");
    if (!params || !name)
        return NULL;
    qf_kernels_get()->dequant_pack(layer->dequant, layer->dequant_count, layer->dequant_mask,
                                   params);
    size_t payload = qf_plan_add_bytes(p->plan, QF_FIELD_UINT64_DATA, params,
                                       layer->dequant_count * sizeof *params, false);
    if (payload == SIZE_MAX)
        return NULL;
    Onnx__TensorProto *tensor =
        qf_pass_payload_tensor(p, ONNX__TENSOR_PROTO__DATA_TYPE__UINT64, dims, 1, payload);
    return tensor ? qf_ir_add_initializer(p->ir, graph, name, tensor) : NULL;
}

/* What the fake_quant model has no use for: there the scales become a constant of their own. */
static bool complete(qf_pass *p, const qf_layer *layer, qf_node *dequant)
{
    qf_value *param = qf_pass_add_dequant_param(p, layer, dequant->graph);
    return param && qf_node_add_input(p->ir, dequant, param) &&
           qf_node_set_int(p->ir, dequant, "dtype", 0);
}

static qf_status insert(qf_pass *p, const qf_layer *layer)
{
    qf_ir *ir = p->ir;
    qf_node *last = qf_pass_last_node(p, layer);
    qf_value *value = last->outputs[0];
    const char *name = qf_pass_name(p, layer->name, "dequant");
    const char *output = name ? qf_pass_name(p, name, "output0") : NULL;
    const char *renamed = qf_arena_printf(ir->arena, "%s_output0", last->name);
    qf_node *dequant =
        name ? qf_ir_add_node(ir, last->graph, "AscendDequant", name, last->next) : NULL;
    qf_value *out = dequant && output ? qf_node_add_output(ir, dequant, output) : NULL;
    if (!out || !renamed || !qf_value_move_uses(ir, value, out, NULL) ||
        !qf_value_move_results(ir, value, out, renamed) || !qf_node_add_input(ir, dequant, value) ||
        (p->target == QF_DEPLOY && !complete(p, layer, dequant)))
        return qf_fail_memory(p->err);
    dequant->tag = (void *)layer;
    if (layer->float_type != ONNX__TENSOR_PROTO__DATA_TYPE__FLOAT)
        value->retyped = true;
    return QF_OK;
}

qf_status qf_pass_insert_dequant(qf_pass *p)
{
    qf_status status = QF_OK;
    for (size_t i = 0; status == QF_OK && i < p->plan->layer_count; i++) {
        const qf_layer *layer = &p->plan->layers[i];
        qf_node *node = qf_pass_node(p, layer);
        if (qf_op_is_rnn(layer->op))
            continue;
        if (layer->float_type != ONNX__TENSOR_PROTO__DATA_TYPE__FLOAT)
            node->outputs[0]->retyped = true;
        status = insert(p, layer);
    }
    return status;
}
