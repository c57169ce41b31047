/* SPDX-License-Identifier: Apache-2.0 */
/* Texts of unknown origin as HTML. */
#include "report/summary.h"

/* Bytes of the character of UTF-8 at `p`, 0 if there is none. */
static size_t character(const unsigned char *p)
{
    if (*p < 0x80)
        return *p >= 0x20 && *p != 0x7f ? 1 : 0;
    size_t n = *p >= 0xf0 && *p < 0xf5 ? 4 : *p >= 0xe0 ? 3 : *p >= 0xc2 ? 2 : 0;
    for (size_t i = 1; i < n; i++) {
        if ((p[i] & 0xc0) != 0x80)
            return 0;
    }
    return *p >= 0xf5 ? 0 : n;
}

/* Puts one character and returns what is behind it. */
static const char *put_character(FILE *out, const char *p)
{
    size_t n = character((const unsigned char *)p);
    switch (*p) {
    case '&':
        fputs("&amp;", out);
        return p + 1;
    case '<':
        fputs("&lt;", out);
        return p + 1;
    case '>':
        fputs("&gt;", out);
        return p + 1;
    case '"':
        fputs("&quot;", out);
        return p + 1;
    case '\'':
        fputs("&#39;", out);
        return p + 1;
    default:
        break;
    }
    if (n)
        fwrite(p, 1, n, out);
    else
        fputs("\xef\xbf\xbd", out);
    return p + (n ? n : 1);
}

void qf_html_text(FILE *out, const char *text)
{
    while (*text)
        text = put_character(out, text);
}

size_t qf_html_characters(const char *text)
{
    size_t count = 0;
    for (const char *p = text; *p; count++) {
        size_t n = character((const unsigned char *)p);
        p += n ? n : 1;
    }
    return count;
}

void qf_html_short(FILE *out, const char *text, size_t most)
{
    size_t count = qf_html_characters(text), head = count > most ? most / 3 : count, i = 0;
    size_t tail = count > most ? count - (most - head - 1) : count;
    for (const char *p = text; *p; i++) {
        size_t n = character((const unsigned char *)p);
        if (i == head)
            fputs("\xe2\x80\xa6", out);
        if (i < head || i >= tail)
            put_character(out, p);
        p += n ? n : 1;
    }
}
