/* SPDX-License-Identifier: Apache-2.0 */
#include "onnx/splice.h"

#include <string.h>

#include "base/spill.h"
#include "onnx/macro.h"

enum { CHUNK = 64 * 1024, FIELD_NODE = 1, FIELD_INITIALIZER = 5, FIELD_GRAPH = 7 };

char qf_macro_type[] = "quantfold.macro";

typedef struct splicer {
    const qf_payloads *payloads;
    qf_spliced *out;
    unsigned char *scratch; /* a packed message */
    size_t scratch_cap;
    uint64_t *sizes; /* of its nested messages, in the order in which they are entered */
    size_t size_count, size_cap, next_size;
    unsigned char *chunk; /* literal bytes go here */
    size_t used, room;    /* bytes of the chunk in the current piece, and left behind them */
    uint64_t written;     /* literal bytes and holes so far */
    bool memory;          /* ran out */
} splicer;

/* ---- payload fields ---- */

static uint64_t read_element(const qf_payload *p, size_t i)
{
    if (p->field == QF_FIELD_INT32_DATA) {
        int32_t v;
        memcpy(&v, (const char *)p->bytes + 4 * i, sizeof v);
        return (uint64_t)(int64_t)v; /* negative int32 are sign-extended on the wire */
    }
    uint64_t v;
    memcpy(&v, (const char *)p->bytes + 8 * i, sizeof v);
    return v;
}

static size_t element_width(const qf_payload *p)
{
    return p->field == QF_FIELD_INT32_DATA ? 4 : 8;
}

/* Payloads made by the plan are kept as plain elements; these fields want varints. */
static bool is_encoded(const qf_payload *p)
{
    return p->kind == QF_PAYLOAD_BYTES && qf_field_is_varint(p->field);
}

static uint64_t content_length(const qf_payload *p)
{
    if (p->kind == QF_PAYLOAD_SPAN)
        return p->span.length;
    if (!is_encoded(p))
        return p->raw_length;
    uint64_t n = 0;
    for (size_t i = 0; i < p->raw_length / element_width(p); i++)
        n += qf_varint_size(read_element(p, i));
    return n;
}

uint64_t qf_payload_field_size(const qf_payload *payload)
{
    return qf_len_field_size((uint32_t)payload->field, content_length(payload));
}

uint64_t qf_payload_marker_size(size_t index)
{
    return qf_varint_size((uint64_t)QF_PAYLOAD_FIELD << 3) + qf_varint_size(index);
}

/* ---- measuring ---- */

static const ProtobufCMessageDescriptor *nested(const ProtobufCMessageDescriptor *desc,
                                                const qf_wire_field *f)
{
    const ProtobufCFieldDescriptor *field =
        protobuf_c_message_descriptor_get_field(desc, f->number);
    bool message = field && field->type == PROTOBUF_C_TYPE_MESSAGE && f->type == QF_WIRE_LEN;
    return message ? field->descriptor : NULL;
}

static bool is_marker(const ProtobufCMessageDescriptor *desc, const qf_wire_field *f)
{
    return f->number == QF_PAYLOAD_FIELD && desc == &onnx__tensor_proto__descriptor;
}

static size_t marker_index(const qf_wire_field *f)
{
    qf_wire wire = {f->data, f->data + f->length};
    uint64_t index = 0;
    qf_wire_varint(&wire, &index);
    return (size_t)index;
}

static uint64_t measure(splicer *s, const ProtobufCMessageDescriptor *desc, qf_wire wire)
{
    uint64_t size = 0;
    qf_wire_field f;
    while (wire.at < wire.end && qf_wire_next(&wire, &f)) {
        const ProtobufCMessageDescriptor *inner = nested(desc, &f);
        if (is_marker(desc, &f)) {
            size += qf_payload_field_size(&s->payloads->items[marker_index(&f)]);
        } else if (inner) {
            size_t slot = s->size_count;
            if (!qf_table_grow((void **)&s->sizes, &s->size_cap, slot + 1, sizeof *s->sizes)) {
                s->memory = true;
                return 0;
            }
            s->size_count++;
            uint64_t n = measure(s, inner, (qf_wire){f.data, f.data + f.length});
            s->sizes[slot] = n;
            size += qf_len_field_size(f.number, n);
        } else {
            size += (uint64_t)(wire.at - f.start);
        }
    }
    return size;
}

/* ---- emitting ---- */

