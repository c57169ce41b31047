/* SPDX-License-Identifier: Apache-2.0 */
/* An opened model: the mapped files, the skeleton, the payload table of the source. */
#ifndef QF_ONNX_MODEL_H
#define QF_ONNX_MODEL_H

#include "base/file.h"
#include "onnx/graph.h"
#include "onnx/payload.h"

struct qf_model {
    char *folder;   /* real path of the folder that external locations are relative to */
    qf_file *files; /* [0] is the .onnx, the others hold external data */
    size_t file_count, file_cap;
    qf_payloads payloads;
    unsigned char *skeleton; /* serialized ModelProto, external tensors with payloads as well */
    size_t skeleton_length;
    struct qf_layer_scan *layers; /* quant/inspect.c */
};

/* Unpacks a skeleton into `arena`. */
qf_status qf_skeleton_unpack(const unsigned char *skeleton, size_t length, const char *path,
                             qf_arena *arena, Onnx__ModelProto **out, qf_error *err);
/* Packs a model; *out is to be freed by qf_spill_free. */
qf_status qf_skeleton_pack(const Onnx__ModelProto *model, unsigned char **out, size_t *length,
                           qf_error *err);

/* A skeleton unpacked and linked, with memory of its own: what a step or a target works on. */
typedef struct qf_linked {
    qf_arena arena;
    Onnx__ModelProto *model;
    qf_ir ir;
} qf_linked;
/* On failure nothing is left to close. The struct must not move while it is open. */
qf_status qf_linked_open(const unsigned char *skeleton, size_t length, const char *path,
                         qf_linked *out, qf_error *err);
void qf_linked_close(qf_linked *linked);

/* Calls `visit` for each TensorProto in the model, wherever it is. Stops at the first status that
 * is not QF_OK and returns it. */
typedef qf_status (*qf_tensor_visitor)(Onnx__TensorProto *tensor, void *user);
qf_status qf_model_each_tensor(Onnx__ModelProto *model, qf_tensor_visitor visit, void *user);

struct stat;
/* Whether what `st` tells of is the .onnx or one of its external files. */
bool qf_model_is_file(const qf_model *model, const struct stat *st);

#endif
