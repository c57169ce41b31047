/* SPDX-License-Identifier: Apache-2.0 */
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "variants.h"

#ifdef __x86_64__
#include <cpuid.h>
#endif

#define ENTRY(kernel, isa) .kernel = qf_##kernel##_##isa,
#define TABLE(isa) {.name = #isa, QF_KERNELS(ENTRY, isa)},
static const qf_kernels tables[] = {QF_ISAS(TABLE)};
enum { TABLES = sizeof tables / sizeof *tables };

#ifdef __x86_64__
/* The compiler's own test covers whether the system saves the registers, but not F16C everywhere.
 */
static bool has_avx2(void)
{
    unsigned a, b, c, d;
    return __builtin_cpu_supports("avx2") && __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}

static bool has_avx512(void)
{
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif

/* NEON is part of aarch64. */
static bool runs(const qf_kernels *k)
{
#ifdef __x86_64__
    if (strcmp(k->name, "avx512") == 0)
        return has_avx512();
    if (strcmp(k->name, "avx2") == 0)
        return has_avx2();
#endif
    return k->name != NULL;
}

const qf_kernels *qf_kernels_at(size_t i)
{
    for (size_t t = 0; t < TABLES; t++) {
        if (runs(&tables[t]) && i-- == 0)
            return &tables[t];
    }
    return NULL;
}

static const qf_kernels *fastest(void)
{
    const qf_kernels *k = &tables[0];
    for (size_t i = 0; qf_kernels_at(i); i++)
        k = qf_kernels_at(i);
    return k;
}

/* The kernels that QUANTFOLD_ISA names, NULL if it is not set or names none that run here. */
static const qf_kernels *wanted(void)
{
    const char *name = getenv("QUANTFOLD_ISA");
    for (size_t i = 0; name && qf_kernels_at(i); i++) {
        if (strcmp(qf_kernels_at(i)->name, name) == 0)
            return qf_kernels_at(i);
    }
    return NULL;
}

const qf_kernels *qf_kernels_get(void)
{
    static _Atomic(const qf_kernels *) chosen;
    const qf_kernels *k = atomic_load_explicit(&chosen, memory_order_relaxed);
    if (!k) {
        k = wanted();
        k = k ? k : fastest();
        atomic_store_explicit(&chosen, k, memory_order_relaxed);
    }
    return k;
}

const char *qf_kernels_refused(void)
{
    const char *name = getenv("QUANTFOLD_ISA");
    return name && *name && !wanted() ? name : NULL;
}
