/* SPDX-License-Identifier: Apache-2.0 */
/* Functions that a model defines itself: an export copies them. */
#include <string.h>

#include "verify/attributes.h"

static bool same_texts(char **a, size_t n, char **b, size_t m)
{
    bool same = n == m;
    for (size_t i = 0; same && i < n; i++)
        same = qf_same_text(a[i], b[i]);
    return same;
}

static bool same_node(const Onnx__NodeProto *x, const Onnx__NodeProto *y)
{
    return qf_same_text(x->op_type, y->op_type) && qf_same_text(x->domain, y->domain) &&
           same_texts(x->input, x->n_input, y->input, y->n_input) &&
           same_texts(x->output, x->n_output, y->output, y->n_output);
}

static qf_status compare_nodes(qf_pairing *p, const Onnx__FunctionProto *x,
                               const Onnx__FunctionProto *y)
{
    qf_status status = QF_OK;
    for (size_t i = 0; status == QF_OK && i < x->n_node; i++) {
        const qf_node a = {.proto = x->node[i], .name = x->name},
                      b = {.proto = y->node[i], .name = y->name};
        if (!same_node(a.proto, b.proto))
            qf_subject_note(p->b, y->name, "node %zu of the function is not that of the %s", i,
                            p->a->role);
        else
            status = qf_compare_attributes(p, &a, &b);
    }
    return status;
}

qf_status qf_compare_functions(qf_pairing *p)
{
    const Onnx__ModelProto *m = p->a->proto, *n = p->b->proto;
    qf_status status = QF_OK;
    for (size_t i = 0; status == QF_OK && i < m->n_functions && i < n->n_functions; i++) {
        const Onnx__FunctionProto *x = m->functions[i], *y = n->functions[i];
        bool alike = qf_same_text(x->name, y->name) && qf_same_text(x->domain, y->domain) &&
                     same_texts(x->input, x->n_input, y->input, y->n_input) &&
                     same_texts(x->output, x->n_output, y->output, y->n_output) &&
                     x->n_node == y->n_node;
        if (!alike)
            qf_subject_note(p->b, y->name ? y->name : "(function)",
                            "the function is not that of the %s", p->a->role);
        else
            status = compare_nodes(p, x, y);
    }
    return status;
}
