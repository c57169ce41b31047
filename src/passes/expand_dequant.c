/* SPDX-License-Identifier: Apache-2.0 */
/* fake_quant: AscendDequant becomes a Mul by the scales that the packed parameter holds
 * (facts 5.3); scale and Mul are written from a macro where that can be. */
#include <stdlib.h>
#include <string.h>

#include "passes/expansion.h"

typedef struct dequant_macro {
    qf_macro macro;
    const qf_layer *layer;
    const char *prefix; /* <layer>.fakedequant */
} dequant_macro;

size_t qf_dequant_rank(size_t conv_rank)
{
    enum { MOST = 5, MATRIX = 2 };
    return !conv_rank ? MATRIX : conv_rank < MOST ? conv_rank : MOST;
}

static size_t scale_dims(const qf_layer *layer, int64_t dims[5])
{
    bool conv = layer->op == QF_OP_CONV || layer->op == QF_OP_CONV_TRANSPOSE;
    size_t rank = qf_dequant_rank(conv ? layer->weights[0].rank : 0);
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

/* To be freed; NULL when memory is exhausted. */
static float *masked_scales(const qf_layer *layer)
{
    float *scales = malloc(layer->dequant_count * sizeof *scales);
    for (size_t i = 0; scales && i < layer->dequant_count; i++)
        scales[i] = masked(layer->dequant[i], layer->dequant_mask);
    return scales;
}

static const char scale_doc[] = "scale of the Fake dequant", mul_doc[] = "mul of the Fake dequant";

static bool write_dequant(const qf_macro *macro, qf_node_sink sink, void *user)
{
    const dequant_macro *d = (const dequant_macro *)(const void *)macro;
    int64_t dims[5];
    size_t rank = scale_dims(d->layer, dims);
    float *scales = masked_scales(d->layer);
    if (!scales)
        return false;
    qf_expansion e;
    qf_expand_begin(&e, d->prefix, macro->node.input[0], sink, user);
    qf_expand_constant(&e, "dqscale", scales, dims, rank, scale_doc);
    e.output = macro->node.output[0]; /* may be an output of the graph, with a name of its own */
    qf_expand_step(&e, "Mul", "mul", "dqscale", NULL, mul_doc);
    free(scales);
    return qf_expand_end(&e);
}

static bool become_macro(qf_pass *p, qf_node *dequant, const qf_layer *layer, const char *prefix)
{
    dequant_macro *d = qf_arena_alloc(p->ir->arena, sizeof *d);
    if (!d)
        return false;
    *d = (dequant_macro){.macro = {.write = write_dequant}, .layer = layer, .prefix = prefix};
    qf_node_become_macro(dequant, &d->macro);
    return true;
}

static bool become_mul(qf_pass *p, qf_node *dequant, const qf_layer *layer, const char *prefix)
{
    qf_arena *arena = p->ir->arena;
    int64_t dims[5];
    size_t rank = scale_dims(layer, dims);
    float *scales = masked_scales(layer);
    const char *name = qf_pass_name(p, prefix, "dqscale");
    qf_value *factor = scales && name
                           ? qf_pass_add_constant(p, name, scales, dims, rank, scale_doc, dequant)
                           : NULL;
    free(scales);
    if (!factor || !qf_node_add_input(p->ir, dequant, factor))
        return false;
    dequant->proto->op_type = qf_arena_strdup(arena, "Mul");
    dequant->proto->n_attribute = 0;
    dequant->proto->doc_string = qf_arena_strdup(arena, mul_doc);
    return dequant->proto->op_type && dequant->proto->doc_string;
}

static bool expand(qf_pass *p, qf_node *dequant)
{
    const qf_layer *layer = dequant->tag;
    qf_value *out = dequant->outputs[0];
    bool macro = p->macros && !dequant->graph->parent;
    const char *prefix = qf_pass_name(p, layer->name, "fakedequant");
    const char *name = prefix ? qf_pass_name(p, prefix, "mul") : NULL;
    const char *output = name ? qf_pass_name(p, name, "output0") : NULL;
    if (!output || !(macro ? become_macro : become_mul)(p, dequant, layer, prefix) ||
        !qf_node_rename(p->ir, dequant, name) ||
        (!out->result_count && !qf_value_rename(p->ir, out, output)))
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
