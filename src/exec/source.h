/* SPDX-License-Identifier: Apache-2.0 */
/* Reading elements of a source span, however it encodes them. */
#ifndef QF_EXEC_SOURCE_H
#define QF_EXEC_SOURCE_H

#include "exec/job.h"

/* Elements [first, first + n) as float32. data_type is FLOAT, FLOAT16, BFLOAT16 or DOUBLE. */
void qf_source_floats(const qf_span *span, const qf_varint_index *index, int32_t data_type,
                      uint64_t first, size_t n, float *out);
/* Whether qf_source_ints reads this dtype: INT8, UINT8, INT4, UINT4. */
bool qf_source_is_integer(int32_t data_type);
/* Elements [first, first + n) of an integer tensor; unsigned ones less the middle of their range,
 * 128 or 8, so that a zero point there becomes 0. */
void qf_source_ints(const qf_span *span, const qf_varint_index *index, int32_t data_type,
                    uint64_t first, size_t n, int8_t *out);
/* Elements [first, first + n) of a varint span as plain elements of `width` bytes. */
void qf_source_elements(const qf_span *span, const qf_varint_index *index, unsigned width,
                        uint64_t first, size_t n, unsigned char *out);

#endif
