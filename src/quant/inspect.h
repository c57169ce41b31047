/* SPDX-License-Identifier: Apache-2.0 */
/* What a model holds: its description and the list of its quantizable layers, made when it is
 * opened. */
#ifndef QF_QUANT_INSPECT_H
#define QF_QUANT_INSPECT_H

#include "onnx/model.h"

typedef struct qf_layer_scan qf_layer_scan;
/* `proto` is the model's skeleton, unpacked into `arena`; it is used up. QF_ERR_INPUT if the graph
 * does not hang together. */
qf_status qf_layer_scan_create(qf_model *model, qf_arena *arena, Onnx__ModelProto *proto,
                               qf_layer_scan **out, qf_error *err);
void qf_layer_scan_free(qf_layer_scan *scan);

#endif
