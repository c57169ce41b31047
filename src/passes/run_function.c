/* SPDX-License-Identifier: Apache-2.0 */
/* Making the functions of the runnable model, and calls of them. */
#include "passes/run_function.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

enum { ATTRIBUTES = 8, NAMES = 16 };

#define ATTRIBUTE(type) ONNX__ATTRIBUTE_PROTO__ATTRIBUTE_TYPE__##type
#define DATA(type) ONNX__TENSOR_PROTO__DATA_TYPE__##type

/* ---- bodies ---- */

/* The words of a text, in the arena. */
static char **split(qf_arena *arena, const char *text, size_t *count)
{
    char *copy = qf_arena_strdup(arena, text), *rest = copy;
    char **words = qf_arena_array(arena, NAMES, sizeof *words);
    *count = 0;
    if (!copy || !words)
        return NULL;
    for (char *word; (word = strsep(&rest, " ")) && *count < NAMES;) {
        if (*word)
            words[(*count)++] = word;
    }
    return words;
}

void qf_body_step(qf_body *b, const char *op, const char *output, const char *inputs)
{
    Onnx__NodeProto *node = qf_arena_alloc(b->arena, sizeof *node);
    if (!node || b->failed || b->count == QF_BODY_NODES) {
        b->failed = true;
        return;
    }
    onnx__node_proto__init(node);
    size_t n;
    node->op_type = qf_arena_strdup(b->arena, op);
    node->input = split(b->arena, inputs, &node->n_input);
    node->output = split(b->arena, output, &n);
    node->n_output = n;
    node->attribute = qf_arena_array(b->arena, ATTRIBUTES, sizeof *node->attribute);
    b->failed = !node->op_type || !node->input || !node->output || !node->attribute;
    b->nodes[b->count++] = node;
}

/* A new attribute of the last node; NULL when memory is exhausted. */
static Onnx__AttributeProto *attribute(qf_body *b, const char *name, int type)
{
    Onnx__AttributeProto *a = b->failed ? NULL : qf_arena_alloc(b->arena, sizeof *a);
    Onnx__NodeProto *node = b->count ? b->nodes[b->count - 1] : NULL;
    if (!a || !node || node->n_attribute == ATTRIBUTES) {
        b->failed = true;
        return NULL;
    }
    onnx__attribute_proto__init(a);
    a->name = qf_arena_strdup(b->arena, name);
    a->has_type = 1;
    a->type = (Onnx__AttributeProto__AttributeType)type;
    b->failed = !a->name;
    node->attribute[node->n_attribute++] = a;
    return a;
}

void qf_body_int(qf_body *b, const char *name, int64_t value)
{
    Onnx__AttributeProto *a = attribute(b, name, ATTRIBUTE(INT));
    if (!a)
        return;
    a->has_i = 1;
    a->i = value;
}

void qf_body_graph(qf_body *b, const char *name, Onnx__GraphProto *graph)
{
    Onnx__AttributeProto *a = attribute(b, name, ATTRIBUTE(GRAPH));
    if (a)
        a->g = graph;
}

void qf_body_ref(qf_body *b, const char *name, const char *of, int type)
{
    Onnx__AttributeProto *a = attribute(b, name, type);
    if (!a)
        return;
    a->ref_attr_name = qf_arena_strdup(b->arena, of);
    b->failed = !a->ref_attr_name;
}

void qf_body_cast(qf_body *b, const char *output, const char *input, int32_t data_type)
{
    qf_body_step(b, "Cast", output, input);
    qf_body_int(b, "to", data_type);
}

/* A tensor of raw little-endian elements, which it takes. */
static Onnx__TensorProto *raw_tensor(qf_arena *arena, int32_t data_type, const void *bytes,
                                     size_t length, const int64_t *dims, size_t rank)
{
    Onnx__TensorProto *tensor = qf_tensor_new(arena, data_type, dims, rank);
    uint8_t *copy = qf_arena_alloc(arena, length + 1);
    if (!tensor || !copy)
        return NULL;
    memcpy(copy, bytes, length);
    tensor->has_raw_data = 1;
    tensor->raw_data = (ProtobufCBinaryData){.len = length, .data = copy};
    return tensor;
}

