/* SPDX-License-Identifier: Apache-2.0 */
/* Writing a linked graph back into its messages. */
#include "onnx/graph.h"

static char *mutable_copy(qf_ir *ir, const char *text)
{
    return qf_arena_strdup(ir->arena, text);
}

static bool write_node(qf_ir *ir, qf_node *node)
{
    Onnx__NodeProto *p = node->proto;
    if (node->renamed)
        p->name = mutable_copy(ir, node->name);
    p->input = qf_arena_array(ir->arena, node->input_count, sizeof *p->input);
    p->output = qf_arena_array(ir->arena, node->output_count, sizeof *p->output);
    if ((node->renamed && !p->name) || !p->input || !p->output)
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

/* Entries of vanished or retyped values, and of inputs that are none any more, lose their name. */
static bool mark_infos(qf_ir *ir, const qf_graph *graph)
{
    for (const qf_value *v = graph->first_value; v; v = v->next) {
        char *name = mutable_copy(ir, v->name);
        if (!name)
            return false;
        if (v->info)
            v->info->name = v->retyped || v->dropped ? NULL : name;
        if (v->input)
            v->input->name = name;
        if (v->dead_input)
            v->dead_input->name = NULL;
    }
    return true;
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

static bool write_infos(qf_ir *ir, qf_graph *graph)
{
    Onnx__GraphProto *p = graph->proto;
    if (!mark_infos(ir, graph))
        return false;
    p->n_value_info = keep_named(p->value_info, p->n_value_info);
    p->n_input = keep_named(p->input, p->n_input);
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
