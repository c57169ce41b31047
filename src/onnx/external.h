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
/* The same, and what is refused is handed to `note`: the tensor stays without a payload. */
typedef void (*qf_refused_fn)(const qf_error *why, void *user);
qf_status qf_external_resolve_noting(qf_model *model, qf_arena *arena, Onnx__ModelProto *proto,
                                     qf_refused_fn note, void *user, qf_error *err);

#endif
