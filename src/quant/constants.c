/* SPDX-License-Identifier: Apache-2.0 */
#include "quant/constants.h"

#include <string.h>

#include "exec/source.h"
#include "kernels.h"

/* ---- the stored form ---- */

static bool is_narrow(int32_t type)
{
    switch (type) {
    case ONNX__TENSOR_PROTO__DATA_TYPE__FLOAT16:
    case ONNX__TENSOR_PROTO__DATA_TYPE__BFLOAT16:
    case ONNX__TENSOR_PROTO__DATA_TYPE__INT8:
    case ONNX__TENSOR_PROTO__DATA_TYPE__UINT8:
    case ONNX__TENSOR_PROTO__DATA_TYPE__INT16:
    case ONNX__TENSOR_PROTO__DATA_TYPE__UINT16:
    case ONNX__TENSOR_PROTO__DATA_TYPE__INT32:
    case QF_DTYPE_INT4:
    case QF_DTYPE_UINT4:
        return true;
    default:
        return false;
    }
}

static bool field_fits(int field, int32_t type)
{
    switch (field) {
    case QF_FIELD_RAW_DATA:
        return true;
    case QF_FIELD_FLOAT_DATA:
        return type == ONNX__TENSOR_PROTO__DATA_TYPE__FLOAT;
    case QF_FIELD_DOUBLE_DATA:
        return type == ONNX__TENSOR_PROTO__DATA_TYPE__DOUBLE;
    case QF_FIELD_INT32_DATA:
        return is_narrow(type);
    case QF_FIELD_INT64_DATA:
        return type == ONNX__TENSOR_PROTO__DATA_TYPE__INT64;
    default:
        return false;
    }
}

const char *qf_constant_check(const Onnx__TensorProto *tensor, const qf_payload *p, uint64_t *count)
{
    int32_t type = tensor->data_type;
    if (!qf_dims_count(tensor->dims, tensor->n_dims, count))
        return "has impossible dims";
    if (!field_fits(p->field, type))
        return "is stored in a field that does not belong to its dtype";
    bool short_varints =
        qf_field_is_varint(p->field) && qf_varint_count(type, *count) > p->span.length;
    if (short_varints || p->raw_length != qf_raw_bytes(type, *count))
        return "has a different number of elements than its dims say";
    return NULL;
}

/* ---- elements ---- */

static int64_t integer_at(const unsigned char *bytes, unsigned width, uint64_t i)
{
    int64_t value = 0;
    memcpy(&value, bytes + i * width, width); /* little-endian host: the low bytes */
    return value;
}

static int64_t signed_at(const unsigned char *bytes, unsigned width, uint64_t i)
{
    unsigned unused = 64 - 8 * width;
    return (int64_t)((uint64_t)integer_at(bytes, width, i) << unused) >> unused;
}

static double element(int32_t type, const unsigned char *bytes, uint64_t i)
{
    float narrow;
    double wide;
    switch (type) {
    case ONNX__TENSOR_PROTO__DATA_TYPE__FLOAT:
        memcpy(&narrow, bytes + 4 * i, 4);
        return (double)narrow;
    case ONNX__TENSOR_PROTO__DATA_TYPE__DOUBLE:
        memcpy(&wide, bytes + 8 * i, 8);
        return wide;
    case ONNX__TENSOR_PROTO__DATA_TYPE__FLOAT16:
        qf_kernels_get()->load_f16(bytes + 2 * i, 1, &narrow);
        return (double)narrow;
    case ONNX__TENSOR_PROTO__DATA_TYPE__BFLOAT16:
        qf_kernels_get()->load_bf16(bytes + 2 * i, 1, &narrow);
        return (double)narrow;
    case ONNX__TENSOR_PROTO__DATA_TYPE__INT8:
        return (double)signed_at(bytes, 1, i);
    case ONNX__TENSOR_PROTO__DATA_TYPE__INT16:
        return (double)signed_at(bytes, 2, i);
    case ONNX__TENSOR_PROTO__DATA_TYPE__INT32:
        return (double)signed_at(bytes, 4, i);
    case ONNX__TENSOR_PROTO__DATA_TYPE__INT64:
        return (double)signed_at(bytes, 8, i);
    case ONNX__TENSOR_PROTO__DATA_TYPE__UINT8:
        return (double)integer_at(bytes, 1, i);
    case ONNX__TENSOR_PROTO__DATA_TYPE__UINT16:
        return (double)integer_at(bytes, 2, i);
    case QF_DTYPE_INT4:
        return (double)((qf_nibble(bytes, i) ^ 8) - 8);
    default: /* QF_DTYPE_UINT4 */
        return (double)qf_nibble(bytes, i);
    }
}

