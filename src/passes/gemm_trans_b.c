/* SPDX-License-Identifier: Apache-2.0 */
/* The NPU wants Gemm weights as [K, N]: transB becomes 0 and the weight's job transposes. A weight
 * behind a Transpose node keeps its layout, and its Gemm keeps transB. */
#include "passes/passes.h"

qf_status qf_pass_gemm_trans_b(qf_pass *p)
{
    for (size_t i = 0; i < p->plan->layer_count; i++) {
        const qf_layer *layer = &p->plan->layers[i];
        qf_node *node = qf_pass_node(p, layer);
        if (layer->op == QF_OP_GEMM && layer->weights[0].job->transposed &&
            !qf_node_set_int(p->ir, node, "transB", 0))
            return qf_fail_memory(p->err);
    }
    return QF_OK;
}
