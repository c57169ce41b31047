/* SPDX-License-Identifier: Apache-2.0 */
/* Mutation of serialized models, field by field. */
#ifndef QF_TESTS_FUZZ_MUTATE_ONNX_H
#define QF_TESTS_FUZZ_MUTATE_ONNX_H

#include "fuzz.h"

/* Changes a model in place, which has room for `most` bytes; returns its new size. */
size_t fuzz_mutate_onnx(uint8_t *data, size_t size, size_t most, unsigned seed);
/* Model `a` with a field of model `b`, in `out`; returns its size, 0 if there is no such model. */
size_t fuzz_cross_onnx(fuzz_part a, fuzz_part b, uint8_t *out, size_t most, unsigned seed);

#endif
