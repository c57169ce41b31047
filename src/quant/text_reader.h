/* SPDX-License-Identifier: Apache-2.0 */
/* What the two halves of the text reader share: text_format_read.c (messages and fields) and
 * text_scalar.c (values). Nobody else includes this. */
#ifndef QF_QUANT_TEXT_READER_H
#define QF_QUANT_TEXT_READER_H

#include "quant/text_format.h"
#include "quant/text_token.h"

typedef struct qf_text_reader {
    const char *file;
    qf_lexer lexer;
    qf_arena *arena;
    qf_text_hooks hooks;
    qf_error *err;
    locale_t c_locale;
    uint64_t budget; /* bytes that may still be taken from the arena */
    char *scratch;   /* for strings in pieces */
    size_t scratch_cap;
    ProtobufCMessage **incomplete; /* required fields were missing when the message closed */
    size_t incomplete_count, incomplete_cap;
} qf_text_reader;

/* Fails with QF_ERR_INPUT at a place of the text; QF_TEXT_FAIL: at the current token. */
qf_status qf_text_fail(qf_text_reader *r, uint32_t line, uint32_t column, const char *format, ...)
    QF_PRINTF(4, 5);
#define QF_TEXT_FAIL(r, ...) \
    qf_text_fail(r, (r)->lexer.token.line, (r)->lexer.token.column, __VA_ARGS__)

typedef struct qf_shown {
    char text[64];
} qf_shown;
/* The current token for a message: shortened, without control characters. */
qf_shown qf_text_show(const qf_text_reader *r);

/* Moves on if the current token is exactly `text`. */
bool qf_text_accept(qf_text_reader *r, const char *text);

/* Zeroed memory from the arena, within the budget. */
qf_status qf_text_take(qf_text_reader *r, size_t size, void **out);

/* Size of an element of a repeated field. */
size_t qf_text_value_size(ProtobufCType type);

/* Reads a value of the field's type, not a message, and stores it at `slot`. */
qf_status qf_text_scalar(qf_text_reader *r, const ProtobufCFieldDescriptor *field, void *slot);

#endif
