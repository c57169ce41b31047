/* SPDX-License-Identifier: Apache-2.0 */
#include "base/json.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Length of the UTF-8 sequence at `p`, 0 if it is not one. */
static size_t utf8_length(const unsigned char *p)
{
    size_t n = p[0] < 0x80                   ? 1
               : p[0] >= 0xf0 && p[0] < 0xf5 ? 4
               : p[0] >= 0xe0 && p[0] < 0xf0 ? 3
               : p[0] >= 0xc2 && p[0] < 0xe0 ? 2
                                             : 0;
    for (size_t i = 1; i < n; i++) {
        if ((p[i] & 0xc0) != 0x80)
            return 0;
    }
    return n;
}

cJSON *qf_json_parse(const char *text, size_t length, const char **end, bool whole, bool *exhausted)
{
    errno = 0; /* of what cJSON calls, malloc alone sets it to ENOMEM */
    cJSON *root = cJSON_ParseWithLengthOpts(text, length, end, whole);
    if (!root && errno == ENOMEM)
        *exhausted = true;
    return root;
}

bool qf_json_add_text(cJSON *object, const char *key, const char *text)
{
    static const char replacement[] = "\xef\xbf\xbd"; /* U+FFFD */
    char *clean = malloc(3 * strlen(text) + 1), *at = clean;
    if (!clean)
        return false;
    for (const char *p = text; *p;) {
        size_t n = utf8_length((const unsigned char *)p);
        memcpy(at, n ? p : replacement, n ? n : 3);
        at += n ? n : 3;
        p += n ? n : 1;
    }
    *at = '\0';
    bool ok = cJSON_AddStringToObject(object, key, clean) != NULL;
    free(clean);
    return ok;
}

bool qf_json_add_number(cJSON *object, const char *key, double value)
{
    return (isfinite(value) ? cJSON_AddNumberToObject(object, key, value)
                            : cJSON_AddNullToObject(object, key)) != NULL;
}

bool qf_json_integer(const cJSON *item, uint64_t *out)
{
    if (!cJSON_IsNumber(item) || item->valuedouble < 0 || item->valuedouble > 0x1p53 ||
        item->valuedouble != floor(item->valuedouble))
        return false;
    *out = (uint64_t)item->valuedouble;
    return true;
}

bool qf_json_get_integer(const cJSON *object, const char *key, uint64_t *out)
{
    return qf_json_integer(cJSON_GetObjectItemCaseSensitive(object, key), out);
}
