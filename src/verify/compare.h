/* SPDX-License-Identifier: Apache-2.0 */
/* Whether tensors of two models hold the same numbers, a stretch at a time. */
#ifndef QF_VERIFY_COMPARE_H
#define QF_VERIFY_COMPARE_H

#include "verify/reading.h"

/* One side of a comparison. */
typedef struct qf_side {
    qf_subject *subject;
    const Onnx__TensorProto *tensor;
} qf_side;

/* Notes, with the findings of `b`, the first element in which the tensors differ. The same dtype:
 * dims and bytes are equal. Integers of a deploy model (`a`) and floats, or unpacked integers, of a
 * fake_quant model (`b`): the same numbers, whether the former are packed two in a byte or not.
 * `user`: the node that reads them, for messages; NULL: `a` is what was recomputed. *skipped, which
 * may be NULL, becomes true if the data could not be compared, for dtype, dims or damage. */
qf_status qf_compare_tensors(qf_side a, qf_side b, const char *user, bool *skipped, qf_error *err);

/* The same for readings of theirs that are open. */
qf_status qf_compare_readings(qf_side a, qf_side b, const char *user, qf_reading *ra,
                              qf_reading *rb, bool *skipped, qf_error *err);

/* The packed scales of a deploy model against the float32 scales that a fake_quant model has. */
qf_status qf_compare_scales(qf_side param, qf_side scales, const char *user, bool *skipped,
                            qf_error *err);

/* An element as text; `bytes` are those of elements of `data_type`, `index` one of them. */
const char *qf_element_text(int32_t data_type, const unsigned char *bytes, uint64_t index,
                            char buffer[64]);
/* Where an element lies: ", byte 17 of file x" in `buffer`, "" if it cannot be told. */
const char *qf_element_place(const qf_reading *reading, uint64_t offset, char buffer[400]);

/* Whether `a` packs two elements of `b` along one axis into a byte: *outer, *pairs and *inner are
 * then the products of the dims before it, along it (of `a`) and behind it. */
bool qf_is_packed(const Onnx__TensorProto *a, const Onnx__TensorProto *b, uint64_t *outer,
                  uint64_t *pairs, uint64_t *inner);

#endif
