/* SPDX-License-Identifier: Apache-2.0 */
#include "onnx/payload.h"

#include <string.h>

#include "base/spill.h"
#include "onnx/wire.h"

size_t qf_payloads_add(qf_payloads *table, qf_payload payload)
{
    if (!qf_table_grow((void **)&table->items, &table->cap, table->count + 1, sizeof payload))
        return SIZE_MAX;
    table->items[table->count] = payload;
    return table->count++;
}

bool qf_payloads_copy(qf_payloads *to, const qf_payloads *from)
{
    if (!qf_table_grow((void **)&to->items, &to->cap, from->count, sizeof *to->items))
        return false;
    if (from->count)
        memcpy(to->items, from->items, from->count * sizeof *to->items);
    to->count = from->count;
    return true;
}

void qf_payloads_release(qf_payloads *table)
{
    qf_spill_free(table->items);
    *table = (qf_payloads){0};
}

static ProtobufCMessageUnknownField *payload_field(const Onnx__TensorProto *tensor)
{
    for (size_t i = 0; i < tensor->base.n_unknown_fields; i++) {
        if (tensor->base.unknown_fields[i].tag == QF_PAYLOAD_FIELD)
            return &tensor->base.unknown_fields[i];
    }
    return NULL;
}

size_t qf_tensor_payload(const Onnx__TensorProto *tensor)
{
    const ProtobufCMessageUnknownField *field = payload_field(tensor);
    if (!field)
        return SIZE_MAX;
    qf_wire wire = {field->data, field->data + field->len};
    uint64_t index;
    return qf_wire_varint(&wire, &index) ? (size_t)index : SIZE_MAX;
}

bool qf_tensor_set_payload(qf_arena *arena, Onnx__TensorProto *tensor, size_t payload)
{
    ProtobufCMessageUnknownField *field = payload_field(tensor);
    if (!field) {
        unsigned n = tensor->base.n_unknown_fields;
        ProtobufCMessageUnknownField *fields = qf_arena_array(arena, n + 1u, sizeof *fields);
        if (!fields)
            return false;
        for (unsigned i = 0; i < n; i++)
            fields[i] = tensor->base.unknown_fields[i];
        tensor->base.unknown_fields = fields;
        tensor->base.n_unknown_fields = n + 1;
        field = &fields[n];
    }
    unsigned char *data = qf_arena_alloc(arena, QF_VARINT_MAX);
    if (!data)
        return false;
    *field = (ProtobufCMessageUnknownField){.tag = QF_PAYLOAD_FIELD,
                                            .wire_type = PROTOBUF_C_WIRE_TYPE_VARINT,
                                            .len = qf_varint_put(data, payload),
                                            .data = data};
    tensor->n_float_data = tensor->n_int32_data = tensor->n_int64_data = 0;
    tensor->n_double_data = tensor->n_uint64_data = tensor->n_string_data = 0;
    tensor->has_raw_data = 0;
    return true;
}

void qf_tensor_clear_payload(Onnx__TensorProto *tensor)
{
    ProtobufCMessageUnknownField *fields = tensor->base.unknown_fields;
    unsigned kept = 0;
    for (unsigned i = 0; i < tensor->base.n_unknown_fields; i++) {
        if (fields[i].tag != QF_PAYLOAD_FIELD)
            fields[kept++] = fields[i];
    }
    tensor->base.n_unknown_fields = kept;
}

/* Indexed by TensorProto.DataType. */
static const struct {
    const char *name;
    unsigned char bits;
} dtypes[] = {
    {"undefined", 0},      {"float32", 32},     {"uint8", 8},          {"int8", 8},
    {"uint16", 16},        {"int16", 16},       {"int32", 32},         {"int64", 64},
    {"string", 0},         {"bool", 8},         {"float16", 16},       {"float64", 64},
    {"uint32", 32},        {"uint64", 64},      {"complex64", 64},     {"complex128", 128},
    {"bfloat16", 16},      {"float8e4m3fn", 8}, {"float8e4m3fnuz", 8}, {"float8e5m2", 8},
    {"float8e5m2fnuz", 8}, {"uint4", 4},        {"int4", 4},           {"float4e2m1", 4},
};

static bool known(int32_t data_type)
{
    return data_type >= 0 && (size_t)data_type < sizeof dtypes / sizeof *dtypes;
}

unsigned qf_dtype_bits(int32_t data_type)
{
    return known(data_type) ? dtypes[data_type].bits : 0;
}

const char *qf_dtype_name(int32_t data_type)
{
    return known(data_type) ? dtypes[data_type].name : "unknown";
}

bool qf_field_is_varint(int field)
{
    return field == QF_FIELD_INT32_DATA || field == QF_FIELD_INT64_DATA ||
           field == QF_FIELD_UINT64_DATA;
}

unsigned qf_varint_width(int32_t data_type)
{
    return qf_dtype_bits(data_type) == 4 ? 1 : qf_dtype_bits(data_type) / 8;
}

uint64_t qf_varint_count(int32_t data_type, uint64_t elements)
{
    return qf_dtype_bits(data_type) == 4 ? (elements + 1) / 2 : elements;
}

bool qf_dims_count(const int64_t *dims, size_t rank, uint64_t *count)
{
    const uint64_t limit = (uint64_t)1 << 60;
    uint64_t n = 1;
    for (size_t i = 0; i < rank; i++) {
        if (dims[i] < 0 || (dims[i] && n > limit / (uint64_t)dims[i]))
            return false;
        n *= (uint64_t)dims[i];
    }
    *count = n;
    return true;
}

uint64_t qf_raw_bytes(int32_t data_type, uint64_t count)
{
    unsigned bits = qf_dtype_bits(data_type);
    return bits == 4 ? (count + 1) / 2 : count * (bits / 8);
}
