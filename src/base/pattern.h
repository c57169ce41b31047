/* SPDX-License-Identifier: Apache-2.0 */
/* POSIX extended regular expressions, as options give them. */
#ifndef QF_BASE_PATTERN_H
#define QF_BASE_PATTERN_H

#include <regex.h>
#include <stdbool.h>

#include "base/error.h"

typedef struct qf_pattern {
    regex_t regex;
    bool on;        /* there is one */
    bool exhausted; /* memory did not suffice for a match: no answer since then counts */
} qf_pattern;

/* `text` NULL: no pattern. QF_ERR_USAGE, naming --`option`, for one that is no expression. Release
 * in any case. */
qf_status qf_pattern_compile(const char *option, const char *text, qf_pattern *out, qf_error *err);
void qf_pattern_release(qf_pattern *pattern);
/* Whether the pattern is found in `text`; of no pattern, false. */
bool qf_pattern_matches(qf_pattern *pattern, const char *text);

#endif
