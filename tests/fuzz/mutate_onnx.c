/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A mutator that knows protobuf: it changes, removes, copies and moves fields of a model and puts
 * the lengths of the messages around them right, so that most of what it makes still parses and the
 * graph behind the parser is what gets tested. Used by the targets whose input ends in a model.
 */
#include "mutate_onnx.h"

#include <stdlib.h>
#include <string.h>

#include "onnx.pb-c.h"
#include "onnx/wire.h"

size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t most);

enum { PIECES = 16384, DEPTH = 12, GRAPH_DEPTH_MOST = 12 };

/* A field of the model, in the order of the file; a message comes before its fields. */
typedef struct piece {
    size_t start, body, end;
    int parent; /* -1: a field of the model itself */
    uint32_t number;
    unsigned type;
    const ProtobufCMessageDescriptor *in, *is; /* is: NULL if it is no message */
} piece;

typedef struct pieces {
    const uint8_t *data;
    size_t size;
    piece *items;
    int count;
} pieces;

/* ---- dice ---- */

typedef struct dice {
    uint64_t state;
} dice;

static uint32_t roll(dice *d, uint32_t below)
{
    d->state = d->state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return below ? (uint32_t)((d->state >> 33) % below) : 0;
}

/* ---- taking apart ---- */

static bool walk(pieces *p, size_t from, size_t to, const ProtobufCMessageDescriptor *in,
                 int parent, int depth)
{
    qf_wire wire = {p->data + from, p->data + to};
    while (wire.at < wire.end) {
        qf_wire_field f;
        if (p->count == PIECES || !qf_wire_next(&wire, &f))
            return false;
        const ProtobufCFieldDescriptor *d = protobuf_c_message_descriptor_get_field(in, f.number);
        bool message = d && d->type == PROTOBUF_C_TYPE_MESSAGE && f.type == QF_WIRE_LEN;
        int index = p->count++;
        p->items[index] = (piece){.start = (size_t)(f.start - p->data),
                                  .body = (size_t)(f.data - p->data),
                                  .end = (size_t)(wire.at - p->data),
                                  .parent = parent,
                                  .number = f.number,
                                  .type = f.type,
                                  .in = in,
                                  .is = message && depth < DEPTH ? d->descriptor : NULL};
        if (p->items[index].is &&
            !walk(p, p->items[index].body, p->items[index].end, d->descriptor, index, depth + 1))
            return false;
    }
    return true;
}

static bool take_apart(const uint8_t *data, size_t size, pieces *out)
{
    *out = (pieces){.data = data, .size = size, .items = malloc(PIECES * sizeof(piece))};
    if (out->items && walk(out, 0, size, &onnx__model_proto__descriptor, -1, 0) && out->count)
        return true;
    free(out->items);
    return false;
}

/* ---- putting together ---- */

typedef struct text {
    uint8_t *data;
    size_t size;
} text;

static void put(text *t, const void *data, size_t n)
{
    if (n)
        memcpy(t->data + t->size, data, n);
    t->size += n;
}

static void put_varint(text *t, uint64_t value)
{
    t->size += qf_varint_put(t->data + t->size, value);
}

/* The model with [start, end), which lies in message `parent`, replaced. Returns the new size, 0 if
 * that is more than `most`. `out` is another place than p->data. */
static size_t replace(const pieces *p, int parent, size_t start, size_t end, const void *with,
                      size_t n, uint8_t *out, size_t most)
{
    size_t room = p->size + n + (DEPTH + 2) * 16;
    text now = {malloc(room), 0}, next = {malloc(room), 0};
    size_t size = 0;
    if (now.data && next.data) {
        put(&now, with, n);
        for (; parent >= 0; parent = p->items[parent].parent) {
            const piece *m = &p->items[parent];
            size_t before = start - m->body, behind = m->end - end;
            next.size = 0;
            put_varint(&next, (uint64_t)m->number << 3 | QF_WIRE_LEN);
            put_varint(&next, before + now.size + behind);
            put(&next, p->data + m->body, before);
            put(&next, now.data, now.size);
            put(&next, p->data + end, behind);
            text swap = now;
            now = next;
            next = swap;
            start = m->start;
            end = m->end;
        }
        size = start + now.size + (p->size - end);
        if (size <= most) {
            memcpy(out, p->data, start);
            memcpy(out + start, now.data, now.size);
            memcpy(out + start + now.size, p->data + end, p->size - end);
        } else {
            size = 0;
        }
    }
    free(now.data);
    free(next.data);
    return size;
}

/* ---- changes ---- */

typedef struct change {
    const pieces *p;
    dice *dice;
    uint8_t *out;
    size_t most;
} change;

static size_t put_field(const change *c, const piece *at, int parent, size_t start, size_t end,
                        const void *body, size_t n)
{
    text t = {malloc(n + 32), 0};
    if (!t.data)
        return 0;
    put_varint(&t, (uint64_t)at->number << 3 | at->type);
    if (at->type == QF_WIRE_LEN)
        put_varint(&t, n);
    put(&t, body, n);
    size_t size = replace(c->p, parent, start, end, t.data, t.size, c->out, c->most);
    free(t.data);
    return size;
}

