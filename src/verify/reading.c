/* SPDX-License-Identifier: Apache-2.0 */
#include "verify/reading.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "exec/source.h"

/* ---- what is wrong with the stored form ---- */

static bool field_fits(int field, int32_t type)
{
    unsigned bits = qf_dtype_bits(type);
    switch (field) {
    case QF_FIELD_RAW_DATA:
        return true;
    case QF_FIELD_FLOAT_DATA:
        return type == ONNX__TENSOR_PROTO__DATA_TYPE__FLOAT ||
               type == ONNX__TENSOR_PROTO__DATA_TYPE__COMPLEX64;
    case QF_FIELD_DOUBLE_DATA:
        return type == ONNX__TENSOR_PROTO__DATA_TYPE__DOUBLE ||
               type == ONNX__TENSOR_PROTO__DATA_TYPE__COMPLEX128;
    case QF_FIELD_INT64_DATA:
        return type == ONNX__TENSOR_PROTO__DATA_TYPE__INT64;
    case QF_FIELD_UINT64_DATA:
        return type == ONNX__TENSOR_PROTO__DATA_TYPE__UINT64 ||
               type == ONNX__TENSOR_PROTO__DATA_TYPE__UINT32;
    case QF_FIELD_INT32_DATA:
        return bits <= 16 || type == ONNX__TENSOR_PROTO__DATA_TYPE__INT32;
    default:
        return false;
    }
}

static const char *measure(const Onnx__TensorProto *t, qf_reading *r)
{
    if (!qf_dtype_bits(t->data_type))
        return "has a dtype of no fixed size, or one that ONNX does not know";
    if (!qf_dims_count(t->dims, t->n_dims, &r->count))
        return "has impossible dims";
    r->bytes = qf_raw_bytes(t->data_type, r->count);
    r->width = qf_varint_width(t->data_type);
    return NULL;
}

static const char wrong_count[] =
    "has more or fewer bytes of data than its dtype and dims need; the file is damaged, or dims "
    "were changed";

static const char *open_span(qf_reading *r, int32_t type, qf_status *status, qf_error *err)
{
    if (!field_fits(r->span->field, type))
        return "is stored in a field that does not belong to its dtype";
    if (!qf_field_is_varint(r->span->field))
        return r->span->length == r->bytes ? NULL : wrong_count;
    *status = qf_varint_index_build(r->span, qf_varint_count(type, r->count),
                                    r->file ? r->file->path : "",
                                    r->tensor->name ? r->tensor->name : "", &r->index, err);
    if (*status != QF_ERR_INPUT)
        return NULL;
    *status = QF_OK;
    return wrong_count;
}

/* ---- data that the scanner left in the tensor: it is in no packed field, or in several ---- */

static void store(unsigned char *to, uint64_t i, unsigned width, uint64_t value)
{
    memcpy(to + i * width, &value, width); /* little-endian host: the low bytes */
}

static const char *unpack(const Onnx__TensorProto *t, qf_reading *r, qf_arena *arena,
                          qf_status *status, qf_error *err)
{
    size_t stored =
        t->n_float_data + t->n_int32_data + t->n_int64_data + t->n_double_data + t->n_uint64_data;
    int field = t->n_float_data    ? QF_FIELD_FLOAT_DATA
                : t->n_int32_data  ? QF_FIELD_INT32_DATA
                : t->n_int64_data  ? QF_FIELD_INT64_DATA
                : t->n_double_data ? QF_FIELD_DOUBLE_DATA
                                   : QF_FIELD_UINT64_DATA;
    int fields = (t->n_float_data > 0) + (t->n_int32_data > 0) + (t->n_int64_data > 0) +
                 (t->n_double_data > 0) + (t->n_uint64_data > 0) + (t->has_raw_data != 0);
    if (!r->count)
        return stored || t->raw_data.len ? wrong_count : NULL;
    if (!stored && !t->raw_data.len)
        return "has no data";
    if (fields > 1) /* an empty raw_data is what a reader takes, too */
        return "has data in several fields";
    if (!field_fits(field, t->data_type))
        return "is stored in a field that does not belong to its dtype";
    /* complex numbers are two elements each */
    unsigned width = field == QF_FIELD_FLOAT_DATA    ? 4
                     : field == QF_FIELD_DOUBLE_DATA ? 8
                                                     : r->width;
    if (stored * width != r->bytes)
        return wrong_count;
    r->own = qf_arena_array(arena, stored, width);
    if (!r->own) {
        *status = qf_fail_memory(err);
        return NULL;
    }
    for (size_t i = 0; i < stored; i++) {
        if (t->n_float_data)
            memcpy(r->own + 4 * i, &t->float_data[i], 4);
        else if (t->n_double_data)
            memcpy(r->own + 8 * i, &t->double_data[i], 8);
        else
            store(r->own, i, r->width,
                  t->n_int32_data   ? (uint64_t)(int64_t)t->int32_data[i]
                  : t->n_int64_data ? (uint64_t)t->int64_data[i]
                                    : t->uint64_data[i]);
    }
    return NULL;
}

/* ---- reading ---- */

qf_status qf_reading_open(qf_subject *subject, const Onnx__TensorProto *tensor, qf_reading *out,
                          const char **why, qf_error *err)
{
    size_t index = qf_tensor_payload(tensor);
    qf_status status = QF_OK;
    *out = (qf_reading){.tensor = tensor};
    *why = measure(tensor, out);
    if (*why)
        return QF_OK;
    if (index < subject->model.payloads.count) {
        out->span = &subject->model.payloads.items[index].span;
        out->file = &subject->model.files[out->span->file];
        *why = open_span(out, tensor->data_type, &status, err);
    } else if (tensor->has_data_location && tensor->data_location != 0) {
        *why = "has external data that cannot be read";
    } else {
        *why = unpack(tensor, out, &subject->arena, &status, err);
    }
    return status;
}

