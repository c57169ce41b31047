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
/* Two tensors that stand in the same place. */
qf_status qf_compare_nested_tensor(qf_pairing *p, const char *user, const Onnx__TensorProto *x,
                                   const Onnx__TensorProto *y);
/* Whether two messages of a kind have the same bytes. *memory becomes false when it is exhausted.
 */
bool qf_same_packed(const ProtobufCMessage *x, const ProtobufCMessage *y, bool *memory);
/* The functions of the two models, and a graph inside one (functions.c). */
qf_status qf_compare_functions(qf_pairing *p);
qf_status qf_compare_body(qf_pairing *p, const char *user, const Onnx__GraphProto *x,
                          const Onnx__GraphProto *y);
/* Two graphs that are attributes of a node (agree.c). */
qf_status qf_pairing_child(qf_pairing *p, const char *user, const Onnx__GraphProto *x,
                           const Onnx__GraphProto *y);

#endif