static size_t set_body(const change *c, const piece *at, const void *body, size_t n)
{
    return put_field(c, at, at->parent, at->start, at->end, body, n);
}

static bool is_name(const piece *q)
{
    return !q->is && q->type == QF_WIRE_LEN &&
           ((q->in == &onnx__node_proto__descriptor && q->number <= 3) ||
            (q->in == &onnx__tensor_proto__descriptor && q->number == 8) ||
            (q->in == &onnx__value_info_proto__descriptor && q->number == 1));
}

static const char *const ops[] = {"Conv",
                                  "ConvTranspose",
                                  "Gemm",
                                  "MatMul",
                                  "AveragePool",
                                  "LSTM",
                                  "GRU",
                                  "Add",
                                  "Mul",
                                  "Relu",
                                  "BatchNormalization",
                                  "QuantizeLinear",
                                  "DequantizeLinear",
                                  "Identity",
                                  "Constant",
                                  "If",
                                  "Loop",
                                  "Scan",
                                  "Transpose",
                                  "Reshape",
                                  "Flatten",
                                  "Pad",
                                  "Clip",
                                  "MaxPool",
                                  "Concat",
                                  "Squeeze",
                                  "Unsqueeze",
                                  "Cast",
                                  "QuantIdentity",
                                  "AscendQuant",
                                  "AscendDequant",
                                  "DynamicQuantizeLinear",
                                  "QLinearConv",
                                  "Gather",
                                  "Sub",
                                  "Div",
                                  "Slice",
                                  "Split"};
static const char *const attributes[] = {"group",        "kernel_shape",
                                         "strides",      "pads",
                                         "dilations",    "auto_pad",
                                         "transA",       "transB",
                                         "alpha",        "beta",
                                         "axis",         "block_size",
                                         "epsilon",      "training_mode",
                                         "hidden_size",  "direction",
                                         "layout",       "activations",
                                         "clip",         "linear_before_reset",
                                         "input_forget", "perm",
                                         "value",        "value_float",
                                         "value_ints",   "body",
                                         "then_branch",  "else_branch",
                                         "to",           "count_include_pad",
                                         "ceil_mode",    "quant_scale",
                                         "output_dtype", "saturate",
                                         "axes",         "output_padding"};

static size_t change_varint(const change *c, const piece *at)
{
    static const uint64_t odd[] = {
        0,          1,          2,          3,         4,          8,          16,
        127,        128,        255,        32767,     65536,      0x7fffffff, 1u << 31,
        UINT32_MAX, 1ull << 32, 1ull << 60, INT64_MAX, 1ull << 63, UINT64_MAX, UINT64_MAX - 1};
    uint8_t body[QF_VARINT_MAX];
    qf_wire wire = {c->p->data + at->body, c->p->data + at->end};
    uint64_t value = 0;
    qf_wire_varint(&wire, &value);
    switch (roll(c->dice, 4)) {
    case 0:
        value = odd[roll(c->dice, sizeof odd / sizeof *odd)];
        break;
    case 1:
        value = roll(c->dice, 24);
        break;
    case 2:
        value += roll(c->dice, 2) ? 1 : UINT64_MAX;
        break;
    default:
        value = roll(c->dice, 2) ? value * 2 : value / 2;
    }
    return set_body(c, at, body, qf_varint_put(body, value));
}

static size_t change_bytes(const change *c, const piece *at)
{
    size_t n = at->end - at->body, most = n * 2 + 16;
    uint8_t *body = malloc(most);
    size_t size = 0;
    if (body) {
        memcpy(body, c->p->data + at->body, n);
        n = LLVMFuzzerMutate(body, n, at->type == QF_WIRE_LEN ? most : n);
        if (at->type != QF_WIRE_LEN)
            n = at->end - at->body;
        size = set_body(c, at, body, n);
    }
    free(body);
    return size;
}

static size_t change_float(const change *c, const piece *at)
{
    static const uint32_t odd[] = {0,          0x80000000, 0x3f800000, 0xbf800000, 0x7f800000,
                                   0xff800000, 0x7fc00000, 1,          0x00800000, 0x7f7fffff,
                                   0x3c23d70a, 0x34000000, 0x33ffffff};
    if (at->type != QF_WIRE_I32 || roll(c->dice, 2))
        return change_bytes(c, at);
    return set_body(c, at, &odd[roll(c->dice, sizeof odd / sizeof *odd)], 4);
}

static size_t change_name(const change *c, const piece *at)
{
    const pieces *p = c->p;
    for (int tries = 0; tries < 200; tries++) {
        const piece *q = &p->items[roll(c->dice, (uint32_t)p->count)];
        if (is_name(q) && q != at)
            return set_body(c, at, p->data + q->body, q->end - q->body);
    }
    return change_bytes(c, at);
}

