/* SPDX-License-Identifier: Apache-2.0 */
/* What must not go out. op_data_type is a note of the reference's own quantizer and not part of any
 * operator (facts 4.7). Before IR version 4 each initializer had to be a graph input as well, which
 * would give quantized weights the float dtype of their inputs. */
#include "passes/passes.h"

qf_status qf_pass_strip_attributes(qf_pass *p)
{
    for (size_t g = 0; g < p->ir->graph_count; g++) {
        for (qf_node *node = p->ir->graphs[g]->first; node; node = node->next)
            qf_node_remove_attribute(node, "op_data_type");
    }
    if (p->ir->model->ir_version < 4)
        p->ir->model->ir_version = 4;
    return QF_OK;
}
