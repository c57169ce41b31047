/* SPDX-License-Identifier: Apache-2.0 */
/* Serialising a model whose tensors carry payload indexes: the literal bytes, and the holes between
 * them that payloads fill. */
#ifndef QF_ONNX_SPLICE_H
#define QF_ONNX_SPLICE_H

#include "onnx/payload.h"
#include "onnx/wire.h"

/* A gap for one payload. Tag and length of its field are part of the literal bytes before it. */
typedef struct qf_hole {
    size_t literal_before; /* literal bytes since the previous hole */
    size_t payload;
    uint64_t length;
    int32_t data_type; /* of the tensor */
} qf_hole;

typedef struct qf_spliced {
    uint64_t size;       /* of the whole serialized model */
    uint64_t graph_size; /* of its main graph message */
    unsigned char *literals;
    size_t literal_length, literal_cap;
    qf_hole *holes;
    size_t hole_count, hole_cap;
} qf_spliced;

/* Sizes alone. */
qf_status qf_splice_measure(const Onnx__ModelProto *model, const qf_payloads *payloads,
                            qf_spliced *out, qf_error *err);
/* Everything. */
qf_status qf_splice(const Onnx__ModelProto *model, const qf_payloads *payloads, qf_spliced *out,
                    qf_error *err);
void qf_spliced_release(qf_spliced *spliced);

/* Size of the data field that stands for a payload when inline: tag, length, content. */
uint64_t qf_payload_field_size(const qf_payload *payload);
/* Size of the field that stands for it in a skeleton. */
uint64_t qf_payload_marker_size(size_t index);

#endif
