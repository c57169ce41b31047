/* SPDX-License-Identifier: Apache-2.0 */
/* Dynamic axes from JSON, in the two forms that the PyTorch exporter takes. */
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"

#include "base/error.h"

typedef struct axes {
    qf_dynamic_axis *items;
    size_t count;
    char *text; /* end of the strings copied so far; all share one allocation with the items */
    qf_error *err;
} axes;

static qf_status refuse(axes *a, const char *tensor, const char *format, ...) QF_PRINTF(3, 4);
static qf_status refuse(axes *a, const char *tensor, const char *format, ...)
{
    char message[300];
    va_list args;
    va_start(args, format);
    vsnprintf(message, sizeof message, format, args);
    va_end(args);
    return qf_fail(a->err, QF_ERR_INPUT, "dynamic_axes: '%s': %s", tensor, message);
}

static const char *keep(axes *a, const char *text)
{
    size_t n = strlen(text) + 1;
    char *copy = memcpy(a->text, text, n);
    a->text += n;
    return copy;
}

static qf_status add(axes *a, const char *tensor, int64_t axis, const char *label)
{
    for (size_t i = 0; i < a->count; i++) {
        if (a->items[i].axis == axis && strcmp(a->items[i].tensor, tensor) == 0)
            return refuse(a, tensor, "axis %lld is given twice", (long long)axis);
    }
    qf_dynamic_axis *item = &a->items[a->count++];
    item->tensor = keep(a, tensor);
    item->axis = axis;
    item->label = label ? keep(a, label) : NULL;
    return QF_OK;
}

static qf_status add_list(axes *a, const cJSON *list)
{
    const cJSON *e;
    cJSON_ArrayForEach(e, list)
    {
        if (!cJSON_IsNumber(e))
            return refuse(a, list->string, "the list must hold axis numbers, integers from 0");
        if (floor(e->valuedouble) != e->valuedouble || fabs(e->valuedouble) > 1e6)
            return refuse(a, list->string, "%g is not an axis number", e->valuedouble);
        if (e->valuedouble < 0)
            return refuse(a, list->string, "axis %g is negative", e->valuedouble);
        qf_status status = add(a, list->string, (int64_t)e->valuedouble, NULL);
        if (status != QF_OK)
            return status;
    }
    return QF_OK;
}

static qf_status add_object(axes *a, const cJSON *object)
{
    const cJSON *e;
    cJSON_ArrayForEach(e, object)
    {
        char *end;
        long axis = strtol(e->string, &end, 10);
        bool digits = strspn(e->string, "-0123456789") == strlen(e->string);
        if (!digits || end == e->string || *end || strlen(e->string) > 7)
            return refuse(a, object->string, "'%.40s' is not an axis number", e->string);
        if (axis < 0)
            return refuse(a, object->string, "axis %ld is negative", axis);
        if (!cJSON_IsString(e) || !*e->valuestring)
            return refuse(a, object->string, "the name of axis %ld must be a string", axis);
        qf_status status = add(a, object->string, axis, e->valuestring);
        if (status != QF_OK)
            return status;
    }
    return QF_OK;
}

/* Entries and string bytes that the whole needs; strings are at most as long as the text. */
static size_t count_axes(const cJSON *root)
{
    size_t n = 0;
    const cJSON *e;
    cJSON_ArrayForEach(e, root) n += (size_t)cJSON_GetArraySize(e);
    return n;
}

static size_t text_bytes(const cJSON *root)
{
    size_t n = 1;
    const cJSON *e, *f;
    cJSON_ArrayForEach(e, root)
    {
        cJSON_ArrayForEach(f, e) n +=
            strlen(e->string) + 1 + (cJSON_IsString(f) ? strlen(f->valuestring) + 1 : 0);
    }
    return n;
}

static qf_status read_all(axes *a, const cJSON *root)
{
    /* each is compared with those before it; no graph has as many inputs and outputs */
    enum { AXES_MOST = 10000 };
    const cJSON *e, *f;
    if ((size_t)cJSON_GetArraySize(root) + count_axes(root) > AXES_MOST)
        return qf_fail(a->err, QF_ERR_INPUT,
                       "dynamic_axes has more than %d tensors and axes; name only those of the "
                       "graph's inputs and outputs that are to be symbolic",
                       AXES_MOST);
    cJSON_ArrayForEach(e, root)
    {
        for (f = root->child; f != e; f = f->next) {
            if (strcmp(e->string, f->string) == 0)
                return refuse(a, e->string, "the tensor is given twice");
        }
        qf_status status = cJSON_IsArray(e)    ? add_list(a, e)
                           : cJSON_IsObject(e) ? add_object(a, e)
                                               : refuse(a, e->string,
                                                        "a list of axes or an object of axis "
                                                        "names is expected");
        if (status != QF_OK)
            return status;
    }
    return QF_OK;
}

qf_status qf_dynamic_axes_parse(const char *json, qf_dynamic_axis **out, size_t *count,
                                qf_error *err)
{
    const char *end = NULL;
    if (!json || !out || !count)
        return qf_fail(err, QF_ERR_USAGE, "qf_dynamic_axes_parse: an argument is NULL");
    bool exhausted = false;
    cJSON *root = qf_json_parse(json, strlen(json) + 1, &end, true, &exhausted);
    if (!cJSON_IsObject(root)) {
        cJSON_Delete(root);
        if (exhausted)
            return qf_fail_memory(err);
        return qf_fail(err, QF_ERR_INPUT,
                       "dynamic_axes is not a JSON object such as {\"x\": {\"0\": \"batch\"}} or "
                       "{\"x\": [0, 2]}%s%.20s",
                       end && *end ? "; the text is wrong at: " : "", end ? end : "");
    }
    axes a = {.err = err};
    size_t n = count_axes(root);
    a.items = calloc(1, n * sizeof *a.items + text_bytes(root));
    qf_status status = a.items ? QF_OK : qf_fail_memory(err);
    if (status == QF_OK) {
        a.text = (char *)(a.items + n);
        status = read_all(&a, root);
    }
    cJSON_Delete(root);
    if (status != QF_OK) {
        free(a.items);
        return status;
    }
    *out = a.items;
    *count = a.count;
    return QF_OK;
}
