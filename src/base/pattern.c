/* SPDX-License-Identifier: Apache-2.0 */
#include "base/pattern.h"

#include <errno.h>

qf_status qf_pattern_compile(const char *option, const char *text, qf_pattern *out, qf_error *err)
{
    out->on = out->exhausted = false;
    if (!text)
        return QF_OK;
    int code = regcomp(&out->regex, text, REG_EXTENDED | REG_NOSUB);
    out->on = code == 0;
    if (out->on)
        return QF_OK;
    char why[160];
    regerror(code, &out->regex, why, sizeof why);
    if (code == REG_ESPACE)
        return qf_fail_memory(err);
    return qf_fail(err, QF_ERR_USAGE,
                   "--%s takes a POSIX extended regular expression, and '%.200s' is none: %s",
                   option, text, why);
}

void qf_pattern_release(qf_pattern *pattern)
{
    if (pattern->on)
        regfree(&pattern->regex);
    pattern->on = false;
}

bool qf_pattern_matches(qf_pattern *pattern, const char *text)
{
    errno = 0; /* glibc says REG_NOMATCH also where memory does not suffice */
    int code = pattern->on ? regexec(&pattern->regex, text, 0, NULL, 0) : REG_NOMATCH;
    pattern->exhausted |= code == REG_ESPACE || (code != 0 && errno == ENOMEM);
    return code == 0;
}