static void constant(qf_body *b, const char *output, int32_t data_type, const void *bytes,
                     size_t length, const int64_t *dims, size_t rank)
{
    qf_body_step(b, "Constant", output, "");
    Onnx__AttributeProto *a = attribute(b, "value", ATTRIBUTE(TENSOR));
    if (!a)
        return;
    a->t = raw_tensor(b->arena, data_type, bytes, length, dims, rank);
    b->failed = !a->t;
}

void qf_body_number(qf_body *b, const char *output, int32_t data_type, double value)
{
    union {
        float f;
        double d;
        int32_t i32;
        int64_t i64;
        uint8_t u8;
    } v;
    switch (data_type) {
    case DATA(FLOAT):
        v.f = (float)value;
        break;
    case DATA(DOUBLE):
        v.d = value;
        break;
    case DATA(INT32):
        v.i32 = (int32_t)value;
        break;
    case DATA(UINT8):
        v.u8 = (uint8_t)value;
        break;
    default: /* INT64, UINT64 */
        v.i64 = (int64_t)value;
    }
    constant(b, output, data_type, &v, qf_dtype_bits(data_type) / 8, NULL, 0);
}

void qf_body_int64s(qf_body *b, const char *output, const int64_t *values, size_t count)
{
    const int64_t dims[] = {(int64_t)count};
    constant(b, output, DATA(INT64), values, count * sizeof *values, dims, 1);
}

void qf_body_doubles(qf_body *b, const char *output, const double *values, size_t count)
{
    const int64_t dims[] = {(int64_t)count};
    constant(b, output, DATA(DOUBLE), values, count * sizeof *values, dims, 1);
}

void qf_body_tensor(qf_body *b, const char *output, const char *of)
{
    qf_body_step(b, "Constant", output, "");
    qf_body_ref(b, "value", of, ATTRIBUTE(TENSOR));
}

/* Constant takes a float only from opset 12 on; LeakyRelu takes one as its slope: of -1 it makes
 * -1 times the attribute, exactly. */
void qf_body_float(qf_body *b, const char *output, const char *of)
{
    const char *minus_one = qf_body_name(b, output, "unit");
    const char *negative = qf_body_name(b, output, "negative");
    qf_body_number(b, minus_one, DATA(FLOAT), -1);
    qf_body_step(b, "LeakyRelu", negative, minus_one);
    qf_body_ref(b, "alpha", of, ATTRIBUTE(FLOAT));
    qf_body_step(b, "Neg", output, negative);
}

const char *qf_body_name(qf_body *b, const char *stem, const char *suffix)
{
    const char *name = qf_arena_printf(b->arena, "%s_%s", stem, suffix);
    b->failed |= !name;
    return name ? name : "";
}

const char *qf_body_join(qf_body *b, const char *first, const char *second)
{
    const char *text = qf_arena_printf(b->arena, "%s %s", first, second);
    b->failed |= !text;
    return text ? text : "";
}

/* ---- functions ---- */

static bool add_opset(qf_arena *arena, Onnx__OperatorSetIdProto **slot, const char *domain,
                      int64_t version)
{
    Onnx__OperatorSetIdProto *o = qf_arena_alloc(arena, sizeof *o);
    if (!o)
        return false;
    onnx__operator_set_id_proto__init(o);
    o->domain = qf_arena_strdup(arena, domain);
    o->has_version = 1;
    o->version = version;
    *slot = o;
    return o->domain != NULL;
}

