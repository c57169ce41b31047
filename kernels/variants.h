/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The two lists behind the tables. A new kernel is a line in QF_KERNELS and a member of qf_kernels;
 * a new instruction set is a line in QF_ISAS, a test in dispatch.c and its files. Each pair of them
 * is a function qf_<kernel>_<isa>, typed by the table's member.
 */
#ifndef QF_KERNELS_VARIANTS_H
#define QF_KERNELS_VARIANTS_H

#include "kernels.h"

/* clang-format off */
#define QF_KERNELS(X, isa)                                                                         \
    X(load_f16, isa) X(load_bf16, isa) X(load_f64, isa) X(scale, isa) X(quantize_f32, isa)         \
    X(quantize_f16, isa) X(quantize_bf16, isa) X(quantize_columns_f32, isa)                        \
    X(quantize_columns_f16, isa) X(quantize_columns_bf16, isa) X(absmax_f32, isa)                  \
    X(absmax_f16, isa) X(absmax_bf16, isa) X(absmax_columns_f32, isa)                              \
    X(absmax_columns_f16, isa) X(absmax_columns_bf16, isa) X(minmax, isa)                          \
    X(minmax_columns, isa) X(errors_f32, isa) X(errors_f16, isa) X(errors_bf16, isa)               \
    X(errors_columns_f32, isa) X(errors_columns_f16, isa) X(errors_columns_bf16, isa)              \
    X(measure, isa) X(ends, isa)                                                                   \
    X(widen, isa) X(dequantize, isa) X(dequantize_columns, isa) X(pack_pairs, isa)                 \
    X(pack_rows, isa) X(bias_f32, isa) X(bias_f64, isa) X(dequant_scale, isa)                      \
    X(dequant_pack, isa) X(transpose, isa)

/* Those built for this processor family, slowest first. */
#if defined(__x86_64__)
#define QF_ISAS(X) X(scalar) X(avx2) X(avx512)
#elif defined(__aarch64__)
#define QF_ISAS(X) X(scalar) X(neon)
#else
#define QF_ISAS(X) X(scalar)
#endif
/* clang-format on */

#define QF_DECLARE(kernel, isa) extern __typeof__(*((qf_kernels *)0)->kernel) qf_##kernel##_##isa;
#define QF_DECLARE_ALL(isa) QF_KERNELS(QF_DECLARE, isa)
QF_ISAS(QF_DECLARE_ALL)
#undef QF_DECLARE
#undef QF_DECLARE_ALL

#endif
