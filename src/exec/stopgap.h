/* to be removed when the kernels land */
#ifndef STOPGAP_H
#define STOPGAP_H
#include <math.h>
#include "bits.h"
typedef struct qf_error_sums {
    double signal, noise;
    float max_error;
    uint64_t clipped;
} qf_error_sums;
typedef bool (*sg_abs)(const void *, size_t, float *);
#define SG(T, TY) \
    static inline bool sg_abs_##T(const void *x, size_t n, float *m) \
    { \
        bool f = true; \
        for (size_t i = 0; i < n; i++) { \
            float v = fabsf(qf_stored(x, i, TY)); \
            f &= !qf_nonfinite(v); \
            if (v > *m) \
                *m = v; \
        } \
        return f; \
    } \
    static inline bool sg_absc_##T(const void *x, size_t n, float *m) \
    { \
        bool f = true; \
        for (size_t i = 0; i < n; i++) { \
            float v = fabsf(qf_stored(x, i, TY)); \
            f &= !qf_nonfinite(v); \
            if (v > m[i]) \
                m[i] = v; \
        } \
        return f; \
    } \
    static inline void sg_errc_##T(const void *x, const int8_t *q, size_t n, const float *s, \
                                   qf_error_sums *e) \
    { \
        for (size_t i = 0; i < n; i++) { \
            float v = qf_stored(x, i, TY), d = v - (float)q[i] * s[i]; \
            e->signal += v * v; \
            e->noise += d * d; \
            if (fabsf(d) > e->max_error) \
                e->max_error = fabsf(d); \
            e->clipped += fabsf(d) > 0.51f * s[i]; \
        } \
    } \
    static inline void sg_err_##T(const void *x, const int8_t *q, size_t n, float s, \
                                  qf_error_sums *e) \
    { \
        for (size_t i = 0; i < n; i++) { \
            float v = qf_stored(x, i, TY), d = v - (float)q[i] * s; \
            e->signal += v * v; \
            e->noise += d * d; \
            if (fabsf(d) > e->max_error) \
                e->max_error = fabsf(d); \
            e->clipped += fabsf(d) > 0.51f * s; \
        } \
    }
SG(a, QF_F32)
SG(b, QF_F16) SG(c, QF_BF16) static inline sg_abs qf_absmax_for(const qf_kernels *k, qf_element t)
{
    (void)k;
    return t == QF_F32 ? sg_abs_a : t == QF_F16 ? sg_abs_b : sg_abs_c;
}
static inline sg_abs qf_absmax_columns_for(const qf_kernels *k, qf_element t)
{
    (void)k;
    return t == QF_F32 ? sg_absc_a : t == QF_F16 ? sg_absc_b : sg_absc_c;
}
typedef void (*sg_e)(const void *, const int8_t *, size_t, float, qf_error_sums *);
typedef void (*sg_ec)(const void *, const int8_t *, size_t, const float *, qf_error_sums *);
static inline sg_e qf_errors_for(const qf_kernels *k, qf_element t)
{
    (void)k;
    return t == QF_F32 ? sg_err_a : t == QF_F16 ? sg_err_b : sg_err_c;
}
static inline sg_ec qf_errors_columns_for(const qf_kernels *k, qf_element t)
{
    (void)k;
    return t == QF_F32 ? sg_errc_a : t == QF_F16 ? sg_errc_b : sg_errc_c;
}
#endif
