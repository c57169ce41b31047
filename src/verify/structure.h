/* SPDX-License-Identifier: Apache-2.0 */
/* The rules of one model by itself: what the definitions of the operators and the names that the
 * reference gives say of it. Each check notes all that it finds. */
#ifndef QF_VERIFY_STRUCTURE_H
#define QF_VERIFY_STRUCTURE_H

#include "quant/ascend.h"
#include "verify/reading.h"

/* Names, order of the nodes, markers that should be gone (graph.c). *acyclic: the graphs can be
 * walked, which the other checks do. */
qf_status qf_check_graph(qf_subject *subject, bool *acyclic, qf_error *err);

/* The nodes of a deploy model that stand for quantization, and the layers between them (deploy.c,
 * layer.c, rnn.c). *layers: quantized layers. */
qf_status qf_check_deploy(qf_subject *subject, uint64_t *layers, qf_error *err);
/* The arithmetic that stands for them in a fake_quant model (fake_quant.c). */
qf_status qf_check_fake_quant(qf_subject *subject, uint64_t *layers, qf_error *err);

/* DequantizeLinear of a weight that is quantized alone (weight_only.c). *layers grows. */
qf_status qf_check_weight_only(qf_subject *subject, uint64_t *layers, qf_error *err);

/* A layer and its AscendDequant (layer.c): weight, bias, number of scales. */
qf_status qf_check_layer(qf_subject *subject, const qf_node *layer, const qf_node *dequant,
                         qf_error *err);
/* A recurrent layer (rnn.c). */
qf_status qf_check_rnn(qf_subject *subject, const qf_node *node, qf_error *err);
bool qf_is_window_cache(const qf_node *node); /* one of the two operators */

/* What is said of a quantized layer beside its numbers (operators.c): its attributes; */
void qf_check_operator(const qf_subject *subject, const qf_node *layer);
/* that the model's operator set has this Round or Clip; */
void qf_check_opset(const qf_subject *subject, const qf_node *node);
/* value_info of what an AscendQuant makes, and of what an AscendDequant reads. */
void qf_check_declared(const qf_subject *subject, const qf_node *quant);
void qf_check_sums(const qf_subject *subject, const qf_node *dequant);

/* The parameter of a dequantization: UINT64 [n], n one of `counts`, a positive float in the low
 * half of each and nothing above. 0 in `counts` stands for nothing. */
qf_status qf_check_parameter(qf_subject *subject, const qf_node *node, size_t input,
                             const uint64_t counts[3], qf_error *err);

/* One attribute that an operator must have. */
typedef struct qf_attribute_rule {
    const char *name;
    int type; /* Onnx__AttributeProto__AttributeType */
} qf_attribute_rule;
/* All of them, of their types, and no others. */
bool qf_check_attributes(qf_subject *subject, const qf_node *node, const qf_attribute_rule *rules,
                         size_t count);

/* "[2, 3]" in `buffer`. */
const char *qf_dims_text(const Onnx__TensorProto *tensor, char buffer[128]);

#endif
