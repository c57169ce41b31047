/* SPDX-License-Identifier: Apache-2.0 */
/* Looking at and editing a linked graph. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/spill.h"
#include "onnx/graph.h"

void qf_ir_forget_scopes(qf_ir *ir)
{
    for (size_t i = 0; i < ir->graph_count; i++)
        qf_strmap_release(&ir->graphs[i]->values);
    ir->no_scopes = true;
}

void qf_ir_release(qf_ir *ir)
{
    qf_ir_forget_scopes(ir);
    qf_strmap_release(&ir->node_names);
    qf_strmap_release(&ir->value_names);
    qf_strmap_release(&ir->suffixes);
    free(ir->graphs);
    qf_spill_free(ir->by_id);
    *ir = (qf_ir){0};
}

/* ---- looking ---- */

int64_t qf_ir_opset(const qf_ir *ir)
{
    for (size_t i = 0; i < ir->model->n_opset_import; i++) {
        const Onnx__OperatorSetIdProto *o = ir->model->opset_import[i];
        if (!o->domain || !*o->domain || strcmp(o->domain, "ai.onnx") == 0)
            return o->version;
    }
    return 0;
}

qf_value *qf_graph_find(const qf_graph *graph, const char *name)
{
    for (; graph; graph = graph->parent) {
        qf_value *value = qf_strmap_get(&graph->values, name);
        if (value)
            return value;
    }
    return NULL;
}

Onnx__AttributeProto *qf_node_attribute(const qf_node *node, const char *name)
{
    for (size_t i = 0; i < node->proto->n_attribute; i++) {
        Onnx__AttributeProto *a = node->proto->attribute[i];
        if (a->name && strcmp(a->name, name) == 0)
            return a;
    }
    return NULL;
}

int64_t qf_node_int(const qf_node *node, const char *name, int64_t missing)
{
    const Onnx__AttributeProto *a = qf_node_attribute(node, name);
    return a && a->has_i ? a->i : missing;
}

float qf_node_float(const qf_node *node, const char *name, float missing)
{
    const Onnx__AttributeProto *a = qf_node_attribute(node, name);
    return a && a->has_f ? a->f : missing;
}

bool qf_node_is(const qf_node *node, const char *op_type)
{
    const Onnx__NodeProto *p = node->proto;
    bool default_domain = !p->domain || !*p->domain || strcmp(p->domain, "ai.onnx") == 0;
    return default_domain && p->op_type && strcmp(p->op_type, op_type) == 0;
}

qf_value *qf_node_output(const qf_node *node)
{
    return node->output_count ? node->outputs[0] : NULL;
}

/* Has `op_type`, and `value` is all that it makes. */
static bool produced_by(const qf_value *value, const char *op_type)
{
    return value->producer && qf_node_is(value->producer, op_type) &&
           value->producer->output_count == 1;
}

qf_value *qf_value_source(qf_value *value)
{
    enum { MAX_IDENTITIES = 100 }; /* longer chains are not from an exporter */
    for (int i = 0; i < MAX_IDENTITIES && value && produced_by(value, "Identity") &&
                    value->producer->input_count == 1 && value->producer->inputs[0];
         i++)
        value = value->producer->inputs[0];
    return value;
}

Onnx__TensorProto *qf_value_constant(qf_value *value)
{
    value = qf_value_source(value);
    if (!value || value->input)
        return NULL;
    if (value->init)
        return value->init;
    if (produced_by(value, "Constant")) {
        const Onnx__AttributeProto *a = qf_node_attribute(value->producer, "value");
        return a ? a->t : NULL;
    }
    return NULL;
}

qf_node *qf_value_only_user(const qf_value *value)
{
    return value->use_count == 1 && !value->result_count ? value->uses[0].node : NULL;
}

/* ---- names ---- */

const char *qf_ir_unique(qf_ir *ir, const qf_strmap *names, const char *wanted)
{
    if (!qf_strmap_get(names, wanted))
        return qf_arena_strdup(ir->arena, wanted);
    /* remembers where to go on, or a model of equal names would take quadratic time */
    uintptr_t number = (uintptr_t)qf_strmap_get(&ir->suffixes, wanted);
    char *name;
    do
        name = qf_arena_printf(ir->arena, "%s%ju", wanted, (uintmax_t)++number);
    while (name && qf_strmap_get(names, name));
    const char *key = qf_arena_strdup(ir->arena, wanted);
    if (!key || !qf_strmap_set(&ir->suffixes, key, (void *)number))
        return NULL;
    return name;
}

