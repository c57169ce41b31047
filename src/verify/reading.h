/* SPDX-License-Identifier: Apache-2.0 */
/* A tensor's data as plain little-endian elements, a stretch at a time, whichever way it is stored.
 */
#ifndef QF_VERIFY_READING_H
#define QF_VERIFY_READING_H

#include "exec/job.h"
#include "verify/subject.h"

enum { QF_READING_MOST = 256 * 1024 }; /* bytes of a stretch */

typedef struct qf_reading {
    const Onnx__TensorProto *tensor;
    const qf_span *span; /* NULL: `own` has the elements */
    const qf_file *file; /* of the span; NULL: nothing is let go of */
    qf_varint_index index;
    unsigned width;        /* bytes that a varint stands for */
    uint64_t count;        /* elements */
    uint64_t bytes;        /* of all elements */
    uint64_t kept;         /* bytes from here on may be in memory */
    unsigned char *own;    /* the arena's */
    unsigned char *buffer; /* for stretches that are not plain in the file */
} qf_reading;

/* On success *why is NULL, or says what is wrong with the tensor, to follow its name; nothing is
 * then to be closed. */
qf_status qf_reading_open(qf_subject *subject, const Onnx__TensorProto *tensor, qf_reading *out,
                          const char **why, qf_error *err);
/* The same for bytes that are nobody's tensor: `span` of `file` as elements of `data_type`. */
qf_status qf_reading_of_span(const qf_span *span, const qf_file *file, int32_t data_type,
                             uint64_t count, qf_reading *out, const char **why, qf_error *err);
/* Elements as bytes [offset, offset + n), n at most QF_READING_MOST, both multiples of an element's
 * bytes. Valid until the next call. NULL when memory is exhausted. */
const unsigned char *qf_reading_at(qf_reading *reading, uint64_t offset, size_t n);
/* [offset, offset + n) was read, and those before it: lets go of their pages now and then. */
void qf_reading_forget(qf_reading *reading, uint64_t offset, uint64_t n);
/* Lets go of the pages of [offset, offset + n) at once; may be called by several threads. */
void qf_reading_drop(const qf_reading *reading, uint64_t offset, uint64_t n);
void qf_reading_close(qf_reading *reading);

/* A whole small tensor as float32, in the subject's arena; int8 and int32 become their values. NULL
 * in *out if it has another dtype, or its data is wrong. At most `most` elements are read. */
qf_status qf_reading_floats(qf_subject *subject, const Onnx__TensorProto *tensor, uint64_t most,
                            const float **out, uint64_t *count, qf_error *err);

/* What is wrong with a tensor's data, if anything: every tensor of the model. */
qf_status qf_check_tensors(qf_subject *subject, uint64_t *tensors, qf_error *err);

/* What messages call the subject's tensor: its name, or that of the node that has it in an
 * attribute (label.c). */
const char *qf_label(qf_subject *subject, const Onnx__TensorProto *tensor);

#endif