static bool is_numeric(int32_t type)
{
    return is_narrow(type) || type == ONNX__TENSOR_PROTO__DATA_TYPE__FLOAT ||
           type == ONNX__TENSOR_PROTO__DATA_TYPE__DOUBLE ||
           type == ONNX__TENSOR_PROTO__DATA_TYPE__INT64;
}

/* The payload's bytes as raw elements; decoded into the arena if they are varints. */
static qf_status raw_bytes(const Onnx__TensorProto *tensor, const qf_payload *p, uint64_t count,
                           const char *path, qf_arena *arena, const unsigned char **out,
                           qf_error *err)
{
    if (p->kind == QF_PAYLOAD_BYTES) {
        *out = p->bytes;
        return QF_OK;
    }
    *out = p->span.data;
    if (!qf_field_is_varint(p->field))
        return QF_OK;
    uint64_t varints = qf_varint_count(tensor->data_type, count);
    unsigned width = qf_varint_width(tensor->data_type);
    unsigned char *bytes = qf_arena_array(arena, (size_t)varints, width);
    qf_varint_index index;
    if (!bytes)
        return qf_fail_memory(err);
    qf_status status = qf_varint_index_build(&p->span, varints, path,
                                             tensor->name ? tensor->name : "", &index, err);
    if (status == QF_OK)
        qf_source_elements(&p->span, &index, width, 0, (size_t)varints, bytes);
    qf_varint_index_release(&index);
    *out = bytes;
    return status;
}

/* Data that was too unusual for a payload: a repeated field that is not packed. */
static const char *unpacked(const Onnx__TensorProto *t, uint64_t count, double *values)
{
    bool floats = t->n_float_data == count && t->data_type == ONNX__TENSOR_PROTO__DATA_TYPE__FLOAT;
    bool ints = t->n_int32_data == count && is_narrow(t->data_type) &&
                qf_dtype_bits(t->data_type) > 4 &&
                t->data_type != ONNX__TENSOR_PROTO__DATA_TYPE__FLOAT16 &&
                t->data_type != ONNX__TENSOR_PROTO__DATA_TYPE__BFLOAT16;
    if (!floats && !ints)
        return "is empty or stored in an unusual way";
    for (size_t i = 0; i < count; i++)
        values[i] = floats ? (double)t->float_data[i] : (double)t->int32_data[i];
    return NULL;
}

qf_status qf_constant_read(const Onnx__TensorProto *tensor, const qf_payloads *payloads,
                           const char *path, qf_arena *arena, qf_constant *out, const char **why,
                           qf_error *err)
{
    size_t index = qf_tensor_payload(tensor);
    const qf_payload *p = index < payloads->count ? &payloads->items[index] : NULL;
    uint64_t count = 0;
    *why = NULL;
    if (!is_numeric(tensor->data_type) || (p && p->kind == QF_PAYLOAD_JOB))
        *why = "does not have a numeric dtype";
    else if (p)
        *why = qf_constant_check(tensor, p, &count);
    else if (!qf_dims_count(tensor->dims, tensor->n_dims, &count) ||
             (count != tensor->n_float_data && count != tensor->n_int32_data))
        *why = "is empty or stored in an unusual way";
    if (*why)
        return QF_OK;
    double *values = qf_arena_array(arena, (size_t)count, sizeof *values);
    const unsigned char *bytes = NULL;
    if (!values)
        return qf_fail_memory(err);
    *out = (qf_constant){values, (size_t)count, tensor->data_type};
    if (!p) {
        *why = unpacked(tensor, count, values);
        return QF_OK;
    }
    qf_status status = raw_bytes(tensor, p, count, path, arena, &bytes, err);
    for (size_t i = 0; status == QF_OK && i < count; i++)
        values[i] = element(tensor->data_type, bytes, i);
    return status;
}
