/* SPDX-License-Identifier: Apache-2.0 */
#include "onnx/splice.h"

#include <stdlib.h>
#include <string.h>

#include "onnx/model.h"

typedef struct splicer {
    const qf_payloads *payloads;
    qf_spliced *out;
    uint64_t *sizes; /* of nested messages, in the order in which they are entered */
    size_t size_count, size_cap, next_size;
    size_t literal_mark; /* literal_length at the last hole */
    bool memory;         /* ran out */
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
            if (!qf_grow((void **)&s->sizes, &s->size_cap, slot + 1, sizeof *s->sizes)) {
                s->memory = true;
                return 0;
            }
            s->size_count++;
            uint64_t n = measure(s, inner, (qf_wire){f.data, f.data + f.length});
            s->sizes[slot] = n;
            if (desc == &onnx__model_proto__descriptor && inner == &onnx__graph_proto__descriptor)
                s->out->graph_size = n;
            size += qf_len_field_size(f.number, n);
        } else {
            size += (uint64_t)(wire.at - f.start);
        }
    }
    return size;
}

/* ---- emitting ---- */

static void put(splicer *s, const void *bytes, size_t n)
{
    qf_spliced *out = s->out;
    if (!qf_grow((void **)&out->literals, &out->literal_cap, out->literal_length + n, 1)) {
        s->memory = true;
        return;
    }
    if (n)
        memcpy(out->literals + out->literal_length, bytes, n);
    out->literal_length += n;
}

static void put_varint(splicer *s, uint64_t value)
{
    unsigned char bytes[QF_VARINT_MAX];
    put(s, bytes, qf_varint_put(bytes, value));
}

static void put_payload(splicer *s, size_t index, int32_t data_type)
{
    const qf_payload *p = &s->payloads->items[index];
    uint64_t length = content_length(p);
    put_varint(s, (uint64_t)p->field << 3 | QF_WIRE_LEN);
    put_varint(s, length);
    if (is_encoded(p)) {
        for (size_t i = 0; i < p->raw_length / element_width(p); i++)
            put_varint(s, read_element(p, i));
        return;
    }
    qf_spliced *out = s->out;
    if (!qf_grow((void **)&out->holes, &out->hole_cap, out->hole_count + 1, sizeof *out->holes)) {
        s->memory = true;
        return;
    }
    out->holes[out->hole_count++] =
        (qf_hole){out->literal_length - s->literal_mark, index, length, data_type};
    s->literal_mark = out->literal_length;
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
            put_varint(s, (uint64_t)f.number << 3 | QF_WIRE_LEN);
            put_varint(s, s->sizes[s->next_size++]);
            emit(s, inner, (qf_wire){f.data, f.data + f.length});
        } else {
            if (desc == &onnx__tensor_proto__descriptor && f.number == 2)
                data_type = (int32_t)marker_index(&f);
            put(s, f.start, (size_t)(wire.at - f.start));
        }
    }
}

static qf_status run(const Onnx__ModelProto *model, const qf_payloads *payloads, bool whole,
                     qf_spliced *out, qf_error *err)
{
    *out = (qf_spliced){0};
    splicer s = {.payloads = payloads, .out = out};
    unsigned char *packed;
    size_t length;
    qf_status status = qf_skeleton_pack(model, &packed, &length, err);
    if (status != QF_OK)
        return status;
    qf_wire wire = {packed, packed + length};
    out->size = measure(&s, &onnx__model_proto__descriptor, wire);
    if (whole && !s.memory)
        emit(&s, &onnx__model_proto__descriptor, wire);
    free(s.sizes);
    free(packed);
    if (s.memory) {
        qf_spliced_release(out);
        return qf_fail_memory(err);
    }
    return QF_OK;
}

qf_status qf_splice_measure(const Onnx__ModelProto *model, const qf_payloads *payloads,
                            qf_spliced *out, qf_error *err)
{
    return run(model, payloads, false, out, err);
}

qf_status qf_splice(const Onnx__ModelProto *model, const qf_payloads *payloads, qf_spliced *out,
                    qf_error *err)
{
    return run(model, payloads, true, out, err);
}

void qf_spliced_release(qf_spliced *spliced)
{
    free(spliced->literals);
    free(spliced->holes);
    *spliced = (qf_spliced){0};
}
