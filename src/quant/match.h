/* SPDX-License-Identifier: Apache-2.0 */
/* Finding the node that a name in a record or a config means. In this order: the node's name; the
 * layer whose weight is called <key>.weight or <key>.sub_module.weight; the layer whose exporter
 * scope is the key (/a/b/Conv is a.b). More than one layer in the last two is an error. */
#ifndef QF_QUANT_MATCH_H
#define QF_QUANT_MATCH_H

#include "base/diag.h"
#include "quant/layer.h"

typedef struct qf_matcher {
    const qf_ir *ir;
    qf_arena arena;
    qf_strmap by_weight, by_scope;
    unsigned misses; /* keys not found so far */
} qf_matcher;

typedef struct qf_match {
    const qf_node *node; /* NULL: see problem */
    bool is_tensor;      /* the key is "layer:index", a tensor record */
    char problem[700];
} qf_match;

/* `ir` must not change while the matcher is used. */
qf_status qf_matcher_init(qf_matcher *matcher, const qf_ir *ir, qf_error *err);
void qf_matcher_find(qf_matcher *matcher, const char *key, qf_match *out);
void qf_matcher_release(qf_matcher *matcher);

#endif
