/* SPDX-License-Identifier: Apache-2.0 */
#include "quant/text_token.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

static bool is_letter(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

static bool is_word(char c)
{
    return is_letter(c) || is_digit(c) || c == '_' || c == '+' || c == '-';
}

/* 0 to 15, or 16 if c is no hexadecimal digit. */
static unsigned digit_value(char c)
{
    if (is_digit(c))
        return (unsigned)(c - '0');
    if (c >= 'a' && c <= 'f')
        return (unsigned)(c - 'a') + 10;
    if (c >= 'A' && c <= 'F')
        return (unsigned)(c - 'A') + 10;
    return 16;
}

/* ---- UTF-8 -------------------------------------------------------------------------------- */

/* Length of the well-formed sequence at s, 0 if there is none; *code is its code point. */
static size_t decode_utf8(const char *s, size_t n, uint32_t *code)
{
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    unsigned char first = (unsigned char)s[0];
    if (first < 0x80) {
        *code = first;
        return 1;
    }
    size_t length = first >= 0xf0 ? 4 : first >= 0xe0 ? 3 : 2;
    if (first < 0xc2 || first > 0xf4 || length > n)
        return 0;
    uint32_t value = first & (0x7fu >> length);
    for (size_t i = 1; i < length; i++) {
        unsigned char c = (unsigned char)s[i];
        if ((c & 0xc0) != 0x80)
            return 0;
        value = value << 6 | (c & 0x3fu);
    }
    if (value < least[length] || value > 0x10ffff || (value >= 0xd800 && value < 0xe000))
        return 0;
    *code = value;
    return length;
}

size_t qf_utf8_prefix(const char *text, size_t length)
{
    size_t i = 0;
    while (i < length && text[i] != '\0') {
        uint32_t code;
        size_t n = decode_utf8(text + i, length - i, &code);
        if (!n)
            break;
        i += n;
    }
    return i;
}

static size_t encode_utf8(uint32_t code, char *out)
{
    size_t length = code < 0x80 ? 1 : code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
    static const unsigned char mark[] = {0, 0, 0xc0, 0xe0, 0xf0};
    for (size_t i = length; i-- > 1;) {
        out[i] = (char)(0x80 | (code & 0x3f));
        code >>= 6;
    }
    out[0] = (char)(mark[length] | code);
    return length;
}

/* A line ends at LF, CR LF or a lone CR: the reference opens records with universal newlines. */
static bool ends_line(const char *at, const char *end)
{
    return *at == '\n' || (*at == '\r' && (at + 1 == end || at[1] != '\n'));
}

void qf_text_place(const char *text, size_t offset, uint32_t *line, uint32_t *column)
{
    const char *at = text + offset, *start = text;
    uint32_t lines = 1;
    for (const char *p = text; p < at; p++) {
        if (ends_line(p, at)) {
            lines++;
            start = p + 1;
        }
    }
    *line = lines;
    *column = (uint32_t)(at - start) + 1;
}

/* ---- Tokens ------------------------------------------------------------------------------- */

/* Length of the white space character at `at` by Python's str.isspace, 0 if it is none. */
static size_t space_length(const char *at, const char *end)
{
    unsigned char c = (unsigned char)*at;
    if (c < 0x80)
        return c == ' ' || (c >= '\t' && c <= '\r') || (c >= 0x1c && c <= 0x1f);
    uint32_t code;
    size_t n = decode_utf8(at, (size_t)(end - at), &code);
    bool space = code == 0x85 || code == 0xa0 || code == 0x1680 ||
                 (code >= 0x2000 && code <= 0x200a) || code == 0x2028 || code == 0x2029 ||
                 code == 0x202f || code == 0x205f || code == 0x3000;
    return n && space ? n : 0;
}

static void skip_blanks(qf_lexer *lexer)
{
    while (lexer->at < lexer->end) {
        if (*lexer->at == '#') {
            while (lexer->at < lexer->end && *lexer->at != '\n' && *lexer->at != '\r')
                lexer->at++;
            continue;
        }
        size_t n = space_length(lexer->at, lexer->end);
        if (!n)
            return;
        bool line_end = ends_line(lexer->at, lexer->end);
        lexer->at += n;
        if (line_end) {
            lexer->line++;
            lexer->line_start = lexer->at;
        }
    }
}

static const char *string_end(const char *at, const char *end)
{
    char quote = *at++;
    while (at < end && *at != '\n' && *at != '\r') {
        if (*at == quote)
            return at + 1;
        bool pair = *at == '\\' && at + 1 < end && at[1] != '\n' && at[1] != '\r';
        at += pair ? 2 : 1;
    }
    return at;
}

void qf_lexer_next(qf_lexer *lexer)
{
    skip_blanks(lexer);
    const char *start = lexer->at, *end = lexer->end, *at = start;
    qf_token *token = &lexer->token;
    token->text = start;
    token->line = lexer->line;
    token->column = (uint32_t)(start - lexer->line_start) + 1;
    if (at == end) {
        token->kind = QF_TOKEN_END;
    } else if (is_letter(*at) || *at == '_') {
        token->kind = QF_TOKEN_NAME;
        while (at < end && is_word(*at))
            at++;
    } else if (is_word(*at) || (*at == '.' && at + 1 < end && is_digit(at[1]))) {
        token->kind = QF_TOKEN_NUMBER;
        while (at < end && (is_word(*at) || *at == '.'))
            at++;
    } else if (*at == '"' || *at == '\'') {
        token->kind = QF_TOKEN_STRING;
        at = string_end(at, end);
    } else {
        uint32_t code;
        token->kind = QF_TOKEN_SYMBOL;
        size_t n = decode_utf8(at, (size_t)(end - at), &code);
        at += n ? n : 1;
    }
    token->length = (size_t)(at - start);
    lexer->at = at;
}

void qf_lexer_init(qf_lexer *lexer, const char *text, size_t length)
{
    *lexer = (qf_lexer){.at = text, .end = text + length, .line_start = text, .line = 1};
    qf_lexer_next(lexer);
}

bool qf_token_is(const qf_token *token, const char *text)
{
    size_t n = strlen(text);
    return token->length == n && memcmp(token->text, text, n) == 0;
}

/* ---- Numbers ------------------------------------------------------------------------------ */

/* Digits of `base` with single underscores between them, up to the end. */
static bool read_digits(const char *at, const char *end, unsigned base, qf_integer *out)
{
    bool after_digit = false;
    for (; at < end; at++) {
        if (*at == '_' && after_digit) {
            after_digit = false;
            continue;
        }
        unsigned d = digit_value(*at);
        if (d >= base)
            return false;
        if (out->magnitude > (UINT64_MAX - d) / base)
            out->overflow = true;
        else
            out->magnitude = out->magnitude * base + d;
        after_digit = true;
    }
    return after_digit;
}

static bool all_digits(const char *at, const char *end)
{
    while (at < end && is_digit(*at))
        at++;
    return at == end;
}

static unsigned prefix_base(const char *at, const char *end)
{
    if (end - at < 2 || at[0] != '0')
        return 0;
    char c = (char)(at[1] | 0x20);
    return c == 'x' ? 16 : c == 'o' ? 8 : c == 'b' ? 2 : 0;
}

bool qf_token_integer(const qf_token *token, bool c_octal, qf_integer *out)
{
    const char *at = token->text, *end = at + token->length;
    *out = (qf_integer){0};
    if (at == end)
        return false;
    bool plus = *at == '+';
    out->negative = *at == '-';
    if (plus || out->negative)
        at++;
    unsigned base = prefix_base(at, end);
    if (base) {
        at += 2;
        if (at < end && *at == '_')
            at++;
        return read_digits(at, end, base, out);
    }
    bool zero = at < end && *at == '0';
    if (zero && end - at > 1 && c_octal && !plus && all_digits(at, end))
        return read_digits(at + 1, end, 8, out);
    bool valid = read_digits(at, end, 10, out);
    return valid && !(zero && (out->magnitude || out->overflow));
}

/* Copies digits with single underscores between them, without the underscores. */
static const char *copy_digits(const char *at, const char *end, char **out)
{
    while (at < end && is_digit(*at)) {
        *(*out)++ = *at++;
        if (end - at > 1 && *at == '_' && is_digit(at[1]))
            at++;
    }
    return at;
}

/* Copies [at, end) in a form that strtod reads if Python's float() accepts it. */
static bool copy_float(const char *at, const char *end, char *out)
{
    if (at < end && (*at == '+' || *at == '-'))
        *out++ = *at++;
    const char *mantissa = out;
    at = copy_digits(at, end, &out);
    bool digits = out > mantissa;
    if (at < end && *at == '.') {
        *out++ = *at++;
        mantissa = out;
        at = copy_digits(at, end, &out);
        digits = digits || out > mantissa;
    }
    if (digits && at < end && (*at == 'e' || *at == 'E')) {
        *out++ = *at++;
        if (at < end && (*at == '+' || *at == '-'))
            *out++ = *at++;
        const char *exponent = out;
        at = copy_digits(at, end, &out);
        digits = out > exponent;
    }
    *out = '\0';
    return digits && at == end;
}

static bool same_word(const char *at, const char *end, const char *word)
{
    size_t n = strlen(word);
    return (size_t)(end - at) == n && strncasecmp(at, word, n) == 0;
}

/* inf, infinity and nan in any case, with a sign. */
static bool special_float(const char *at, const char *end, double *out)
{
    bool negative = at < end && *at == '-';
    if (at < end && (*at == '+' || *at == '-'))
        at++;
    bool infinite = same_word(at, end, "inf") || same_word(at, end, "infinity");
    if (!infinite && !same_word(at, end, "nan"))
        return false;
    double value = infinite ? (double)INFINITY : (double)NAN;
    *out = negative ? -value : value;
    return true;
}

static bool python_float(const char *at, const char *end, locale_t c_locale, double *out)
{
    char buffer[QF_TOKEN_NUMBER_MAX + 1];
    if (special_float(at, end, out))
        return true;
    if (!copy_float(at, end, buffer))
        return false;
    *out = strtod_l(buffer, NULL, c_locale);
    return true;
}

bool qf_token_float(const qf_token *token, locale_t c_locale, double *out)
{
    const char *at = token->text, *end = at + token->length;
    if (token->length > QF_TOKEN_NUMBER_MAX)
        return false;
    const char *first = at < end && *at == '-' ? at + 1 : at;
    if (end - first > 1 && first[0] == '0' && is_digit(first[1]))
        return false; /* 01.5 might be meant as octal */
    if (python_float(at, end, c_locale, out))
        return true;
    /* "inff" is spelt out: below, both of its last letters would go */
    if (same_word(first, end, "inff")) {
        *out = first > at ? -(double)INFINITY : (double)INFINITY;
        return true;
    }
    while (end > at && (end[-1] == 'f' || end[-1] == 'F'))
        end--;
    return python_float(at, end, c_locale, out);
}

float qf_float_narrow(double value)
{
    /* halfway between FLT_MAX and the next float, had it one */
    const double limit = 0x1.ffffffp127;
    double size = fabs(value);
    if (size > (double)FLT_MAX) {
        float edge = size < limit ? FLT_MAX : INFINITY;
        return value < 0 ? -edge : edge;
    }
    return (float)value;
}

/* ---- Strings ------------------------------------------------------------------------------ */

/* Exactly `count` hexadecimal digits. */
static bool read_hex(const char *at, const char *end, size_t count, uint32_t *out)
{
    if ((size_t)(end - at) < count)
        return false;
    *out = 0;
    for (size_t i = 0; i < count; i++) {
        unsigned d = digit_value(at[i]);
        if (d > 15)
            return false;
        *out = *out << 4 | d;
    }
    return true;
}

static const char *unescape_unicode(const char **at, const char *end, char **out)
{
    size_t count = **at == 'u' ? 4 : 8;
    uint32_t code;
    if (!read_hex(*at + 1, end, count, &code))
        return count == 4 ? "\\u needs four hexadecimal digits"
                          : "\\U needs eight hexadecimal digits";
    if (code > 0x10ffff || (code >= 0xd800 && code < 0xe000))
        return "\\u or \\U with a number that is no character";
    *out += encode_utf8(code, *out);
    *at += 1 + count;
    return NULL;
}

static const char *unescape_hex(const char **at, const char *end, char **out)
{
    uint32_t value;
    size_t count = read_hex(*at + 1, end, 2, &value) ? 2 : 1;
    if (count == 1 && !read_hex(*at + 1, end, 1, &value))
        return "\\x needs one or two hexadecimal digits";
    *(*out)++ = (char)value;
    *at += 1 + count;
    return NULL;
}

static const char *unescape_octal(const char **at, const char *end, char **out)
{
    unsigned value = 0;
    for (int i = 0; i < 3 && *at < end && **at >= '0' && **at <= '7'; i++)
        value = value * 8 + (unsigned)(*(*at)++ - '0');
    if (value > 255)
        return "an octal escape above \\377";
    *(*out)++ = (char)value;
    return NULL;
}

/* *at is behind the backslash. */
static const char *unescape_one(const char **at, const char *end, char **out)
{
    static const char names[] = "ntrabfv\\'\"";
    static const char values[] = "\n\t\r\a\b\f\v\\'\"";
    char c = **at;
    if (c == 'u' || c == 'U')
        return unescape_unicode(at, end, out);
    if (c == 'x')
        return unescape_hex(at, end, out);
    if (c >= '0' && c <= '7')
        return unescape_octal(at, end, out);
    if (c == 'N')
        return "\\N is not supported; write the character itself";
    const char *known = strchr(names, c);
    if (!known) {
        *(*out)++ = '\\'; /* as the reference reads it */
        return NULL;
    }
    *(*out)++ = values[known - names];
    (*at)++;
    return NULL;
}

const char *qf_token_unescape(const qf_token *token, char *out, size_t *length)
{
    const char *at = token->text, *end = at + token->length;
    if (token->length < 2 || end[-1] != *at)
        return "the closing quote is missing on this line";
    char *start = out;
    at++;
    end--;
    while (at < end) {
        if (*at != '\\') {
            *out++ = *at++;
            continue;
        }
        at++;
        const char *problem =
            at == end ? "the closing quote is missing on this line" : unescape_one(&at, end, &out);
        if (problem)
            return problem;
    }
    *length = (size_t)(out - start);
    return NULL;
}
