/* SPDX-License-Identifier: Apache-2.0 */
#include "checkpoint/safetensors.h"

#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/spill.h"
#include "checkpoint/json_text.h"

static const struct {
    const char *name;
    int32_t data_type;
    unsigned bits;
} dtypes[] = {
    {"BOOL", ONNX__TENSOR_PROTO__DATA_TYPE__BOOL, 8},
    {"U8", ONNX__TENSOR_PROTO__DATA_TYPE__UINT8, 8},
    {"I8", ONNX__TENSOR_PROTO__DATA_TYPE__INT8, 8},
    {"F8_E4M3", QF_DTYPE_F8_E4M3FN, 8},
    {"F8_E5M2", QF_DTYPE_F8_E5M2, 8},
    {"F8_E8M0", 0, 8},
    {"U16", ONNX__TENSOR_PROTO__DATA_TYPE__UINT16, 16},
    {"I16", ONNX__TENSOR_PROTO__DATA_TYPE__INT16, 16},
    {"F16", ONNX__TENSOR_PROTO__DATA_TYPE__FLOAT16, 16},
    {"BF16", ONNX__TENSOR_PROTO__DATA_TYPE__BFLOAT16, 16},
    {"U32", ONNX__TENSOR_PROTO__DATA_TYPE__UINT32, 32},
    {"I32", ONNX__TENSOR_PROTO__DATA_TYPE__INT32, 32},
    {"F32", ONNX__TENSOR_PROTO__DATA_TYPE__FLOAT, 32},
    {"U64", ONNX__TENSOR_PROTO__DATA_TYPE__UINT64, 64},
    {"I64", ONNX__TENSOR_PROTO__DATA_TYPE__INT64, 64},
    {"F64", ONNX__TENSOR_PROTO__DATA_TYPE__DOUBLE, 64},
    {"C64", ONNX__TENSOR_PROTO__DATA_TYPE__COMPLEX64, 64},
};
enum { DTYPES = sizeof dtypes / sizeof *dtypes, LENGTH_BYTES = 8 };

static size_t find_dtype(const char *name)
{
    size_t i = 0;
    while (i < DTYPES && strcmp(dtypes[i].name, name) != 0)
        i++;
    return i;
}

unsigned qf_safetensor_bits(const char *dtype)
{
    size_t i = find_dtype(dtype);
    return i < DTYPES ? dtypes[i].bits : 0;
}

const char *qf_safetensor_dtype(int32_t data_type)
{
    for (size_t i = 0; i < DTYPES; i++) {
        if (data_type && dtypes[i].data_type == data_type)
            return dtypes[i].name;
    }
    return NULL;
}

qf_span qf_safetensor_span(const qf_safetensor *tensor, const qf_file *files)
{
    return (qf_span){.data = files[tensor->file].data + tensor->offset,
                     .length = tensor->length,
                     .field = QF_FIELD_RAW_DATA,
                     .file = tensor->file,
                     .offset = tensor->offset};
}

/* ---- the header ---- */

typedef struct reader {
    const qf_file *file;
    int number;
    qf_arena *arena;
    uint64_t data; /* where the data begins */
    qf_error *err;
} reader;

static qf_status refuse(const reader *r, const char *tensor, const char *why)
{
    return qf_fail_at(
        r->err, QF_ERR_INPUT, (qf_where){.file = r->file->path, .item = tensor},
        "the safetensors header is not sound: %s; the file is damaged or not complete, "
        "get it again",
        why);
}

static qf_status read_shape(const reader *r, const cJSON *shape, qf_safetensor *t)
{
    if (!cJSON_IsArray(shape))
        return refuse(r, t->name, "'shape' is not an array");
    const cJSON *dim;
    t->rank = (size_t)cJSON_GetArraySize(shape);
    int64_t *dims = qf_arena_array(r->arena, t->rank + 1, sizeof *dims);
    if (!dims)
        return qf_fail_memory(r->err);
    t->dims = dims;
    cJSON_ArrayForEach(dim, shape)
    {
        uint64_t value;
        if (!qf_json_integer(dim, &value))
            return refuse(r, t->name, "'shape' has an entry that is not a whole number");
        *dims++ = (int64_t)value;
    }
    return QF_OK;
}

static qf_status read_offsets(const reader *r, const cJSON *offsets, qf_safetensor *t)
{
    uint64_t from, to, elements;
    if (cJSON_GetArraySize(offsets) != 2 || !qf_json_integer(offsets->child, &from) ||
        !qf_json_integer(offsets->child->next, &to))
        return refuse(r, t->name, "'data_offsets' is not a pair of whole numbers");
    if (from > to || to > r->file->size - r->data)
        return refuse(r, t->name, "'data_offsets' lie outside the file's data");
    t->offset = r->data + from;
    t->length = to - from;
    unsigned bits = qf_safetensor_bits(t->dtype);
    if (!qf_dims_count(t->dims, t->rank, &elements) ||
        (bits && (elements > UINT64_MAX / 64 || elements * bits / 8 != t->length)))
        return refuse(r, t->name, "'data_offsets' do not span what dtype and shape need");
    return QF_OK;
}

