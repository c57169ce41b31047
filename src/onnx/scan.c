/* SPDX-License-Identifier: Apache-2.0 */
#include "onnx/scan.h"

#include <string.h>
#include <sys/mman.h>

#include "base/spill.h"
#include "onnx/wire.h"

enum {
    MAX_DEPTH = 100,
    /* Room for the length of a nested message, written as a padded varint because it is known only
     * after the message; protobuf readers accept padding. */
    LENGTH_ROOM = 5,
    FORGOTTEN = 256 * 1024, /* bytes that are worth a call to give pages back */
};
/* protobuf-c holds sizes of messages in 32 bits. */
static const size_t max_skeleton = (size_t)1 << 30;

typedef struct scanner {
    const qf_file *file;
    qf_payloads *payloads;
    unsigned char *out;
    size_t length, cap;
    const unsigned char *kept; /* pages from here on may be in memory because of the scan */
    qf_error *err;
} scanner;

static qf_status fail(scanner *s, const unsigned char *at, const char *what)
{
    uint64_t byte = (uint64_t)(at - s->file->data);
    return qf_fail_at(s->err, QF_ERR_INPUT, (qf_where){.file = s->file->path, .byte = &byte},
                      "not a readable ONNX model: %s", what);
}

/* A field that could not be read, from `at` on. One that is longer than what it is in says so. */
static qf_status fail_field(scanner *s, const unsigned char *at, const unsigned char *end,
                            const char *what)
{
    qf_wire wire = {at, end};
    uint64_t tag, length;
    bool sized = qf_wire_varint(&wire, &tag) && (tag & 7) == QF_WIRE_LEN && tag >> 3 != 0 &&
                 qf_wire_varint(&wire, &length) && length > (uint64_t)(end - wire.at);
    if (!sized)
        return fail(s, at, what);
    uint64_t byte = (uint64_t)(at - s->file->data), rest = (uint64_t)(end - wire.at);
    bool last = end == s->file->data + s->file->size;
    return qf_fail_at(s->err, QF_ERR_INPUT, (qf_where){.file = s->file->path, .byte = &byte},
                      "not a readable ONNX model: %s: the field is to have %llu bytes, %s %llu "
                      "(%llu in all)",
                      what, (unsigned long long)length,
                      last ? "of which the file has" : "but the message around it has",
                      (unsigned long long)rest, (unsigned long long)s->file->size);
}

static qf_status put(scanner *s, const void *bytes, size_t n)
{
    if (n > max_skeleton - s->length)
        return qf_fail_at(s->err, QF_ERR_INPUT, (qf_where){.file = s->file->path},
                          "the graph without its weights exceeds 1 GiB; is this an ONNX model?");
    if (!qf_table_grow((void **)&s->out, &s->cap, s->length + n, 1))
        return qf_fail_memory(s->err);
    if (n)
        memcpy(s->out + s->length, bytes, n);
    s->length += n;
    return QF_OK;
}

static qf_status put_tag(scanner *s, uint32_t number, unsigned type)
{
    unsigned char tag[QF_VARINT_MAX];
    return put(s, tag, qf_varint_put(tag, (uint64_t)number << 3 | type));
}

/* Fills the LENGTH_ROOM bytes at `at` with the length of what follows them. */
static void patch_length(scanner *s, size_t at)
{
    size_t n = s->length - at - LENGTH_ROOM;
    for (int i = 0; i < LENGTH_ROOM; i++) {
        s->out[at + (size_t)i] = (unsigned char)((n & 0x7f) | (i < LENGTH_ROOM - 1 ? 0x80 : 0));
        n >>= 7;
    }
}

static bool is_data_field(uint32_t number)
{
    return number == QF_FIELD_FLOAT_DATA || number == QF_FIELD_INT32_DATA ||
           number == QF_FIELD_INT64_DATA || number == QF_FIELD_RAW_DATA ||
           number == QF_FIELD_DOUBLE_DATA || number == QF_FIELD_UINT64_DATA;
}

