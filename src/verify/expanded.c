/* SPDX-License-Identifier: Apache-2.0 */
#include "verify/expanded.h"

#include <string.h>

typedef struct reader {
    qf_subject *s;
    qf_expanded *out;
    const char *prefix;
    const char *why;
    qf_status status;
    qf_error *err;
} reader;

/* A Constant of one tensor. */
static bool is_constant(const qf_node *node)
{
    return qf_node_is(node, "Constant") && node->input_count == 0 &&
           node->proto->n_attribute == 1 &&
           node->proto->attribute[0]->type == ONNX__ATTRIBUTE_PROTO__ATTRIBUTE_TYPE__TENSOR;
}

/* Whether a part has as many inputs and attributes as its operator takes, and no more. */
static bool is_plain(const qf_node *node, const char *op)
{
    size_t inputs = node->input_count, attributes = node->proto->n_attribute;
    if (strcmp(op, "Constant") == 0)
        return is_constant(node);
    if (strcmp(op, "Clip") == 0)
        return (inputs == 3 && !attributes) || (inputs == 1 && attributes == 2);
    if (strcmp(op, "Cast") == 0)
        return inputs == 1 && attributes == 1;
    return inputs == (strcmp(op, "Round") == 0 ? 1u : 2u) && !attributes;
}

/* Notes `node` as a part; NULL if it is not called <prefix>.<suffix>. */
static qf_node *take(reader *r, qf_node *node, const char *op, const char *suffix, const char *why)
{
    if (r->why)
        return NULL;
    bool fits = node && qf_node_is(node, op) && qf_is_name(node->name, r->prefix, suffix) &&
                node->output_count == 1 && node->outputs[0] && is_plain(node, op);
    if (!fits || r->out->count == QF_EXPANDED_NODES) {
        r->why = why;
        return NULL;
    }
    r->out->nodes[r->out->count++] = node;
    return node;
}

/* A scalar constant <prefix>.<suffix>. */
static float scalar(reader *r, qf_value *value, const char *suffix, const char *why)
{
    const float *values = NULL;
    uint64_t count;
    qf_node *node = value ? value->producer : NULL;
    const Onnx__TensorProto *t = qf_subject_constant(value);
    bool seen = false;
    for (size_t i = 0; i < r->out->count; i++)
        seen |= node && r->out->nodes[i] == node;
    if (!seen && !take(r, node, "Constant", suffix, why))
        return 0;
    if (t && t->data_type == ONNX__TENSOR_PROTO__DATA_TYPE__FLOAT && t->n_dims == 0 &&
        r->status == QF_OK)
        r->status = qf_reading_floats(r->s, t, 1, &values, &count, r->err);
    if (!values || count != 1) {
        r->why = r->why ? r->why : why;
        return 0;
    }
    return values[0];
}

static qf_value *input_of(const qf_node *node, size_t i)
{
    return node && i < node->input_count ? node->inputs[i] : NULL;
}

static qf_node *before(const qf_node *node)
{
    qf_value *in = input_of(node, 0);
    return in ? in->producer : NULL;
}

static qf_node *read_clip(reader *r, qf_node *node)
{
    static const char wrong[] = "is not reached through a Clip with both bounds";
    qf_node *clip = take(r, node, "Clip", ".clip", wrong);
    if (!clip)
        return NULL;
    if (clip->input_count == 3) {
        r->out->min = scalar(r, clip->inputs[1], ".min_val", wrong);
        r->out->max = scalar(r, clip->inputs[2], ".max_val", wrong);
    } else if (qf_node_attribute(clip, "min") && qf_node_attribute(clip, "max")) {
        r->out->min = qf_node_float(clip, "min", 0);
        r->out->max = qf_node_float(clip, "max", 0);
    } else {
        r->why = wrong;
    }
    return before(clip);
}

/* Round, or, before opset 11, adding and subtracting 1.5 * 2^23. */
static qf_node *read_round(reader *r, qf_node *node)
{
    static const char wrong[] = "does not round before it clips";
    if (node && qf_node_is(node, "Round"))
        return before(take(r, node, "Round", ".round", wrong));
    qf_node *down = take(r, node, "Sub", ".round", wrong);
    qf_node *up = down ? take(r, before(down), "Add", ".round_up", wrong) : NULL;
    if (!up)
        return NULL;
    float magic = scalar(r, input_of(up, 1), ".round_magic", wrong);
    if (magic != 0x1.8p23f || input_of(up, 1) != input_of(down, 1))
        r->why = r->why ? r->why : wrong;
    return before(up);
}

static int bits_of(float min, float max)
{
    static const int known[] = {4, 8, 16};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        float half = (float)(1 << (known[i] - 1));
        if (min == -half && max == half - 1)
            return known[i];
    }
    return 0;
}

static void read_steps(reader *r, qf_node *sub)
{
    static const char offsets[] = "does not subtract the offset that it added";
    qf_node *last = take(r, sub, "Sub", ".sub", "is not a Sub");
    qf_node *node = read_clip(r, before(last));
    qf_node *add = take(r, node, "Add", ".add", "does not add its offset after rounding");
    node = read_round(r, before(add));
    qf_node *mul = take(r, node, "Mul", ".mul", "does not begin with a Mul by its scale");
    if (r->why)
        return;
    r->out->offset = scalar(r, input_of(add, 1), ".offset", offsets);
    if (input_of(add, 1) != input_of(last, 1))
        r->why = offsets;
    r->out->scale = scalar(r, input_of(mul, 1), ".scale", "does not begin with a Mul by its scale");
    r->out->input = input_of(mul, 0);
    qf_node *cast = before(mul);
    if (cast && qf_node_is(cast, "Cast") && qf_is_name(cast->name, r->prefix, ".cast") &&
        take(r, cast, "Cast", ".cast", "")) {
        r->out->input = input_of(cast, 0);
        if (qf_node_int(cast, "to", 0) != ONNX__TENSOR_PROTO__DATA_TYPE__FLOAT)
            r->why = "does not cast to float32 first";
    }
    if (!r->why && !r->out->input)
        r->why = "reads nothing";
    r->out->bits = bits_of(r->out->min, r->out->max);
}

qf_status qf_expanded_read(qf_subject *subject, qf_node *sub, qf_expanded *out, const char **why,
                           qf_error *err)
{
    size_t n = qf_stem(sub->name, ".sub");
    *out = (qf_expanded){0};
    char *prefix = qf_arena_strndup(&subject->arena, sub->name, n);
    reader r = {.s = subject, .out = out, .prefix = prefix, .err = err};
    if (!prefix)
        return qf_fail_memory(err);
    read_steps(&r, sub);
    *why = r.why;
    return r.status;
}

qf_value *qf_mul_operand(const qf_node *mul, const Onnx__TensorProto **factor, qf_node **constant)
{
    if (mul->input_count != 2 || !mul->inputs[0] || !mul->inputs[1] || mul->proto->n_attribute)
        return NULL;
    *factor = qf_subject_constant(mul->inputs[1]);
    *constant = mul->inputs[1]->producer;
    if (*constant && !is_constant(*constant))
        return NULL;
    return *factor ? mul->inputs[0] : NULL;
}
