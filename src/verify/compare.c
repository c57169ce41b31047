/* SPDX-License-Identifier: Apache-2.0 */
#include "verify/compare.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/half.h"
#include "quant/constants.h"
#include "verify/structure.h"

#define FLOAT_TYPE ONNX__TENSOR_PROTO__DATA_TYPE__FLOAT
#define INT8_TYPE ONNX__TENSOR_PROTO__DATA_TYPE__INT8
#define INT32_TYPE ONNX__TENSOR_PROTO__DATA_TYPE__INT32

enum { STEP = QF_READING_MOST / 8 }; /* elements at a time, of at most 8 bytes */

/* ---- texts ---- */

const char *qf_element_text(int32_t type, const unsigned char *bytes, uint64_t i, char buffer[64])
{
    unsigned width = qf_dtype_bits(type) / 8;
    uint64_t raw = 0;
    float narrow;
    double wide;
    if (qf_dtype_bits(type) == 4) {
        int nibble = qf_nibble(bytes, i);
        snprintf(buffer, 64, "%d", type == QF_DTYPE_INT4 ? (nibble ^ 8) - 8 : nibble);
        return buffer;
    }
    if (width > 8 || !width) {
        snprintf(buffer, 64, "(another)");
        return buffer;
    }
    memcpy(&raw, bytes + i * width, width);
    switch (type) {
    case FLOAT_TYPE:
        memcpy(&narrow, bytes + 4 * i, 4);
        snprintf(buffer, 64, "%.9g (0x%08llx)", (double)narrow, (unsigned long long)raw);
        break;
    case ONNX__TENSOR_PROTO__DATA_TYPE__FLOAT16:
        snprintf(buffer, 64, "%.6g", (double)qf_half_value((uint16_t)raw));
        break;
    case ONNX__TENSOR_PROTO__DATA_TYPE__BFLOAT16:
        snprintf(buffer, 64, "%.6g", (double)qf_bfloat_value((uint16_t)raw));
        break;
    case ONNX__TENSOR_PROTO__DATA_TYPE__DOUBLE:
        memcpy(&wide, bytes + 8 * i, 8);
        snprintf(buffer, 64, "%.17g", wide);
        break;
    case INT8_TYPE:
        snprintf(buffer, 64, "%d", (int8_t)raw);
        break;
    case INT32_TYPE:
        snprintf(buffer, 64, "%d", (int32_t)raw);
        break;
    case ONNX__TENSOR_PROTO__DATA_TYPE__INT64:
        snprintf(buffer, 64, "%lld", (long long)raw);
        break;
    default:
        snprintf(buffer, 64, "0x%0*llx", (int)(2 * width), (unsigned long long)raw);
    }
    return buffer;
}

const char *qf_element_place(const qf_reading *r, uint64_t offset, char buffer[400])
{
    buffer[0] = '\0';
    if (r->span && r->file && !r->index.offsets)
        snprintf(buffer, 400, ", byte %llu of %.300s",
                 (unsigned long long)(r->span->offset + offset), r->file->path);
    return buffer;
}

/* ---- the same dtype ---- */

static bool same_dims(const Onnx__TensorProto *a, const Onnx__TensorProto *b)
{
    return a->n_dims == b->n_dims &&
           (!a->n_dims || memcmp(a->dims, b->dims, a->n_dims * sizeof *a->dims) == 0);
}

static size_t first_difference(const unsigned char *a, const unsigned char *b, size_t n)
{
    size_t i = 0;
    while (i < n && a[i] == b[i])
        i++;
    return i;
}

static void note_values(qf_side a, qf_side b, const char *user, const qf_reading *rb,
                        uint64_t element, uint64_t offset, const char *in_a, const char *in_b)
{
    char place[400];
    qf_element_place(rb, offset, place);
    if (user)
        qf_subject_note(b.subject, qf_label(b.subject, b.tensor),
                        "element %llu (read by %s%s) is %s, but %s in the %s; one of the files is "
                        "damaged, or they are of different exports",
                        (unsigned long long)element, user, place, in_b, in_a, a.subject->role);
    else
        qf_subject_note(b.subject, qf_label(b.subject, b.tensor),
                        "element %llu%s is %s; expected %s, as recomputed from %s",
                        (unsigned long long)element, place, in_b, in_a,
                        a.subject->origin ? a.subject->origin : "the source");
}

