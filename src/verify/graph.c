/* SPDX-License-Identifier: Apache-2.0 */
/* What holds of every model that an export writes: names, order, nothing left over. */
#include <string.h>

#include "verify/structure.h"

/* ---- names ---- */

static void check_name(qf_subject *s, const qf_node *node)
{
    const char *given = node->proto->name;
    if (node->graph->parent)
        return; /* the source's own, which are not touched */
    if (!given || !*given)
        qf_subject_note(s, qf_subject_node_name(node),
                        "the node (%s) has no name; an export names every node",
                        node->proto->op_type ? node->proto->op_type : "no op_type");
    else if (strcmp(given, node->name) != 0)
        qf_subject_note(s, given, "two nodes have this name; names must be unique");
    if (!node->proto->op_type || !*node->proto->op_type)
        qf_subject_note(s, qf_subject_node_name(node), "the node has no op_type");
}

static void check_leftovers(qf_subject *s, const qf_node *node)
{
    if (qf_node_attribute(node, "op_data_type"))
        qf_subject_note(s, qf_subject_node_name(node),
                        "attribute op_data_type is the reference's own mark and must not be "
                        "left in an exported model");
    if (qf_node_is(node, "QuantIdentity"))
        qf_subject_note(s, qf_subject_node_name(node),
                        "a QuantIdentity marker is still in the model; an export removes it");
}

static void check_inputs(qf_subject *s, const qf_graph *g)
{
    for (const qf_value *v = g->first_value; s->quantized && v && !g->parent; v = v->next) {
        if (v->dead_input)
            qf_subject_note(s, v->name,
                            "the initializer is also listed as a graph input; an export lists it "
                            "as an initializer alone");
    }
}

/* ---- order ---- */

static const qf_node *ancestor_in(const qf_graph *graph, const qf_node *node)
{
    while (node && node->graph != graph)
        node = node->graph->owner;
    return node;
}

/* Notes the first node of a graph that comes before what it reads, and whether that can be put
 * right. */
static qf_status check_order(qf_subject *s, qf_graph *g, bool *acyclic, qf_error *err)
{
    qf_error sorted;
    if (qf_graph_is_sorted(g))
        return QF_OK;
    const qf_node *user = NULL;
    const qf_value *read = NULL;
    for (const qf_value *v = g->first_value; v && !user; v = v->next) {
        for (size_t u = 0; v->producer && u < v->use_count && !user; u++) {
            const qf_node *at = ancestor_in(g, v->uses[u].node);
            if (at && at->order <= v->producer->order) {
                user = v->uses[u].node;
                read = v;
            }
        }
    }
    qf_status status = qf_graph_sort(g, s->path, &sorted);
    if (status != QF_OK && status != QF_ERR_INPUT) {
        if (err)
            *err = sorted;
        return status;
    }
    if (status != QF_OK)
        *acyclic = false;
    if (user)
        qf_subject_note(s, qf_subject_node_name(user),
                        "the node reads tensor '%s' before it is made; %s", read->name,
                        status == QF_OK ? "nodes must come behind what they read"
                                        : "the graph has a cycle");
    return QF_OK;
}

static void check_opsets(qf_subject *s)
{
    bool standard = false;
    for (size_t i = 0; i < s->proto->n_opset_import; i++) {
        const Onnx__OperatorSetIdProto *o = s->proto->opset_import[i];
        standard |= (!o->domain || !*o->domain) && o->version > 0;
        if (s->quantized && o->domain && strcmp(o->domain, "custom_op_domain") == 0)
            qf_subject_note(s, NULL,
                            "the model imports custom_op_domain, that of markers which an export "
                            "removes");
    }
    if (!standard)
        qf_subject_note(s, NULL, "the model imports no version of the default operator set");
}

qf_status qf_check_graph(qf_subject *s, bool *acyclic, qf_error *err)
{
    qf_status status = QF_OK;
    *acyclic = true;
    check_opsets(s);
    for (size_t i = 0; s->quantized && i < s->ir.node_count; i++) {
        check_name(s, s->ir.by_id[i]);
        check_leftovers(s, s->ir.by_id[i]);
    }
    for (size_t i = 0; status == QF_OK && i < s->ir.graph_count; i++) {
        check_inputs(s, s->ir.graphs[i]);
        status = check_order(s, s->ir.graphs[i], acyclic, err);
    }
    return status;
}
