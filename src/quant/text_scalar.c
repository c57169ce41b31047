/* SPDX-License-Identifier: Apache-2.0 */
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/diag.h"
#include "quant/text_reader.h"

qf_status qf_text_fail(qf_text_reader *r, uint32_t line, uint32_t column, const char *format, ...)
{
    char message[768];
    va_list args;
    va_start(args, format);
    vsnprintf(message, sizeof message, format, args);
    va_end(args);
    qf_where where = {.file = r->file, .line = line, .column = column};
    return qf_fail_at(r->err, QF_ERR_INPUT, where, "%s", message);
}

qf_shown qf_text_show(const qf_text_reader *r)
{
    enum { MAX = 40 };
    const qf_token *token = &r->lexer.token;
    qf_shown s = {"the end of the text"};
    if (token->kind == QF_TOKEN_END)
        return s;
    size_t n = token->length;
    bool cut = n > MAX;
    if (cut)
        n = qf_utf8_prefix(token->text, MAX);
    const char *quote = token->kind == QF_TOKEN_STRING ? "" : "\"";
    snprintf(s.text, sizeof s.text, "%s%.*s%s%s", quote, (int)n, token->text, cut ? "..." : "",
             quote);
    for (char *c = s.text; *c; c++) {
        if ((unsigned char)*c < ' ' || *c == 0x7f)
            *c = '?';
    }
    return s;
}

bool qf_text_accept(qf_text_reader *r, const char *text)
{
    if (!qf_token_is(&r->lexer.token, text))
        return false;
    qf_lexer_next(&r->lexer);
    return true;
}

qf_status qf_text_take(qf_text_reader *r, size_t size, void **out)
{
    if (size > r->budget)
        return QF_TEXT_FAIL(
            r, "the text holds too many empty or tiny values for its length; it is not a "
               "sensible file of this kind");
    r->budget -= size;
    *out = qf_arena_alloc(r->arena, size);
    return *out ? QF_OK : qf_fail_memory(r->err);
}

size_t qf_text_value_size(ProtobufCType type)
{
    switch (type) {
    case PROTOBUF_C_TYPE_INT64:
    case PROTOBUF_C_TYPE_SINT64:
    case PROTOBUF_C_TYPE_SFIXED64:
    case PROTOBUF_C_TYPE_UINT64:
    case PROTOBUF_C_TYPE_FIXED64:
    case PROTOBUF_C_TYPE_DOUBLE:
        return 8;
    case PROTOBUF_C_TYPE_STRING:
    case PROTOBUF_C_TYPE_MESSAGE:
        return sizeof(void *);
    case PROTOBUF_C_TYPE_BYTES:
        return sizeof(ProtobufCBinaryData);
    default: /* 32-bit numbers, bool and enum, which protobuf-c stores as int */
        return 4;
    }
}

static qf_status parse_integer(qf_text_reader *r, const ProtobufCFieldDescriptor *field,
                               int64_t min, uint64_t max, uint64_t *bits)
{
    qf_integer number;
    if (!qf_token_integer(&r->lexer.token, true, &number))
        return QF_TEXT_FAIL(r, "%s needs an integer, not %s", field->name, qf_text_show(r).text);
    /* -(min + 1) + 1: the magnitude of min without overflow */
    uint64_t limit = !number.negative ? max : min ? (uint64_t)(-(min + 1)) + 1 : 0;
    if (number.overflow || number.magnitude > limit)
        return QF_TEXT_FAIL(r, "%s is out of range: %s is not in [%" PRId64 ", %" PRIu64 "]",
                            field->name, qf_text_show(r).text, min, max);
    *bits = number.negative ? 0 - number.magnitude : number.magnitude;
    qf_lexer_next(&r->lexer);
    return QF_OK;
}

static qf_status parse_float(qf_text_reader *r, const ProtobufCFieldDescriptor *field, double *out)
{
    if (!qf_token_float(&r->lexer.token, r->c_locale, out))
        return QF_TEXT_FAIL(r, "%s needs a number, not %s", field->name, qf_text_show(r).text);
    qf_lexer_next(&r->lexer);
    return QF_OK;
}

static qf_status parse_bool(qf_text_reader *r, const ProtobufCFieldDescriptor *field, int *out)
{
    static const char *const words[] = {"false", "False", "f", "0", "true", "True", "t", "1"};
    for (size_t i = 0; i < 8; i++) {
        if (qf_text_accept(r, words[i])) {
            *out = i >= 4;
            return QF_OK;
        }
    }
    return QF_TEXT_FAIL(r, "%s needs true or false, not %s", field->name, qf_text_show(r).text);
}

static qf_status fail_enum(qf_text_reader *r, const ProtobufCFieldDescriptor *field,
                           const char *word)
{
    const ProtobufCEnumDescriptor *desc = field->descriptor;
    const char *names[QF_TEXT_FIELDS];
    size_t count = desc->n_value_names < QF_TEXT_FIELDS ? desc->n_value_names : QF_TEXT_FIELDS;
    for (size_t i = 0; i < count; i++)
        names[i] = desc->values_by_name[i].name;
    const char *near = qf_suggest(word, names, count);
    if (near)
        return QF_TEXT_FAIL(r, "%s has no value %s; did you mean %s?", field->name,
                            qf_text_show(r).text, near);
    return QF_TEXT_FAIL(r, "%s has no value %s; write a name of enum %s", field->name,
                        qf_text_show(r).text, desc->short_name);
}

