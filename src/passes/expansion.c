/* SPDX-License-Identifier: Apache-2.0 */
#include "passes/expansion.h"

#include <stdlib.h>
#include <string.h>

enum { NAME, OUTPUT, SECOND, THIRD, RESULT, NAMES };

/* ---- making nodes ---- */

void qf_expand_begin(qf_expansion *e, const char *prefix, const char *input, qf_node_sink sink,
                     void *user)
{
    enum { SUFFIX_MAX = 40 };
    *e = (qf_expansion){.prefix = prefix, .value = input, .sink = sink, .user = user};
    e->room = strlen(prefix) + SUFFIX_MAX;
    e->names = malloc(NAMES * e->room);
    e->failed = !e->names;
}

bool qf_expand_end(qf_expansion *e)
{
    free(e->names);
    return !e->failed;
}

/* "<prefix>.<suffix><end>" in a buffer of its own for each use. */
static char *make_name(const qf_expansion *e, size_t use, const char *suffix, const char *end)
{
    char *name = e->names + use * e->room;
    stpcpy(stpcpy(stpcpy(stpcpy(name, e->prefix), "."), suffix), end);
    return name;
}

static Onnx__AttributeProto *add_attribute(qf_expansion *e, const char *name,
                                           Onnx__AttributeProto__AttributeType type)
{
    Onnx__AttributeProto *a = &e->attributes[e->attribute_count++];
    onnx__attribute_proto__init(a);
    a->name = qf_borrow(name);
    a->has_type = 1;
    a->type = type;
    return a;
}

void qf_expand_int(qf_expansion *e, const char *name, int64_t value)
{
    if (e->failed)
        return;
    Onnx__AttributeProto *a = add_attribute(e, name, ONNX__ATTRIBUTE_PROTO__ATTRIBUTE_TYPE__INT);
    a->has_i = 1;
    a->i = value;
}

void qf_expand_float(qf_expansion *e, const char *name, float value)
{
    if (e->failed)
        return;
    Onnx__AttributeProto *a = add_attribute(e, name, ONNX__ATTRIBUTE_PROTO__ATTRIBUTE_TYPE__FLOAT);
    a->has_f = 1;
    a->f = value;
}

/* Completes a node by its attributes and hands it on. */
static void hand_on(qf_expansion *e, Onnx__NodeProto *node, const char *op, const char *doc)
{
    Onnx__AttributeProto *attributes[] = {&e->attributes[0], &e->attributes[1]};
    node->op_type = qf_borrow(op);
    node->doc_string = qf_borrow(doc);
    node->attribute = attributes;
    node->n_attribute = e->attribute_count;
    e->failed = !e->sink(e->user, node);
    e->attribute_count = 0;
}

void qf_expand_constant(qf_expansion *e, const char *suffix, const float *values,
                        const int64_t *dims, size_t rank, const char *doc)
{
    if (e->failed)
        return;
    uint64_t count = 1;
    for (size_t i = 0; i < rank; i++)
        count *= (uint64_t)dims[i];
    Onnx__TensorProto tensor = ONNX__TENSOR_PROTO__INIT;
    tensor.has_data_type = 1;
    tensor.data_type = ONNX__TENSOR_PROTO__DATA_TYPE__FLOAT;
    tensor.dims = (int64_t *)(uintptr_t)dims;
    tensor.n_dims = rank;
    tensor.float_data = (float *)(uintptr_t)values;
    tensor.n_float_data = (size_t)count;
    add_attribute(e, "value", ONNX__ATTRIBUTE_PROTO__ATTRIBUTE_TYPE__TENSOR)->t = &tensor;

    Onnx__NodeProto node = ONNX__NODE_PROTO__INIT;
    char *output = make_name(e, OUTPUT, suffix, ".output0");
    node.name = make_name(e, NAME, suffix, "");
    node.output = &output;
    node.n_output = 1;
    hand_on(e, &node, "Constant", doc);
}