static Onnx__FunctionProto *make_function(qf_runner *r, const qf_function *f)
{
    qf_arena *arena = r->p->ir->arena;
    Onnx__FunctionProto *proto = qf_arena_alloc(arena, sizeof *proto);
    qf_body *b = qf_arena_alloc(arena, sizeof *b);
    if (!proto || !b)
        return NULL;
    onnx__function_proto__init(proto);
    b->arena = arena;
    b->opset = qf_ir_opset(r->p->ir);
    f->build(b, f);
    proto->name = qf_arena_strdup(arena, f->name);
    proto->domain = qf_arena_strdup(arena, QF_NPU_DOMAIN);
    proto->input = split(arena, f->inputs, &proto->n_input);
    proto->output = split(arena, f->outputs, &proto->n_output);
    proto->attribute = split(arena, f->attributes, &proto->n_attribute);
    proto->opset_import = qf_arena_array(arena, 1, sizeof *proto->opset_import);
    proto->n_opset_import = 1;
    proto->node = b->nodes;
    proto->n_node = b->count;
    bool complete = proto->name && proto->domain && proto->input && proto->output &&
                    proto->attribute && proto->opset_import && !b->failed &&
                    add_opset(arena, &proto->opset_import[0], "", qf_ir_opset(r->p->ir));
    return complete ? proto : NULL;
}

bool qf_run_call(qf_runner *r, qf_node *node, const qf_function *f)
{
    size_t i = 0;
    while (i < r->count && strcmp(r->functions[i]->name, f->name) != 0)
        i++;
    if (i == r->count) {
        Onnx__FunctionProto *made = i < QF_RUN_FUNCTIONS ? make_function(r, f) : NULL;
        if (!made)
            return false;
        r->functions[r->count++] = made;
    }
    node->proto->op_type = r->functions[i]->name;
    node->proto->domain = r->functions[i]->domain;
    return true;
}

bool qf_run_is(const qf_node *node, const char *stem)
{
    const Onnx__NodeProto *p = node->proto;
    return p->domain && strcmp(p->domain, QF_NPU_DOMAIN) == 0 && p->op_type &&
           strncmp(p->op_type, stem, strlen(stem)) == 0;
}

bool qf_run_set_inputs(qf_runner *r, qf_node *node, qf_value *const *inputs, size_t count)
{
    qf_ir *ir = r->p->ir;
    for (size_t i = 0; i < node->input_count; i++) {
        if (!qf_node_set_input(ir, node, i, NULL))
            return false;
    }
    while (node->input_count < count) {
        if (!qf_node_add_input(ir, node, NULL))
            return false;
    }
    node->input_count = count;
    for (size_t i = 0; i < count; i++) {
        if (!qf_node_set_input(ir, node, i, inputs[i]))
            return false;
    }
    return true;
}

bool qf_run_set_int64s(qf_runner *r, qf_node *node, const char *name, const int64_t *values,
                       size_t count)
{
    const int64_t dims[] = {(int64_t)count};
    return qf_node_set_tensor(
        r->p->ir, node, name,
        raw_tensor(r->p->ir->arena, DATA(INT64), values, count * sizeof *values, dims, 1));
}

qf_node *qf_run_add_node(qf_runner *r, qf_graph *graph, const char *stem, const char *suffix,
                         qf_node *before)
{
    const char *name = qf_pass_name(r->p, stem, suffix);
    const char *output = name ? qf_pass_name(r->p, name, "output0") : NULL;
    qf_node *node = output ? qf_ir_add_node(r->p->ir, graph, "Identity", name, before) : NULL;
    return node && qf_node_add_output(r->p->ir, node, output) ? node : NULL;
}

qf_status qf_run_refuse(const qf_runner *r, const qf_node *node, const char *format, ...)
{
    char why[300];
    va_list args;
    va_start(args, format);
    vsnprintf(why, sizeof why, format, args);
    va_end(args);
    return qf_fail_at(r->p->err, QF_ERR_INPUT, (qf_where){.file = r->p->path, .item = node->name},
                      "the %s cannot be run as integers: %s", node->proto->op_type, why);
}
