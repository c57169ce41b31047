/* SPDX-License-Identifier: Apache-2.0 */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "quant/text_reader.h"

typedef struct writer {
    char *data;
    size_t length, cap;
    qf_error *err;
    qf_status status; /* the first failure; later writes do nothing */
} writer;

static void put(writer *w, const char *text, size_t n)
{
    if (w->status != QF_OK)
        return;
    if (!qf_grow((void **)&w->data, &w->cap, w->length + n + 1, 1)) {
        w->status = qf_fail_memory(w->err);
        return;
    }
    memcpy(w->data + w->length, text, n);
    w->length += n;
    w->data[w->length] = '\0';
}

static void puts_text(writer *w, const char *text)
{
    put(w, text, strlen(text));
}

/* ---- Numbers ------------------------------------------------------------------------------ */

typedef struct decimal {
    char digits[24]; /* d.ddd without the point */
    int count;
    int exponent; /* of the first digit */
} decimal;

/* `value` rounded to `count` digits. Takes the digits alone out of printf's output, whose decimal
 * point depends on the locale. */
static void to_decimal(double value, int count, decimal *out)
{
    char text[QF_TEXT_NUMBER];
    snprintf(text, sizeof text, "%.*e", count - 1, value);
    out->count = 0;
    const char *at = text;
    for (; *at && *at != 'e'; at++) {
        if (*at >= '0' && *at <= '9' && out->count < count)
            out->digits[out->count++] = *at;
    }
    out->digits[out->count] = '\0';
    out->exponent = *at ? (int)strtol(at + 1, NULL, 10) : 0;
}

/* Reads it back; without a decimal point there is nothing for a locale to change. */
static double from_decimal(const decimal *d)
{
    char text[QF_TEXT_NUMBER];
    snprintf(text, sizeof text, "%se%d", d->digits, d->exponent - (d->count - 1));
    return strtod(text, NULL);
}

/* Python's repr: scientific below 1e-4 and from 1e16 on. */
static void print_decimal(const decimal *d, bool negative, char *out)
{
    const char *sign = negative ? "-" : "";
    int e = d->exponent, n = d->count;
    const char *digits = d->digits;
    if (e < -4 || e >= 16)
        snprintf(out, QF_TEXT_NUMBER, "%s%c%s%se%c%02d", sign, digits[0], n > 1 ? "." : "",
                 digits + 1, e < 0 ? '-' : '+', abs(e));
    else if (e < 0)
        snprintf(out, QF_TEXT_NUMBER, "%s0.%.*s%s", sign, -e - 1, "000", digits);
    else if (n > e + 1)
        snprintf(out, QF_TEXT_NUMBER, "%s%.*s.%s", sign, e + 1, digits, digits + e + 1);
    else
        snprintf(out, QF_TEXT_NUMBER, "%s%s%.*s.0", sign, digits, e + 1 - n, "0000000000000000");
}

/* `least` digits are tried first, as Python does: a float below the normal range needs fewer. */
static void print_shortest(double value, bool single, int least, char *out)
{
    if (isnan(value) || isinf(value)) {
        snprintf(out, QF_TEXT_NUMBER, "%s", isnan(value) ? "nan" : value < 0 ? "-inf" : "inf");
        return;
    }
    double size = fabs(value);
    decimal d;
    for (int count = least; count <= 17; count++) {
        to_decimal(size, count, &d);
        double back = from_decimal(&d);
        if (single ? (double)qf_float_narrow(back) == size : back == size)
            break;
    }
    while (d.count > 1 && d.digits[d.count - 1] == '0')
        d.digits[--d.count] = '\0';
    print_decimal(&d, signbit(value), out);
}

void qf_text_float(float value, char out[QF_TEXT_NUMBER])
{
    print_shortest((double)value, true, 6, out);
}

void qf_text_double(double value, char out[QF_TEXT_NUMBER])
{
    print_shortest(value, false, 1, out);
}

/* ---- Values ------------------------------------------------------------------------------- */

/* What stands for the byte in a string; "" if it stands for itself. */
static void escape(unsigned char c, bool bytes, char out[8])
{
    out[0] = '\0';
    const char *names = "\tt\nn\rr\"\"''\\\\";
    for (const char *p = names; *p; p += 2) {
        if ((unsigned char)*p == c) {
            snprintf(out, 8, "\\%c", p[1]);
            return;
        }
    }
    if (c < ' ' || c == 0x7f || (bytes && c > 0x7f))
        snprintf(out, 8, "\\%03o", c);
}

static void put_string(writer *w, const char *text, size_t length, bool bytes)
{
    puts_text(w, "\"");
    if (!length) { /* the text may be NULL then */
        puts_text(w, "\"");
        return;
    }
    size_t start = 0;
    for (size_t i = 0; i < length; i++) {
        char escaped[8];
        escape((unsigned char)text[i], bytes, escaped);
        if (!escaped[0])
            continue;
        put(w, text + start, i - start);
        puts_text(w, escaped);
        start = i + 1;
    }
    put(w, text + start, length - start);
    puts_text(w, "\"");
}

static void put_enum(writer *w, const ProtobufCFieldDescriptor *field, int value)
{
    char number[QF_TEXT_NUMBER];
    const ProtobufCEnumValue *known =
        protobuf_c_enum_descriptor_get_value(field->descriptor, value);
    snprintf(number, sizeof number, "%d", value);
    puts_text(w, known ? known->name : number);
}

