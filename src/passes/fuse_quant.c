/* SPDX-License-Identifier: Apache-2.0 */
/* AscendQuants that read one tensor and do the same become one, the first (facts 3.5, pass 8). */
#include <string.h>

#include "passes/passes.h"

static const qf_quant_tag *quant_tag(const qf_node *node)
{
    return qf_node_is(node, "AscendQuant") ? node->tag : NULL;
}

static bool same(const qf_quant_tag *a, const qf_quant_tag *b)
{
    return memcmp(&a->scale_d, &b->scale_d, sizeof a->scale_d) == 0 && a->offset == b->offset &&
           a->bits == b->bits && strcmp(a->act_type, b->act_type) == 0;
}

static qf_status fuse_users(qf_pass *p, qf_value *value)
{
    for (size_t i = 0; i < value->use_count; i++) {
        qf_node *first = value->uses[i].node;
        const qf_quant_tag *tag = quant_tag(first);
        for (size_t j = i + 1; tag && j < value->use_count;) {
            qf_node *other = value->uses[j].node;
            const qf_quant_tag *other_tag = quant_tag(other);
            /* one in a subgraph is not merged: it may run never, or many times */
            if (!other_tag || other->graph != first->graph || !same(tag, other_tag)) {
                j++;
                continue;
            }
            if (!qf_value_move_uses(p->ir, other->outputs[0], first->outputs[0], NULL))
                return qf_fail_memory(p->err);
            qf_ir_remove_node(p->ir, other); /* takes its use out of the list */
        }
    }
    return QF_OK;
}

qf_status qf_pass_fuse_quant(qf_pass *p)
{
    qf_status status = QF_OK;
    for (size_t g = 0; g < p->ir->graph_count; g++) {
        for (qf_value *v = p->ir->graphs[g]->first_value; status == QF_OK && v; v = v->next)
            status = fuse_users(p, v);
    }
    return status;
}
