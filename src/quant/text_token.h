/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Tokens of protobuf text, and the values that tokens stand for.
 *
 * Python's google.protobuf.text_format decides what is a token and what a token means, because the
 * reference reads records with it. Hence some corners: `-5` is a number but `- 5` is not, numbers
 * may hold single underscores, 0b and 0o prefixes exist, an unknown escape such as `\q` keeps its
 * backslash. Where that parser works by accident (`\u005cn` becomes a newline, `\N{...}` names a
 * character) the plain reading is taken instead.
 */
#ifndef QF_QUANT_TEXT_TOKEN_H
#define QF_QUANT_TEXT_TOKEN_H

#include <locale.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum qf_token_kind {
    QF_TOKEN_END,
    QF_TOKEN_NAME,   /* [a-zA-Z_][0-9a-zA-Z_+-]* */
    QF_TOKEN_NUMBER, /* begins like a number; it may still be none */
    QF_TOKEN_STRING, /* with its quotes; the closing one is missing if the line ended first */
    QF_TOKEN_SYMBOL, /* any other single character */
} qf_token_kind;

typedef struct qf_token {
    qf_token_kind kind;
    const char *text; /* borrowed from the lexer's text, not NUL-terminated */
    size_t length;
    uint32_t line, column; /* from 1; columns count bytes */
} qf_token;

typedef struct qf_lexer {
    const char *at, *end, *line_start;
    uint32_t line;
    qf_token token; /* the current one */
} qf_lexer;

/* Starts at the first token. `text` must be valid UTF-8 without NUL bytes, shorter than 4 GiB, and
 * outlive the lexer. */
void qf_lexer_init(qf_lexer *lexer, const char *text, size_t length);
/* Moves to the next token; stays at QF_TOKEN_END. */
void qf_lexer_next(qf_lexer *lexer);

/* Is the token exactly this text? */
bool qf_token_is(const qf_token *token, const char *text);

typedef struct qf_integer {
    bool negative;
    bool overflow; /* the magnitude does not fit */
    uint64_t magnitude;
} qf_integer;

/* Python's int(text, 0). With c_octal a leading zero means octal; otherwise it is not allowed.
 * False if the token is not an integer. */
bool qf_token_integer(const qf_token *token, bool c_octal, qf_integer *out);

enum { QF_TOKEN_NUMBER_MAX = 1024 };
/* A floating point number, read in the locale `c_locale`. False if the token is none, or if it is
 * longer than QF_TOKEN_NUMBER_MAX. */
bool qf_token_float(const qf_token *token, locale_t c_locale, double *out);

/* Writes the bytes that a string token stands for to `out`, which needs room for token->length
 * bytes. Returns NULL, or what is wrong with the string. */
const char *qf_token_unescape(const qf_token *token, char *out, size_t *length);

/* Rounds to float, to infinity beyond the range. */
float qf_float_narrow(double value);

/* Number of leading bytes of `text` that are well-formed UTF-8 without NUL. */
size_t qf_utf8_prefix(const char *text, size_t length);
/* Line and column, from 1, of a byte offset; for error messages, as it scans from the start. */
void qf_text_place(const char *text, size_t offset, uint32_t *line, uint32_t *column);

#endif
