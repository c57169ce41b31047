/* SPDX-License-Identifier: Apache-2.0 */
/* Functions that a model defines itself: an export copies them, a runnable model has its own. The
 * graphs inside them are none of those that qf_ir_build links. */
#include <string.h>

#include "passes/run_function.h"
#include "verify/attributes.h"

static bool same_node(const Onnx__NodeProto *x, const Onnx__NodeProto *y, bool *memory)
{
    Onnx__NodeProto a = *x, b = *y;
    a.n_attribute = b.n_attribute = 0;
    return qf_same_packed(&a.base, &b.base, memory);
}

static qf_status compare_nodes(qf_pairing *p, const char *user, Onnx__NodeProto **x,
                               Onnx__NodeProto **y, size_t count)
{
    qf_status status = QF_OK;
    bool memory = true;
    for (size_t i = 0; status == QF_OK && i < count; i++) {
        const qf_node a = {.proto = x[i], .name = user}, b = {.proto = y[i], .name = user};
        if (!same_node(x[i], y[i], &memory))
            qf_subject_note(p->b, user, "node %zu of a function is not that of the %s", i,
                            p->a->role);
        else
            status = qf_compare_attributes(p, &a, &b);
    }
    return memory ? status : qf_fail_memory(p->err);
}

qf_status qf_compare_body(qf_pairing *p, const char *user, const Onnx__GraphProto *x,
                          const Onnx__GraphProto *y)
{
    Onnx__GraphProto a = *x, b = *y;
    a.n_node = b.n_node = a.n_initializer = b.n_initializer = 0;
    a.n_sparse_initializer = b.n_sparse_initializer = 0;
    bool memory = true;
    bool alike = x->n_node == y->n_node && x->n_initializer == y->n_initializer &&
                 x->n_sparse_initializer == y->n_sparse_initializer &&
                 qf_same_packed(&a.base, &b.base, &memory);
    for (size_t i = 0; alike && i < x->n_initializer; i++)
        alike = qf_same_text(x->initializer[i]->name, y->initializer[i]->name);
    if (!memory)
        return qf_fail_memory(p->err);
    if (!alike) {
        qf_subject_note(p->b, user, "a graph inside a function is not that of the %s", p->a->role);
        return QF_OK;
    }
    qf_status status = compare_nodes(p, user, x->node, y->node, x->n_node);
    for (size_t i = 0; status == QF_OK && i < x->n_initializer; i++)
        status = qf_compare_nested_tensor(p, user, x->initializer[i], y->initializer[i]);
    for (size_t i = 0; status == QF_OK && i < x->n_sparse_initializer; i++)
        status = qf_compare_sparse(p, user, x->sparse_initializer[i], y->sparse_initializer[i]);
    return status;
}

/* All but the nodes, whose tensors are elsewhere. */
static bool same_head(const Onnx__FunctionProto *x, const Onnx__FunctionProto *y, bool *memory)
{
    Onnx__FunctionProto a = *x, b = *y;
    a.n_node = b.n_node = 0;
    return x->n_node == y->n_node && qf_same_packed(&a.base, &b.base, memory);
}

static qf_status compare_function(qf_pairing *p, const Onnx__FunctionProto *x,
                                  const Onnx__FunctionProto *y)
{
    bool memory = true;
    const char *name = y->name && *y->name ? y->name : "(function)";
    bool same = same_head(x, y, &memory);
    if (!memory)
        return qf_fail_memory(p->err);
    if (same)
        return compare_nodes(p, name, x->node, y->node, x->n_node);
    qf_subject_note(p->b, name, "the function is not that of the %s", p->a->role);
    return QF_OK;
}

/* Domain and name. Overloads, which the schema of older ONNX has no field for, are told by how many
 * were before; `seen` counts them. NULL when memory is exhausted. */
static const char *key_of(qf_pairing *p, const Onnx__FunctionProto *f, qf_strmap *seen)
{
    qf_arena *arena = &p->b->arena;
    const char *key =
        qf_arena_printf(arena, "%s %s", f->domain ? f->domain : "", f->name ? f->name : "");
    if (!key)
        return NULL;
    uintptr_t before = (uintptr_t)qf_strmap_get(seen, key);
    if (!qf_strmap_set(seen, key, (void *)(before + 1)))
        return NULL;
    return before ? qf_arena_printf(arena, "%s %zu", key, (size_t)before) : key;
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

static qf_status compare_all(qf_pairing *p, const qf_strmap *found, qf_strmap *seen)
{
    const Onnx__ModelProto *m = p->a->proto, *n = p->b->proto;
    qf_status status = QF_OK;
    size_t missed = 0, replaced = 0;
    for (size_t i = 0; status == QF_OK && i < m->n_functions; i++) {
        const Onnx__FunctionProto *x = m->functions[i];
        const char *key = key_of(p, x, seen);
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
    qf_strmap found = {0}, seen[2] = {{0}, {0}};
    bool memory = true;
    for (size_t i = 0; memory && i < n->n_functions; i++) {
        const char *key = key_of(p, n->functions[i], &seen[0]);
        memory = key && qf_strmap_set(&found, key, n->functions[i]);
    }
    qf_status status = memory ? compare_all(p, &found, &seen[1]) : qf_fail_memory(p->err);
    qf_strmap_release(&found);
    qf_strmap_release(&seen[0]);
    qf_strmap_release(&seen[1]);
    return status;
}
