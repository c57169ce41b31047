/* SPDX-License-Identifier: Apache-2.0 */
/* Between the files that turn a layer's constants into jobs and numbers. */
#ifndef QF_QUANT_TENSORS_H
#define QF_QUANT_TENSORS_H

#include "quant/plan.h"

typedef struct qf_tensor_context {
    qf_plan *plan;
    const qf_node *node;
    const qf_probe *probe;
    qf_layer *layer;
    qf_error *err;
} qf_tensor_context;

/* A finding about the layer. */
void qf_tensor_refuse(const qf_tensor_context *t, const char *format, ...) QF_PRINTF(2, 3);
/* The tensor's name, for messages; never NULL or empty. */
const char *qf_tensor_label(const Onnx__TensorProto *tensor);

/* weights.c: W, or R of an RNN, becomes layer->weights[layer->weight_count++]. */
qf_status qf_layer_add_weight(const qf_tensor_context *t, const Onnx__TensorProto *tensor,
                              const float *scales, size_t scale_count);
/* bias.c: finds, reads and quantizes the layer's bias, if it has one. */
qf_status qf_layer_add_bias(const qf_tensor_context *t);

#endif