static size_t change_leaf(const change *c, const piece *at)
{
    bool node = at->in == &onnx__node_proto__descriptor;
    if (at->type == QF_WIRE_VARINT)
        return change_varint(c, at);
    if (at->type != QF_WIRE_LEN)
        return change_float(c, at);
    if (node && at->number == 4) {
        const char *op = ops[roll(c->dice, sizeof ops / sizeof *ops)];
        return set_body(c, at, op, strlen(op));
    }
    if (at->in == &onnx__attribute_proto__descriptor && at->number == 1 && roll(c->dice, 4)) {
        const char *name = attributes[roll(c->dice, sizeof attributes / sizeof *attributes)];
        return set_body(c, at, name, strlen(name));
    }
    return is_name(at) && roll(c->dice, 5) ? change_name(c, at) : change_bytes(c, at);
}

/* A field of `from`'s model goes into a message of its kind, or in place of a field of its kind. */
static size_t copy_in(const change *c, const pieces *from, const piece *q)
{
    const pieces *p = c->p;
    bool instead = roll(c->dice, 2);
    for (int tries = 0; tries < 500; tries++) {
        const piece *at = &p->items[roll(c->dice, (uint32_t)p->count)];
        if (at->in == q->in && (!instead || at->number == q->number))
            return replace(p, at->parent, at->start, instead ? at->end : at->start,
                           from->data + q->start, q->end - q->start, c->out, c->most);
    }
    return 0;
}

/* A field of the message's descriptor that it may not have yet. */
static size_t add_field(const change *c, int index)
{
    const piece *m = &c->p->items[index];
    const ProtobufCFieldDescriptor *d = &m->is->fields[roll(c->dice, m->is->n_fields)];
    uint8_t body[32] = {0};
    size_t n = 0;
    piece field = {.number = d->id, .type = QF_WIRE_VARINT};
    switch (d->type) {
    case PROTOBUF_C_TYPE_MESSAGE:
        field.type = QF_WIRE_LEN;
        break;
    case PROTOBUF_C_TYPE_STRING:
    case PROTOBUF_C_TYPE_BYTES:
        field.type = QF_WIRE_LEN;
        n = roll(c->dice, sizeof body);
        memset(body, 'a' + (int)roll(c->dice, 26), n);
        break;
    case PROTOBUF_C_TYPE_FLOAT:
        field.type = QF_WIRE_I32;
        n = 4;
        break;
    case PROTOBUF_C_TYPE_DOUBLE:
        field.type = QF_WIRE_I64;
        n = 8;
        break;
    default:
        n = qf_varint_put(body, roll(c->dice, 24));
    }
    return put_field(c, &field, index, m->end, m->end, body, n);
}

static size_t mutate_once(const change *c)
{
    const pieces *p = c->p;
    int index = (int)roll(c->dice, (uint32_t)p->count);
    const piece *at = &p->items[index];
    switch (roll(c->dice, 12)) {
    case 0:
        return replace(p, at->parent, at->start, at->end, "", 0, c->out, c->most);
    case 1:
        return copy_in(c, p, at);
    case 2: /* twice */
        return replace(p, at->parent, at->start, at->start, p->data + at->start,
                       at->end - at->start, c->out, c->most);
    case 3:
        while (at->parent >= 0 && !at->is)
            at = &p->items[index = at->parent];
        return at->is ? add_field(c, index) : 0;
    default:
        while (at->is) { /* a leaf */
            if (++index == p->count)
                return 0;
            at = &p->items[index];
        }
        return change_leaf(c, at);
    }
}

size_t fuzz_mutate_onnx(uint8_t *data, size_t size, size_t most, unsigned seed)
{
    dice d = {.state = seed * UINT64_C(0x9e3779b97f4a7c15) + 1};
    if (size == 0 || roll(&d, 10) == 0)
        return LLVMFuzzerMutate(data, size, most);
    uint8_t *out = malloc(most);
    for (uint32_t rounds = 1 + roll(&d, 3); out && rounds > 0; rounds--) {
        pieces p;
        if (!take_apart(data, size, &p))
            break;
        const change c = {&p, &d, out, most};
        size_t made = mutate_once(&c);
        if (made) {
            memcpy(data, out, made);
            size = made;
        }
        free(p.items);
    }
    free(out);
    return size;
}

size_t fuzz_cross_onnx(fuzz_part a, fuzz_part b, uint8_t *out, size_t most, unsigned seed)
{
    dice d = {.state = seed * UINT64_C(0x9e3779b97f4a7c15) + 3};
    pieces to, from;
    size_t size = 0;
    if (!a.size || !b.size || !take_apart(a.data, a.size, &to))
        return 0;
    if (take_apart(b.data, b.size, &from)) {
        const change c = {&to, &d, out, most};
        size = copy_in(&c, &from, &from.items[roll(&d, (uint32_t)from.count)]);
        free(from.items);
    }
    free(to.items);
    return size;
}
