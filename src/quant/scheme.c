/* SPDX-License-Identifier: Apache-2.0 */
#include "quant/scheme.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

/* The rest of `text` behind `start`, or NULL if it does not start so. */
static const char *behind(const char *text, const char *start)
{
    size_t n = strlen(start);
    return strncasecmp(text, start, n) == 0 ? text + n : NULL;
}

static bool read_group(const char *text, uint64_t *group)
{
    enum { MOST_DIGITS = 9 };
    size_t digits = strspn(text, "0123456789");
    *group = strtoull(text, NULL, 10);
    return digits && digits <= MOST_DIGITS && !text[digits] && *group >= 2;
}

bool qf_form_read(const char *text, qf_form *out)
{
    static const struct {
        const char *name;
        int weight, activation;
    } forms[] = {{"w8a16", 8, 16}, {"w8a8", 8, 8}, {"w4a16", 4, 16}};
    const char *rest = NULL;
    for (size_t i = 0; !rest && i < sizeof forms / sizeof *forms; i++) {
        rest = behind(text, forms[i].name);
        *out = (qf_form){forms[i].weight, forms[i].activation, 0};
    }
    if (!rest || !*rest)
        return rest != NULL;
    rest = behind(rest, ":group=");
    if (!rest || !read_group(rest, &out->group))
        return false;
    return out->weight_bits == 8 || out->group % 2 == 0;
}

qf_status qf_scheme_read(const qf_export_options *o, qf_scheme *out, qf_error *err)
{
    *out = (qf_scheme){.on = o->weight_only != NULL};
    if (!out->on) {
        if (o->include || o->exclude)
            return qf_fail(err, QF_ERR_USAGE,
                           "--include and --exclude choose among the weights that --weight-only "
                           "quantizes; give that as well");
        return QF_OK;
    }
    /* NOLINTNEXTLINE(clang-analyzer-core.NonNullParamChecker): on */
    out->from_record = strcmp(o->weight_only, "record") == 0;
    qf_form form = {0};
    if (!out->from_record && (!qf_form_read(o->weight_only, &form) || form.activation_bits != 16))
        return qf_fail(err, QF_ERR_USAGE,
                       "--weight-only is '%.60s'; it must be w8a16, w4a16, one of them with a "
                       "group of 2 or more elements (for w4a16 an even number), as in "
                       "w4a16:group=128, or record",
                       o->weight_only);
    out->bits = form.weight_bits;
    out->group = form.group;
    qf_status status = qf_pattern_compile("include", o->include, &out->include, err);
    if (status == QF_OK)
        status = qf_pattern_compile("exclude", o->exclude, &out->exclude, err);
    return status;
}

void qf_scheme_release(qf_scheme *s)
{
    qf_pattern_release(&s->include);
    qf_pattern_release(&s->exclude);
    *s = (qf_scheme){0};
}

static bool matches(qf_pattern *pattern, const char *tensor, const char *node)
{
    return qf_pattern_matches(pattern, tensor) || qf_pattern_matches(pattern, node);
}

bool qf_scheme_chooses(qf_scheme *s, const char *tensor, const char *node)
{
    return (!s->include.on || matches(&s->include, tensor, node)) &&
           !matches(&s->exclude, tensor, node);
}
