/* SPDX-License-Identifier: Apache-2.0 */
/* Reading small constants of any numeric dtype: scales, zero points, biases, bounds. */
#ifndef QF_QUANT_CONSTANTS_H
#define QF_QUANT_CONSTANTS_H

#include "base/error.h"
#include "onnx/payload.h"

typedef struct qf_constant {
    const double *values; /* exact but for int64 and uint64 beyond 2^53 */
    size_t count;
    int32_t data_type;
} qf_constant;

/* Reads `tensor` into `arena`. On success *why is NULL, or says what is wrong with the tensor, to
 * follow its name, and *out is unset. `path` is the model's, for messages. */
qf_status qf_constant_read(const Onnx__TensorProto *tensor, const qf_payloads *payloads,
                           const char *path, qf_arena *arena, qf_constant *out, const char **why,
                           qf_error *err);

/* NULL if the stored data fits the tensor's dtype and dims, with the number of elements in *count;
 * else what is wrong with it, to follow the tensor's name. */
const char *qf_constant_check(const Onnx__TensorProto *tensor, const qf_payload *payload,
                              uint64_t *count);

/* Elements of INT4 and UINT4 lie two in a byte, the first in the low half. */
static inline int qf_nibble(const unsigned char *bytes, uint64_t index)
{
    return bytes[index / 2] >> (index % 2 * 4) & 15;
}

#endif