qf_status qf_reading_of_span(const qf_span *span, const qf_file *file, int32_t data_type,
                             uint64_t count, qf_reading *out, const char **why, qf_error *err)
{
    static const Onnx__TensorProto nameless;
    qf_status status = QF_OK;
    *out = (qf_reading){.tensor = &nameless,
                        .span = span,
                        .file = file,
                        .width = qf_varint_width(data_type),
                        .count = count,
                        .bytes = qf_raw_bytes(data_type, count)};
    *why = open_span(out, data_type, &status, err);
    return status;
}

const unsigned char *qf_reading_at(qf_reading *r, uint64_t offset, size_t n)
{
    if (!r->span)
        return r->own + offset;
    if (!r->index.offsets)
        return r->span->data + offset;
    if (!r->buffer)
        r->buffer = malloc(QF_READING_MOST + 16);
    if (r->buffer)
        qf_source_elements(r->span, &r->index, r->width, offset / r->width, n / r->width,
                           r->buffer);
    return r->buffer;
}

void qf_reading_drop(const qf_reading *r, uint64_t offset, uint64_t n)
{
    if (!r->file || !r->span || !n)
        return;
    qf_range range = {offset, n};
    if (r->index.offsets)
        range = qf_varint_index_bytes(&r->index, r->span, r->width, range);
    const unsigned char *from = r->span->data + range.offset;
    qf_file_advise(r->file, from, from + range.length, MADV_DONTNEED);
}

void qf_reading_forget(qf_reading *r, uint64_t offset, uint64_t n)
{
    enum { WORTH = 1024 * 1024 }; /* bytes; a call for less costs more than they do */
    if (offset < r->kept)
        r->kept = offset;
    if (offset + n - r->kept < WORTH)
        return;
    qf_reading_drop(r, r->kept, offset + n - r->kept);
    r->kept = offset + n;
}

void qf_reading_close(qf_reading *r)
{
    enum { WORTH = 64 * 1024 };
    if (r->bytes - r->kept >= WORTH && r->kept < r->bytes)
        qf_reading_drop(r, r->kept, r->bytes - r->kept);
    qf_varint_index_release(&r->index);
    free(r->buffer);
    r->buffer = NULL;
}

/* ---- small tensors ---- */

static bool as_float(int32_t type, const unsigned char *at, uint64_t i, float *out)
{
    int32_t wide;
    switch (type) {
    case ONNX__TENSOR_PROTO__DATA_TYPE__FLOAT:
        memcpy(out, at + 4 * i, 4);
        return true;
    case ONNX__TENSOR_PROTO__DATA_TYPE__INT32:
        memcpy(&wide, at + 4 * i, 4);
        *out = (float)wide;
        return true;
    case ONNX__TENSOR_PROTO__DATA_TYPE__INT8:
        *out = (float)(int8_t)at[i];
        return true;
    default:
        return false;
    }
}

qf_status qf_reading_floats(qf_subject *subject, const Onnx__TensorProto *tensor, uint64_t most,
                            const float **out, uint64_t *count, qf_error *err)
{
    qf_reading r;
    const char *why;
    *out = NULL;
    *count = 0;
    qf_status status = qf_reading_open(subject, tensor, &r, &why, err);
    if (status != QF_OK || why)
        return status;
    uint64_t n = r.count < most ? r.count : most;
    float *values = qf_arena_array(&subject->arena, (size_t)n + 1, sizeof *values);
    bool known = values != NULL;
    enum { STEP = QF_READING_MOST / 8 };
    for (uint64_t i = 0; known && i < n; i += STEP) {
        size_t m = (size_t)(n - i < STEP ? n - i : STEP);
        const unsigned char *at = qf_reading_at(&r, i * r.width, m * r.width);
        known = at != NULL;
        for (size_t j = 0; known && j < m; j++)
            known = as_float(tensor->data_type, at, j, &values[i + j]);
    }
    qf_reading_close(&r);
    if (!values)
        return qf_fail_memory(err);
    *out = known ? values : NULL;
    *count = n;
    return QF_OK;
}

/* ---- all tensors ---- */

typedef struct tensor_check {
    qf_subject *subject;
    uint64_t count;
    qf_error *err;
} tensor_check;

static qf_status check_tensor(Onnx__TensorProto *tensor, void *user)
{
    tensor_check *c = user;
    qf_reading r;
    const char *why;
    c->count++;
    if (tensor->data_type == ONNX__TENSOR_PROTO__DATA_TYPE__STRING) {
        uint64_t count;
        if (!qf_dims_count(tensor->dims, tensor->n_dims, &count) || count != tensor->n_string_data)
            qf_subject_note(c->subject, qf_label(c->subject, tensor), "the tensor %s", wrong_count);
        return QF_OK;
    }
    qf_status status = qf_reading_open(c->subject, tensor, &r, &why, c->err);
    if (status != QF_OK)
        return status;
    bool told = tensor->has_data_location && tensor->data_location != 0 &&
                qf_tensor_payload(tensor) == SIZE_MAX;
    if (why && !told)
        qf_subject_note(c->subject, qf_label(c->subject, tensor), "the tensor %s", why);
    if (!why)
        qf_reading_close(&r);
    return QF_OK;
}

qf_status qf_check_tensors(qf_subject *subject, uint64_t *tensors, qf_error *err)
{
    tensor_check c = {.subject = subject, .err = err};
    qf_status status = qf_model_each_tensor(subject->proto, check_tensor, &c);
    *tensors += c.count;
    return status;
}
