/* SPDX-License-Identifier: Apache-2.0 */
/* Functions that a model defines itself: an export copies them, a runnable model has its own. */
#include <stdlib.h>
#include <string.h>

#include "passes/run_function.h"
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

static qf_status compare_nodes(qf_pairing *p, const char *function, Onnx__NodeProto *const *x,
                               size_t n, Onnx__NodeProto *const *y, size_t m);

/* Graphs in attributes are no part of the model's links. */
static qf_status compare_graphs(qf_pairing *p, const qf_node *a, const qf_node *b)
{
    qf_status status = QF_OK;
    for (size_t i = 0; status == QF_OK && i < a->proto->n_attribute; i++) {
        const Onnx__AttributeProto *x = a->proto->attribute[i];
        const Onnx__AttributeProto *y = x->g && x->name ? qf_node_attribute(b, x->name) : NULL;
        if (y && y->g)
            status = compare_nodes(p, a->name, x->g->node, x->g->n_node, y->g->node, y->g->n_node);
        for (size_t j = 0; status == QF_OK && p->same && y && y->g && j < x->g->n_initializer &&
                           j < y->g->n_initializer;
             j++)
            status = p->visit(x->g->initializer[j], y->g->initializer[j], p->user);
    }
    return status;
}

static qf_status compare_nodes(qf_pairing *p, const char *function, Onnx__NodeProto *const *x,
                               size_t n, Onnx__NodeProto *const *y, size_t m)
{
    qf_status status = QF_OK;
    if (n != m)
        qf_subject_note(p->b, function, "the function has %zu nodes in a graph, but %zu in the %s",
                        m, n, p->a->role);
    for (size_t i = 0; status == QF_OK && i < n && n == m; i++) {
        const qf_node a = {.proto = x[i], .name = function}, b = {.proto = y[i], .name = function};
        if (!same_node(a.proto, b.proto)) {
            qf_subject_note(p->b, function, "node %zu of the function is not that of the %s", i,
                            p->a->role);
            continue;
        }
        status = qf_compare_attributes(p, &a, &b);
        if (status == QF_OK)
            status = compare_graphs(p, &a, &b);
    }
    return status;
}

/* All but the nodes, whose tensors are elsewhere. */
static bool same_head(const Onnx__FunctionProto *x, const Onnx__FunctionProto *y, bool *memory)
{
    Onnx__FunctionProto a = *x, b = *y;
    a.n_node = b.n_node = 0;
    size_t n = onnx__function_proto__get_packed_size(&a);
    if (n != onnx__function_proto__get_packed_size(&b))
        return false;
    unsigned char *bytes = malloc(2 * n + 1);
    *memory = bytes != NULL;
    if (!bytes)
        return true;
    onnx__function_proto__pack(&a, bytes);
    onnx__function_proto__pack(&b, bytes + n);
    bool same = memcmp(bytes, bytes + n, n) == 0;
    free(bytes);
    return same;
}

static qf_status compare_function(qf_pairing *p, const Onnx__FunctionProto *x,
                                  const Onnx__FunctionProto *y)
{
    bool memory = true;
    const char *name = y->name ? y->name : "(function)";
    bool same = same_head(x, y, &memory) && x->n_node == y->n_node;
    if (!memory)
        return qf_fail_memory(p->err);
    if (same)
        return compare_nodes(p, name, x->node, x->n_node, y->node, y->n_node);
    qf_subject_note(p->b, name, "the function is not that of the %s", p->a->role);
    return QF_OK;
}

static char *key_of(qf_pairing *p, const Onnx__FunctionProto *f)
{
    return qf_arena_printf(&p->b->arena, "%s %s", f->domain ? f->domain : "",
                           f->name ? f->name : "");
}

static bool is_npu_function(const Onnx__FunctionProto *f, const char *stem)
{
    return qf_same_text(f->domain, QF_NPU_DOMAIN) && f->name &&
           strncmp(f->name, stem, strlen(stem)) == 0;
}

/* What a runnable model does without where its weights are known to be packed or not (pair.c). Of
 * ConvTranspose there is one for each number of digits, which that number of channels tells. */
static bool can_miss(const qf_pairing *p, const Onnx__FunctionProto *f)
{
    return p->runnable &&
           (is_npu_function(f, "UnpackInt4") || is_npu_function(f, "ChooseChannels") ||
            is_npu_function(f, "ConvTranspose"));
}

static qf_status compare_all(qf_pairing *p, qf_strmap *found)
{
    const Onnx__ModelProto *m = p->a->proto, *n = p->b->proto;
    qf_status status = QF_OK;
    size_t missed = 0, replaced = 0;
    for (size_t i = 0; status == QF_OK && i < m->n_functions; i++) {
        const Onnx__FunctionProto *x = m->functions[i];
        const char *key = key_of(p, x);
        if (!key)
            return qf_fail_memory(p->err);
        const Onnx__FunctionProto *y = qf_strmap_get(found, key);
        missed += !y && can_miss(p, x);
        replaced += !y && can_miss(p, x) && is_npu_function(x, "ConvTranspose");
        if (y)
            status = compare_function(p, x, y);
        else if (!can_miss(p, x))
            qf_subject_note(p->b, x->name ? x->name : "(function)",
                            "the function of the %s is missing", p->a->role);
    }
    size_t least = m->n_functions - missed;
    if (n->n_functions < least || n->n_functions > least + replaced)
        qf_subject_note(p->b, NULL, "it has %zu functions, the %s %zu", n->n_functions, p->a->role,
                        least + replaced);
    return status;
}

qf_status qf_compare_functions(qf_pairing *p)
{
    const Onnx__ModelProto *n = p->b->proto;
    qf_strmap found = {0};
    bool memory = true;
    for (size_t i = 0; memory && i < n->n_functions; i++) {
        char *key = key_of(p, n->functions[i]);
        memory = key && (qf_strmap_get(&found, key) || qf_strmap_set(&found, key, n->functions[i]));
    }
    qf_status status = memory ? compare_all(p, &found) : qf_fail_memory(p->err);
    qf_strmap_release(&found);
    return status;
}
