/* SPDX-License-Identifier: Apache-2.0 */
/* Linking a model into nodes and values. */
#include <string.h>

#include "base/diag.h"
#include "base/spill.h"
#include "onnx/graph.h"

typedef struct builder {
    qf_ir *ir;
    const char *path;
    qf_diagnostics *findings; /* NULL: the first thing that is wrong ends the building */
    qf_error *err;
} builder;

static qf_status build_graph(builder *b, Onnx__GraphProto *proto, qf_graph *parent, qf_node *owner);

/* QF_OK if it is noted and the building goes on without what is wrong. */
static qf_status refuse(builder *b, const char *item, const char *format, const char *detail)
{
    qf_where where = {.file = b->path, .item = item};
    if (b->findings) {
        qf_diag_add(b->findings, QF_ERROR, where, format, detail);
        return QF_OK;
    }
    return qf_fail_at(b->err, QF_ERR_INPUT, where, format, detail);
}

/* Declares a name that must be new in its graph; one that is not stays the first value's. */
static qf_status declare(builder *b, qf_graph *graph, const char *name, const char *item,
                         qf_value **out)
{
    qf_value *value = qf_arena_alloc(b->ir->arena, sizeof *value);
    const void *found = value ? qf_strmap_add(&graph->values, name, value) : NULL;
    bool twice = found && found != value;
    qf_status status =
        twice ? refuse(b, item, "tensor '%s' is defined twice in one graph", name) : QF_OK;
    if (status != QF_OK)
        return status;
    if (!found || !qf_strmap_set(&b->ir->value_names, name, value))
        return qf_fail_memory(b->err);
    value->name = name;
    value->graph = graph;
    qf_value_append(value);
    *out = value;
    return QF_OK;
}

static qf_status add_inputs(builder *b, qf_graph *g)
{
    for (size_t i = 0; i < g->proto->n_input; i++) {
        const char *name = g->proto->input[i]->name;
        qf_value *value;
        qf_status status = QF_OK;
        if (!name || !*name) {
            status = refuse(b, "graph input", "%s", "an input has no name");
            if (status != QF_OK)
                return status;
            continue;
        }
        status = declare(b, g, name, "graph input", &value);
        if (status != QF_OK)
            return status;
        value->input = g->proto->input[i];
    }
    return QF_OK;
}

static qf_status add_initializers(builder *b, qf_graph *g)
{
    for (size_t i = 0; i < g->proto->n_initializer; i++) {
        Onnx__TensorProto *tensor = g->proto->initializer[i];
        const char *name = tensor->name ? tensor->name : "";
        qf_value *value = *name ? qf_strmap_get(&g->values, name) : NULL;
        qf_status status = QF_OK;
        if (!*name || (value && value->init)) {
            status = *name ? refuse(b, name, "initializer '%s' is defined twice", name)
                           : refuse(b, "initializer", "%s", "an initializer has no name");
            if (status != QF_OK)
                return status;
            continue;
        }
        status = value ? QF_OK : declare(b, g, tensor->name, tensor->name, &value);
        if (status != QF_OK)
            return status;
        value->init = tensor;
        /* an input that is an initializer is only a default; the reference removes it */
        if (!g->parent && value->input) {
            value->dead_input = value->input;
            value->input = NULL;
        }
    }
    for (size_t i = 0; i < g->proto->n_sparse_initializer; i++) {
        Onnx__SparseTensorProto *sparse = g->proto->sparse_initializer[i];
        qf_value *value;
        qf_status status = QF_OK;
        if (!sparse->values || !sparse->values->name) {
            status = refuse(b, "sparse_initializer", "%s", "a sparse initializer has no name");
            if (status != QF_OK)
                return status;
            continue;
        }
        status = declare(b, g, sparse->values->name, sparse->values->name, &value);
        if (status != QF_OK)
            return status;
        value->sparse = sparse;
    }
    return QF_OK;
}

static qf_status name_node(builder *b, qf_node *node, size_t index)
{
    const char *given = node->proto->name;
    if (!given || !*given) {
        given = qf_arena_printf(b->ir->arena, "node_%zu", index);
        if (!given)
            return qf_fail_memory(b->err);
    }
    node->renamed = !node->graph->parent;
    node->name = given;
    qf_node *first = qf_strmap_add(&b->ir->node_names, given, node);
    if (first == node)
        return QF_OK;
    if (first && first->graph == node->graph)
        first->name_shared = true;
    node->name = first ? qf_ir_unique(b->ir, &b->ir->node_names, given) : NULL;
    bool entered = node->name && qf_strmap_set(&b->ir->node_names, node->name, node);
    return entered ? QF_OK : qf_fail_memory(b->err);
}

