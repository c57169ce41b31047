/* SPDX-License-Identifier: Apache-2.0 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/diag.h"
#include "quant/text_reader.h"

/* Stands before each message in the arena. */
typedef struct message_head {
    uint64_t seen; /* bit i: fields[i] was given */
    uint32_t line, column;
} message_head;
_Static_assert(sizeof(message_head) % 16 == 0, "a message behind its head must stay aligned");

static qf_status parse_fields(qf_text_reader *r, ProtobufCMessage *message, const char *close,
                              unsigned depth);

static bool looking_at(const qf_text_reader *r, const char *text)
{
    return qf_token_is(&r->lexer.token, text);
}

/* ---- Memory ------------------------------------------------------------------------------- */

static message_head *head_of(const ProtobufCMessage *message)
{
    return (message_head *)(void *)((char *)(uintptr_t)message - sizeof(message_head));
}

static qf_status new_message(qf_text_reader *r, const ProtobufCMessageDescriptor *desc,
                             ProtobufCMessage **out)
{
    if (desc->n_fields > QF_TEXT_FIELDS)
        return qf_fail(r->err, QF_ERR_USAGE, "message %s has more than %d fields", desc->short_name,
                       QF_TEXT_FIELDS);
    void *block;
    qf_status status = qf_text_take(r, sizeof(message_head) + desc->sizeof_message, &block);
    if (status != QF_OK)
        return status;
    message_head *head = block;
    head->line = r->lexer.token.line;
    head->column = r->lexer.token.column;
    *out = (ProtobufCMessage *)(void *)(head + 1);
    protobuf_c_message_init(desc, *out);
    return QF_OK;
}

/* Room for one more element of a repeated field; the caller fills *slot. An array of n elements has
 * room up to the next power of two, so that its capacity need not be stored. */
static qf_status append(qf_text_reader *r, ProtobufCMessage *message,
                        const ProtobufCFieldDescriptor *field, void **slot)
{
    char *base = (char *)message;
    size_t *count = (size_t *)(void *)(base + field->quantifier_offset);
    void **items = (void **)(void *)(base + field->offset);
    size_t size = qf_text_value_size(field->type), n = *count;
    if (n == 0 || (n >= 4 && (n & (n - 1)) == 0)) {
        void *grown;
        qf_status status = qf_text_take(r, (n ? 2 * n : 4) * size, &grown);
        if (status != QF_OK)
            return status;
        if (n)
            memcpy(grown, *items, n * size);
        *items = grown;
    }
    *slot = (char *)*items + n * size;
    *count = n + 1;
    return QF_OK;
}

/* ---- Fields ------------------------------------------------------------------------------- */

/* Reads { ... } or < ... > into *slot, which is kept if there is a message already. */
static qf_status parse_message(qf_text_reader *r, const ProtobufCFieldDescriptor *field,
                               void **slot, unsigned depth)
{
    const char *close = looking_at(r, "{") ? "}" : looking_at(r, "<") ? ">" : NULL;
    if (!close)
        return QF_TEXT_FAIL(r, "%s is a message: \"{\" must follow, not %s", field->name,
                            qf_text_show(r).text);
    if (depth >= QF_TEXT_DEPTH)
        return QF_TEXT_FAIL(r, "messages nest deeper than %d", QF_TEXT_DEPTH);
    ProtobufCMessage *message = *slot;
    if (!message) {
        qf_status status = new_message(r, field->descriptor, &message);
        if (status != QF_OK)
            return status;
        *slot = message;
    }
    qf_lexer_next(&r->lexer);
    return parse_fields(r, message, close, depth + 1);
}

/* `start` is where the value begins for the hooks. */
static qf_status parse_value(qf_text_reader *r, ProtobufCMessage *message,
                             const ProtobufCFieldDescriptor *field, const qf_token *start,
                             unsigned depth)
{
    if (depth == 0 && r->hooks.value &&
        !r->hooks.value(r->hooks.user, field, start->line, start->column))
        return qf_fail_memory(r->err);
    void *slot = (char *)message + field->offset;
    if (field->label == PROTOBUF_C_LABEL_REPEATED) {
        qf_status status = append(r, message, field, &slot);
        if (status != QF_OK)
            return status;
    }
    if (field->type == PROTOBUF_C_TYPE_MESSAGE)
        return parse_message(r, field, slot, depth);
    return qf_text_scalar(r, field, slot);
}

