/* SPDX-License-Identifier: Apache-2.0 */
/* The protobuf wire format, as far as walking, measuring and splicing messages needs it. */
#ifndef QF_ONNX_WIRE_H
#define QF_ONNX_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { QF_WIRE_VARINT = 0, QF_WIRE_I64 = 1, QF_WIRE_LEN = 2, QF_WIRE_I32 = 5 };
enum { QF_VARINT_MAX = 10 };

typedef struct qf_wire {
    const unsigned char *at, *end;
} qf_wire;

/* One field. For QF_WIRE_LEN `data`/`length` are the payload; for the others, the encoded value. */
typedef struct qf_wire_field {
    const unsigned char *start; /* of the tag */
    uint32_t number;
    unsigned type;
    const unsigned char *data;
    uint64_t length;
} qf_wire_field;

/* False when the varint is cut off, longer than ten bytes or over 64 bits. */
bool qf_wire_varint(qf_wire *wire, uint64_t *value);
/* Reads the next field; false when it is malformed, cut off or a group. Call while at < end. */
bool qf_wire_next(qf_wire *wire, qf_wire_field *field);

size_t qf_varint_size(uint64_t value);
/* Writes the varint at `out` (room for QF_VARINT_MAX bytes) and returns its size. */
size_t qf_varint_put(unsigned char *out, uint64_t value);
/* Size of a length-delimited field: tag, length, payload. */
uint64_t qf_len_field_size(uint32_t number, uint64_t length);

#endif
