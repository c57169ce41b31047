/* SPDX-License-Identifier: Apache-2.0 */
#include "quant/scheme.h"

#include <stdlib.h>
#include <string.h>

/* The rest of `text` behind `start`, or NULL if it does not start so. */
static const char *behind(const char *text, const char *start)
{
    size_t n = strlen(start);
    return strncmp(text, start, n) == 0 ? text + n : NULL;
}

static bool read_group(const char *text, uint64_t *group)
{
    enum { MOST_DIGITS = 9 };
    size_t digits = strspn(text, "0123456789");
    *group = strtoull(text, NULL, 10);
    return digits && digits <= MOST_DIGITS && !text[digits] && *group >= 2;
}

static bool read_form(const char *word, qf_scheme *s)
{
    const char *rest = behind(word, "w8a16");
    s->bits = rest ? 8 : 4;
    rest = rest ? rest : behind(word, "w4a16");
    if (!rest || !*rest)
        return rest != NULL;
    rest = behind(rest, ":group=");
    if (!rest || !read_group(rest, &s->group))
        return false;
    return s->bits == 8 || s->group % 2 == 0; /* two int4 share a byte */
}

static qf_status compile(const char *option, const char *pattern, regex_t *out, bool *has,
                         qf_error *err)
{
    if (!pattern)
        return QF_OK;
    int code = regcomp(out, pattern, REG_EXTENDED | REG_NOSUB);
    *has = code == 0;
    if (*has)
        return QF_OK;
    char why[160];
    regerror(code, out, why, sizeof why);
    if (code == REG_ESPACE)
        return qf_fail_memory(err);
    return qf_fail(err, QF_ERR_USAGE,
                   "--%s takes a POSIX extended regular expression, and '%.200s' is none: %s",
                   option, pattern, why);
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
    out->from_record = strcmp(o->weight_only, "record") == 0;
    if (!out->from_record && !read_form(o->weight_only, out))
        return qf_fail(err, QF_ERR_USAGE,
                       "--weight-only is '%.60s'; it must be w8a16, w4a16, one of them with a "
                       "group of 2 or more elements (for w4a16 an even number), as in "
                       "w4a16:group=128, or record",
                       o->weight_only);
    qf_status status = compile("include", o->include, &out->include, &out->has_include, err);
    if (status == QF_OK)
        status = compile("exclude", o->exclude, &out->exclude, &out->has_exclude, err);
    return status;
}

void qf_scheme_release(qf_scheme *s)
{
    if (s->has_include)
        regfree(&s->include);
    if (s->has_exclude)
        regfree(&s->exclude);
    *s = (qf_scheme){0};
}

static bool matches(const regex_t *pattern, const char *tensor, const char *node)
{
    return regexec(pattern, tensor, 0, NULL, 0) == 0 || regexec(pattern, node, 0, NULL, 0) == 0;
}

bool qf_scheme_chooses(const qf_scheme *s, const char *tensor, const char *node)
{
    return (!s->has_include || matches(&s->include, tensor, node)) &&
           !(s->has_exclude && matches(&s->exclude, tensor, node));
}
