/* SPDX-License-Identifier: Apache-2.0 */
/* What --weight-only, --include and --exclude ask for. */
#ifndef QF_QUANT_SCHEME_H
#define QF_QUANT_SCHEME_H

#include <stdint.h>

#include "base/pattern.h"

typedef struct qf_scheme {
    bool on;
    bool from_record; /* entries of the record have the scales; else the export finds them */
    int bits;         /* 8 or 4, where scales are found */
    uint64_t group;   /* elements that share a scale, 0: a whole channel */
    qf_pattern include, exclude;
} qf_scheme;

/* Reads the options into *out, which is to be released. QF_ERR_USAGE says what is wrong. */
qf_status qf_scheme_read(const qf_export_options *options, qf_scheme *out, qf_error *err);
void qf_scheme_release(qf_scheme *scheme);
/* Whether the patterns choose a weight, by its own name or by its node's. */
bool qf_scheme_chooses(qf_scheme *scheme, const char *tensor, const char *node);

/* What "w4a16:group=128" says. */
typedef struct qf_form {
    int weight_bits, activation_bits;
    uint64_t group; /* 0: none is named */
} qf_form;
/* Reads w8a8, w8a16 or w4a16, with or without a group of 2 or more (for w4a16 an even number, as
 * two int4 share a byte) behind it. False if it is none. */
bool qf_form_read(const char *text, qf_form *out);

#endif