/* The short form of a repeated field: [a, b]. */
static qf_status parse_list(qf_text_reader *r, ProtobufCMessage *message,
                            const ProtobufCFieldDescriptor *field, unsigned depth)
{
    if (qf_text_accept(r, "]"))
        return QF_OK;
    for (;;) {
        qf_token start = r->lexer.token;
        qf_status status = parse_value(r, message, field, &start, depth);
        if (status != QF_OK)
            return status;
        if (qf_text_accept(r, "]"))
            return QF_OK;
        if (!qf_text_accept(r, ","))
            return QF_TEXT_FAIL(r, "\",\" or \"]\" must follow a value of %s, not %s", field->name,
                                qf_text_show(r).text);
    }
}

/* Marks a singular field as given. */
static qf_status note_given(qf_text_reader *r, ProtobufCMessage *message,
                            const ProtobufCFieldDescriptor *field, const qf_token *name)
{
    uint64_t bit = UINT64_C(1) << (field - message->descriptor->fields);
    message_head *head = head_of(message);
    bool again = head->seen & bit;
    head->seen |= bit;
    /* of these types a NULL pointer says that they are absent, there is no has_ member */
    if (field->type == PROTOBUF_C_TYPE_MESSAGE)
        return QF_OK;
    if (field->label == PROTOBUF_C_LABEL_OPTIONAL && field->type != PROTOBUF_C_TYPE_STRING)
        *(protobuf_c_boolean *)(void *)((char *)message + field->quantifier_offset) = 1;
    if (again && r->hooks.duplicate &&
        !r->hooks.duplicate(r->hooks.user, field, name->line, name->column))
        return qf_fail_memory(r->err);
    return QF_OK;
}

static qf_status fail_name(qf_text_reader *r, const ProtobufCMessageDescriptor *desc)
{
    const qf_token *token = &r->lexer.token;
    if (looking_at(r, "["))
        return QF_TEXT_FAIL(r, "extensions and Any values, [...], are not part of this format");
    if (token->kind != QF_TOKEN_NAME)
        return QF_TEXT_FAIL(r, "a field name of %s must stand here, not %s", desc->short_name,
                            qf_text_show(r).text);
    const char *names[QF_TEXT_FIELDS];
    for (unsigned i = 0; i < desc->n_fields; i++)
        names[i] = desc->fields[i].name;
    char word[QF_TEXT_FIELDS] = "";
    if (token->length < sizeof word)
        memcpy(word, token->text, token->length);
    const char *near = qf_suggest(word, names, desc->n_fields);
    if (near)
        return QF_TEXT_FAIL(r, "%s has no field %s; did you mean %s?", desc->short_name,
                            qf_text_show(r).text, near);
    return QF_TEXT_FAIL(r, "%s has no field %s", desc->short_name, qf_text_show(r).text);
}

