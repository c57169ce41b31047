/* SPDX-License-Identifier: Apache-2.0 */
/* The list of a model's quantizable layers, made when it is opened. */
#ifndef QF_QUANT_INSPECT_H
#define QF_QUANT_INSPECT_H

#include "onnx/model.h"

typedef struct qf_layer_scan qf_layer_scan;
/* QF_ERR_INPUT if the model's graph does not hang together. */
qf_status qf_layer_scan_create(qf_model *model, qf_layer_scan **out, qf_error *err);
void qf_layer_scan_free(qf_layer_scan *scan);

#endif
