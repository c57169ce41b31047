/* SPDX-License-Identifier: Apache-2.0 */
/* Recognising the ONNX operators that stand for a node of the NPU in a fake_quant model. */
#ifndef QF_VERIFY_EXPANDED_H
#define QF_VERIFY_EXPANDED_H

#include "verify/reading.h"

enum { QF_EXPANDED_NODES = 16 };

/* y = clip(round(x * scale) + offset, min, max) - offset (facts 5.1). */
typedef struct qf_expanded {
    qf_value *input;
    float scale, offset, min, max;
    int bits;                          /* that min and max come to; 0: none */
    qf_node *nodes[QF_EXPANDED_NODES]; /* of the whole, constants too */
    size_t count;
} qf_expanded;

/* Reads what ends in `sub`, named <prefix>.sub. *why is NULL, or says what is no such arithmetic,
 * to follow the node's name. */
qf_status qf_expanded_read(qf_subject *subject, qf_node *sub, qf_expanded *out, const char **why,
                           qf_error *err);

/* The other operand of a Mul by a constant, whose node goes to *constant unless it is no node. NULL
 * if it is none. */
qf_value *qf_mul_operand(const qf_node *mul, const Onnx__TensorProto **factor, qf_node **constant);

#endif
