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

/* What its nodes tell of a model. */
typedef struct signs {
    bool deploy;      /* operators that only deploy models have */
    bool weight_only; /* DequantizeLinear that an export has put behind a weight */
    bool trained;     /* QuantizeLinear, or DequantizeLinear of something that is calculated */
    bool quantized;   /* DequantizeLinear of any kind */
} signs;

static signs signs_of(const qf_ir *ir)
{
    signs s = {0};
    for (size_t i = 0; i < ir->node_count; i++) {
        const qf_node *n = ir->by_id[i];
        if (!n)
            continue;
        bool dequantizes = qf_is_dequantize(n);
        s.deploy |= qf_is_deploy_node(n);
        s.weight_only |= qf_is_weight_only(n);
        s.quantized |= dequantizes;
        s.trained |= qf_is_quantize(n) || (dequantizes && n->input_count && n->inputs[0] &&
                                           !qf_value_constant(n->inputs[0]));
    }
    return s;
}

qf_status qf_plan_find_deploy(qf_plan *plan, qf_error *err)
{
    const qf_model *model = plan->model;
    const char *path = model->files[0].path;
    bool alone = !plan->record && !plan->scheme.on && plan->options.source == QF_SOURCE_AUTO;
    qf_linked linked;
    qf_status status = qf_linked_open(model->skeleton, model->skeleton_length, path, &linked, err);
    if (status != QF_OK)
        return status;
    signs s = signs_of(&linked.ir);
    qf_linked_close(&linked);
    /* a deploy model of weights alone can have kept its source's QuantizeLinear */
    plan->from_deploy = s.deploy || (alone && (s.weight_only || !s.trained));
    if (plan->from_deploy && !s.deploy && !s.quantized)
        return qf_fail_at(err, QF_ERR_INPUT, (qf_where){.file = path},
                          "nothing in this model is quantized, so there is nothing to make "
                          "runnable; give a deploy model, or a trained one with its record "
                          "(--record)");
    return QF_OK;
}