/* Ends the current piece. */
static qf_piece *close_piece(splicer *s)
{
    qf_spliced *out = s->out;
    if (!qf_table_grow((void **)&out->pieces, &out->cap, out->count + 1, sizeof *out->pieces)) {
        s->memory = true;
        return NULL;
    }
    qf_piece *piece = &out->pieces[out->count++];
    *piece = (qf_piece){.literal = s->chunk, .literal_length = s->used, .payload = SIZE_MAX};
    if (s->used)
        s->chunk += s->used;
    s->used = 0;
    return piece;
}

/* A new chunk with room for `n` bytes in one piece. */
static bool begin_chunk(splicer *s, size_t n)
{
    size_t bytes = n > CHUNK ? n : CHUNK;
    if (s->used && !close_piece(s))
        return false;
    s->chunk = qf_arena_alloc(&s->out->arena, bytes);
    s->room = s->chunk ? bytes : 0;
    s->memory = !s->chunk;
    return !s->memory;
}

/* Room for `n` bytes, which count as written; NULL when memory is exhausted. */
static unsigned char *reserve(splicer *s, size_t n)
{
    if (s->memory)
        return NULL;
    if (s->room < n && !begin_chunk(s, n))
        return NULL;
    unsigned char *at = s->chunk + s->used;
    s->used += n;
    s->room -= n;
    s->written += n;
    return at;
}

static void put(splicer *s, const void *bytes, size_t n)
{
    unsigned char *at = reserve(s, n);
    if (at && n)
        memcpy(at, bytes, n);
}

static void put_varint(splicer *s, uint64_t value)
{
    unsigned char bytes[QF_VARINT_MAX];
    put(s, bytes, qf_varint_put(bytes, value));
}

static void put_length(splicer *s, uint32_t number, uint64_t length)
{
    put_varint(s, (uint64_t)number << 3 | QF_WIRE_LEN);
    put_varint(s, length);
}

static void put_payload(splicer *s, size_t index, int32_t data_type)
{
    const qf_payload *p = &s->payloads->items[index];
    uint64_t length = content_length(p);
    put_length(s, (uint32_t)p->field, length);
    if (is_encoded(p)) {
        for (size_t i = 0; i < p->raw_length / element_width(p); i++)
            put_varint(s, read_element(p, i));
        return;
    }
    qf_piece *piece = s->memory ? NULL : close_piece(s);
    if (!piece)
        return;
    piece->payload = index;
    piece->length = length;
    piece->data_type = data_type;
    s->written += length;
}

/* The payload of a tensor message, SIZE_MAX if it has none. */
static size_t find_marker(const ProtobufCMessageDescriptor *desc, qf_wire wire)
{
    qf_wire_field f;
    while (desc == &onnx__tensor_proto__descriptor && wire.at < wire.end &&
           qf_wire_next(&wire, &f)) {
        if (is_marker(desc, &f))
            return marker_index(&f);
    }
    return SIZE_MAX;
}

/* A payload goes where protobuf writers put its field: in the order of field numbers. */
static void emit(splicer *s, const ProtobufCMessageDescriptor *desc, qf_wire wire)
{
    qf_wire_field f;
    int32_t data_type = 0;
    size_t pending = find_marker(desc, wire);
    while (!s->memory && wire.at < wire.end && qf_wire_next(&wire, &f)) {
        const ProtobufCMessageDescriptor *inner = nested(desc, &f);
        if (pending != SIZE_MAX && f.number > (uint32_t)s->payloads->items[pending].field) {
            put_payload(s, pending, data_type);
            pending = SIZE_MAX;
        }
        if (is_marker(desc, &f))
            continue;
        if (inner) {
            put_length(s, f.number, s->sizes[s->next_size++]);
            emit(s, inner, (qf_wire){f.data, f.data + f.length});
        } else {
            if (desc == &onnx__tensor_proto__descriptor && f.number == 2)
                data_type = (int32_t)marker_index(&f);
            put(s, f.start, (size_t)(wire.at - f.start));
        }
    }
}

/* ---- messages ---- */

/* A message that may hold payloads; as field `number`, or, for 0, its fields alone. */
static void put_message(splicer *s, uint32_t number, const ProtobufCMessage *message)
{
    size_t length = protobuf_c_message_get_packed_size(message);
    if (s->memory || !qf_table_grow((void **)&s->scratch, &s->scratch_cap, length, 1)) {
        s->memory = true;
        return;
    }
    if (length)
        protobuf_c_message_pack(message, s->scratch);
    qf_wire wire = {s->scratch, length ? s->scratch + length : NULL};
    s->size_count = s->next_size = 0;
    uint64_t size = measure(s, message->descriptor, wire);
    if (number)
        put_length(s, number, size);
    emit(s, message->descriptor, wire);
}