static qf_status compare_bytes(qf_side a, qf_side b, const char *user, qf_reading *ra,
                               qf_reading *rb, qf_error *err)
{
    bool nibbles = qf_dtype_bits(a.tensor->data_type) == 4;
    unsigned width = ra->width ? ra->width : 1;
    uint64_t step = (uint64_t)STEP * 8 / width * width;
    for (uint64_t at = 0; at < ra->bytes; at += step) {
        size_t n = (size_t)(ra->bytes - at < step ? ra->bytes - at : step);
        const unsigned char *x = qf_reading_at(ra, at, n), *y = qf_reading_at(rb, at, n);
        if (!x || !y)
            return qf_fail_memory(err);
        bool equal = memcmp(x, y, n) == 0;
        if (!equal) {
            char tx[64], ty[64];
            size_t byte = first_difference(x, y, n);
            size_t i = byte / width;
            if (nibbles)
                i = 2 * byte + ((x[byte] & 15) == (y[byte] & 15));
            note_values(a, b, user, rb, nibbles ? 2 * at + i : at / width + i, at + byte,
                        qf_element_text(a.tensor->data_type, x, i, tx),
                        qf_element_text(b.tensor->data_type, y, i, ty));
            return QF_OK;
        }
        qf_reading_forget(ra, at, n);
        qf_reading_forget(rb, at, n);
    }
    return QF_OK;
}

/* ---- integers and what fake_quant makes of them ---- */

bool qf_is_packed(const Onnx__TensorProto *a, const Onnx__TensorProto *b, uint64_t *outer,
                  uint64_t *pairs, uint64_t *inner)
{
    size_t axis = SIZE_MAX;
    if (a->data_type != INT8_TYPE || a->n_dims != b->n_dims)
        return false;
    *outer = *pairs = *inner = 1;
    for (size_t i = 0; i < a->n_dims; i++) {
        bool halved = a->dims[i] > 0 && a->dims[i] < INT64_MAX / 2 && 2 * a->dims[i] == b->dims[i];
        if (a->dims[i] == b->dims[i]) {
            *(axis == SIZE_MAX ? outer : inner) *= (uint64_t)a->dims[i];
        } else if (axis == SIZE_MAX && halved) {
            axis = i;
            *pairs = (uint64_t)a->dims[i];
        } else {
            return false;
        }
    }
    return axis != SIZE_MAX;
}

/* The comparison of integers with floats or int8. */
typedef struct conversion {
    qf_side a, b;
    const char *user;
    qf_reading ra, rb;
    unsigned char *expected; /* STEP elements of b */
    bool differs;
    qf_error *err;
} conversion;

static void put_value(conversion *c, size_t i, int32_t value)
{
    if (c->b.tensor->data_type == FLOAT_TYPE) {
        float x = (float)value;
        memcpy(c->expected + 4 * i, &x, 4);
    } else {
        c->expected[i] = (unsigned char)value;
    }
}

/* Integers [0, n) of `bytes` of a's dtype become elements of b's. */
static void convert(conversion *c, const unsigned char *bytes, size_t n)
{
    bool floats = c->b.tensor->data_type == FLOAT_TYPE;
    if (c->a.tensor->data_type == INT8_TYPE && floats) {
        float *out = (float *)(void *)c->expected; /* malloc'ed */
        for (size_t i = 0; i < n; i++)
            out[i] = (float)(int8_t)bytes[i];
        return;
    }
    for (size_t i = 0; i < n; i++) {
        int32_t value = 0;
        if (c->a.tensor->data_type == QF_DTYPE_INT4)
            value = (qf_nibble(bytes, i) ^ 8) - 8;
        else if (c->a.tensor->data_type == INT32_TYPE)
            memcpy(&value, bytes + 4 * i, 4);
        else
            value = (int8_t)bytes[i];
        put_value(c, i, value);
    }
}

/* Compares `expected` with elements [first, first + n) of b. */
static qf_status match(conversion *c, uint64_t first, size_t n)
{
    unsigned width = c->rb.width;
    const unsigned char *found = qf_reading_at(&c->rb, first * width, n * width);
    if (!found)
        return qf_fail_memory(c->err);
    if (memcmp(found, c->expected, n * width) != 0) {
        char tx[64], ty[64];
        size_t i = first_difference(found, c->expected, n * width) / width;
        c->differs = true;
        note_values(c->a, c->b, c->user, &c->rb, first + i, (first + i) * width,
                    qf_element_text(c->b.tensor->data_type, c->expected, i, tx),
                    qf_element_text(c->b.tensor->data_type, found, i, ty));
    }
    qf_reading_forget(&c->rb, first * width, n * width);
    return QF_OK;
}

