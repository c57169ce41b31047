/* SPDX-License-Identifier: Apache-2.0 */
/* What a model holds, for `quantfold inspect`. */
#include "quant/inspect.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "passes/passes.h"
#include "quant/qdq.h"

struct qf_layer_scan {
    qf_arena arena;
    qf_model_info info;
    qf_layer_candidate *items;
    size_t count;
};

void qf_layer_scan_free(qf_layer_scan *scan)
{
    if (!scan)
        return;
    qf_arena_release(&scan->arena);
    free(scan);
}

static void count_graph(const Onnx__GraphProto *graph, qf_model_info *info)
{
    info->graph_count++;
    info->node_count += graph->n_node;
    for (size_t i = 0; i < graph->n_node; i++) {
        for (size_t j = 0; j < graph->node[i]->n_attribute; j++) {
            const Onnx__AttributeProto *a = graph->node[i]->attribute[j];
            if (a->g)
                count_graph(a->g, info);
            for (size_t k = 0; k < a->n_graphs; k++)
                count_graph(a->graphs[k], info);
        }
    }
}

static const char *keep(qf_layer_scan *scan, const char *text)
{
    return text && *text ? qf_arena_strdup(&scan->arena, text) : "";
}

static bool describe(qf_layer_scan *scan, const qf_model *model, const Onnx__ModelProto *p)
{
    qf_model_info *info = &scan->info;
    *info = (qf_model_info){.ir_version = p->ir_version,
                            .producer_name = keep(scan, p->producer_name),
                            .producer_version = keep(scan, p->producer_version),
                            .graph_name = keep(scan, p->graph->name),
                            .file_bytes = model->files[0].size,
                            .tensor_count = model->payloads.count};
    for (size_t i = 0; i < p->n_opset_import; i++) {
        const char *domain = p->opset_import[i]->domain;
        if (!domain || !*domain || strcmp(domain, "ai.onnx") == 0)
            info->opset = p->opset_import[i]->version;
    }
    for (size_t i = 0; i < model->payloads.count; i++) {
        info->tensor_bytes += model->payloads.items[i].span.length;
        info->external_count += model->payloads.items[i].was_external;
    }
    count_graph(p->graph, info);
    return info->producer_name && info->producer_version && info->graph_name;
}

/* A layer of a QDQ model is probed as it will be once Q and DQ are absorbed: its weight is the
 * constant behind them. What is wrong with the data itself is told by an export. */
static qf_status probe_qdq(const qf_qdq *q, const qf_node *node, qf_probe *probe,
                           const qf_value **source, qf_error *err)
{
    qf_qdq_layer layer;
    qf_status status = qf_qdq_layer_read(q, node, &layer, err);
    if (status != QF_OK)
        return status == QF_ERR_INPUT ? QF_OK : status;
    if (!layer.quantized || !layer.weight.tensor)
        return QF_OK;
    probe->weight = layer.weight.tensor;
    probe->channels = layer.scale_w_count ? layer.scale_w_count : 1;
    probe->quantizable = !layer.problem[0];
    *source = layer.weight.source;
    snprintf(probe->reason, sizeof probe->reason, "%.*s", (int)sizeof probe->reason - 1,
             layer.problem);
    return QF_OK;
}

static qf_layer_candidate describe_layer(qf_arena *arena, const qf_node *node,
                                         const qf_probe *probe, const qf_value *source)
{
    const Onnx__TensorProto *w = probe->weight;
    qf_layer_candidate c = {.name = qf_arena_strdup(arena, node->name),
                            .op_type = qf_op_name(probe->op),
                            .weight = w && source ? qf_arena_strdup(arena, source->name) : "",
                            .dtype = w ? qf_dtype_name(w->data_type) : "",
                            .channels = probe->channels,
                            .quantizable = probe->quantizable,
                            .reason = *probe->reason ? qf_arena_strdup(arena, probe->reason) : ""};
    c.rank = w ? (w->n_dims < 8 ? w->n_dims : 8) : 0;
    if (c.rank)
        memcpy(c.dims, w->dims, c.rank * sizeof *c.dims);
    return c;
}

static bool is_candidate(const qf_node *node)
{
    return node && qf_op_of(node) != QF_OP_NONE;
}

static qf_status collect(qf_layer_scan *scan, const qf_plan *plan, const qf_ir *ir, qf_error *err)
{
    size_t count = 0;
    const qf_qdq q = {&plan->model->payloads, ir->arena, plan->model->files[0].path};
    for (size_t i = 0; i < ir->node_count; i++)
        count += is_candidate(ir->by_id[i]);
    scan->items = qf_arena_array(&scan->arena, count, sizeof *scan->items);
    if (!scan->items)
        return qf_fail_memory(err);
    for (size_t i = 0; i < ir->node_count; i++) {
        const qf_node *node = ir->by_id[i];
        if (!is_candidate(node))
            continue;
        qf_probe probe;
        qf_layer_probe(node, qf_plan_flags(plan, node->name), &probe);
        const qf_value *source = qf_value_source(probe.weight_value);
        qf_status status = probe.weight ? QF_OK : probe_qdq(&q, node, &probe, &source, err);
        if (status != QF_OK)
            return status;
        qf_layer_candidate c = describe_layer(&scan->arena, node, &probe, source);
        if (!c.name || !c.weight || !c.reason)
            return qf_fail_memory(err);
        scan->items[scan->count++] = c;
    }
    return QF_OK;
}

qf_status qf_layer_scan_create(qf_model *model, qf_arena *arena, Onnx__ModelProto *proto,
                               qf_layer_scan **out, qf_error *err)
{
    qf_layer_scan *scan = calloc(1, sizeof *scan);
    qf_plan plan = {.model = model}; /* carries the flags that markers give */
    qf_ir ir;
    if (!scan)
        return qf_fail_memory(err);
    qf_arena_init(&scan->arena);
    qf_arena_init(&plan.arena);
    qf_status status = describe(scan, model, proto) ? QF_OK : qf_fail_memory(err);
    if (status == QF_OK)
        status = qf_ir_build(arena, proto, model->files[0].path, &ir, err);
    if (status == QF_OK) {
        status = qf_pass_remove_quant_identity(&plan, &ir, err);
        if (status == QF_OK)
            status = collect(scan, &plan, &ir, err);
        qf_ir_release(&ir);
    }
    qf_strmap_release(&plan.node_flags);
    qf_arena_release(&plan.arena);
    if (status == QF_OK)
        *out = scan;
    else
        qf_layer_scan_free(scan);
    return status;
}

size_t qf_model_layer_count(const qf_model *model)
{
    return model->layers->count;
}

qf_layer_candidate qf_model_layer(const qf_model *model, size_t index)
{
    return model->layers->items[index];
}

qf_model_info qf_model_describe(const qf_model *model)
{
    return model->layers->info;
}
