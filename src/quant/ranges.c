/* SPDX-License-Identifier: Apache-2.0 */
#include "quant/ranges.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "base/diag.h"
#include "base/file.h"
#include "base/json.h"
#include "base/spill.h"
#include "base/strmap.h"

struct qf_ranges {
    char *path;
    qf_arena arena;
    qf_layer_range *items;
    size_t count;
};

typedef struct parser {
    qf_ranges *ranges;
    const char *layer;
    qf_error *err;
} parser;

static qf_status refuse(const parser *p, const char *format, ...) QF_PRINTF(2, 3);
static qf_status refuse(const parser *p, const char *format, ...)
{
    char message[400];
    va_list args;
    va_start(args, format);
    vsnprintf(message, sizeof message, format, args);
    va_end(args);
    return qf_fail_at(p->err, QF_ERR_INPUT, (qf_where){.file = p->ranges->path, .item = p->layer},
                      "%s", message);
}

enum { MIN, MAX, SCALE, OFFSET, KEYS };

/* Keys of a layer, those of its input first. */
static const char *const keys[2][KEYS] = {{"min", "max", "scale_d", "offset_d"},
                                          {"h_min", "h_max", "scale_h", "offset_h"}};

static bool find_key(const char *word, int *group, int *key)
{
    for (*group = 0; *group < 2; ++*group) {
        for (*key = 0; *key < KEYS; ++*key) {
            if (strcmp(word, keys[*group][*key]) == 0)
                return true;
        }
    }
    return false;
}

static qf_status refuse_key(const parser *p, const char *word)
{
    const char *near = qf_suggest(word, keys[0], KEYS);
    near = near ? near : qf_suggest(word, keys[1], KEYS);
    return refuse(p, "\"%.60s\" is not a key of a range%s%s%s", word,
                  near ? "; did you mean \"" : "", near ? near : "", near ? "\"?" : "");
}

static qf_status finish_group(const parser *p, int group, const double values[KEYS],
                              const bool seen[KEYS], qf_range_values *out)
{
    const char *const *k = keys[group];
    if (seen[MIN] != seen[MAX] || seen[SCALE] != seen[OFFSET] || (seen[MIN] && seen[SCALE]))
        return refuse(p, "give either %s and %s or %s and %s, both of them", k[MIN], k[MAX],
                      k[SCALE], k[OFFSET]);
    *out = (qf_range_values){.given = seen[MIN] || seen[SCALE],
                             .is_scale = seen[SCALE],
                             .min = (float)values[MIN],
                             .max = (float)values[MAX],
                             .scale = (float)values[SCALE]};
    if (seen[MIN] && !(isfinite(out->min) && isfinite(out->max) && out->min < out->max))
        return refuse(p,
                      "%s is %.9g and %s is %.9g; finite float32 values are needed, the first "
                      "below the second",
                      k[MIN], values[MIN], k[MAX], values[MAX]);
    if (seen[SCALE] && !(isnormal(out->scale) && out->scale > 0))
        return refuse(p, "%s is %.9g; a positive, finite, normal float32 is needed", k[SCALE],
                      values[SCALE]);
    if (seen[OFFSET] && (floor(values[OFFSET]) != values[OFFSET] || fabs(values[OFFSET]) > 32768))
        return refuse(p, "%s is %.9g; an integer within 16 bits is needed", k[OFFSET],
                      values[OFFSET]);
    out->offset = seen[OFFSET] ? (int32_t)values[OFFSET] : 0;
    return QF_OK;
}

static qf_status parse_layer(const parser *p, const cJSON *object, qf_layer_range *out)
{
    double values[2][KEYS] = {{0}};
    bool seen[2][KEYS] = {{false}};
    if (!cJSON_IsObject(object))
        return refuse(p, "an object such as {\"min\": -1.0, \"max\": 1.0} is needed");
    for (const cJSON *v = object->child; v; v = v->next) {
        int group, key;
        if (!find_key(v->string, &group, &key))
            return refuse_key(p, v->string);
        if (!cJSON_IsNumber(v))
            return refuse(p, "%s is not a number", v->string);
        if (seen[group][key])
            return refuse(p, "%s is given twice", v->string);
        seen[group][key] = true;
        values[group][key] = v->valuedouble;
    }
    qf_status status = finish_group(p, 0, values[0], seen[0], &out->input);
    if (status == QF_OK)
        status = finish_group(p, 1, values[1], seen[1], &out->hidden);
    if (status == QF_OK && !out->input.given)
        status = refuse(p, "it has no range; give min and max, or scale_d and offset_d");
    return status;
}

