/* SPDX-License-Identifier: Apache-2.0 */
/* What --weight-only, --include and --exclude ask for. */
#ifndef QF_QUANT_SCHEME_H
#define QF_QUANT_SCHEME_H

#include <regex.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"

typedef struct qf_scheme {
    bool on;
    bool from_record; /* entries of the record have the scales; else the export finds them */
    int bits;         /* 8 or 4, where scales are found */
    uint64_t group;   /* elements that share a scale, 0: a whole channel */
    bool has_include, has_exclude;
    regex_t include, exclude;
} qf_scheme;

/* Reads the options into *out, which is to be released. QF_ERR_USAGE says what is wrong. */
qf_status qf_scheme_read(const qf_export_options *options, qf_scheme *out, qf_error *err);
void qf_scheme_release(qf_scheme *scheme);
/* Whether the patterns choose a weight, by its own name or by its node's. */
bool qf_scheme_chooses(const qf_scheme *scheme, const char *tensor, const char *node);

#endif
