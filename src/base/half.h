/* SPDX-License-Identifier: Apache-2.0 */
/* float32 to 16-bit floats, rounding to nearest even, and back; for single values, kernels do
 * arrays.
 */
#ifndef QF_BASE_HALF_H
#define QF_BASE_HALF_H

#include <stdint.h>

/* IEEE binary16; overflow gives infinity. */
uint16_t qf_float_to_half(float value);
uint16_t qf_float_to_bfloat(float value);
float qf_half_value(uint16_t half);
float qf_bfloat_value(uint16_t bfloat);

#endif