/* Enters `owner` under a name that is new to `names`: `wanted` if it is free. NULL when memory is
 * exhausted. */
static const char *claim(qf_ir *ir, qf_strmap *names, const char *wanted, void *owner)
{
    const char *name = qf_arena_strdup(ir->arena, wanted);
    const void *found = name ? qf_strmap_add(names, name, owner) : NULL;
    if (!found || found == owner)
        return found ? name : NULL;
    name = qf_ir_unique(ir, names, wanted);
    return name && qf_strmap_set(names, name, owner) ? name : NULL;
}

bool qf_node_rename(qf_ir *ir, qf_node *node, const char *name)
{
    if (strcmp(node->name, name) == 0)
        return true;
    const char *unique = claim(ir, &ir->node_names, name, node);
    if (!unique)
        return false;
    qf_strmap_drop(&ir->node_names, node->name, node);
    node->name = unique;
    node->renamed = true;
    return true;
}

static bool set_value_name(qf_ir *ir, qf_value *value, const char *name)
{
    value->name = name;
    return qf_strmap_set(&ir->value_names, name, value) &&
           (ir->no_scopes || qf_strmap_set(&value->graph->values, name, value));
}

static void forget_value_name(qf_ir *ir, qf_value *value)
{
    qf_strmap_drop(&ir->value_names, value->name, value);
    qf_strmap_drop(&value->graph->values, value->name, value);
}

bool qf_value_rename(qf_ir *ir, qf_value *value, const char *name)
{
    if (strcmp(value->name, name) == 0)
        return true;
    const char *unique = claim(ir, &ir->value_names, name, value);
    if (!unique)
        return false;
    forget_value_name(ir, value);
    value->name = unique;
    return ir->no_scopes || qf_strmap_set(&value->graph->values, unique, value);
}

/* ---- links ---- */

static bool add_use(qf_ir *ir, qf_value *value, qf_use use)
{
    if (value->use_count == value->use_cap) {
        size_t cap = value->use_cap ? value->use_cap * 4 : 1; /* most have one */
        qf_use *grown = cap == 1 ? &value->only_use : qf_arena_array(ir->arena, cap, sizeof *grown);
        if (!grown)
            return false;
        if (value->use_count)
            memcpy(grown, value->uses, value->use_count * sizeof *grown);
        value->uses = grown;
        value->use_cap = cap;
    }
    value->uses[value->use_count++] = use;
    return true;
}

static void remove_use(qf_value *value, const qf_node *node, size_t input)
{
    for (size_t i = 0; i < value->use_count; i++) {
        if (value->uses[i].node == node && value->uses[i].input == input) {
            memmove(&value->uses[i], &value->uses[i + 1],
                    (value->use_count - i - 1) * sizeof *value->uses);
            value->use_count--;
            return;
        }
    }
}

bool qf_node_set_input(qf_ir *ir, qf_node *node, size_t index, qf_value *value)
{
    if (node->inputs[index])
        remove_use(node->inputs[index], node, index);
    node->inputs[index] = value;
    return !value || add_use(ir, value, (qf_use){node, index});
}

bool qf_node_add_input(qf_ir *ir, qf_node *node, qf_value *value)
{
    qf_value **grown = qf_arena_array(ir->arena, node->input_count + 1, sizeof *grown);
    if (!grown)
        return false;
    if (node->input_count)
        memcpy(grown, node->inputs, node->input_count * sizeof *grown);
    node->inputs = grown;
    node->input_count++;
    return qf_node_set_input(ir, node, node->input_count - 1, value);
}

bool qf_value_move_uses(qf_ir *ir, qf_value *from, qf_value *to, const qf_node *except)
{
    size_t kept = 0;
    for (size_t i = 0; i < from->use_count; i++) {
        qf_use use = from->uses[i];
        if (use.node == except) {
            from->uses[kept++] = use;
            continue;
        }
        use.node->inputs[use.input] = to;
        if (!add_use(ir, to, use))
            return false;
    }
    from->use_count = kept;
    return true;
}