static const ProtobufCFieldDescriptor *find_field(const ProtobufCMessageDescriptor *desc,
                                                  const qf_token *name)
{
    unsigned low = 0, high = desc->n_fields;
    while (low < high) {
        unsigned middle = low + (high - low) / 2;
        const ProtobufCFieldDescriptor *field = &desc->fields[desc->fields_sorted_by_name[middle]];
        int order = strncmp(field->name, name->text, name->length);
        if (order == 0 && field->name[name->length] == '\0')
            return field;
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return NULL;
}

static qf_status parse_field(qf_text_reader *r, ProtobufCMessage *message, unsigned depth)
{
    qf_token name = r->lexer.token;
    const ProtobufCFieldDescriptor *field =
        name.kind == QF_TOKEN_NAME ? find_field(message->descriptor, &name) : NULL;
    if (!field)
        return fail_name(r, message->descriptor);
    if (field->label == PROTOBUF_C_LABEL_NONE || (field->flags & PROTOBUF_C_FIELD_FLAG_ONEOF))
        return qf_fail(r->err, QF_ERR_USAGE, "field %s is in a oneof or not of proto2",
                       field->name);
    qf_lexer_next(&r->lexer);
    if (!qf_text_accept(r, ":") && field->type != PROTOBUF_C_TYPE_MESSAGE)
        return QF_TEXT_FAIL(r, "\":\" must follow %s, not %s", field->name, qf_text_show(r).text);

    qf_status status;
    if (field->label == PROTOBUF_C_LABEL_REPEATED && qf_text_accept(r, "["))
        status = parse_list(r, message, field, depth);
    else
        status = parse_value(r, message, field, &name, depth);
    if (status == QF_OK && field->label != PROTOBUF_C_LABEL_REPEATED)
        status = note_given(r, message, field, &name);
    if (status == QF_OK && !qf_text_accept(r, ","))
        qf_text_accept(r, ";");
    return status;
}

/* ---- Messages ----------------------------------------------------------------------------- */

static const ProtobufCFieldDescriptor *missing_field(const ProtobufCMessage *message)
{
    const ProtobufCMessageDescriptor *desc = message->descriptor;
    for (unsigned i = 0; i < desc->n_fields; i++) {
        if (desc->fields[i].label == PROTOBUF_C_LABEL_REQUIRED &&
            !(head_of(message)->seen & UINT64_C(1) << i))
            return &desc->fields[i];
    }
    return NULL;
}

/* A later occurrence may still complete the message, so a gap is an error only at the end. */
static qf_status note_incomplete(qf_text_reader *r, ProtobufCMessage *message)
{
    if (!missing_field(message))
        return QF_OK;
    if (!qf_grow((void **)&r->incomplete, &r->incomplete_cap, r->incomplete_count + 1,
                 sizeof(ProtobufCMessage *)))
        return qf_fail_memory(r->err);
    r->incomplete[r->incomplete_count++] = message;
    return QF_OK;
}

static qf_status check_complete(qf_text_reader *r)
{
    for (size_t i = 0; i < r->incomplete_count; i++) {
        const ProtobufCMessage *message = r->incomplete[i];
        const ProtobufCFieldDescriptor *field = missing_field(message);
        const message_head *head = head_of(message);
        if (field)
            return qf_text_fail(r, head->line, head->column, "this %s lacks %s, which is required",
                                message->descriptor->short_name, field->name);
    }
    return QF_OK;
}

/* Fields up to `close`, or, for the root, where `close` is NULL, to the end of the text. */
static qf_status parse_fields(qf_text_reader *r, ProtobufCMessage *message, const char *close,
                              unsigned depth)
{
    while (!(close && qf_text_accept(r, close))) {
        if (r->lexer.token.kind == QF_TOKEN_END) {
            if (!close)
                break;
            return QF_TEXT_FAIL(r,
                                "the text ends before the \"%s\" of the %s opened on line %" PRIu32,
                                close, message->descriptor->short_name, head_of(message)->line);
        }
        qf_status status = parse_field(r, message, depth);
        if (status != QF_OK)
            return status;
    }
    return note_incomplete(r, message);
}

static qf_status check_characters(qf_text_reader *r, const char *text, size_t length)
{
    uint32_t line, column;
    size_t good = qf_utf8_prefix(text, length);
    if (good == length)
        return QF_OK;
    qf_text_place(text, good, &line, &column);
    if (text[good] == '\0')
        return qf_text_fail(r, line, column, "a NUL byte; this is not a text file");
    return qf_text_fail(r, line, column, "byte 0x%02x is not valid UTF-8",
                        (unsigned char)text[good]);
}

static qf_status parse_root(qf_text_reader *r, const char *text, size_t length,
                            const ProtobufCMessageDescriptor *desc, ProtobufCMessage **out)
{
    qf_status status = check_characters(r, text, length);
    if (status != QF_OK)
        return status;
    qf_lexer_init(&r->lexer, text, length);
    ProtobufCMessage *message = NULL;
    status = new_message(r, desc, &message);
    if (status == QF_OK)
        status = parse_fields(r, message, NULL, 0);
    if (status == QF_OK)
        status = check_complete(r);
    if (status == QF_OK)
        *out = message;
    return status;
}

qf_status qf_text_parse(const char *file_name, const char *text, size_t length,
                        const ProtobufCMessageDescriptor *desc, qf_arena *arena,
                        const qf_text_hooks *hooks, ProtobufCMessage **out, qf_error *err)
{
    qf_text_reader r = {.file = file_name, .arena = arena, .err = err};
    if (length >= UINT32_MAX)
        return qf_fail_at(err, QF_ERR_INPUT, (qf_where){.file = file_name},
                          "a text of 4 GiB or more cannot be read");
    r.budget = (uint64_t)length * 16 + (UINT64_C(64) << 20);
    if (hooks)
        r.hooks = *hooks;
    r.c_locale = newlocale(LC_ALL_MASK, "C", (locale_t)0);
    if (!r.c_locale)
        return qf_fail_memory(err);
    qf_status status = parse_root(&r, length ? text : "", length, desc, out);
    freelocale(r.c_locale);
    free(r.scratch);
    free(r.incomplete);
    return status;
}
