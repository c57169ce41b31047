/* SPDX-License-Identifier: Apache-2.0 */
#include "checkpoint/json_text.h"

#include <string.h>

#include "base/json.h"
#include "quant/text_token.h"

/* Whether the character NUL is there, as a byte, which cJSON takes for white space, or as an escape
 * in a string. */
static bool has_nul(const char *text, size_t length)
{
    if (memchr(text, '\0', length))
        return true;
    for (size_t i = 0; i + 6 <= length; i++) {
        if (text[i] != '\\')
            continue;
        if (memcmp(text + i, "\\u0000", 6) == 0)
            return true;
        i++; /* the escaped character, which may be another backslash */
    }
    return false;
}

static bool is_space(const char *at, const char *end)
{
    while (at < end && strchr(" \t\r\n", *at))
        at++;
    return at == end;
}

cJSON *qf_json_object(const char *text, size_t length, const char **why)
{
    const char *end = text;
    *why = NULL;
    if (qf_utf8_prefix(text, length) < length)
        *why = "it has bytes that are not UTF-8";
    else if (has_nul(text, length))
        *why = "it holds the character NUL";
    if (*why)
        return NULL;
    bool exhausted = false;
    cJSON *root = qf_json_parse(text, length, &end, false, &exhausted);
    if (exhausted)
        return NULL;
    if (!root)
        *why = "it is not JSON";
    else if (!is_space(end, text + length))
        *why = "there is something behind its JSON value";
    else if (!cJSON_IsObject(root))
        *why = "it is not a JSON object";
    if (!*why)
        return root;
    cJSON_Delete(root);
    return NULL;
}

bool qf_json_repeats(const cJSON *object)
{
    if (!cJSON_IsObject(object)) /* entries of a list have no names */
        return false;
    for (const cJSON *a = object->child; a; a = a->next) {
        for (const cJSON *b = a->next; b; b = b->next) {
            if (strcmp(a->string, b->string) == 0)
                return true;
        }
    }
    return false;
}
