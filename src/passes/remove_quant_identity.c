/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The reference's exporter puts a custom_op_domain::QuantIdentity in front of each module, with the
 * module's dotted name (op_name) and class (module_type). The node behind the marker is the layer;
 * where padding or a change of layout stands between them, the walk of facts 3.2 finds it.
 */
#include <stdlib.h>
#include <string.h>

#include "passes/passes.h"

static bool is_marker(const qf_node *node)
{
    return node->proto->op_type && strcmp(node->proto->op_type, "QuantIdentity") == 0 &&
           node->input_count == 1 && node->output_count == 1 && node->inputs[0] && node->outputs[0];
}

static const char *text_attribute(qf_ir *ir, const qf_node *node, const char *name)
{
    const Onnx__AttributeProto *a = qf_node_attribute(node, name);
    if (!a || !a->has_s || !a->s.len || memchr(a->s.data, 0, a->s.len))
        return NULL;
    return qf_arena_strndup(ir->arena, (const char *)a->s.data, a->s.len);
}

static qf_node *first_user(const qf_node *node)
{
    const qf_value *out = qf_node_output(node);
    return out && out->use_count ? out->uses[0].node : NULL;
}

/* Breadth-first along the first outputs to the nearest node of one of the types. */
static qf_node *search(const qf_ir *ir, qf_node *from, const char *const *types, size_t count)
{
    qf_node **queue = calloc(ir->node_count + 1, sizeof *queue);
    bool *seen = calloc(ir->node_count + 1, sizeof *seen);
    size_t head = 0, tail = 0;
    qf_node *found = NULL;
    if (queue && seen)
        queue[tail++] = from;
    while (!found && head < tail) {
        qf_node *node = queue[head++];
        for (size_t i = 0; i < count && !found; i++) {
            if (qf_node_is(node, types[i]))
                found = node;
        }
        const qf_value *out = qf_node_output(node);
        for (size_t i = 0; out && !found && i < out->use_count; i++) {
            qf_node *user = out->uses[i].node;
            if (!seen[user->id]) {
                seen[user->id] = true;
                queue[tail++] = user;
            }
        }
    }
    free(queue);
    free(seen);
    return found;
}

/* Names a node; two nodes that want one name are a module used twice. */
static qf_status set_name(qf_plan *plan, qf_ir *ir, qf_node *node, const char *name, unsigned flags,
                          qf_error *err)
{
    const qf_node *owner = qf_strmap_get(&ir->node_names, name);
    if (owner && owner != node) {
        flags |= QF_NODE_REUSED;
        uintptr_t known = (uintptr_t)qf_strmap_get(&plan->node_flags, owner->name);
        const char *key = qf_arena_strdup(&plan->arena, owner->name);
        if (!key || !qf_strmap_set(&plan->node_flags, key, (void *)(known | QF_NODE_REUSED)))
            return qf_fail_memory(err);
    }
    if (!qf_node_rename(ir, node, name))
        return qf_fail_memory(err);
    const char *key = qf_arena_strdup(&plan->arena, node->name);
    if (!key || (flags && !qf_strmap_set(&plan->node_flags, key, (void *)(uintptr_t)flags)))
        return qf_fail_memory(err);
    return QF_OK;
}

static qf_status name_part(qf_plan *plan, qf_ir *ir, qf_node *node, const char *layer,
                           const char *suffix, qf_error *err)
{
    const char *name = qf_arena_printf(ir->arena, "%s%s", layer, suffix);
    return name ? set_name(plan, ir, node, name, 0, err) : qf_fail_memory(err);
}