static qf_status compare_flat(conversion *c)
{
    bool nibbles = c->a.tensor->data_type == QF_DTYPE_INT4;
    qf_status status = QF_OK;
    for (uint64_t at = 0; status == QF_OK && !c->differs && at < c->ra.count; at += STEP) {
        size_t n = (size_t)(c->ra.count - at < STEP ? c->ra.count - at : STEP);
        uint64_t offset = nibbles ? at / 2 : at * c->ra.width;
        size_t length = nibbles ? (n + 1) / 2 : n * c->ra.width;
        const unsigned char *bytes = qf_reading_at(&c->ra, offset, length);
        if (!bytes)
            return qf_fail_memory(c->err);
        convert(c, bytes, n);
        qf_reading_forget(&c->ra, offset, length);
        status = match(c, at, n);
    }
    return status;
}

static int32_t half_of(unsigned char byte, int half)
{
    return ((byte >> (4 * half) & 15) ^ 8) - 8;
}

/* A run of bytes: rows of `inner` bytes, each two rows of b one behind the other. */
static qf_status compare_rows(conversion *c, uint64_t row, uint64_t rows, uint64_t inner)
{
    const unsigned char *bytes = qf_reading_at(&c->ra, row * inner, (size_t)(rows * inner));
    if (!bytes)
        return qf_fail_memory(c->err);
    for (uint64_t r = 0; r < rows; r++) {
        for (int half = 0; half < 2; half++) {
            for (uint64_t i = 0; i < inner; i++)
                put_value(c, (size_t)((2 * r + (uint64_t)half) * inner + i),
                          half_of(bytes[r * inner + i], half));
        }
    }
    return match(c, 2 * row * inner, (size_t)(2 * rows * inner));
}

/* Part of one row that is longer than a stretch. */
static qf_status compare_part(conversion *c, uint64_t row, uint64_t from, size_t n, uint64_t inner)
{
    qf_status status = QF_OK;
    for (int half = 0; half < 2 && status == QF_OK && !c->differs; half++) {
        const unsigned char *bytes = qf_reading_at(&c->ra, row * inner + from, n);
        if (!bytes)
            return qf_fail_memory(c->err);
        for (size_t i = 0; i < n; i++)
            put_value(c, i, half_of(bytes[i], half));
        status = match(c, (2 * row + (uint64_t)half) * inner + from, n);
    }
    return status;
}

static qf_status compare_packed(conversion *c, uint64_t rows, uint64_t inner)
{
    enum { MOST = STEP / 2 };
    qf_status status = QF_OK;
    if (!inner)
        return QF_OK;
    for (uint64_t r = 0; inner <= MOST && r < rows && status == QF_OK && !c->differs;) {
        uint64_t n = rows - r < MOST / inner ? rows - r : MOST / inner;
        status = compare_rows(c, r, n, inner);
        qf_reading_forget(&c->ra, r * inner, n * inner);
        r += n;
    }
    for (uint64_t r = 0; inner > MOST && r < rows; r++) {
        for (uint64_t i = 0; i < inner && status == QF_OK && !c->differs; i += MOST)
            status = compare_part(c, r, i, (size_t)(inner - i < MOST ? inner - i : MOST), inner);
    }
    return status;
}

/* ---- choosing ---- */

static void skip(bool *skipped)
{
    if (skipped)
        *skipped = true;
}

static bool convertible(int32_t from, int32_t to)
{
    bool integer = from == INT8_TYPE || from == QF_DTYPE_INT4 || from == INT32_TYPE;
    return integer && (to == FLOAT_TYPE || (to == INT8_TYPE && from != INT32_TYPE));
}

static qf_status compare_strings(qf_side a, qf_side b, const char *user)
{
    for (size_t i = 0; i < a.tensor->n_string_data && i < b.tensor->n_string_data; i++) {
        ProtobufCBinaryData x = a.tensor->string_data[i], y = b.tensor->string_data[i];
        if (x.len == y.len && (!x.len || memcmp(x.data, y.data, x.len) == 0))
            continue;
        qf_subject_note(b.subject, qf_label(b.subject, b.tensor),
                        "string %zu (read by %s) is not that of the %s", i,
                        user ? user : "the graph", a.subject->role);
        break;
    }
    return QF_OK;
}