static qf_status read_tensor(const reader *r, const cJSON *entry, qf_safetensor *t)
{
    enum { MEMBERS_MOST = 16 }; /* the format has three */
    const char *dtype = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(entry, "dtype"));
    if (cJSON_GetArraySize(entry) > MEMBERS_MOST || qf_json_repeats(entry))
        return refuse(r, entry->string, "a tensor has a member twice, or too many of them");
    *t = (qf_safetensor){.file = r->number, .name = qf_arena_strdup(r->arena, entry->string)};
    if (!dtype)
        return refuse(r, entry->string, "a tensor has no 'dtype'");
    t->dtype = qf_arena_strdup(r->arena, dtype);
    if (!t->name || !t->dtype)
        return qf_fail_memory(r->err);
    size_t i = find_dtype(dtype);
    t->data_type = i < DTYPES ? dtypes[i].data_type : 0;
    qf_status status = read_shape(r, cJSON_GetObjectItemCaseSensitive(entry, "shape"), t);
    if (status == QF_OK)
        status = read_offsets(r, cJSON_GetObjectItemCaseSensitive(entry, "data_offsets"), t);
    return status;
}

static qf_status read_metadata(const reader *r, const cJSON *entry, const char **out)
{
    const cJSON *item;
    if (!cJSON_IsObject(entry))
        return refuse(r, "__metadata__", "it is not an object");
    if (*out)
        return refuse(r, "__metadata__", "it is there twice");
    cJSON_ArrayForEach(item, entry)
    {
        if (!cJSON_IsString(item))
            return refuse(r, "__metadata__", "it has a value that is not a string");
    }
    char *text = cJSON_PrintUnformatted(entry);
    *out = text ? qf_arena_strdup(r->arena, text) : NULL;
    free(text);
    return *out ? QF_OK : qf_fail_memory(r->err);
}

static int by_offset(const void *a, const void *b)
{
    const qf_safetensor *x = a, *y = b;
    if (x->offset != y->offset)
        return x->offset < y->offset ? -1 : 1;
    return x->length < y->length ? -1 : x->length > y->length; /* empty ones first */
}

/* The format allows neither holes nor overlaps. */
static qf_status check_cover(const reader *r, const qf_safetensor *tensors, size_t count)
{
    uint64_t at = r->data;
    for (size_t i = 0; i < count; i++) {
        if (tensors[i].offset != at)
            return refuse(r, tensors[i].name,
                          tensors[i].offset < at ? "its data overlaps that of another tensor"
                                                 : "there is a hole before its data");
        at += tensors[i].length;
    }
    return at == r->file->size ? QF_OK : refuse(r, NULL, "the file goes on behind the last tensor");
}

static qf_status read_entries(const reader *r, const cJSON *header, qf_safetensors *tensors,
                              const char **metadata)
{
    const cJSON *entry;
    size_t first = tensors->count;
    qf_status status = QF_OK;
    cJSON_ArrayForEach(entry, header)
    {
        if (strcmp(entry->string, "__metadata__") == 0) {
            status = read_metadata(r, entry, metadata);
        } else {
            qf_safetensor t;
            status = read_tensor(r, entry, &t);
            if (status == QF_OK && !qf_table_grow((void **)&tensors->items, &tensors->cap,
                                                  tensors->count + 1, sizeof t))
                status = qf_fail_memory(r->err);
            if (status == QF_OK)
                tensors->items[tensors->count++] = t;
        }
        if (status != QF_OK)
            return status;
    }
    size_t count = tensors->count - first;
    qf_safetensor *items = count ? tensors->items + first : NULL;
    if (count)
        qsort(items, count, sizeof *items, by_offset);
    return check_cover(r, items, count);
}

qf_status qf_safetensors_read(const qf_file *file, int number, qf_arena *arena,
                              qf_safetensors *tensors, const char **metadata, qf_error *err)
{
    uint64_t length = 0;
    reader r = {.file = file, .number = number, .arena = arena, .err = err};
    *metadata = NULL;
    if (file->size < LENGTH_BYTES)
        return refuse(&r, NULL, "the file is shorter than the length of its header");
    memcpy(&length, file->data, sizeof length); /* little-endian hosts only */
    if (length > file->size - LENGTH_BYTES || length > QF_SAFETENSORS_HEADER_MOST)
        return refuse(&r, NULL, "its length is more than the file has, or than 100,000,000 bytes");
    r.data = LENGTH_BYTES + length;
    const char *text = (const char *)file->data + LENGTH_BYTES, *why = "it does not begin with '{'";
    cJSON *header = length && *text == '{' ? qf_json_object(text, (size_t)length, &why) : NULL;
    qf_status status = header ? read_entries(&r, header, tensors, metadata)
                       : why  ? refuse(&r, NULL, why)
                              : qf_fail_memory(err);
    cJSON_Delete(header);
    return status;
}
