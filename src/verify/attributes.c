/* SPDX-License-Identifier: Apache-2.0 */
#include "verify/attributes.h"

#include <stdlib.h>
#include <string.h>

#include "verify/compare.h"

qf_status qf_compare_nested_tensor(qf_pairing *p, const char *user, const Onnx__TensorProto *x,
                                   const Onnx__TensorProto *y)
{
    if (!x || !y)
        return QF_OK;
    return p->same ? p->visit(x, y, p->user)
                   : qf_compare_tensors((qf_side){p->a, x}, (qf_side){p->b, y}, user, &p->skipped,
                                        p->err);
}

qf_status qf_compare_sparse(qf_pairing *p, const char *user, const Onnx__SparseTensorProto *x,
                            const Onnx__SparseTensorProto *y)
{
    qf_status status = qf_compare_nested_tensor(p, user, x->values, y->values);
    return status == QF_OK ? qf_compare_nested_tensor(p, user, x->indices, y->indices) : status;
}

/* Tensors and graphs that an attribute holds: the same number, each the same. */
static qf_status compare_nested(qf_pairing *p, const qf_node *node, const Onnx__AttributeProto *a,
                                const Onnx__AttributeProto *b, bool *alike)
{
    const char *user = qf_subject_node_name(node);
    qf_status status = QF_OK;
    *alike = !a->t == !b->t && !a->g == !b->g && !a->sparse_tensor == !b->sparse_tensor &&
             a->n_tensors == b->n_tensors && a->n_graphs == b->n_graphs &&
             a->n_sparse_tensors == b->n_sparse_tensors;
    if (!*alike)
        return QF_OK;
    status = qf_compare_nested_tensor(p, user, a->t, b->t);
    if (status == QF_OK && a->sparse_tensor)
        status = qf_compare_sparse(p, user, a->sparse_tensor, b->sparse_tensor);
    for (size_t i = 0; status == QF_OK && i < a->n_tensors; i++)
        status = qf_compare_nested_tensor(p, user, a->tensors[i], b->tensors[i]);
    for (size_t i = 0; status == QF_OK && i < a->n_sparse_tensors; i++)
        status = qf_compare_sparse(p, user, a->sparse_tensors[i], b->sparse_tensors[i]);
    if (status == QF_OK && a->g)
        status = qf_pairing_child(p, user, a->g, b->g);
    for (size_t i = 0; status == QF_OK && i < a->n_graphs; i++)
        status = qf_pairing_child(p, user, a->graphs[i], b->graphs[i]);
    return status;
}

bool qf_same_packed(const ProtobufCMessage *x, const ProtobufCMessage *y, bool *memory)
{
    size_t n = protobuf_c_message_get_packed_size(x);
    if (n != protobuf_c_message_get_packed_size(y))
        return false;
    unsigned char *bytes = malloc(2 * n + 1);
    if (!bytes) {
        *memory = false;
        return true;
    }
    protobuf_c_message_pack(x, bytes);
    protobuf_c_message_pack(y, bytes + n);
    bool same = memcmp(bytes, bytes + n, n) == 0;
    free(bytes);
    return same;
}

/* What is left of an attribute. */
static bool same_rest(const Onnx__AttributeProto *a, const Onnx__AttributeProto *b, bool *memory)
{
    Onnx__AttributeProto x = *a, y = *b;
    x.t = y.t = NULL;
    x.g = y.g = NULL;
    x.sparse_tensor = y.sparse_tensor = NULL;
    x.n_tensors = y.n_tensors = x.n_graphs = y.n_graphs = 0;
    x.n_sparse_tensors = y.n_sparse_tensors = 0;
    return qf_same_packed(&x.base, &y.base, memory);
}

qf_status qf_compare_attribute(qf_pairing *p, const qf_node *node, const Onnx__AttributeProto *a,
                               const Onnx__AttributeProto *b)
{
    const char *name = qf_subject_node_name(node);
    bool alike, memory = true;
    qf_status status = compare_nested(p, node, a, b, &alike);
    if (status != QF_OK)
        return status;
    if (!alike || !same_rest(a, b, &memory)) {
        if (a->type == ONNX__ATTRIBUTE_PROTO__ATTRIBUTE_TYPE__INT && b->type == a->type)
            qf_subject_note(p->b, name, "attribute '%s' is %lld, but %lld in the %s", a->name,
                            (long long)b->i, (long long)a->i, p->a->role);
        else if (a->type == ONNX__ATTRIBUTE_PROTO__ATTRIBUTE_TYPE__FLOAT && b->type == a->type)
            qf_subject_note(p->b, name, "attribute '%s' is %.9g, but %.9g in the %s", a->name,
                            (double)b->f, (double)a->f, p->a->role);
        else
            qf_subject_note(p->b, name, "attribute '%s' is not that of the %s", a->name,
                            p->a->role);
    }
    return memory ? QF_OK : qf_fail_memory(p->err);
}

/* Attributes of a node by name, the first of each; a file may have any number of them. */
typedef struct lookup {
    const qf_node *node;
    qf_strmap map; /* empty: they are few */
} lookup;

static bool lookup_make(lookup *l, const qf_node *node)
{
    enum { FEW = 32 };
    *l = (lookup){.node = node};
    for (size_t i = 0; node->proto->n_attribute > FEW && i < node->proto->n_attribute; i++) {
        Onnx__AttributeProto *a = node->proto->attribute[i];
        if (a->name && !qf_strmap_get(&l->map, a->name) && !qf_strmap_set(&l->map, a->name, a))
            return false;
    }
    return true;
}

static const Onnx__AttributeProto *look_up(const lookup *l, const char *name)
{
    if (!name)
        return NULL;
    return l->map.slots ? qf_strmap_get(&l->map, name) : qf_node_attribute(l->node, name);
}

static qf_status compare_all(qf_pairing *p, const lookup *ours, const lookup *theirs)
{
    const Onnx__NodeProto *node = ours->node->proto, *other = theirs->node->proto;
    const char *name = qf_subject_node_name(ours->node);
    qf_status status = QF_OK;
    for (size_t i = 0; status == QF_OK && i < node->n_attribute; i++) {
        const Onnx__AttributeProto *a = node->attribute[i], *b = look_up(theirs, a->name);
        if (!b)
            qf_subject_note(p->b, name, "attribute '%s' of the %s is missing",
                            a->name ? a->name : "", p->a->role);
        else if (look_up(ours, a->name) != a)
            qf_subject_note(p->a, name, "attribute '%s' is there twice", a->name);
        else
            status = qf_compare_attribute(p, ours->node, a, b);
    }
    for (size_t i = 0; i < other->n_attribute; i++) {
        const Onnx__AttributeProto *b = other->attribute[i];
        if (!look_up(ours, b->name))
            qf_subject_note(p->b, name, "attribute '%s' is not in the %s", b->name ? b->name : "",
                            p->a->role);
        else if (look_up(theirs, b->name) != b)
            qf_subject_note(p->b, name, "attribute '%s' is there twice", b->name);
    }
    return status;
}

qf_status qf_compare_attributes(qf_pairing *p, const qf_node *node, const qf_node *other)
{
    lookup ours, theirs;
    bool memory = lookup_make(&ours, node);
    memory = lookup_make(&theirs, other) && memory;
    qf_status status = memory ? compare_all(p, &ours, &theirs) : qf_fail_memory(p->err);
    qf_strmap_release(&ours.map);
    qf_strmap_release(&theirs.map);
    return status;
}