bool qf_value_move_results(qf_ir *ir, qf_value *from, qf_value *to, const char *from_name)
{
    if (!from->result_count)
        return true;
    const char *name = from->name;
    const char *other = qf_ir_unique(ir, &ir->value_names, from_name);
    if (!other)
        return false;
    to->results = from->results;
    to->result_count = from->result_count;
    to->result_cap = from->result_cap;
    from->results = NULL;
    from->result_count = from->result_cap = 0;
    forget_value_name(ir, from);
    forget_value_name(ir, to);
    return set_value_name(ir, from, other) && set_value_name(ir, to, name);
}

/* ---- nodes and initializers ---- */

void qf_value_append(qf_value *value)
{
    qf_graph *graph = value->graph;
    *(graph->last_value ? &graph->last_value->next : &graph->first_value) = value;
    graph->last_value = value;
}

static qf_value *add_value(qf_ir *ir, qf_graph *graph, const char *name)
{
    qf_value *value = qf_arena_alloc(ir->arena, sizeof *value);
    const char *unique = value ? claim(ir, &ir->value_names, name, value) : NULL;
    if (!unique || !(ir->no_scopes || qf_strmap_set(&graph->values, unique, value)))
        return NULL;
    value->name = unique;
    value->graph = graph;
    qf_value_append(value);
    return value;
}

qf_node *qf_ir_add_node(qf_ir *ir, qf_graph *graph, const char *op_type, const char *name,
                        qf_node *before)
{
    qf_node *node = qf_arena_alloc(ir->arena, sizeof *node);
    Onnx__NodeProto *proto = qf_arena_alloc(ir->arena, sizeof *proto);
    const char *unique = node ? claim(ir, &ir->node_names, name, node) : NULL;
    if (!proto || !unique)
        return NULL;
    onnx__node_proto__init(proto);
    proto->op_type = qf_arena_strdup(ir->arena, op_type);
    node->proto = proto;
    node->graph = graph;
    node->name = unique;
    node->renamed = true;
    node->id = SIZE_MAX;
    if (!proto->op_type)
        return NULL;
    node->next = before;
    node->prev = before ? before->prev : graph->last;
    *(node->prev ? &node->prev->next : &graph->first) = node;
    *(before ? &before->prev : &graph->last) = node;
    return node;
}

qf_value *qf_node_add_output(qf_ir *ir, qf_node *node, const char *name)
{
    qf_value **grown = qf_arena_array(ir->arena, node->output_count + 1, sizeof *grown);
    qf_value *value = add_value(ir, node->graph, name);
    if (!grown || !value)
        return NULL;
    value->producer = node;
    if (node->output_count)
        memcpy(grown, node->outputs, node->output_count * sizeof *grown);
    grown[node->output_count++] = value;
    node->outputs = grown;
    return value;
}

bool qf_node_take_initializer(qf_ir *ir, qf_node *node, qf_value *value)
{
    node->outputs = qf_arena_array(ir->arena, 1, sizeof *node->outputs);
    if (!node->outputs)
        return false;
    node->outputs[0] = value;
    node->output_count = 1;
    value->producer = node;
    value->init = NULL;
    return true;
}

void qf_ir_remove_node(qf_ir *ir, qf_node *node)
{
    for (size_t i = 0; i < node->input_count; i++) {
        if (node->inputs[i])
            remove_use(node->inputs[i], node, i);
    }
    for (size_t i = 0; i < node->output_count; i++) {
        if (node->outputs[i]) {
            forget_value_name(ir, node->outputs[i]);
            node->outputs[i]->dropped = true;
        }
    }
    qf_strmap_drop(&ir->node_names, node->name, node);
    *(node->prev ? &node->prev->next : &node->graph->first) = node->next;
    *(node->next ? &node->next->prev : &node->graph->last) = node->prev;
    if (node->id != SIZE_MAX)
        ir->by_id[node->id] = NULL;
}

qf_value *qf_ir_add_initializer(qf_ir *ir, qf_graph *graph, const char *name,
                                Onnx__TensorProto *tensor)
{
    qf_value *value = add_value(ir, graph, name);
    if (value)
        value->init = tensor;
    return value;
}

