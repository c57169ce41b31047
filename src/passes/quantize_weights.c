/* SPDX-License-Identifier: Apache-2.0 */
/* Weights become the output of their jobs: int8 or packed int4 in deploy, float in fake_quant
 * (facts 4.3, 5.2), or int8 there too if asked (compact_weights.c makes floats of them). A tensor
 * that other nodes use too is left to them; the layer gets its own. */
#include "passes/passes.h"

/* The Transpose before a layer's weight, of the layer's own: one that others read is cloned. */
static qf_node *own_transpose(qf_pass *p, qf_node *node)
{
    qf_node *transpose = node->inputs[1]->producer;
    if (qf_value_only_user(transpose->outputs[0]) == node)
        return transpose;
    const char *name = qf_pass_name(p, node->name, "weight_transpose");
    qf_node *clone = name ? qf_ir_add_node(p->ir, node->graph, "Transpose", name, node) : NULL;
    const char *output = clone ? qf_pass_name(p, name, "output0") : NULL;
    qf_value *value = output ? qf_node_add_output(p->ir, clone, output) : NULL;
    if (!value || !qf_node_add_input(p->ir, clone, transpose->inputs[0]) ||
        !qf_node_set_input(p->ir, node, 1, value))
        return NULL;
    clone->proto->n_attribute = transpose->proto->n_attribute;
    clone->proto->attribute = transpose->proto->attribute;
    return clone;
}

static int32_t weight_type(const qf_pass *p, const qf_weight *w)
{
    if (p->target == QF_DEPLOY)
        return w->deploy_type;
    return w->job->out[QF_FAKE_QUANT].format == QF_FORMAT_INT8
               ? ONNX__TENSOR_PROTO__DATA_TYPE__INT8
               : ONNX__TENSOR_PROTO__DATA_TYPE__FLOAT;
}

static bool set_weight(qf_pass *p, const qf_layer *layer, size_t which, qf_node *user, size_t input)
{
    const qf_weight *w = &layer->weights[which];
    size_t self = (size_t)(layer - p->plan->layers);
    const int64_t *dims = p->target == QF_DEPLOY ? w->packed_dims : w->dims;
    if (w->owner != self) {
        qf_value *value = p->new_weights[2 * w->owner + which];
        p->new_weights[2 * self + which] = value;
        return qf_pass_share_constant(p, user, input, value);
    }
    Onnx__TensorProto *tensor =
        qf_pass_payload_tensor(p, weight_type(p, w), dims, w->rank, w->payload[p->target]);
    const char *name = qf_pass_name(p, layer->name, which ? "recurrence_weight" : "weight");
    qf_value *value =
        tensor && name ? qf_pass_replace_constant(p, user, input, tensor, name) : NULL;
    p->new_weights[2 * self + which] = value;
    return value != NULL;
}

qf_status qf_pass_quantize_weights(qf_pass *p)
{
    for (size_t i = 0; i < p->plan->layer_count; i++) {
        const qf_layer *layer = &p->plan->layers[i];
        qf_node *node = qf_pass_node(p, layer), *user = node;
        size_t input = 1;
        if (!layer->weight_count)
            continue;
        if (node->inputs[1]->producer && qf_node_is(node->inputs[1]->producer, "Transpose")) {
            user = own_transpose(p, node);
            input = 0;
            if (!user)
                return qf_fail_memory(p->err);
            user->outputs[0]->retyped = true;
        }
        if (!set_weight(p, layer, 0, user, input) ||
            (layer->weight_count > 1 && !set_weight(p, layer, 1, node, 2)))
            return qf_fail_memory(p->err);
    }
    return QF_OK;
}
