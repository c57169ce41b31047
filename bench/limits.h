/* SPDX-License-Identifier: Apache-2.0 */
/* What the machine can do at most, measured beside the kernels: memory traffic without arithmetic,
 * and division without memory traffic. */
#ifndef QF_BENCH_LIMITS_H
#define QF_BENCH_LIMITS_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Reads `read` and writes `write` bytes for each of n / 128 groups of 128 elements, multiples of
 * 64: the widest loads of the machine, and stores past the cache where it has them. */
void qf_limit_traffic(const void *src, void *dst, size_t n, size_t read, size_t write);

/* Divides n floats by one another, vector by vector, and stores nothing. By instruction set; NULL
 * if this machine lacks it. */
typedef float (*qf_divider)(const float *x, size_t n, float by);
qf_divider qf_limit_divider(const char *isa);

/* clamp(rint(x / scale)) as a plain loop, left to the compiler with all that this machine has. */
void qf_plain_quantize(const float *x, size_t n, float scale, int8_t *q);

#ifdef __cplusplus
}
#endif
#endif