static qf_status name_layer(qf_plan *plan, qf_ir *ir, qf_node *marker, qf_error *err)
{
    static const char *const batched[] = {"Conv", "ConvTranspose", "LSTM", "GRU"};
    const char *layer = text_attribute(ir, marker, "op_name");
    const char *type = text_attribute(ir, marker, "module_type");
    qf_node *node = first_user(marker);
    unsigned flags = 0;
    qf_status status = QF_OK;
    if (!layer || !*layer || !node)
        return QF_OK;
    bool rnn = type && (strcmp(type, "LSTM") == 0 || strcmp(type, "GRU") == 0);
    if (rnn && !qf_op_is_rnn(qf_op_of(node)))
        node = search(ir, marker, &type, 1);
    if (node && qf_node_is(node, "Pad")) {
        status = name_part(plan, ir, node, layer, "_pad", err);
        flags |= QF_NODE_PADDED;
        node = first_user(node);
    }
    if (status == QF_OK && node && qf_node_is(node, "Transpose")) {
        status = name_part(plan, ir, node, layer, "_transpose", err);
        node = first_user(node);
    }
    if (status == QF_OK && node && qf_node_is(node, "Unsqueeze")) {
        flags |= QF_NODE_UNBATCHED;
        node = search(ir, marker, batched, 4);
    }
    if (status == QF_OK && node && type && strcmp(type, "Conv2d") == 0 &&
        !qf_node_is(node, "Conv")) {
        flags |= QF_NODE_PADDED; /* circular padding: slices and concats of its own */
        node = search(ir, marker, batched, 1);
    }
    if (status == QF_OK && node)
        status = set_name(plan, ir, node, layer, flags, err);
    return status;
}

/* A marker that feeds a graph output straight from an input or an initializer becomes an Identity,
 * because neither can take the output's name. */
static bool remove_marker(qf_ir *ir, qf_node *marker)
{
    qf_value *in = marker->inputs[0], *out = marker->outputs[0];
    if (!qf_value_move_uses(ir, out, in, NULL))
        return false;
    if (out->result_count && (!in->producer || in->result_count || in->graph != out->graph)) {
        marker->proto->op_type = qf_arena_strdup(ir->arena, "Identity");
        marker->proto->domain = NULL;
        marker->proto->n_attribute = 0;
        return marker->proto->op_type != NULL;
    }
    if (!qf_value_move_results(ir, out, in, out->name))
        return false;
    qf_ir_remove_node(ir, marker);
    return true;
}

/* ---- opset imports ---- */

static bool domain_is(const char *domain, const char *wanted)
{
    return strcmp(domain ? domain : "", wanted ? wanted : "") == 0;
}

static bool domain_used(const qf_ir *ir, const char *domain)
{
    for (size_t g = 0; g < ir->graph_count; g++) {
        for (const qf_node *n = ir->graphs[g]->first; n; n = n->next) {
            if (domain_is(n->proto->domain, domain))
                return true;
        }
    }
    for (size_t i = 0; i < ir->model->n_functions; i++) {
        const Onnx__FunctionProto *f = ir->model->functions[i];
        for (size_t j = 0; j < f->n_node; j++) {
            if (domain_is(f->node[j]->domain, domain))
                return true;
        }
    }
    return false;
}

static bool is_default_domain(const char *domain)
{
    return domain_is(domain, "") || domain_is(domain, "ai.onnx");
}

/* The reference always drops the last import if there is more than one (facts 3.2). That is right
 * for the markers' domain and harmless for one that nothing uses; others stay. */
static void drop_unused_import(qf_ir *ir)
{
    Onnx__ModelProto *m = ir->model;
    if (m->n_opset_import < 2)
        return;
    const char *last = m->opset_import[m->n_opset_import - 1]->domain;
    if (!is_default_domain(last) && !domain_used(ir, last)) {
        m->n_opset_import--;
        return;
    }
    for (size_t i = 0; i < m->n_opset_import; i++) {
        if (!domain_is(m->opset_import[i]->domain, "custom_op_domain") ||
            domain_used(ir, "custom_op_domain"))
            continue;
        memmove(&m->opset_import[i], &m->opset_import[i + 1],
                (m->n_opset_import - i - 1) * sizeof *m->opset_import);
        m->n_opset_import--;
        return;
    }
}

qf_status qf_pass_remove_quant_identity(qf_plan *plan, qf_ir *ir, qf_error *err)
{
    for (size_t i = 0; i < ir->node_count; i++) {
        if (!is_marker(ir->by_id[i]))
            continue;
        qf_status status = name_layer(plan, ir, ir->by_id[i], err);
        if (status != QF_OK)
            return status;
    }
    for (size_t i = 0; i < ir->node_count; i++) {
        if (!is_marker(ir->by_id[i]))
            continue;
        plan->had_markers = true;
        if (!remove_marker(ir, ir->by_id[i]))
            return qf_fail_memory(err);
    }
    drop_unused_import(ir);
    return QF_OK;
}
