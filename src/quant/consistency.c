/* SPDX-License-Identifier: Apache-2.0 */
/* The config against the model and the record. What the reference rejects is an error; where it
 * does not care (the record alone steers its export) a warning tells what will happen. */
#include <stdio.h>
#include <string.h>

#include "quant/match.h"
#include "quant/plan.h"

static void report(qf_plan *plan, const qf_config *config, qf_severity severity, const char *layer,
                   const char *message)
{
    qf_diag_add(plan->diag, severity, (qf_where){.file = qf_config_path(config), .item = layer},
                "%s", message);
}

/* False when memory is exhausted. */
static bool check_layer(qf_plan *plan, const qf_config *config, const qf_config_layer *layer,
                        qf_matcher *matcher, const qf_strmap *weight_only, qf_strmap *enabled)
{
    qf_match match;
    qf_matcher_find(matcher, layer->name, &match);
    if (!match.node) {
        char message[900];
        snprintf(message, sizeof message, "unsupported layer in the config: %s", match.problem);
        report(plan, config, QF_ERROR, layer->name, message);
        return true;
    }
    const char *node = match.node->name;
    qf_op op = qf_op_of(match.node);
    if (op == QF_OP_NONE) {
        report(plan, config, QF_ERROR, layer->name,
               "unsupported layer in the config: operators of its type are not quantized");
        return true;
    }
    bool per_tensor = op == QF_OP_GEMM || op == QF_OP_MATMUL || op == QF_OP_AVERAGE_POOL;
    if (per_tensor && layer->channel_wise == QF_YES)
        report(plan, config, QF_ERROR, layer->name,
               "channel_wise is true, but a layer of its type cannot be quantized channel-wise");
    bool recorded = qf_strmap_get(&plan->record_of_node, node) || qf_strmap_get(weight_only, node);
    if ((layer->enabled || recorded) && !qf_strmap_set(enabled, node, (void *)node))
        return false;
    if (layer->enabled) {
        if (!recorded)
            report(plan, config, QF_WARNING, layer->name,
                   "the config enables this layer, but the record does not have it; it stays "
                   "float");
    } else if (recorded) {
        report(plan, config, QF_WARNING, layer->name,
               qf_strmap_get(weight_only, node)
                   ? "the config disables this layer, but --weight-only quantizes its weight"
                   : "the config disables this layer, but the record has it; it is quantized");
    }
    return true;
}

static void check_force_fp16(qf_plan *plan, const qf_config *config)
{
    if (!qf_config_force_fp16(config))
        return;
    for (size_t i = 0; i < plan->layer_count; i++) {
        if (plan->layers[i].dequant_mask != UINT32_MAX)
            return;
    }
    qf_diag_add(plan->diag, QF_WARNING, (qf_where){.file = qf_config_path(config)},
                "fakequant_precision_mode is FORCE_FP16_QUANT here, but no record carries it, and "
                "the record decides");
}

qf_status qf_plan_consistency(qf_plan *plan, const qf_config *config, const qf_ir *ir,
                              qf_error *err)
{
    qf_matcher matcher;
    qf_strmap enabled = {0}, weight_only = {0};
    qf_status status = qf_matcher_init(&matcher, ir, err);
    if (status != QF_OK)
        return status;
    bool memory = true;
    for (size_t i = 0; memory && i < plan->float_layer_count; i++)
        memory = qf_strmap_set(&weight_only, plan->float_layers[i].name, plan);
    for (size_t i = 0; memory && i < qf_config_layer_count(config); i++)
        memory = check_layer(plan, config, qf_config_layer_at(config, i), &matcher, &weight_only,
                             &enabled);
    for (size_t i = 0; i < plan->layer_count; i++) {
        if (!qf_strmap_get(&enabled, plan->layers[i].name))
            report(plan, config, QF_WARNING, plan->layers[i].key,
                   "the record has this layer, but the config does not; it is quantized");
    }
    check_force_fp16(plan, config);
    qf_strmap_release(&enabled);
    qf_strmap_release(&weight_only);
    qf_matcher_release(&matcher);
    return memory ? QF_OK : qf_fail_memory(err);
}
