/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Payloads: the bytes of tensors, kept apart from the graph.
 *
 * A skeleton (see scan.h) holds TensorProtos without their data. In its place each carries one
 * private unknown field, QF_PAYLOAD_FIELD, whose varint is an index into a payload table. Being an
 * unknown field, it survives unpacking, packing and moving of the message with no help; the
 * serialiser (layout.h) replaces it by the payload's bytes, inline or as external data.
 */
#ifndef QF_ONNX_PAYLOAD_H
#define QF_ONNX_PAYLOAD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/arena.h"
#include "onnx.pb-c.h"

/* The largest field number that protobuf allows; models that use it in a tensor are refused. */
enum { QF_PAYLOAD_FIELD = 536870911 };

/* Field numbers of TensorProto's data fields. */
enum {
    QF_FIELD_FLOAT_DATA = 4,
    QF_FIELD_INT32_DATA = 5,
    QF_FIELD_INT64_DATA = 7,
    QF_FIELD_RAW_DATA = 9,
    QF_FIELD_DOUBLE_DATA = 10,
    QF_FIELD_UINT64_DATA = 11,
};

/* TensorProto.DataType; onnx.proto files before 1.16 do not name them. */
enum { QF_DTYPE_F8_E4M3FN = 17, QF_DTYPE_F8_E5M2 = 19, QF_DTYPE_UINT4 = 21, QF_DTYPE_INT4 = 22 };

/* Bytes in a source file. */
typedef struct qf_span {
    const unsigned char *data;
    uint64_t length;
    /* How the bytes encode the elements: QF_FIELD_RAW_DATA, _FLOAT_DATA and _DOUBLE_DATA are plain
     * little-endian elements, the integer fields are varints. */
    int field;
    int file;        /* index of the source file; 0 is the .onnx */
    uint64_t offset; /* in that file, for messages */
} qf_span;

typedef enum qf_payload_kind {
    QF_PAYLOAD_SPAN,   /* bytes of the source, unchanged */
    QF_PAYLOAD_BYTES,  /* small data made by the plan: raw little-endian elements in memory */
    QF_PAYLOAD_JOB,    /* result of a quantization job, raw little-endian elements */
    QF_PAYLOAD_SCALES, /* the scales that a job finds, likewise */
} qf_payload_kind;

struct qf_job;

typedef struct qf_payload {
    qf_payload_kind kind;
    int field;           /* data field of TensorProto it is written to when inline */
    qf_span span;        /* SPAN; for JOB: the source */
    const void *bytes;   /* BYTES; as long as the table */
    uint64_t raw_length; /* bytes as raw little-endian elements; for varint SPANs from dims */
    struct qf_job *job;  /* JOB, SCALES */
    bool was_external;   /* the source kept this tensor outside the .onnx */
} qf_payload;

typedef struct qf_payloads {
    qf_payload *items;
    size_t count, cap;
} qf_payloads;

/* Appends and returns the index, or SIZE_MAX when memory is exhausted. */
size_t qf_payloads_add(qf_payloads *table, qf_payload payload);
/* Makes `to`, which is empty, a copy. False when memory is exhausted. */
bool qf_payloads_copy(qf_payloads *to, const qf_payloads *from);
void qf_payloads_release(qf_payloads *table);

/* Index of the tensor's payload, or SIZE_MAX if it has none. */
size_t qf_tensor_payload(const Onnx__TensorProto *tensor);
/* Sets or replaces the tensor's payload and clears its data fields. False: out of memory. */
bool qf_tensor_set_payload(qf_arena *arena, Onnx__TensorProto *tensor, size_t payload);

void qf_tensor_clear_payload(Onnx__TensorProto *tensor);

/* Size of one element in bits (4 for INT4/UINT4), 0 for strings and unknown types. */
unsigned qf_dtype_bits(int32_t data_type);
/* "float32", "int8", ...; "unknown" otherwise. */
const char *qf_dtype_name(int32_t data_type);
/* Whether a data field holds varints; the others hold plain little-endian elements. */
bool qf_field_is_varint(int field);
/* In a field of varints, each holds an element, or a byte of two 4-bit elements: the bytes that a
 * varint stands for, and the number of varints. */
unsigned qf_varint_width(int32_t data_type);
uint64_t qf_varint_count(int32_t data_type, uint64_t elements);
/* Number of elements, false when a dimension is negative or the product exceeds 2^60. */
bool qf_dims_count(const int64_t *dims, size_t rank, uint64_t *count);
/* Bytes of `count` elements packed as raw_data. */
uint64_t qf_raw_bytes(int32_t data_type, uint64_t count);

#endif
