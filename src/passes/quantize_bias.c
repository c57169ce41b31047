/* SPDX-License-Identifier: Apache-2.0 */
/* Biases become int32 in deploy and the same numbers as float32 in fake_quant (facts 4.4, 5.5).
 * With 4-bit activations the deploy graph casts them to float in front of the layer. */
#include "passes/passes.h"

static bool insert_cast(qf_pass *p, const qf_layer *layer, qf_node *user, size_t input)
{
    qf_ir *ir = p->ir;
    const char *name = qf_pass_name(p, layer->name, "bias_quant");
    const char *output = name ? qf_pass_name(p, name, "output0") : NULL;
    qf_node *cast = output ? qf_ir_add_node(ir, user->graph, "Cast", name, user) : NULL;
    qf_value *out = cast ? qf_node_add_output(ir, cast, output) : NULL;
    return out && qf_node_add_input(ir, cast, user->inputs[input]) &&
           qf_node_set_int(ir, cast, "to", ONNX__TENSOR_PROTO__DATA_TYPE__FLOAT) &&
           qf_node_set_input(ir, user, input, out);
}

qf_status qf_pass_quantize_bias(qf_pass *p)
{
    bool deploy = p->target == QF_DEPLOY;
    for (size_t i = 0; i < p->plan->layer_count; i++) {
        const qf_layer *layer = &p->plan->layers[i];
        if (!layer->has_bias)
            continue;
        qf_node *user = qf_pass_last_node(p, layer);
        size_t input = layer->op == QF_OP_MATMUL ? 1 : qf_op_is_rnn(layer->op) ? 3 : 2;
        Onnx__TensorProto *tensor = qf_pass_payload_tensor(
            p, deploy ? ONNX__TENSOR_PROTO__DATA_TYPE__INT32 : ONNX__TENSOR_PROTO__DATA_TYPE__FLOAT,
            layer->bias_dims, layer->bias_rank, layer->bias_payload[p->target]);
        const char *name = qf_pass_name(p, layer->name, "bias");
        if (!tensor || !name || !qf_pass_replace_constant(p, user, input, tensor, name))
            return qf_fail_memory(p->err);
        if (deploy && layer->act_bits == 4 && !insert_cast(p, layer, user, input))
            return qf_fail_memory(p->err);
    }
    return QF_OK;
}
