/* SPDX-License-Identifier: Apache-2.0 */
/* An AscendQuant in front of each layer (facts 4.1). For average pooling behind a Pad of its own it
 * goes before the Pad, so that padding happens in the quantized domain. */
#include <string.h>

#include "passes/passes.h"
#include "quant/record.h"

/* The fake_quant model's nodes are made from the tag. */
static bool set_attributes(qf_ir *ir, qf_node *quant, qf_quant_tag tag)
{
    return qf_node_set_float(ir, quant, "scale", 1.0f / tag.scale_d) &&
           qf_node_set_float(ir, quant, "offset", (float)tag.offset) &&
           qf_node_set_string(ir, quant, "dst_type", qf_type_name(tag.bits));
}

qf_node *qf_pass_add_quant(qf_pass *p, const char *name, qf_quant_tag tag, qf_node *node,
                           size_t index)
{
    qf_ir *ir = p->ir;
    qf_quant_tag *copy = qf_arena_alloc(ir->arena, sizeof *copy);
    qf_node *quant = qf_ir_add_node(ir, node->graph, "AscendQuant", name, node);
    const char *output = qf_pass_name(p, name, "output0");
    if (!copy || !quant || !output)
        return NULL;
    *copy = tag;
    quant->tag = copy;
    qf_value *out = qf_node_add_output(ir, quant, output);
    if (!out || !qf_node_add_input(ir, quant, node->inputs[index]) ||
        !qf_node_set_input(ir, node, index, out))
        return NULL;
    return p->target != QF_DEPLOY || set_attributes(ir, quant, tag) ? quant : NULL;
}

static qf_node *own_pad(const qf_layer *layer, const qf_node *node)
{
    qf_value *in = node->inputs[0];
    qf_node *pad = in->producer;
    size_t n = strlen(layer->name);
    bool own = pad && qf_node_is(pad, "Pad") && strncmp(pad->name, layer->name, n) == 0 &&
               strcmp(pad->name + n, "_pad") == 0 && qf_value_only_user(in) == node &&
               pad->input_count && pad->inputs[0] && pad->graph == node->graph;
    return own ? pad : NULL;
}

qf_status qf_pass_insert_quant(qf_pass *p)
{
    for (size_t i = 0; i < p->plan->layer_count; i++) {
        const qf_layer *layer = &p->plan->layers[i];
        if (qf_op_is_rnn(layer->op))
            continue;
        qf_node *node = qf_pass_node(p, layer);
        if (layer->op == QF_OP_AVERAGE_POOL) {
            qf_node *pad = own_pad(layer, node);
            node = pad ? pad : node;
        }
        qf_quant_tag tag = {layer->name,     layer->scale_d,  layer->offset_d,
                            layer->act_bits, layer->act_type, layer->float_type};
        const char *name = qf_pass_name(p, layer->name, "quant");
        if (!name || !qf_pass_add_quant(p, name, tag, node, 0))
            return qf_fail_memory(p->err);
    }
    return QF_OK;
}
