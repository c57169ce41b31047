/* SPDX-License-Identifier: Apache-2.0 */
/* AscendQuants that read one tensor and do the same become one, the first (facts 3.5, pass 8). */
#include <string.h>

#include "passes/passes.h"

static const qf_quant_tag *quant_tag(const qf_node *node)
{
    return qf_node_is(node, "AscendQuant") ? node->tag : NULL;
}

/* Equal for quantizations that do the same in one graph: one in a subgraph is not merged with one
 * outside, because it may run never, or many times. */
static const char *key_of(qf_pass *p, const qf_node *node, const qf_quant_tag *tag)
{
    uint32_t scale;
    memcpy(&scale, &tag->scale_d, sizeof scale);
    return qf_arena_printf(p->ir->arena, "%08x:%d:%d:%s:%zu", (unsigned)scale, (int)tag->offset,
                           tag->bits, tag->act_type, (size_t)node->graph->index);
}

static qf_status fuse_users(qf_pass *p, qf_value *value)
{
    qf_strmap firsts = {0}; /* key -> node: a tensor can have thousands of users */
    bool memory = true;
    for (size_t i = 0; memory && value->use_count > 1 && i < value->use_count;) {
        qf_node *node = value->uses[i].node;
        const qf_quant_tag *tag = quant_tag(node);
        const char *key = tag ? key_of(p, node, tag) : NULL;
        const qf_node *first = key ? qf_strmap_add(&firsts, key, node) : node;
        memory = first && (key || !tag);
        if (first == node) {
            i++;
        } else if (memory) {
            memory = qf_value_move_uses(p->ir, node->outputs[0], first->outputs[0], NULL);
            qf_ir_remove_node(p->ir, node); /* takes its use out of the list */
        }
    }
    qf_strmap_release(&firsts);
    return memory ? QF_OK : qf_fail_memory(p->err);
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
