/* SPDX-License-Identifier: Apache-2.0 */
/* Writing the nodes that stand for one operator of the NPU in the fake_quant model, as a macro
 * (onnx/macro.h) or into the graph. */
#ifndef QF_PASSES_EXPANSION_H
#define QF_PASSES_EXPANSION_H

#include "onnx/macro.h"
#include "passes/passes.h"

/* Makes nodes <prefix>.<suffix>, each with one output <prefix>.<suffix>.output0. */
typedef struct qf_expansion {
    const char *prefix;
    const char *value;  /* name of the result so far */
    const char *output; /* of the next step, NULL: the usual */
    qf_node_sink sink;
    void *user;
    char *names; /* of the node that is being made */
    size_t room; /* for each */
    Onnx__AttributeProto attributes[2];
    size_t attribute_count;
    bool failed;
} qf_expansion;

/* `input` is the first value. */
void qf_expand_begin(qf_expansion *e, const char *prefix, const char *input, qf_node_sink sink,
                     void *user);
/* A Constant of float32. */
void qf_expand_constant(qf_expansion *e, const char *suffix, const float *values,
                        const int64_t *dims, size_t rank, const char *doc);
/* A node that reads the result so far and the outputs of the constants <prefix>.<second> and
 * <third>, which may be NULL; its output is the new result. */
void qf_expand_step(qf_expansion *e, const char *op, const char *suffix, const char *second,
                    const char *third, const char *doc);
/* Attributes of the next step. */
void qf_expand_int(qf_expansion *e, const char *name, int64_t value);
void qf_expand_float(qf_expansion *e, const char *name, float value);
/* False if anything failed. */
bool qf_expand_end(qf_expansion *e);

/* Dimensions of the scales of a dequantization in a fake_quant model (facts 5.3): of a
 * convolution's, whose weight has `conv_rank`; 0: of any other layer's. */
size_t qf_dequant_rank(size_t conv_rank);

/* Whether macros may stand in this graph. Their names are in no map, so no name of the model may
 * look like theirs; and they cannot be sorted from within. */
bool qf_macros_allowed(const qf_pass *p);
/* The node is written as the macro says; what it reads and makes stays as it is. */
void qf_node_become_macro(qf_node *node, qf_macro *macro);
/* Puts the macro's nodes into the graph, before `node` and reading what it reads first. The result
 * of the last of them; NULL when memory is exhausted. */
qf_value *qf_macro_insert(qf_pass *p, qf_macro *macro, qf_node *node);

#endif
