/* SPDX-License-Identifier: Apache-2.0 */
/* Serialising a model whose tensors carry payload indexes: the literal bytes, and the holes between
 * them that payloads fill. Works node by node, so that the model is not in memory a second time. */
#ifndef QF_ONNX_SPLICE_H
#define QF_ONNX_SPLICE_H

#include "onnx/payload.h"
#include "onnx/wire.h"

/* Literal bytes, then a hole for one payload. Tag and length of the payload's field are part of the
 * literal bytes. */
typedef struct qf_piece {
    const unsigned char *literal;
    size_t literal_length;
    size_t payload;    /* SIZE_MAX: no hole */
    uint64_t length;   /* of the hole */
    int32_t data_type; /* of the tensor */
} qf_piece;

typedef struct qf_spliced {
    uint64_t size;       /* of the whole serialized model */
    uint64_t graph_size; /* of its main graph message */
    qf_piece *pieces;
    size_t count, cap;
    qf_arena arena; /* of the literal bytes */
} qf_spliced;

/* On failure nothing is left to release. */
qf_status qf_splice(const Onnx__ModelProto *model, const qf_payloads *payloads, qf_spliced *out,
                    qf_error *err);
void qf_spliced_release(qf_spliced *spliced);

/* Size of the data field that stands for a payload when inline: tag, length, content. */
uint64_t qf_payload_field_size(const qf_payload *payload);
/* Size of the field that stands for it in a skeleton. */
uint64_t qf_payload_marker_size(size_t index);

#endif
