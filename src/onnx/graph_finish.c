/* SPDX-License-Identifier: Apache-2.0 */
/* Writing a linked graph back into its messages. */
#include "onnx/graph.h"

static bool write_node(qf_ir *ir, qf_node *node)
{
    Onnx__NodeProto *p = node->proto;
    if (node->renamed)
        p->name = qf_borrow(node->name);
    p->input = qf_arena_array(ir->arena, node->input_count, sizeof *p->input);
    p->output = qf_arena_array(ir->arena, node->output_count, sizeof *p->output);
    if (!p->input || !p->output)
        return false;
    p->n_input = node->input_count;
    p->n_output = node->output_count;
    for (size_t i = 0; i < node->input_count; i++)
        p->input[i] = qf_borrow(node->inputs[i] ? node->inputs[i]->name : "");
    for (size_t i = 0; i < node->output_count; i++)
        p->output[i] = qf_borrow(node->outputs[i] ? node->outputs[i]->name : "");
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
        v->init->name = qf_borrow(v->name);
        tensors[n++] = v->init;
    }
    graph->proto->initializer = tensors;
    graph->proto->n_initializer = n;
    return true;
}

/* Entries of vanished or retyped values, and of inputs that are none any more, lose their name. */
static void mark_infos(const qf_graph *graph)
{
    for (const qf_value *v = graph->first_value; v; v = v->next) {
        if (v->info)
            v->info->name = v->retyped || v->dropped ? NULL : qf_borrow(v->name);
        if (v->input)
            v->input->name = qf_borrow(v->name);
        if (v->dead_input)
            v->dead_input->name = NULL;
    }
}

static size_t keep_named(Onnx__ValueInfoProto **infos, size_t count)
{
    size_t kept = 0;
    for (size_t i = 0; i < count; i++) {
        if (infos[i]->name)
            infos[kept++] = infos[i];
    }
    return kept;
}

static void write_infos(const qf_graph *graph)
{
    Onnx__GraphProto *p = graph->proto;
    mark_infos(graph);
    p->n_value_info = keep_named(p->value_info, p->n_value_info);
    p->n_input = keep_named(p->input, p->n_input);
}

/* Outputs may be values of an outer graph, so their names are written last. */
static void write_results(const qf_graph *graph)
{
    for (const qf_value *v = graph->first_value; v; v = v->next) {
        for (size_t i = 0; i < v->result_count; i++)
            v->results[i]->name = qf_borrow(v->name);
    }
}

static qf_status finish_graph(qf_ir *ir, qf_graph *graph, const char *path, qf_error *err)
{
    qf_status status = qf_graph_sort(graph, path, err);
    if (status != QF_OK)
        return status;
    size_t n = 0;
    for (qf_node *node = graph->first; node; node = node->next)
        n++;
    Onnx__NodeProto **nodes = qf_arena_array(ir->arena, n, sizeof *nodes);
    if (!nodes)
        return qf_fail_memory(err);
    n = 0;
    for (qf_node *node = graph->first; node; node = node->next) {
        if (!write_node(ir, node))
            return qf_fail_memory(err);
        nodes[n++] = node->proto;
    }
    graph->proto->node = nodes;
    graph->proto->n_node = n;
    if (!write_initializers(ir, graph))
        return qf_fail_memory(err);
    write_infos(graph);
    return QF_OK;
}

qf_status qf_ir_finish(qf_ir *ir, const char *path, qf_error *err)
{
    for (size_t i = 0; i < ir->graph_count; i++) {
        qf_status status = finish_graph(ir, ir->graphs[i], path, err);
        if (status != QF_OK)
            return status;
    }
    for (size_t i = 0; i < ir->graph_count; i++)
        write_results(ir->graphs[i]);
    return QF_OK;
}