static void put_scalar(writer *w, const ProtobufCFieldDescriptor *field, const void *value)
{
    char number[QF_TEXT_NUMBER] = "";
    switch (field->type) {
    case PROTOBUF_C_TYPE_INT32:
    case PROTOBUF_C_TYPE_SINT32:
    case PROTOBUF_C_TYPE_SFIXED32:
        snprintf(number, sizeof number, "%" PRId32, *(const int32_t *)value);
        break;
    case PROTOBUF_C_TYPE_UINT32:
    case PROTOBUF_C_TYPE_FIXED32:
        snprintf(number, sizeof number, "%" PRIu32, *(const uint32_t *)value);
        break;
    case PROTOBUF_C_TYPE_INT64:
    case PROTOBUF_C_TYPE_SINT64:
    case PROTOBUF_C_TYPE_SFIXED64:
        snprintf(number, sizeof number, "%" PRId64, *(const int64_t *)value);
        break;
    case PROTOBUF_C_TYPE_UINT64:
    case PROTOBUF_C_TYPE_FIXED64:
        snprintf(number, sizeof number, "%" PRIu64, *(const uint64_t *)value);
        break;
    case PROTOBUF_C_TYPE_FLOAT:
        qf_text_float(*(const float *)value, number);
        break;
    case PROTOBUF_C_TYPE_DOUBLE:
        qf_text_double(*(const double *)value, number);
        break;
    case PROTOBUF_C_TYPE_BOOL:
        puts_text(w, *(const protobuf_c_boolean *)value ? "true" : "false");
        break;
    case PROTOBUF_C_TYPE_ENUM:
        put_enum(w, field, *(const int *)value);
        break;
    case PROTOBUF_C_TYPE_STRING: {
        const char *text = *(char *const *)value;
        put_string(w, text, strlen(text), false);
        break;
    }
    default: {
        const ProtobufCBinaryData *bytes = value;
        put_string(w, (const char *)bytes->data, bytes->len, true);
        break;
    }
    }
    puts_text(w, number);
}

/* ---- Messages ----------------------------------------------------------------------------- */

static void put_message(writer *w, const ProtobufCMessage *message, unsigned depth);

static void put_indent(writer *w, unsigned depth)
{
    for (unsigned i = 0; i < depth; i++)
        puts_text(w, "  ");
}

static void put_field(writer *w, const ProtobufCFieldDescriptor *field, const void *value,
                      unsigned depth)
{
    put_indent(w, depth);
    puts_text(w, field->name);
    if (field->type != PROTOBUF_C_TYPE_MESSAGE) {
        puts_text(w, ": ");
        put_scalar(w, field, value);
        puts_text(w, "\n");
        return;
    }
    puts_text(w, " {\n");
    put_message(w, *(void *const *)value, depth + 1);
    put_indent(w, depth);
    puts_text(w, "}\n");
}

/* Was a singular field given? By protobuf-c's own rule. */
static bool is_set(const ProtobufCMessage *message, const ProtobufCFieldDescriptor *field)
{
    const char *base = (const char *)message;
    if (field->type == PROTOBUF_C_TYPE_STRING || field->type == PROTOBUF_C_TYPE_MESSAGE) {
        const void *pointer = *(void *const *)(const void *)(base + field->offset);
        return pointer && pointer != field->default_value;
    }
    if (field->label == PROTOBUF_C_LABEL_REQUIRED)
        return true;
    return *(const protobuf_c_boolean *)(const void *)(base + field->quantifier_offset);
}

static void put_message(writer *w, const ProtobufCMessage *message, unsigned depth)
{
    const char *base = (const char *)message;
    if (depth > QF_TEXT_DEPTH && w->status == QF_OK)
        w->status = qf_fail(w->err, QF_ERR_USAGE, "messages nest deeper than %d", QF_TEXT_DEPTH);
    for (unsigned i = 0; i < message->descriptor->n_fields && w->status == QF_OK; i++) {
        const ProtobufCFieldDescriptor *field = &message->descriptor->fields[i];
        const char *value = base + field->offset;
        if (field->label == PROTOBUF_C_LABEL_NONE || (field->flags & PROTOBUF_C_FIELD_FLAG_ONEOF)) {
            w->status = qf_fail(w->err, QF_ERR_USAGE, "field %s is in a oneof or not of proto2",
                                field->name);
        } else if (field->label == PROTOBUF_C_LABEL_REPEATED) {
            size_t n = *(const size_t *)(const void *)(base + field->quantifier_offset);
            const char *items = *(void *const *)(const void *)value;
            for (size_t k = 0; k < n; k++)
                put_field(w, field, items + k * qf_text_value_size(field->type), depth);
        } else if (is_set(message, field)) {
            put_field(w, field, value, depth);
        }
    }
}

qf_status qf_text_format(const ProtobufCMessage *message, char **out, size_t *length, qf_error *err)
{
    writer w = {.err = err};
    put(&w, "", 0); /* an empty message is an empty text, not no text */
    put_message(&w, message, 0);
    if (w.status != QF_OK) {
        free(w.data);
        return w.status;
    }
    *out = w.data;
    if (length)
        *length = w.length;
    return QF_OK;
}
