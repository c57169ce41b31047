/* SPDX-License-Identifier: Apache-2.0 */
/* fake_quant: AscendDequant becomes a Mul by the scales that the packed parameter holds
 * (facts 5.3). */
#include <string.h>

#include "passes/passes.h"

static size_t scale_dims(const qf_layer *layer, int64_t dims[5])
{
    size_t rank = 2;
    if (layer->op == QF_OP_CONV || layer->op == QF_OP_CONV_TRANSPOSE)
        rank = layer->weights[0].rank < 5 ? layer->weights[0].rank : 5;
    for (size_t i = 0; i < rank; i++)
        dims[i] = 1;
    dims[1] = (int64_t)layer->dequant_count;
    return rank;
}

static float masked(float scale, uint32_t mask)
{
    uint32_t bits;
    memcpy(&bits, &scale, sizeof bits);
    bits &= mask;
    memcpy(&scale, &bits, sizeof scale);
    return scale;
}

static bool expand(qf_pass *p, qf_node *dequant)
{
    qf_ir *ir = p->ir;
    const qf_layer *layer = dequant->tag;
    int64_t dims[5];
    size_t rank = scale_dims(layer, dims);
    float *scales = qf_arena_array(ir->arena, layer->dequant_count, sizeof *scales);
    const char *prefix = qf_pass_name(p, layer->name, "fakedequant");
    const char *constant = prefix ? qf_pass_name(p, prefix, "dqscale") : NULL;
    const char *name = prefix ? qf_pass_name(p, prefix, "mul") : NULL;
    const char *output = name ? qf_pass_name(p, name, "output0") : NULL;
    if (!scales || !constant || !output)
        return false;
    for (size_t i = 0; i < layer->dequant_count; i++)
        scales[i] = masked(layer->dequant[i], layer->dequant_mask);
    qf_value *factor =
        qf_pass_add_constant(p, constant, scales, dims, rank, "scale of the Fake dequant", dequant);
    if (!factor || !qf_pass_share_constant(p, dequant, 1, factor) ||
        !qf_node_rename(ir, dequant, name) ||
        (!dequant->outputs[0]->result_count && !qf_value_rename(ir, dequant->outputs[0], output)))
        return false;
    dequant->proto->op_type = qf_arena_strdup(ir->arena, "Mul");
    dequant->proto->n_attribute = 0;
    dequant->proto->doc_string = qf_arena_strdup(ir->arena, "mul of the Fake dequant");
    if (!dequant->proto->op_type || !dequant->proto->doc_string)
        return false;
    return layer->float_type == ONNX__TENSOR_PROTO__DATA_TYPE__FLOAT ||
           qf_pass_cast_output(p, dequant, 0, layer->float_type, prefix);
}

qf_status qf_pass_expand_dequant(qf_pass *p)
{
    for (size_t g = 0; g < p->ir->graph_count; g++) {
        for (qf_node *node = p->ir->graphs[g]->first, *next; node; node = next) {
            next = node->next;
            if (qf_node_is(node, "AscendDequant") && node->tag && !expand(p, node))
                return qf_fail_memory(p->err);
        }
    }
    return QF_OK;
}
