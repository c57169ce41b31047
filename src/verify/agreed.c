/* SPDX-License-Identifier: Apache-2.0 */
/* Which layers of the two models were compared in all that they have. A node says of its own
 * tensors whether they were; a layer is several nodes, and what is between it and its constants. */
#include "verify/agree.h"
#include "verify/structure.h"

enum { MOST_ABOVE = 4 }; /* nodes between a layer and a constant: Cast, Transpose, Constant */

static bool is_complete(const qf_node *node)
{
    const qf_counterpart *c = node->tag;
    return c && (c->node || c->silent) && !c->skipped;
}

/* Whether a node and what makes its inputs from `first` on were compared, up to constants. */
static bool was_compared(const qf_node *node, size_t first, int above)
{
    if (!is_complete(node))
        return false;
    for (size_t i = first; i < node->input_count; i++) {
        qf_value *value = node->inputs[i];
        const qf_node *maker = value ? value->producer : NULL;
        bool compared =
            maker ? above > 0 && maker->input_count < 2 && was_compared(maker, 0, above - 1)
                  : !value || qf_subject_constant(value) != NULL;
        if (!compared)
            return false;
    }
    return true;
}

static bool has_weight(const qf_node *node)
{
    return qf_node_is(node, "Conv") || qf_node_is(node, "ConvTranspose") ||
           qf_node_is(node, "Gemm") || qf_node_is(node, "MatMul");
}

/* The layer before an AscendDequant, and the Add of a bias between them. */
static bool layer_was_compared(const qf_node *dequant)
{
    const qf_value *in = dequant->input_count ? dequant->inputs[0] : NULL;
    const qf_node *layer = in ? in->producer : NULL;
    if (!layer || !was_compared(dequant, 1, MOST_ABOVE) || !was_compared(layer, 1, MOST_ABOVE))
        return false;
    if (qf_node_is(layer, "Add")) {
        in = layer->input_count ? layer->inputs[0] : NULL;
        layer = in ? in->producer : NULL;
        if (!layer || !was_compared(layer, 1, MOST_ABOVE))
            return false;
    }
    return !has_weight(layer) || (layer->input_count > 1 && layer->inputs[1]);
}

void qf_agree_count(const qf_pairing *p, qf_agreement *layers)
{
    for (size_t i = 0; i < p->a->ir.node_count; i++) {
        const qf_node *node = p->a->ir.by_id[i];
        bool compared;
        if (qf_node_is(node, "AscendDequant"))
            compared = layer_was_compared(node);
        else if (qf_is_window_cache(node))
            compared = is_complete(node);
        else if (qf_is_weight_only(node))
            compared = was_compared(node, 0, 0);
        else
            continue;
        layers->compared += compared;
        layers->skipped += !compared;
    }
}