qf_status qf_compare_readings(qf_side a, qf_side b, const char *user, qf_reading *ra,
                              qf_reading *rb, bool *skipped, qf_error *err)
{
    uint64_t outer, pairs, inner;
    bool packed = qf_is_packed(a.tensor, b.tensor, &outer, &pairs, &inner);
    int32_t from = a.tensor->data_type, to = b.tensor->data_type;
    bool alike = same_dims(a.tensor, b.tensor);
    char da[128], db[128];
    if ((from != to && !convertible(from, to)) || (!alike && !(packed && convertible(from, to)))) {
        qf_subject_note(b.subject, qf_label(b.subject, b.tensor),
                        "the tensor (read by %s) is %s %s, but %s %s in the %s",
                        user ? user : "the graph", qf_dtype_name(to), qf_dims_text(b.tensor, db),
                        qf_dtype_name(from), qf_dims_text(a.tensor, da), a.subject->role);
        skip(skipped);
        return QF_OK;
    }
    if (from == to && alike)
        return compare_bytes(a, b, user, ra, rb, err);
    conversion c = {.a = a, .b = b, .user = user, .ra = *ra, .rb = *rb, .err = err};
    /* NOLINTNEXTLINE(clang-analyzer-unix.MallocSizeof): bytes of elements as large as a float */
    c.expected = malloc(STEP * sizeof(float));
    if (!c.expected)
        return qf_fail_memory(err);
    qf_status status = alike ? compare_flat(&c) : compare_packed(&c, outer * pairs, inner);
    free(c.expected);
    ra->buffer = c.ra.buffer; /* they may have been made meanwhile */
    rb->buffer = c.rb.buffer;
    return status;
}

qf_status qf_compare_tensors(qf_side a, qf_side b, const char *user, bool *skipped, qf_error *err)
{
    qf_reading ra, rb;
    const char *why, *other;
    if (a.tensor->data_type == ONNX__TENSOR_PROTO__DATA_TYPE__STRING &&
        b.tensor->data_type == a.tensor->data_type)
        return compare_strings(a, b, user);
    qf_status status = qf_reading_open(a.subject, a.tensor, &ra, &why, err);
    if (status == QF_OK && why)
        skip(skipped);
    if (status != QF_OK || why)
        return status; /* told of already */
    status = qf_reading_open(b.subject, b.tensor, &rb, &other, err);
    if (status == QF_OK && other)
        skip(skipped);
    if (status == QF_OK && !other) {
        status = qf_compare_readings(a, b, user, &ra, &rb, skipped, err);
        qf_reading_close(&rb);
    }
    qf_reading_close(&ra);
    return status;
}

qf_status qf_compare_scales(qf_side param, qf_side scales, const char *user, bool *skipped,
                            qf_error *err)
{
    qf_reading ra, rb;
    const char *why, *other;
    bool was = *skipped;
    *skipped = true; /* until it is not */
    if (param.tensor->data_type != ONNX__TENSOR_PROTO__DATA_TYPE__UINT64 ||
        scales.tensor->data_type != FLOAT_TYPE)
        return QF_OK;
    qf_status status = qf_reading_open(param.subject, param.tensor, &ra, &why, err);
    if (status != QF_OK || why)
        return status;
    status = qf_reading_open(scales.subject, scales.tensor, &rb, &other, err);
    bool open = status == QF_OK && !other;
    if (open && ra.count != rb.count)
        qf_subject_note(scales.subject, user, "it has %llu scales, but %llu in the %s",
                        (unsigned long long)rb.count, (unsigned long long)ra.count,
                        param.subject->role);
    bool equal = open && ra.count == rb.count;
    *skipped = was || !equal;
    for (uint64_t at = 0; equal && at < ra.count; at += STEP) {
        size_t n = (size_t)(ra.count - at < STEP ? ra.count - at : STEP);
        const unsigned char *x = qf_reading_at(&ra, 8 * at, 8 * n),
                            *y = qf_reading_at(&rb, 4 * at, 4 * n);
        for (size_t i = 0; x && y && equal && i < n; i++) {
            char tx[64], ty[64];
            equal = memcmp(x + 8 * i, y + 4 * i, 4) == 0;
            if (!equal)
                qf_subject_note(scales.subject, user, "scale %llu is %s, but %s in %s of the %s",
                                (unsigned long long)(at + i), qf_element_text(FLOAT_TYPE, y, i, ty),
                                qf_element_text(FLOAT_TYPE, x, 2 * i, tx),
                                qf_label(param.subject, param.tensor), param.subject->role);
        }
    }
    if (open)
        qf_reading_close(&rb);
    qf_reading_close(&ra);
    return status;
}
