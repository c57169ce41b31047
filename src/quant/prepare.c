/* SPDX-License-Identifier: Apache-2.0 */
/* One graph for both targets. */
#include <stdlib.h>
#include <string.h>

#include "passes/passes.h"
#include "quant/match.h"
#include "quant/plan.h"

static bool has_value(const AMCTPytorchProto__SingleLayerRecord *v)
{
    /* the reference's test: every field absent or zero means "nothing to quantize" */
    return v->n_scale_w || v->n_offset_w || v->n_shift_bit || v->n_scale_r || v->n_offset_r ||
           (v->has_scale_d && v->scale_d != 0) || (v->has_offset_d && v->offset_d != 0) ||
           (v->has_scale_h && v->scale_h != 0) || (v->has_offset_h && v->offset_h != 0) ||
           v->n_tensor_balance_factor;
}

/* Remembers record `index` as the node's. Of two of the same key the later one counts. */
static qf_status enter(qf_plan *plan, size_t index, qf_node *node, qf_error *err)
{
    const AMCTPytorchProto__ScaleOffsetRecord *message = qf_record_message(plan->record);
    const char *key = message->record[index]->key;
    bool alone = qf_plan_is_weight_only(plan, message->record[index]->value);
    qf_strmap *maps[] = {&plan->record_of_node, &plan->matrix_record_of_node};
    const size_t *other = qf_strmap_get(maps[!alone], node->name);
    size_t *before = qf_strmap_get(maps[alone], node->name);
    const char *taken = other ? message->record[*other]->key
                        : before && strcmp(message->record[*before]->key, key) != 0
                            ? message->record[*before]->key
                            : NULL;
    if (taken) {
        qf_plan_report(plan, QF_ERROR, index, key, "node '%s' already has a record, '%s'",
                       node->name, taken);
        return QF_OK;
    }
    if (before) {
        *before = index;
        qf_plan_report(plan, QF_WARNING, index, key,
                       "the layer has two records; the later one is used");
        return QF_OK;
    }
    node->renamed = true; /* later steps find the node by this name */
    size_t *place = qf_arena_alloc(&plan->arena, sizeof *place);
    const char *name = qf_arena_strdup(&plan->arena, node->name);
    if (!place || !name || !qf_strmap_set(maps[alone], name, place))
        return qf_fail_memory(err);
    *place = index;
    return QF_OK;
}

qf_status qf_plan_match(qf_plan *plan, const qf_ir *ir, qf_error *err)
{
    const AMCTPytorchProto__ScaleOffsetRecord *message = qf_record_message(plan->record);
    qf_matcher matcher;
    if (!message->n_record && (plan->scheme.on || plan->from_deploy))
        return QF_OK;
    if (!message->n_record) {
        qf_plan_report(plan, QF_ERROR, SIZE_MAX, NULL,
                       "the record file is empty: it names no layer to quantize");
        return QF_OK;
    }
    qf_status status = qf_matcher_init(&matcher, ir, err);
    if (status != QF_OK)
        return status;
    for (size_t i = 0; status == QF_OK && i < message->n_record; i++) {
        const AMCTPytorchProto__MapFiledEntry *entry = message->record[i];
        if (!entry->key || !*entry->key) {
            qf_plan_report(plan, QF_ERROR, i, NULL, "cannot find \"key\" in this record");
            continue;
        }
        if (!entry->value) {
            qf_plan_report(plan, QF_ERROR, i, entry->key, "cannot find \"value\" in this record%s",
                           entry->kv_cache_value ? "; kv_cache_value alone is not exported" : "");
            continue;
        }
        qf_match match;
        qf_matcher_find(&matcher, entry->key, &match);
        if (!match.node) {
            qf_plan_report(plan, QF_ERROR, i, entry->key, "%s", match.problem);
            continue;
        }
        if (match.is_tensor) {
            qf_plan_report(plan, QF_WARNING, i, entry->key,
                           "a tensor record (layer:input) has no effect on the exported models");
            continue;
        }
        if (!has_value(entry->value)) {
            qf_plan_report(plan, QF_WARNING, i, entry->key,
                           "the record has no scale, so the layer stays float");
            continue;
        }
        status = enter(plan, i, (qf_node *)match.node, err);
    }
    qf_matcher_release(&matcher);
    return status;
}

static qf_status prepare_graph(qf_plan *plan, const qf_io_spec *io, qf_ir *ir, qf_error *err)
{
    qf_status status = qf_pass_remove_quant_identity(plan, ir, err);
    if (status == QF_OK && io)
        status = qf_pass_name_io(plan, io, ir, err);
    if (status == QF_OK)
        status = qf_plan_match(plan, ir, err);
    if (status == QF_OK)
        status = qf_pass_absorb_qdq(plan, ir, err);
    if (status == QF_OK)
        status = qf_pass_fold_batch_norm(plan, ir, err);
    return status;
}

qf_status qf_plan_prepare(qf_plan *plan, const qf_io_spec *io, qf_error *err)
{
    qf_linked linked;
    const char *path = plan->model->files[0].path;
    qf_status status =
        qf_linked_open(plan->model->skeleton, plan->model->skeleton_length, path, &linked, err);
    if (status != QF_OK)
        return status;
    status = prepare_graph(plan, io, &linked.ir, err);
    if (status == QF_OK)
        status = qf_ir_finish(&linked.ir, path, err);
    if (status == QF_OK)
        status = qf_skeleton_pack(linked.model, &plan->skeleton, &plan->skeleton_length, err);
    qf_linked_close(&linked);
    return status;
}
