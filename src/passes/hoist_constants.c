/* SPDX-License-Identifier: Apache-2.0 */
/* Only initializers can be external in every reader. Where a model would stay at or over the limit
 * with all of them outside, or everything is wanted outside, tensors of Constant nodes become
 * initializers of the same name. */
#include "passes/passes.h"

enum { SMALL = 1024 };

static const qf_payload *constant_payload(const qf_pass *p, const qf_node *node)
{
    const Onnx__AttributeProto *a =
        qf_node_is(node, "Constant") ? qf_node_attribute(node, "value") : NULL;
    size_t index = a && a->t ? qf_tensor_payload(a->t) : SIZE_MAX;
    return index < p->plan->payloads.count ? &p->plan->payloads.items[index] : NULL;
}

static bool hoist(qf_pass *p, qf_node *node)
{
    qf_value *out = node->outputs[0];
    Onnx__TensorProto *tensor = qf_node_attribute(node, "value")->t;
    const char *name = qf_arena_strdup(p->ir->arena, out->name);
    qf_value *value =
        name ? qf_ir_add_initializer(p->ir, node->graph, "quantfold.hoisted", tensor) : NULL;
    if (!value || !qf_value_move_uses(p->ir, out, value, NULL))
        return false;
    qf_ir_remove_node(p->ir, node);
    return qf_value_rename(p->ir, value, name);
}

qf_status qf_pass_hoist_constants(qf_pass *p)
{
    const qf_export_options *o = &p->plan->options;
    uint64_t inside = 0;
    for (size_t g = 0; g < p->ir->graph_count; g++) {
        for (qf_node *n = p->ir->graphs[g]->first; n; n = n->next) {
            const qf_payload *payload = constant_payload(p, n);
            inside += payload ? payload->raw_length : 0;
        }
    }
    bool wanted = o->external == QF_EXTERNAL_ALWAYS ||
                  (o->external == QF_EXTERNAL_AUTO && inside >= o->external_threshold);
    for (size_t g = 0; wanted && g < p->ir->graph_count; g++) {
        for (qf_node *n = p->ir->graphs[g]->first, *next; n; n = next) {
            const qf_payload *payload = constant_payload(p, n);
            next = n->next;
            if (payload && payload->raw_length >= SMALL && qf_node_output(n) &&
                !n->outputs[0]->result_count && !hoist(p, n))
                return qf_fail_memory(p->err);
        }
    }
    return QF_OK;
}