static qf_status parse_enum(qf_text_reader *r, const ProtobufCFieldDescriptor *field, int *out)
{
    const ProtobufCEnumDescriptor *desc = field->descriptor;
    const qf_token *token = &r->lexer.token;
    char word[QF_TEXT_FIELDS] = "";
    if (token->length < sizeof word)
        memcpy(word, token->text, token->length);

    qf_integer number;
    bool numeric = qf_token_integer(token, false, &number);
    const ProtobufCEnumValue *value = NULL;
    if (!numeric)
        value = protobuf_c_enum_descriptor_get_value_by_name(desc, word);
    else if (!number.overflow && number.magnitude <= INT32_MAX)
        value = protobuf_c_enum_descriptor_get_value(desc, number.negative ? -(int)number.magnitude
                                                                           : (int)number.magnitude);
    if (!value)
        return fail_enum(r, field, word);
    *out = value->value;
    qf_lexer_next(&r->lexer);
    return QF_OK;
}

/* One or more string tokens, joined, in r->scratch. */
static qf_status parse_pieces(qf_text_reader *r, const ProtobufCFieldDescriptor *field,
                              size_t *length)
{
    if (r->lexer.token.kind != QF_TOKEN_STRING)
        return QF_TEXT_FAIL(r, "%s needs a quoted string, not %s", field->name,
                            qf_text_show(r).text);
    *length = 0;
    while (r->lexer.token.kind == QF_TOKEN_STRING) {
        const qf_token *token = &r->lexer.token;
        if (!qf_grow((void **)&r->scratch, &r->scratch_cap, *length + token->length, 1))
            return qf_fail_memory(r->err);
        size_t n = 0;
        const char *problem = qf_token_unescape(token, r->scratch + *length, &n);
        if (problem)
            return QF_TEXT_FAIL(r, "bad string for %s: %s", field->name, problem);
        *length += n;
        qf_lexer_next(&r->lexer);
    }
    return QF_OK;
}

static qf_status parse_string(qf_text_reader *r, const ProtobufCFieldDescriptor *field, void *slot)
{
    qf_token first = r->lexer.token;
    size_t n = 0;
    qf_status status = parse_pieces(r, field, &n);
    if (status != QF_OK)
        return status;
    bool text = field->type == PROTOBUF_C_TYPE_STRING;
    if (text && memchr(r->scratch, '\0', n))
        return qf_text_fail(r, first.line, first.column, "%s holds a NUL byte", field->name);
    if (text && qf_utf8_prefix(r->scratch, n) != n)
        return qf_text_fail(r, first.line, first.column, "%s is not valid UTF-8", field->name);
    void *copy;
    status = qf_text_take(r, n + 1, &copy);
    if (status != QF_OK)
        return status;
    memcpy(copy, r->scratch, n); /* NOLINT(clang-analyzer-core.CallAndMessage): taken */
    if (text)
        *(char **)slot = copy;
    else
        *(ProtobufCBinaryData *)slot = (ProtobufCBinaryData){.len = n, .data = copy};
    return QF_OK;
}

qf_status qf_text_scalar(qf_text_reader *r, const ProtobufCFieldDescriptor *field, void *slot)
{
    uint64_t bits = 0;
    double real = 0;
    qf_status status;
    switch (field->type) {
    case PROTOBUF_C_TYPE_INT32:
    case PROTOBUF_C_TYPE_SINT32:
    case PROTOBUF_C_TYPE_SFIXED32:
        status = parse_integer(r, field, INT32_MIN, INT32_MAX, &bits);
        *(uint32_t *)slot = (uint32_t)bits;
        return status;
    case PROTOBUF_C_TYPE_UINT32:
    case PROTOBUF_C_TYPE_FIXED32:
        status = parse_integer(r, field, 0, UINT32_MAX, &bits);
        *(uint32_t *)slot = (uint32_t)bits;
        return status;
    case PROTOBUF_C_TYPE_INT64:
    case PROTOBUF_C_TYPE_SINT64:
    case PROTOBUF_C_TYPE_SFIXED64:
        status = parse_integer(r, field, INT64_MIN, INT64_MAX, &bits);
        *(uint64_t *)slot = bits;
        return status;
    case PROTOBUF_C_TYPE_UINT64:
    case PROTOBUF_C_TYPE_FIXED64:
        status = parse_integer(r, field, 0, UINT64_MAX, &bits);
        *(uint64_t *)slot = bits;
        return status;
    case PROTOBUF_C_TYPE_FLOAT:
        status = parse_float(r, field, &real);
        *(float *)slot = qf_float_narrow(real);
        return status;
    case PROTOBUF_C_TYPE_DOUBLE:
        status = parse_float(r, field, &real);
        *(double *)slot = real;
        return status;
    case PROTOBUF_C_TYPE_BOOL:
        return parse_bool(r, field, slot);
    case PROTOBUF_C_TYPE_ENUM:
        return parse_enum(r, field, slot);
    case PROTOBUF_C_TYPE_STRING:
    case PROTOBUF_C_TYPE_BYTES:
        return parse_string(r, field, slot);
    default:
        return qf_fail(r->err, QF_ERR_USAGE, "field %s has a type that is not known", field->name);
    }
}