/* A node without tensors or graphs. */
static bool put_plain_node(void *user, const Onnx__NodeProto *node)
{
    splicer *s = user;
    size_t length = onnx__node_proto__get_packed_size(node);
    put_length(s, FIELD_NODE, length);
    unsigned char *at = reserve(s, length);
    if (at)
        onnx__node_proto__pack(node, at);
    return at != NULL;
}

static bool may_hold_payloads(const Onnx__NodeProto *node)
{
    for (size_t i = 0; i < node->n_attribute; i++) {
        const Onnx__AttributeProto *a = node->attribute[i];
        if (a->t || a->g || a->sparse_tensor || a->n_tensors || a->n_graphs || a->n_sparse_tensors)
            return true;
    }
    return false;
}

static void put_node(splicer *s, const Onnx__NodeProto *node)
{
    const qf_macro *macro = qf_macro_of(node);
    if (macro)
        s->memory |= !macro->write(macro, put_plain_node, s);
    else if (may_hold_payloads(node))
        put_message(s, FIELD_NODE, &node->base);
    else
        put_plain_node(s, node);
}

/* In the order of field numbers: nodes, name, initializers, everything else. */
static void put_graph(splicer *s, const Onnx__GraphProto *graph)
{
    Onnx__GraphProto name = ONNX__GRAPH_PROTO__INIT, rest = *graph;
    name.name = rest.name;
    rest.name = NULL;
    rest.n_node = rest.n_initializer = 0;
    for (size_t i = 0; i < graph->n_node && !s->memory; i++)
        put_node(s, graph->node[i]);
    put_message(s, 0, &name.base);
    for (size_t i = 0; i < graph->n_initializer && !s->memory; i++)
        put_message(s, FIELD_INITIALIZER, &graph->initializer[i]->base);
    put_message(s, 0, &rest.base);
}

/* What stands before the graph, with the graph's tag and length, which are known last: the first
 * piece, which was left for it. */
static void put_head(splicer *s, const Onnx__ModelProto *model)
{
    Onnx__ModelProto head = ONNX__MODEL_PROTO__INIT;
    head.has_ir_version = model->has_ir_version;
    head.ir_version = model->ir_version;
    head.producer_name = model->producer_name;
    head.producer_version = model->producer_version;
    head.domain = model->domain;
    head.has_model_version = model->has_model_version;
    head.model_version = model->model_version;
    head.doc_string = model->doc_string;
    if (s->memory || !begin_chunk(s, onnx__model_proto__get_packed_size(&head) + 2 * QF_VARINT_MAX))
        return;
    put_message(s, 0, &head.base);
    put_length(s, FIELD_GRAPH, s->out->graph_size);
    s->out->pieces[0].literal = s->chunk;
    s->out->pieces[0].literal_length = s->used;
}

static void put_tail(splicer *s, const Onnx__ModelProto *model)
{
    Onnx__ModelProto tail = *model;
    tail.has_ir_version = tail.has_model_version = 0;
    tail.producer_name = tail.producer_version = tail.domain = tail.doc_string = NULL;
    tail.graph = NULL;
    put_message(s, 0, &tail.base);
}

static void put_model(splicer *s, const Onnx__ModelProto *model)
{
    close_piece(s); /* kept for the head */
    put_graph(s, model->graph);
    s->out->graph_size = s->written;
    put_tail(s, model);
    if (!s->memory)
        close_piece(s);
    put_head(s, model);
    s->out->size = s->written;
}

qf_status qf_splice(const Onnx__ModelProto *model, const qf_payloads *payloads, qf_spliced *out,
                    qf_error *err)
{
    *out = (qf_spliced){0};
    qf_arena_init(&out->arena);
    splicer s = {.payloads = payloads, .out = out};
    put_model(&s, model);
    qf_spill_free(s.sizes);
    qf_spill_free(s.scratch);
    if (s.memory) {
        qf_spliced_release(out);
        return qf_fail_memory(err);
    }
    return QF_OK;
}

void qf_spliced_release(qf_spliced *spliced)
{
    qf_spill_free(spliced->pieces);
    qf_arena_release(&spliced->arena);
    *spliced = (qf_spliced){0};
}