void qf_expand_step(qf_expansion *e, const char *op, const char *suffix, const char *second,
                    const char *third, const char *doc)
{
    if (e->failed)
        return;
    char *inputs[3] = {qf_borrow(e->value)};
    Onnx__NodeProto node = ONNX__NODE_PROTO__INIT;
    node.input = inputs;
    node.n_input = 1;
    if (second)
        inputs[node.n_input++] = make_name(e, SECOND, second, ".output0");
    if (third)
        inputs[node.n_input++] = make_name(e, THIRD, third, ".output0");
    char *output = e->output ? qf_borrow(e->output) : make_name(e, OUTPUT, suffix, ".output0");
    node.name = make_name(e, NAME, suffix, "");
    node.output = &output;
    node.n_output = 1;
    hand_on(e, &node, op, doc);
    e->value = e->output ? e->output : make_name(e, RESULT, suffix, ".output0");
    e->output = NULL;
}

/* ---- macros ---- */

bool qf_macros_allowed(const qf_pass *p)
{
    const qf_plan *plan = p->plan;
    static const char quant[] = ".fakequant", dequant[] = ".fakedequant";
    return !memmem(plan->skeleton, plan->skeleton_length, quant, sizeof quant - 1) &&
           !memmem(plan->skeleton, plan->skeleton_length, dequant, sizeof dequant - 1) &&
           qf_graph_is_sorted(p->ir->graphs[0]);
}

void qf_node_become_macro(qf_node *node, qf_macro *macro)
{
    onnx__node_proto__init(&macro->node);
    macro->node.op_type = qf_macro_type;
    node->proto = &macro->node;
}

enum { INNER_MAX = 16 };

typedef struct inserter {
    qf_ir *ir;
    qf_node *before;
    const char *input; /* the macro's */
    struct {
        const char *name; /* as the macro calls it; in the graph it may have another */
        qf_value *value;
    } made[INNER_MAX];
    size_t count;
} inserter;

static qf_value *find_made(const inserter *in, const char *name)
{
    if (name == in->input)
        return in->before->inputs[0];
    for (size_t i = 0; i < in->count; i++) {
        if (strcmp(in->made[i].name, name) == 0)
            return in->made[i].value;
    }
    return NULL;
}

/* A copy with everything that it points to. */
static Onnx__AttributeProto *copy_attribute(qf_arena *arena, const Onnx__AttributeProto *a)
{
    size_t n = onnx__attribute_proto__get_packed_size(a);
    uint8_t *packed = qf_arena_alloc(arena, n);
    if (!packed)
        return NULL;
    onnx__attribute_proto__pack(a, packed);
    return onnx__attribute_proto__unpack(&arena->allocator, n, packed);
}

static bool copy_attributes(qf_arena *arena, const Onnx__NodeProto *from, Onnx__NodeProto *to)
{
    to->attribute = qf_arena_array(arena, from->n_attribute, sizeof *to->attribute);
    to->doc_string = qf_arena_strdup(arena, from->doc_string);
    if (!to->attribute || !to->doc_string)
        return false;
    for (size_t i = 0; i < from->n_attribute; i++) {
        to->attribute[i] = copy_attribute(arena, from->attribute[i]);
        if (!to->attribute[i])
            return false;
    }
    to->n_attribute = from->n_attribute;
    return true;
}

static bool insert_node(void *user, const Onnx__NodeProto *proto)
{
    inserter *in = user;
    qf_ir *ir = in->ir;
    if (in->count == INNER_MAX)
        return false;
    qf_node *node = qf_ir_add_node(ir, in->before->graph, proto->op_type, proto->name, in->before);
    qf_value *out = node ? qf_node_add_output(ir, node, proto->output[0]) : NULL;
    const char *name = qf_arena_strdup(ir->arena, proto->output[0]);
    if (!out || !name || !copy_attributes(ir->arena, proto, node->proto))
        return false;
    for (size_t i = 0; i < proto->n_input; i++) {
        if (!qf_node_add_input(ir, node, find_made(in, proto->input[i])))
            return false;
    }
    in->made[in->count].name = name;
    in->made[in->count++].value = out;
    return true;
}

qf_value *qf_macro_insert(qf_pass *p, qf_macro *macro, qf_node *node)
{
    char *input = qf_borrow(node->inputs[0]->name);
    inserter in = {.ir = p->ir, .before = node, .input = input};
    macro->node.input = &input;
    bool done = macro->write(macro, insert_node, &in);
    macro->node.input = NULL;
    return done && in.count ? in.made[in.count - 1].value : NULL;
}
