/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Pairs of QuantizeLinear and DequantizeLinear that belong to no layer, as before a residual Add:
 * AscendQuant and AscendAntiQuant in the deploy model, their arithmetic in fake_quant. The
 * AscendQuant is one with those of layers that read the same tensor in the same way (fuse_quant.c).
 */
#include "passes/passes.h"
#include "quant/qdq.h"
#include "quant/record.h"

typedef struct replacer {
    qf_pass *p;
    qf_qdq q;
    size_t left;       /* nodes that the deploy format has no word for */
    const char *first; /* name of one of them */
} replacer;

/* The Q before `dq` if the two are one pair of per-tensor quantizations, else NULL. */
static qf_status find_pair(replacer *r, const qf_node *dq, qf_node **quantize, qf_quantizer *z)
{
    qf_quantizer first;
    const char *why;
    *quantize = NULL;
    qf_status status = qf_quantizer_read(&r->q, dq, z, &why, r->p->err);
    qf_node *before = qf_qdq_integers(dq->inputs[0], z->data_type)->producer;
    if (status != QF_OK || why || !before || !qf_is_quantize(before))
        return status;
    status = qf_quantizer_read(&r->q, before, &first, &why, r->p->err);
    bool expressible = status == QF_OK && !why && first.count == 1 &&
                       first.data_type == z->data_type && qf_quantizer_same(&first, z);
    *quantize = expressible ? before : NULL;
    return status;
}

/* deploy: the reference's node; ATC negates the offset when it reads it. */
static bool become_anti_quant(qf_pass *p, qf_node *node, const qf_quantizer *z)
{
    node->proto->op_type = qf_arena_strdup(p->ir->arena, "AscendAntiQuant");
    return node->proto->op_type && qf_node_set_float(p->ir, node, "scale", z->scales[0]) &&
           qf_node_set_float(p->ir, node, "offset", (float)z->zeros[0]) &&
           qf_node_set_string(p->ir, node, "dst_type", qf_type_name(z->bits));
}

/* fake_quant: AscendQuant's expansion has subtracted the offset already. */
static bool become_mul(qf_pass *p, qf_node *node, const qf_quantizer *z)
{
    const char *prefix = qf_pass_name(p, node->name, "fake_antiquant");
    const char *constant = prefix ? qf_pass_name(p, prefix, "scale") : NULL;
    const char *name = prefix ? qf_pass_name(p, prefix, "mul") : NULL;
    qf_value *scale = name ? qf_pass_add_constant(p, constant, z->scales, NULL, 0,
                                                  "scale of the Fake antiquant", node)
                           : NULL;
    node->proto->op_type = qf_arena_strdup(p->ir->arena, "Mul");
    node->proto->doc_string = qf_arena_strdup(p->ir->arena, "mul of the Fake antiquant");
    return scale && node->proto->op_type && node->proto->doc_string &&
           qf_node_add_input(p->ir, node, scale) && qf_node_rename(p->ir, node, name);
}

/* Only the first input is left of a node that stands for the pair's second half. */
static bool strip(qf_pass *p, qf_node *dq, const char *name)
{
    for (size_t i = 1; i < dq->input_count; i++) {
        qf_value *constant = dq->inputs[i];
        if (!qf_node_set_input(p->ir, dq, i, NULL))
            return false;
        qf_ir_drop_unused(p->ir, constant);
    }
    dq->input_count = 1;
    dq->proto->n_attribute = 0;
    dq->proto->domain = NULL;
    return qf_node_rename(p->ir, dq, name);
}

/* Removes what the DQ read, up to Q, as far as nothing else reads it. */
static void drop_quantize(qf_ir *ir, qf_value *read, qf_node *quantize)
{
    while (read->producer && read->producer != quantize && !read->use_count &&
           !read->result_count) {
        qf_value *before = read->producer->inputs[0];
        qf_ir_remove_node(ir, read->producer);
        read = before;
    }
    if (quantize->outputs[0]->use_count || quantize->outputs[0]->result_count)
        return;
    qf_ir_remove_node(ir, quantize);
    for (size_t i = 1; i < quantize->input_count; i++)
        qf_ir_drop_unused(ir, quantize->inputs[i]);
}

static bool replace(qf_pass *p, qf_node *dq, qf_node *quantize, const qf_quantizer *z)
{
    qf_ir *ir = p->ir;
    qf_value *read = dq->inputs[0];
    const char *name = qf_pass_name(p, quantize->name, "quant");
    const char *anti = qf_pass_name(p, quantize->name, "anti_quant");
    qf_quant_tag tag = {quantize->name, z->scales[0],          z->zeros[0],
                        z->bits,        qf_type_name(z->bits), z->float_type};
    if (!name || !anti || !qf_node_set_input(ir, dq, 0, quantize->inputs[0]) ||
        !qf_pass_add_quant(p, name, tag, dq, 0) || !strip(p, dq, anti) ||
        !(p->target == QF_DEPLOY ? become_anti_quant : become_mul)(p, dq, z))
        return false;
    drop_quantize(ir, read, quantize);
    return z->float_type == ONNX__TENSOR_PROTO__DATA_TYPE__FLOAT ||
           qf_pass_cast_output(p, dq, 0, z->float_type, dq->name);
}

static qf_status visit(replacer *r, qf_node *node)
{
    qf_node *quantize = NULL;
    qf_quantizer z;
    qf_status status = qf_is_dequantize(node) ? find_pair(r, node, &quantize, &z) : QF_OK;
    if (status == QF_OK && quantize && !replace(r->p, node, quantize, &z))
        status = qf_fail_memory(r->p->err);
    return status;
}

static void count_left(replacer *r)
{
    for (size_t g = 0; g < r->p->ir->graph_count; g++) {
        for (const qf_node *n = r->p->ir->graphs[g]->first; n; n = n->next) {
            if (!qf_is_quantize(n) && !qf_is_dequantize(n))
                continue;
            r->first = r->left++ ? r->first : n->name;
        }
    }
}

qf_status qf_pass_replace_qdq(qf_pass *p)
{
    if (p->plan->options.source == QF_SOURCE_FLOAT || !p->plan->layer_count)
        return QF_OK;
    replacer r = {p, {&p->plan->payloads, p->ir->arena, p->path}, 0, NULL};
    qf_status status = QF_OK;
    for (size_t i = 0; status == QF_OK && i < p->ir->node_count; i++) {
        if (p->ir->by_id[i])
            status = visit(&r, p->ir->by_id[i]);
    }
    if (p->target == QF_DEPLOY)
        count_left(&r);
    if (status == QF_OK && r.left)
        qf_diag_add(p->plan->diag, QF_WARNING, (qf_where){.file = p->path, .item = r.first},
                    "%zu QuantizeLinear or DequantizeLinear node%s stay%s in the deploy model, "
                    "because AscendQuant and AscendAntiQuant cannot express them; ATC may refuse "
                    "them",
                    r.left, r.left == 1 ? "" : "s", r.left == 1 ? "s" : "");
    return status;
}
