/* SPDX-License-Identifier: Apache-2.0 */
/* fake_quant keeps LSTM and GRU with dequantized weights, and quantizes and dequantizes their X and
 * initial_h (facts 5.6). */
#include "passes/passes.h"

enum { INPUT_X = 0, INPUT_INITIAL_H = 5, INPUT_INITIAL_C = 6 };

static bool wrap(qf_pass *p, const qf_layer *layer, size_t input, const char *suffix, float scale,
                 int32_t offset)
{
    qf_ir *ir = p->ir;
    qf_node *node = qf_pass_node(p, layer);
    qf_quant_tag tag = {layer->name,     scale,           offset,
                        layer->act_bits, layer->act_type, layer->float_type};
    const char *quant_suffix = qf_arena_printf(ir->arena, "quant%s", suffix);
    const char *anti_suffix = qf_arena_printf(ir->arena, "anti_quant%s.fake_antiquant", suffix);
    const char *quant = quant_suffix ? qf_pass_name(p, layer->name, quant_suffix) : NULL;
    const char *anti = anti_suffix ? qf_pass_name(p, layer->name, anti_suffix) : NULL;
    const char *constant = anti ? qf_pass_name(p, anti, "scale") : NULL;
    const char *name = anti ? qf_pass_name(p, anti, "mul") : NULL;
    const char *output = name ? qf_pass_name(p, name, "output0") : NULL;
    if (!quant || !constant || !output || !qf_pass_add_quant(p, quant, tag, node, input))
        return false;
    qf_value *factor =
        qf_pass_add_constant(p, constant, &scale, NULL, 0, "scale of the Fake antiquant", node);
    qf_node *mul = factor ? qf_ir_add_node(ir, node->graph, "Mul", name, node) : NULL;
    qf_value *out = mul ? qf_node_add_output(ir, mul, output) : NULL;
    if (!out || !(mul->proto->doc_string = qf_arena_strdup(ir->arena, "mul of the Fake antiquant")))
        return false;
    return qf_node_add_input(ir, mul, node->inputs[input]) && qf_node_add_input(ir, mul, factor) &&
           qf_node_set_input(ir, node, input, out);
}

/* The layer computes in float32: initial_c comes in and the outputs go out through Casts. */
static bool cast_state(qf_pass *p, const qf_layer *layer)
{
    qf_ir *ir = p->ir;
    qf_node *node = qf_pass_node(p, layer);
    const char *name = qf_pass_name(p, layer->name, "initial_c.cast");
    const char *output = name ? qf_pass_name(p, name, "output0") : NULL;
    if (!output)
        return false;
    if (layer->op == QF_OP_LSTM) {
        qf_node *cast = qf_ir_add_node(ir, node->graph, "Cast", name, node);
        qf_value *out = cast ? qf_node_add_output(ir, cast, output) : NULL;
        if (!out || !qf_node_add_input(ir, cast, node->inputs[INPUT_INITIAL_C]) ||
            !qf_node_set_int(ir, cast, "to", ONNX__TENSOR_PROTO__DATA_TYPE__FLOAT) ||
            !qf_node_set_input(ir, node, INPUT_INITIAL_C, out))
            return false;
    }
    for (size_t i = 0; i < node->output_count; i++) {
        const char *prefix = qf_arena_printf(ir->arena, "%s.output%zu", layer->name, i);
        if (!prefix ||
            (node->outputs[i] && !qf_pass_cast_output(p, node, i, layer->float_type, prefix)))
            return false;
    }
    return true;
}

qf_status qf_pass_fake_quant_rnn(qf_pass *p)
{
    for (size_t i = 0; i < p->plan->layer_count; i++) {
        const qf_layer *layer = &p->plan->layers[i];
        if (!qf_op_is_rnn(layer->op))
            continue;
        if (!wrap(p, layer, INPUT_X, "", layer->scale_d, layer->offset_d) ||
            !wrap(p, layer, INPUT_INITIAL_H, "1", layer->scale_h, layer->offset_h))
            return qf_fail_memory(p->err);
        if (layer->float_type != ONNX__TENSOR_PROTO__DATA_TYPE__FLOAT && !cast_state(p, layer))
            return qf_fail_memory(p->err);
    }
    return QF_OK;
}
