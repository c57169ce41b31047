/* SPDX-License-Identifier: Apache-2.0 */
/* What a model that comes without a record is: float, QDQ, or a deploy model to be made runnable.
 */
#include "passes/passes.h"
#include "quant/plan.h"
#include "quant/qdq.h"

qf_status qf_model_has_node(const qf_model *model, bool (*is)(const qf_node *), bool *out,
                            qf_error *err)
{
    qf_linked linked;
    *out = false;
    qf_status status =
        qf_linked_open(model->skeleton, model->skeleton_length, model->files[0].path, &linked, err);
    if (status != QF_OK)
        return status;
    for (size_t i = 0; i < linked.ir.node_count; i++)
        *out |= linked.ir.by_id[i] && is(linked.ir.by_id[i]);
    qf_linked_close(&linked);
    return QF_OK;
}

/* Of something that is calculated: in a deploy model DequantizeLinear is only behind weights. */
static bool dequantizes_values(const qf_node *node)
{
    return qf_is_dequantize(node) && node->input_count && node->inputs[0] &&
           !qf_value_constant(node->inputs[0]);
}

qf_status qf_plan_find_deploy(qf_plan *plan, qf_error *err)
{
    const qf_model *model = plan->model;
    bool alone = !plan->record && !plan->scheme.on && plan->options.source == QF_SOURCE_AUTO;
    bool quantizes = false, values = false, dequantizes = false;
    qf_status status = qf_model_has_node(model, qf_is_deploy_node, &plan->from_deploy, err);
    if (status != QF_OK || plan->from_deploy || !alone)
        return status;
    status = qf_model_has_node(model, qf_is_quantize, &quantizes, err);
    if (status == QF_OK && !quantizes)
        status = qf_model_has_node(model, dequantizes_values, &values, err);
    quantizes |= values;
    if (status == QF_OK && !quantizes)
        status = qf_model_has_node(model, qf_is_dequantize, &dequantizes, err);
    plan->from_deploy = !quantizes;
    if (status == QF_OK && !quantizes && !dequantizes)
        status = qf_fail_at(err, QF_ERR_INPUT, (qf_where){.file = model->files[0].path},
                            "nothing in this model is quantized, so there is nothing to make "
                            "runnable; give a deploy model, or a trained one with its record "
                            "(--record)");
    return status;
}