static qf_status parse_root(parser *p, const cJSON *root)
{
    qf_ranges *r = p->ranges;
    qf_strmap seen = {0};
    qf_status status = QF_OK;
    r->items = qf_arena_array(&r->arena, (size_t)cJSON_GetArraySize(root) + 1, sizeof *r->items);
    if (!r->items)
        return qf_fail_memory(p->err);
    for (const cJSON *v = root->child; status == QF_OK && v; v = v->next) {
        qf_layer_range *item = &r->items[r->count];
        item->layer = p->layer = qf_arena_strdup(&r->arena, v->string);
        void *held = item->layer ? qf_strmap_add(&seen, item->layer, item) : NULL;
        if (!held)
            status = qf_fail_memory(p->err);
        else if (held != item)
            status = refuse(p, "the layer is given twice");
        else
            status = parse_layer(p, v, item);
        r->count++;
    }
    qf_strmap_release(&seen);
    return status;
}

qf_status qf_ranges_parse(const char *name, const char *json, size_t length, qf_ranges **out,
                          qf_error *err)
{
    if (!name || (!json && length) || !out)
        return qf_fail(err, QF_ERR_USAGE,
                       "qf_ranges_parse needs a name, a text and a place for the ranges");
    if (length > QF_RANGES_MAX_BYTES)
        return qf_fail_at(err, QF_ERR_INPUT, (qf_where){.file = name},
                          "the ranges have %zu bytes, which is more than is accepted", length);
    qf_ranges *ranges = calloc(1, sizeof *ranges);
    if (!ranges)
        return qf_fail_memory(err);
    qf_arena_init(&ranges->arena);
    ranges->path = strdup(name);
    parser p = {.ranges = ranges, .err = err};
    const char *end = NULL;
    bool exhausted = !ranges->path;
    cJSON *root = exhausted ? NULL : qf_json_parse(json, length, &end, false, &exhausted);
    while (root && end < json + length && strchr(" \t\r\n", *end) && *end)
        end++;
    qf_status status;
    if (exhausted) {
        status = qf_fail_memory(err);
    } else if (!root || !cJSON_IsObject(root) || end != json + length) {
        /* the text need not end in a NUL */
        size_t left = end && end < json + length ? (size_t)(json + length - end) : 0;
        status = refuse(&p,
                        "a JSON object of layers is needed, such as {\"conv1\": {\"min\": "
                        "-1.0, \"max\": 1.0}}%s%.*s",
                        left ? "; the text is wrong at: " : "", left < 20 ? (int)left : 20,
                        left ? end : "");
    } else {
        status = parse_root(&p, root);
    }
    cJSON_Delete(root);
    if (status != QF_OK) {
        qf_ranges_close(ranges);
        return status;
    }
    *out = ranges;
    return QF_OK;
}

qf_status qf_ranges_open(const char *path, qf_ranges **out, qf_error *err)
{
    if (!path || !out)
        return qf_fail(err, QF_ERR_USAGE, "qf_ranges_open needs a path and a place for the ranges");
    char *text;
    size_t length;
    qf_status status =
        qf_file_read_text(path, "file of ranges", QF_RANGES_MAX_BYTES, &text, &length, NULL, err);
    if (status != QF_OK)
        return status;
    status = qf_ranges_parse(path, text, length, out, err);
    qf_spill_free(text);
    return status;
}

void qf_ranges_close(qf_ranges *ranges)
{
    if (!ranges)
        return;
    qf_arena_release(&ranges->arena);
    free(ranges->path);
    free(ranges);
}

size_t qf_ranges_count(const qf_ranges *ranges)
{
    return ranges ? ranges->count : 0;
}

const qf_layer_range *qf_ranges_at(const qf_ranges *ranges, size_t index)
{
    return &ranges->items[index];
}

const char *qf_ranges_path(const qf_ranges *ranges)
{
    return ranges->path;
}
