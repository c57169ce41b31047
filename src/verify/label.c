/* SPDX-License-Identifier: Apache-2.0 */
/* What tensors are called in messages. One in a node's attribute often has no name: it is called by
 * the node, which a list of the model's nameless tensors tells, made when it is first needed. */
#include <stdlib.h>

#include "verify/reading.h"

struct qf_nameless {
    const Onnx__TensorProto *tensor;
    const char *label;
};

static bool has_name(const Onnx__TensorProto *tensor)
{
    return tensor->name && *tensor->name;
}

static int by_tensor(const void *a, const void *b)
{
    uintptr_t x = (uintptr_t)((const qf_nameless *)a)->tensor;
    uintptr_t y = (uintptr_t)((const qf_nameless *)b)->tensor;
    return x < y ? -1 : x > y;
}

/* `count` grows also without a list. */
static void add(qf_nameless *list, size_t *count, const Onnx__TensorProto *tensor,
                const char *label)
{
    if (!tensor || has_name(tensor))
        return;
    if (list)
        list[*count] = (qf_nameless){tensor, label};
    ++*count;
}

static void add_attributes(qf_nameless *list, size_t *count, const Onnx__NodeProto *node,
                           const char *label)
{
    for (size_t i = 0; i < node->n_attribute; i++) {
        const Onnx__AttributeProto *a = node->attribute[i];
        add(list, count, a->t, label);
        for (size_t j = 0; j < a->n_tensors; j++)
            add(list, count, a->tensors[j], label);
        for (size_t j = 0; j <= a->n_sparse_tensors; j++) {
            const Onnx__SparseTensorProto *s =
                j < a->n_sparse_tensors ? a->sparse_tensors[j] : a->sparse_tensor;
            add(list, count, s ? s->values : NULL, label);
            add(list, count, s ? s->indices : NULL, label);
        }
    }
}

static size_t list_all(const qf_subject *s, qf_nameless *list)
{
    size_t count = 0;
    for (size_t i = 0; i < s->ir.node_count; i++)
        add_attributes(list, &count, s->ir.by_id[i]->proto, qf_subject_node_name(s->ir.by_id[i]));
    for (size_t i = 0; i < s->proto->n_functions; i++) {
        const Onnx__FunctionProto *f = s->proto->functions[i];
        for (size_t j = 0; j < f->n_node; j++)
            add_attributes(list, &count, f->node[j], f->name ? f->name : "(function)");
    }
    return count;
}

/* The list stays empty when memory is exhausted. */
static void make_list(qf_subject *s)
{
    s->listed = true;
    s->nameless = qf_arena_array(&s->arena, list_all(s, NULL) + 1, sizeof *s->nameless);
    if (!s->nameless)
        return;
    s->nameless_count = list_all(s, s->nameless);
    qsort(s->nameless, s->nameless_count, sizeof *s->nameless, by_tensor);
}

const char *qf_label(qf_subject *subject, const Onnx__TensorProto *tensor)
{
    if (has_name(tensor))
        return tensor->name;
    if (!subject->listed && subject->proto)
        make_list(subject);
    const qf_nameless key = {.tensor = tensor}, *found = NULL;
    if (subject->nameless_count)
        found = bsearch(&key, subject->nameless, subject->nameless_count, sizeof key, by_tensor);
    return found ? found->label : "(unnamed tensor)";
}
