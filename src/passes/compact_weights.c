/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fake_quant with int8 weights: a Cast makes float32 of the integers, and for LSTM and GRU, whose
 * weights the reference dequantizes (facts 5.6), a Mul by their scales: one float32 product each,
 * as in the float form. The initializer keeps the weight's name, so that it has the same one in
 * both models.
 */
#include "passes/passes.h"

/* Node <layer>.<weight>.<suffix> with one output and no inputs yet. */
static qf_node *add_step(qf_pass *p, const char *op, const char *prefix, const char *suffix,
                         const char *doc, qf_node *before)
{
    qf_ir *ir = p->ir;
    const char *name = qf_pass_name(p, prefix, suffix);
    const char *output = name ? qf_pass_name(p, name, "output0") : NULL;
    qf_node *node = output ? qf_ir_add_node(ir, before->graph, op, name, before) : NULL;
    if (!node || !qf_node_add_output(ir, node, output) ||
        !(node->proto->doc_string = qf_arena_strdup(ir->arena, doc)))
        return NULL;
    return node;
}

/* The scales of a job whose matrix has one for each row or for each few rows, as [1, rows, 1]. */
static qf_value *add_row_scales(qf_pass *p, const qf_job *job, const char *prefix, qf_node *before)
{
    const int64_t dims[] = {1, (int64_t)job->rows, 1};
    const char *name = qf_pass_name(p, prefix, "scale");
    float *scales = qf_arena_array(p->ir->arena, (size_t)job->rows, sizeof *scales);
    if (!name || !scales)
        return NULL;
    for (uint64_t r = 0; r < job->rows; r++)
        scales[r] = job->scales[job->scale_count == 1 ? 0 : r / job->row_div];
    return qf_pass_add_constant(p, name, scales, dims, 3, "scale of the integer weight", before);
}

static bool make_float(qf_pass *p, const qf_layer *layer, size_t which)
{
    qf_ir *ir = p->ir;
    qf_value *value = p->new_weights[2 * (size_t)(layer - p->plan->layers) + which];
    qf_node *before = value->uses[0].node;
    bool scaled = qf_op_is_rnn(layer->op);
    const char *prefix = qf_pass_name(p, layer->name, which ? "recurrence_weight" : "weight");
    if (!prefix)
        return false;
    qf_node *cast = add_step(p, "Cast", prefix, "cast", "cast of the integer weight", before);
    qf_node *mul =
        scaled ? add_step(p, "Mul", prefix, "mul", "mul of the integer weight", before) : NULL;
    if (!cast || (scaled && !mul) ||
        !qf_value_move_uses(ir, value, (scaled ? mul : cast)->outputs[0], NULL) ||
        !qf_node_add_input(ir, cast, value) ||
        !qf_node_set_int(ir, cast, "to", ONNX__TENSOR_PROTO__DATA_TYPE__FLOAT))
        return false;
    if (!scaled)
        return true;
    qf_value *scales = add_row_scales(p, layer->weights[which].job, prefix, mul);
    return scales && qf_node_add_input(ir, mul, cast->outputs[0]) &&
           qf_node_add_input(ir, mul, scales);
}

qf_status qf_pass_compact_weights(qf_pass *p)
{
    if (p->plan->options.fake_quant_weights == QF_FAKE_QUANT_FLOAT)
        return QF_OK;
    for (size_t i = 0; i < p->plan->layer_count; i++) {
        const qf_layer *layer = &p->plan->layers[i];
        for (size_t which = 0; which < layer->weight_count; which++) {
            /* the float form of a weight that layers share serves them all */
            if (layer->weights[which].owner == i && !make_float(p, layer, which))
                return qf_fail_memory(p->err);
        }
    }
    return QF_OK;
}
