/* SPDX-License-Identifier: Apache-2.0 */
/* What the numbers of an AscendQuant may be, for those that read deploy models. */
#ifndef QF_QUANT_ASCEND_H
#define QF_QUANT_ASCEND_H

#include <stdbool.h>

#include "onnx.pb-c.h"

/* 4, 8, 16; 0 for anything else. */
int qf_dst_bits(const Onnx__AttributeProto *a);
/* Integral and inside the range of dst_type; INT4 allows that of INT8, as the reference does. */
bool qf_offset_fits(float offset, int bits);
/* Whether a scale is finite and above zero. */
bool qf_scale_fits(float scale);

#endif