void qf_ir_drop_unused(qf_ir *ir, qf_value *value)
{
    while (value && !value->use_count && !value->result_count) {
        qf_node *producer = value->producer;
        if (value->init && !value->input) {
            value->dropped = true;
            forget_value_name(ir, value);
        }
        bool identity = produced_by(value, "Identity") && producer->input_count == 1;
        if (!identity && !produced_by(value, "Constant"))
            return;
        value = identity ? producer->inputs[0] : NULL;
        qf_ir_remove_node(ir, producer);
    }
}

/* ---- attributes and tensors ---- */

static Onnx__AttributeProto *attribute_for(qf_ir *ir, qf_node *node, const char *name, int type)
{
    Onnx__AttributeProto *a = qf_node_attribute(node, name);
    if (!a) {
        size_t n = node->proto->n_attribute;
        Onnx__AttributeProto **grown = qf_arena_array(ir->arena, n + 1, sizeof *grown);
        a = qf_arena_alloc(ir->arena, sizeof *a);
        if (!grown || !a)
            return NULL;
        if (n)
            memcpy(grown, node->proto->attribute, n * sizeof *grown);
        onnx__attribute_proto__init(a);
        a->name = qf_arena_strdup(ir->arena, name);
        if (!a->name)
            return NULL;
        grown[n] = a;
        node->proto->attribute = grown;
        node->proto->n_attribute = n + 1;
    }
    a->has_type = 1;
    a->type = (Onnx__AttributeProto__AttributeType)type;
    return a;
}

bool qf_node_set_int(qf_ir *ir, qf_node *node, const char *name, int64_t value)
{
    Onnx__AttributeProto *a =
        attribute_for(ir, node, name, ONNX__ATTRIBUTE_PROTO__ATTRIBUTE_TYPE__INT);
    if (!a)
        return false;
    a->has_i = 1;
    a->i = value;
    return true;
}

bool qf_node_set_float(qf_ir *ir, qf_node *node, const char *name, float value)
{
    Onnx__AttributeProto *a =
        attribute_for(ir, node, name, ONNX__ATTRIBUTE_PROTO__ATTRIBUTE_TYPE__FLOAT);
    if (!a)
        return false;
    a->has_f = 1;
    a->f = value;
    return true;
}

bool qf_node_set_string(qf_ir *ir, qf_node *node, const char *name, const char *value)
{
    Onnx__AttributeProto *a =
        attribute_for(ir, node, name, ONNX__ATTRIBUTE_PROTO__ATTRIBUTE_TYPE__STRING);
    char *copy = qf_arena_strdup(ir->arena, value);
    if (!a || !copy)
        return false;
    a->has_s = 1;
    a->s = (ProtobufCBinaryData){.len = strlen(value), .data = (uint8_t *)copy};
    return true;
}

bool qf_node_set_tensor(qf_ir *ir, qf_node *node, const char *name, Onnx__TensorProto *tensor)
{
    Onnx__AttributeProto *a =
        attribute_for(ir, node, name, ONNX__ATTRIBUTE_PROTO__ATTRIBUTE_TYPE__TENSOR);
    if (!a || !tensor)
        return false;
    a->t = tensor;
    return true;
}

bool qf_node_set_empty(qf_ir *ir, qf_node *node, const char *name, int attribute_type)
{
    return attribute_for(ir, node, name, attribute_type) != NULL;
}

void qf_node_remove_attribute(qf_node *node, const char *name)
{
    size_t kept = 0;
    for (size_t i = 0; i < node->proto->n_attribute; i++) {
        Onnx__AttributeProto *a = node->proto->attribute[i];
        if (!a->name || strcmp(a->name, name) != 0)
            node->proto->attribute[kept++] = a;
    }
    node->proto->n_attribute = kept;
}

Onnx__TensorProto *qf_tensor_new(qf_arena *arena, int32_t data_type, const int64_t *dims,
                                 size_t rank)
{
    Onnx__TensorProto *tensor = qf_arena_alloc(arena, sizeof *tensor);
    if (!tensor)
        return NULL;
    onnx__tensor_proto__init(tensor);
    tensor->has_data_type = 1;
    tensor->data_type = data_type;
    if (rank) {
        tensor->dims = qf_arena_array(arena, rank, sizeof *tensor->dims);
        if (!tensor->dims)
            return NULL;
        memcpy(tensor->dims, dims, rank * sizeof *dims);
        tensor->n_dims = rank;
    }
    return tensor;
}