static qf_status add_node(builder *b, qf_graph *g, size_t index)
{
    qf_ir *ir = b->ir;
    qf_node *node = qf_arena_alloc(ir->arena, sizeof *node);
    if (!node ||
        !qf_table_grow((void **)&ir->by_id, &ir->node_cap, ir->node_count + 1, sizeof node))
        return qf_fail_memory(b->err);
    node->proto = g->proto->node[index];
    node->graph = g;
    node->id = ir->node_count;
    ir->by_id[ir->node_count++] = node;
    node->prev = g->last;
    if (g->last)
        g->last->next = node;
    else
        g->first = node;
    g->last = node;
    qf_status status = name_node(b, node, index);
    if (status != QF_OK)
        return status;

    node->input_count = node->proto->n_input;
    node->output_count = node->proto->n_output;
    node->inputs = qf_arena_array(ir->arena, node->input_count, sizeof *node->inputs);
    node->outputs = qf_arena_array(ir->arena, node->output_count, sizeof *node->outputs);
    if (!node->inputs || !node->outputs)
        return qf_fail_memory(b->err);
    for (size_t i = 0; i < node->output_count; i++) {
        const char *name = node->proto->output[i];
        if (!*name)
            continue;
        status = declare(b, g, name, node->name, &node->outputs[i]);
        if (status != QF_OK)
            return status;
        node->outputs[i]->producer = node;
    }
    return QF_OK;
}

static qf_status link_inputs(builder *b, qf_node *node)
{
    for (size_t i = 0; i < node->input_count; i++) {
        const char *name = node->proto->input[i];
        if (!*name)
            continue;
        qf_value *value = qf_graph_find(node->graph, name);
        qf_status status = value ? QF_OK
                                 : refuse(b, node->name,
                                          "the node reads tensor '%s', which nothing in the model "
                                          "produces",
                                          name);
        if (status != QF_OK)
            return status;
        if (value && !qf_node_set_input(b->ir, node, i, value))
            return qf_fail_memory(b->err);
    }
    return QF_OK;
}

static qf_status add_subgraphs(builder *b, qf_node *node)
{
    qf_status status = QF_OK;
    for (size_t i = 0; status == QF_OK && i < node->proto->n_attribute; i++) {
        Onnx__AttributeProto *a = node->proto->attribute[i];
        if (a->g)
            status = build_graph(b, a->g, node->graph, node);
        for (size_t j = 0; status == QF_OK && j < a->n_graphs; j++)
            status = build_graph(b, a->graphs[j], node->graph, node);
    }
    return status;
}

static qf_status add_results(builder *b, qf_graph *g)
{
    for (size_t i = 0; i < g->proto->n_output; i++) {
        Onnx__ValueInfoProto *info = g->proto->output[i];
        qf_value *value = info->name ? qf_graph_find(g, info->name) : NULL;
        if (!value) {
            qf_status status =
                refuse(b, "graph output", "nothing in the model produces output '%s'",
                       info->name ? info->name : "");
            if (status != QF_OK)
                return status;
            continue;
        }
        if (value->result_count == value->result_cap) {
            size_t cap = value->result_cap ? value->result_cap * 2 : 2;
            Onnx__ValueInfoProto **grown = qf_arena_array(b->ir->arena, cap, sizeof *grown);
            if (!grown)
                return qf_fail_memory(b->err);
            if (value->result_count)
                memcpy(grown, value->results, value->result_count * sizeof *grown);
            value->results = grown;
            value->result_cap = cap;
        }
        value->results[value->result_count++] = info;
    }
    for (size_t i = 0; i < g->proto->n_value_info; i++) {
        Onnx__ValueInfoProto *info = g->proto->value_info[i];
        qf_value *value = info->name ? qf_strmap_get(&g->values, info->name) : NULL;
        if (value)
            value->info = info;
    }
    return QF_OK;
}

static qf_status build_graph(builder *b, Onnx__GraphProto *proto, qf_graph *parent, qf_node *owner)
{
    qf_ir *ir = b->ir;
    qf_graph *g = qf_arena_alloc(ir->arena, sizeof *g);
    if (!g || !qf_grow((void **)&ir->graphs, &ir->graph_cap, ir->graph_count + 1, sizeof g))
        return qf_fail_memory(b->err);
    g->index = ir->graph_count;
    ir->graphs[ir->graph_count++] = g;
    g->proto = proto;
    g->parent = parent;
    g->owner = owner;

    qf_status status = add_inputs(b, g);
    if (status == QF_OK)
        status = add_initializers(b, g);
    for (size_t i = 0; status == QF_OK && i < proto->n_node; i++)
        status = add_node(b, g, i);
    for (qf_node *n = g->first; status == QF_OK && n; n = n->next)
        status = link_inputs(b, n);
    if (status == QF_OK)
        status = add_results(b, g);
    for (qf_node *n = g->first; status == QF_OK && n; n = n->next)
        status = add_subgraphs(b, n);
    return status;
}

static qf_status build(builder *b, qf_arena *arena, Onnx__ModelProto *model, qf_ir *out)
{
    *out = (qf_ir){.arena = arena, .model = model};
    b->ir = out;
    return build_graph(b, model->graph, NULL, NULL);
}

qf_status qf_ir_build(qf_arena *arena, Onnx__ModelProto *model, const char *path, qf_ir *out,
                      qf_error *err)
{
    builder b = {.path = path, .err = err};
    qf_status status = build(&b, arena, model, out);
    for (size_t i = 0; status == QF_OK && i < out->graph_count; i++)
        status = qf_graph_sort(out->graphs[i], path, err);
    if (status != QF_OK)
        qf_ir_release(out);
    return status;
}

qf_status qf_ir_build_noting(qf_arena *arena, Onnx__ModelProto *model, const char *path,
                             qf_diagnostics *findings, qf_ir *out, qf_error *err)
{
    builder b = {.path = path, .findings = findings, .err = err};
    qf_status status = build(&b, arena, model, out);
    if (status != QF_OK)
        qf_ir_release(out);
    return status;
}
