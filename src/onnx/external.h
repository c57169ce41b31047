/* SPDX-License-Identifier: Apache-2.0 */
/* External data of the source: resolving locations without leaving the model's folder. */
#ifndef QF_ONNX_EXTERNAL_H
#define QF_ONNX_EXTERNAL_H

#include "onnx/model.h"

/* Gives each external tensor of `proto`, which lies in `arena`, a payload that points into a mapped
 * file. Refuses absolute locations, "..", links that lead out of the folder, missing files, and
 * offset and length that do not fit the file or the tensor's dims. */
qf_status qf_external_resolve(qf_model *model, qf_arena *arena, Onnx__ModelProto *proto,
                              qf_error *err);
/* The same, and what is refused becomes a finding: the tensor stays without a payload. */
qf_status qf_external_resolve_noting(qf_model *model, qf_arena *arena, Onnx__ModelProto *proto,
                                     qf_diagnostics *findings, qf_error *err);

#endif
