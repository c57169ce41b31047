/* SPDX-License-Identifier: Apache-2.0 */
/* Reading elements of a source span, however it encodes them. */
#ifndef QF_EXEC_SOURCE_H
#define QF_EXEC_SOURCE_H

#include "exec/job.h"

/* Elements [first, first + n) as float32. data_type is FLOAT, FLOAT16, BFLOAT16 or DOUBLE. */
void qf_source_floats(const qf_span *span, const qf_varint_index *index, int32_t data_type,
                      uint64_t first, size_t n, float *out);
/* Elements [first, first + n) of a varint span as plain elements of `width` bytes. */
void qf_source_elements(const qf_span *span, const qf_varint_index *index, unsigned width,
                        uint64_t first, size_t n, unsigned char *out);

#endif