/* A tensor's data can be a span if it is one length-delimited field. */
static qf_status find_span(scanner *s, qf_wire wire, qf_wire_field *found)
{
    int seen = 0;
    found->data = NULL;
    while (wire.at < wire.end) {
        qf_wire_field f;
        const unsigned char *at = wire.at;
        if (!qf_wire_next(&wire, &f))
            return fail_field(s, at, wire.end, "a field of a tensor is malformed or cut off");
        if (f.number == QF_PAYLOAD_FIELD)
            return fail(s, at, "a tensor uses a field number that is reserved for this program");
        if (is_data_field(f.number)) {
            seen++;
            *found = f;
        }
    }
    if (seen != 1 || found->type != QF_WIRE_LEN || found->length == 0)
        found->data = NULL;
    return QF_OK;
}

static qf_status put_span(scanner *s, const qf_wire_field *f)
{
    uint64_t offset = (uint64_t)(f->data - s->file->data);
    size_t index = qf_payloads_add(
        s->payloads, (qf_payload){.kind = QF_PAYLOAD_SPAN,
                                  .field = (int)f->number,
                                  .span = {f->data, f->length, (int)f->number, 0, offset}});
    if (index == SIZE_MAX)
        return qf_fail_memory(s->err);
    /* of a file that the system has cached, each look at a message maps the pages around it too */
    const unsigned char *end = f->data + f->length;
    if (end - s->kept >= 2 * FORGOTTEN) {
        qf_file_advise(s->file, s->kept, end, MADV_DONTNEED);
        s->kept = end - FORGOTTEN; /* the next look maps pages before it as well */
    }
    unsigned char varint[QF_VARINT_MAX];
    qf_status status = put_tag(s, QF_PAYLOAD_FIELD, QF_WIRE_VARINT);
    return status != QF_OK ? status : put(s, varint, qf_varint_put(varint, index));
}

static qf_status scan_message(scanner *s, const ProtobufCMessageDescriptor *desc, qf_wire wire,
                              int depth)
{
    if (depth > MAX_DEPTH)
        return fail(s, wire.at, "messages are nested too deeply");
    qf_wire_field span = {.data = NULL};
    if (desc == &onnx__tensor_proto__descriptor) {
        qf_status status = find_span(s, wire, &span);
        if (status != QF_OK)
            return status;
    }
    while (wire.at < wire.end) {
        qf_wire_field f;
        const unsigned char *at = wire.at;
        qf_status status;
        if (!qf_wire_next(&wire, &f))
            return fail_field(s, at, wire.end, "a field is malformed or the file is cut off");
        const ProtobufCFieldDescriptor *field =
            protobuf_c_message_descriptor_get_field(desc, f.number);
        if (span.data && f.start == span.start) {
            status = put_span(s, &f);
        } else if (field && field->type == PROTOBUF_C_TYPE_MESSAGE && f.type == QF_WIRE_LEN) {
            size_t length_at;
            status = put_tag(s, f.number, QF_WIRE_LEN);
            length_at = s->length;
            if (status == QF_OK)
                status = put(s, "\0\0\0\0", LENGTH_ROOM);
            if (status == QF_OK)
                status = scan_message(s, field->descriptor, (qf_wire){f.data, f.data + f.length},
                                      depth + 1);
            if (status == QF_OK)
                patch_length(s, length_at);
        } else {
            status = put(s, f.start, (size_t)(wire.at - f.start));
        }
        if (status != QF_OK)
            return status;
    }
    return QF_OK;
}

qf_status qf_scan(const qf_file *file, qf_payloads *payloads, unsigned char **skeleton,
                  size_t *length, qf_error *err)
{
    if (!file->size)
        return qf_fail_at(err, QF_ERR_INPUT, (qf_where){.file = file->path},
                          "the model is empty; an ONNX file was expected");
    scanner s = {.file = file, .payloads = payloads, .kept = file->data, .err = err};
    qf_wire wire = {file->data, file->data + file->size};
    qf_status status = scan_message(&s, &onnx__model_proto__descriptor, wire, 0);
    if (status != QF_OK) {
        qf_spill_free(s.out);
        return status;
    }
    *skeleton = s.out;
    *length = s.length;
    return QF_OK;
}
