/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The safetensors format: 8 bytes with the length of a JSON header (little-endian), the header, the
 * data. The header says of each tensor its dtype, its shape and where its bytes begin and end in
 * the data, all of which is somebody's.
 */
#ifndef QF_CHECKPOINT_SAFETENSORS_H
#define QF_CHECKPOINT_SAFETENSORS_H

#include "base/arena.h"
#include "base/file.h"
#include "onnx/payload.h"

enum { QF_SAFETENSORS_HEADER_MOST = 100000000 }; /* bytes; the format's own limit */

typedef struct qf_safetensor {
    const char *name, *dtype;
    int32_t data_type; /* TensorProto's; 0 where it has none, and the tensor can only be copied */
    const int64_t *dims;
    size_t rank;
    uint64_t offset, length; /* in the file */
    int file;                /* the number given to qf_safetensors_read */
} qf_safetensor;

typedef struct qf_safetensors {
    qf_safetensor *items; /* of a file: by offset; to be released with qf_spill_free */
    size_t count, cap;
} qf_safetensors;

/* Appends the tensors of a file; their texts and dims go to the arena, which outlives them, and so
 * does *metadata, the `__metadata__` object as JSON text (NULL if there is none). QF_ERR_INPUT,
 * naming the byte or the tensor, for a file that is not what the format says. */
qf_status qf_safetensors_read(const qf_file *file, int number, qf_arena *arena,
                              qf_safetensors *tensors, const char **metadata, qf_error *err);
/* The tensor's bytes. */
qf_span qf_safetensor_span(const qf_safetensor *tensor, const qf_file *files);
/* Bits of an element; 0 if the dtype is not known. */
unsigned qf_safetensor_bits(const char *dtype);
/* The name of a TensorProto dtype here; NULL if it has none. */
const char *qf_safetensor_dtype(int32_t data_type);

#endif
