/* SPDX-License-Identifier: Apache-2.0 */
/* Attributes of two nodes that should be the same, and functions of two models. */
#ifndef QF_VERIFY_ATTRIBUTES_H
#define QF_VERIFY_ATTRIBUTES_H

#include "verify/agree.h"

/* Names, types and values, in any order; tensors by their bytes; graphs node by node. */
qf_status qf_compare_attributes(qf_pairing *p, const qf_node *node, const qf_node *other);
/* One of them. */
qf_status qf_compare_attribute(qf_pairing *p, const qf_node *node, const Onnx__AttributeProto *a,
                               const Onnx__AttributeProto *b);
qf_status qf_compare_sparse(qf_pairing *p, const char *user, const Onnx__SparseTensorProto *x,
                            const Onnx__SparseTensorProto *y);
/* The functions of the two models (functions.c). */
qf_status qf_compare_functions(qf_pairing *p);
/* Two graphs that are attributes (agree.c). */
qf_status qf_pairing_child(qf_pairing *p, const Onnx__GraphProto *x, const Onnx__GraphProto *y);

#endif
