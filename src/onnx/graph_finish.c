/* SPDX-License-Identifier: Apache-2.0 */
/* Writing a linked graph back into its messages, in an order where producers come first. */
#include <stdlib.h>
#include <string.h>

#include "onnx/graph.h"

/* The node of `graph` that `node` is, or is nested in; NULL if it is elsewhere. */
static qf_node *ancestor_in(const qf_graph *graph, qf_node *node)
{
    while (node && node->graph != graph)
        node = node->graph->owner;
    return node;
}

static size_t node_count(const qf_graph *graph)
{
    size_t n = 0;
    for (const qf_node *node = graph->first; node; node = node->next)
        n++;
    return n;
}

/* Uses `id`, which nobody needs any more, for the position of each node. */
static bool is_sorted(const qf_graph *graph)
{
    size_t i = 0;
    for (qf_node *node = graph->first; node; node = node->next)
        node->id = ++i;
    for (const qf_value *v = graph->first_value; v; v = v->next) {
        if (!v->producer || v->dropped)
            continue;
        for (size_t u = 0; u < v->use_count; u++) {
            const qf_node *user = ancestor_in(graph, v->uses[u].node);
            if (user && user->id <= v->producer->id)
                return false;
        }
    }
    return true;
}

/* Kahn's algorithm with a FIFO: nodes that wait for nothing keep their order. `id` becomes the
 * number of values a node still waits for. */
static bool sort(qf_graph *graph, qf_node **order)
{
    size_t head = 0, tail = 0, total = node_count(graph);
    for (qf_node *node = graph->first; node; node = node->next)
        node->id = 0;
    for (qf_value *v = graph->first_value; v; v = v->next) {
        if (!v->producer || v->dropped)
            continue;
        for (size_t u = 0; u < v->use_count; u++) {
            qf_node *user = ancestor_in(graph, v->uses[u].node);
            if (user)
                user->id++;
        }
    }
    for (qf_node *node = graph->first; node; node = node->next) {
        if (!node->id)
            order[tail++] = node;
    }
    while (head < tail) {
        const qf_node *node = order[head++];
        for (size_t o = 0; o < node->output_count; o++) {
            const qf_value *v = node->outputs[o];
            for (size_t u = 0; v && u < v->use_count; u++) {
                qf_node *user = ancestor_in(graph, v->uses[u].node);
                if (user && --user->id == 0)
                    order[tail++] = user;
            }
        }
    }
    return tail == total;
}

static char *mutable_copy(qf_ir *ir, const char *text)
{
    return qf_arena_strdup(ir->arena, text);
}

static bool write_node(qf_ir *ir, qf_node *node)
{
    Onnx__NodeProto *p = node->proto;
    p->name = mutable_copy(ir, node->name);
    p->input = qf_arena_array(ir->arena, node->input_count, sizeof *p->input);
    p->output = qf_arena_array(ir->arena, node->output_count, sizeof *p->output);
    if (!p->name || !p->input || !p->output)
        return false;
    p->n_input = node->input_count;
    p->n_output = node->output_count;
    for (size_t i = 0; i < node->input_count; i++) {
        p->input[i] = mutable_copy(ir, node->inputs[i] ? node->inputs[i]->name : "");
        if (!p->input[i])
            return false;
    }
    for (size_t i = 0; i < node->output_count; i++) {
        p->output[i] = mutable_copy(ir, node->outputs[i] ? node->outputs[i]->name : "");
        if (!p->output[i])
            return false;
    }
    return true;
}

static bool write_initializers(qf_ir *ir, qf_graph *graph)
{
    size_t n = 0;
    for (const qf_value *v = graph->first_value; v; v = v->next)
        n += v->init && !v->dropped;
    Onnx__TensorProto **tensors = qf_arena_array(ir->arena, n, sizeof *tensors);
    if (!tensors)
        return false;
    n = 0;
    for (const qf_value *v = graph->first_value; v; v = v->next) {
        if (!v->init || v->dropped)
            continue;
        v->init->name = mutable_copy(ir, v->name);
        if (!v->init->name)
            return false;
        tensors[n++] = v->init;
    }
    graph->proto->initializer = tensors;
    graph->proto->n_initializer = n;
    return true;
}

/* Values own the ValueInfoProtos; those of vanished or retyped values are left out. */
static bool write_infos(qf_ir *ir, qf_graph *graph)
{
    Onnx__GraphProto *p = graph->proto;
    size_t infos = 0, inputs = 0;
    for (size_t i = 0; i < p->n_value_info; i++)
        p->value_info[i]->name = NULL;
    for (size_t i = 0; i < p->n_input; i++)
        p->input[i]->name = NULL;
    for (const qf_value *v = graph->first_value; v; v = v->next) {
        char *name = mutable_copy(ir, v->name);
        if (!name)
            return false;
        if (v->info && !v->retyped && !v->dropped)
            v->info->name = name;
        if (v->input)
            v->input->name = name;
    }
    for (size_t i = 0; i < p->n_value_info; i++) {
        if (p->value_info[i]->name)
            p->value_info[infos++] = p->value_info[i];
    }
    for (size_t i = 0; i < p->n_input; i++) {
        if (p->input[i]->name)
            p->input[inputs++] = p->input[i];
    }
    p->n_value_info = infos;
    p->n_input = inputs;
    return true;
}

/* Outputs may be values of an outer graph, so their names are written last. */
static bool write_results(qf_ir *ir, qf_graph *graph)
{
    for (const qf_value *v = graph->first_value; v; v = v->next) {
        for (size_t i = 0; i < v->result_count; i++) {
            v->results[i]->name = mutable_copy(ir, v->name);
            if (!v->results[i]->name)
                return false;
        }
    }
    return true;
}

static qf_status finish_graph(qf_ir *ir, qf_graph *graph, const char *path, qf_error *err)
{
    size_t n = node_count(graph);
    qf_node **order = malloc((n ? n : 1) * sizeof *order);
    Onnx__NodeProto **nodes = qf_arena_array(ir->arena, n, sizeof *nodes);
    if (!order || !nodes) {
        free(order);
        return qf_fail_memory(err);
    }
    size_t i = 0;
    for (qf_node *node = graph->first; node; node = node->next)
        order[i++] = node;
    qf_status status = QF_OK;
    if (!is_sorted(graph) && !sort(graph, order))
        status = qf_fail_at(err, QF_ERR_INPUT, (qf_where){.file = path},
                            "the graph has a cycle; ONNX graphs must not");
    for (i = 0; status == QF_OK && i < n; i++) {
        nodes[i] = order[i]->proto;
        if (!write_node(ir, order[i]))
            status = qf_fail_memory(err);
    }
    free(order);
    if (status != QF_OK)
        return status;
    graph->proto->node = nodes;
    graph->proto->n_node = n;
    if (!write_initializers(ir, graph) || !write_infos(ir, graph))
        return qf_fail_memory(err);
    return QF_OK;
}

qf_status qf_ir_finish(qf_ir *ir, const char *path, qf_error *err)
{
    for (size_t i = 0; i < ir->graph_count; i++) {
        qf_status status = finish_graph(ir, ir->graphs[i], path, err);
        if (status != QF_OK)
            return status;
    }
    for (size_t i = 0; i < ir->graph_count; i++) {
        if (!write_results(ir, ir->graphs[i]))
            return qf_fail_memory(err);
    }
    return QF_OK;
}
