/* SPDX-License-Identifier: Apache-2.0 */
/* One loop: while the divider works, the ports beside it add up the errors. */
#include "errors.h"
#include "simd_avx512.h"

enum {
    NOT_FINITE = 0x99,   /* vfpclass: quiet and signalling NaN, both infinities */
    LARGER_OF_ABS = 0x0b /* vrange: the larger magnitude, without its sign */
};

/* What a run has so far; 16 lanes of each, as errors.h has them. */
typedef struct run_state {
    __m512 signal, noise, most, lo, hi;
    uint64_t clipped, ends;
} run_state;

/* Sixteen elements: their integers. Clipped ones are counted here if each has its scale; if all
 * have one, the largest error tells whether there are any. */
static inline __m512i measure16(__m512 x, __m512 scale, size_t step, run_state *r)
{
    __m512 v = _mm512_min_ps(_mm512_max_ps(_mm512_div_ps(x, scale), r->lo), r->hi);
    __m512i q = _mm512_cvtps_epi32(v);
    __m512 e = _mm512_sub_ps(x, _mm512_mul_ps(_mm512_cvtepi32_ps(q), scale));
    r->signal = _mm512_add_ps(r->signal, _mm512_mul_ps(x, x));
    r->noise = _mm512_add_ps(r->noise, _mm512_mul_ps(e, e));
    r->most = _mm512_range_ps(r->most, e, LARGER_OF_ABS);
    if (step) {
        __m512 limit = _mm512_mul_ps(_mm512_set1_ps(QF_CLIPPED), scale);
        r->clipped +=
            (unsigned)__builtin_popcount(_mm512_cmp_ps_mask(_mm512_abs_ps(e), limit, _CMP_GT_OQ));
    }
    return q;
}

/* How many of n elements, a multiple of 16, are clipped. */
static inline uint64_t count_clipped(const char *run, const int8_t *q, qf_element type, size_t n,
                                     float scale)
{
    const __m512 s = _mm512_set1_ps(scale), limit = _mm512_set1_ps(QF_CLIPPED * scale);
    uint64_t clipped = 0;
    for (size_t i = 0; i < n; i += 16) {
        __m512i w = _mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)(q + i)));
        __m512 e =
            _mm512_sub_ps(qf_stored16(run, i, type), _mm512_mul_ps(_mm512_cvtepi32_ps(w), s));
        clipped +=
            (unsigned)__builtin_popcount(_mm512_cmp_ps_mask(_mm512_abs_ps(e), limit, _CMP_GT_OQ));
    }
    return clipped;
}

/* Whether n elements, a multiple of 16, are all finite. Where one is not, neither is the sum of
 * squares of its lane, so that there is seldom reason to ask. */
static inline bool all_finite(const char *run, qf_element type, size_t n)
{
    __mmask16 bad = 0;
    for (size_t i = 0; i < n; i += 16)
        bad |= _mm512_fpclass_ps_mask(qf_stored16(run, i, type), NOT_FINITE);
    return !bad;
}

/* The last few of a run: quantized by the scalar definition, added by that of the errors. */
static inline bool finish(const char *run, qf_element type, size_t from, size_t n,
                          const float *scales, size_t step, int lo, int hi, qf_quantized out,
                          qf_error_lanes *lanes, qf_error_sums *sums)
{
    static const qf_quantize_columns_fn columns[] = {qf_quantize_columns_f32_scalar,
                                                     qf_quantize_columns_f16_scalar,
                                                     qf_quantize_columns_bf16_scalar};
    static const qf_quantize_fn one[] = {qf_quantize_f32_scalar, qf_quantize_f16_scalar,
                                         qf_quantize_bf16_scalar};
    const char *at = run + from * qf_element_size(type);
    qf_quantized to = qf_quantized_behind(out, from);
    bool finite = true;
    if (from == n)
        return true;
    finite = step ? columns[type](at, 1, n - from, scales + from, lo, hi, to)
                  : one[type](at, n - from, *scales, lo, hi, to);
    qf_errors_rest(run, out.q, from, n, scales, step, type, lanes, sums);
    return finite;
}

/* A run of at most QF_ERROR_RUN elements; `type` and `step` are constants in every caller. */
static inline bool measure_run(const char *run, qf_element type, size_t n, const float *scales,
                               size_t step, int lo, int hi, qf_quantized out, qf_error_sums *sums)
{
    const __m512 zero = _mm512_setzero_ps(), first = _mm512_set1_ps(scales[0]);
    run_state r = {zero, zero, zero, _mm512_set1_ps((float)lo), _mm512_set1_ps((float)hi), 0, 0};
    const __m512i low = _mm512_set1_epi8((char)lo), high = _mm512_set1_epi8((char)hi);
    size_t i = 0;
    for (; i + 64 <= n; i += 64) {
        __m512i v[4];
        for (size_t j = 0; j < 4; j++) {
            size_t at = i + 16 * j;
            v[j] = measure16(qf_stored16(run, at, type),
                             step ? _mm512_loadu_ps(scales + at) : first, step, &r);
        }
        __m512i q = qf_bytes64(v[0], v[1], v[2], v[3]);
        _mm512_storeu_si512(out.q + i, q);
        r.ends += (unsigned)__builtin_popcountll(_mm512_cmpeq_epi8_mask(q, low) |
                                                 _mm512_cmpeq_epi8_mask(q, high));
        for (size_t j = 0; out.y && j < 4; j++)
            _mm512_storeu_ps(out.y + i + 16 * j, _mm512_cvtepi32_ps(v[j]));
    }
    const size_t packed = i;
    for (; i + 16 <= n; i += 16) {
        __m512i v = measure16(qf_stored16(run, i, type), step ? _mm512_loadu_ps(scales + i) : first,
                              step, &r);
        _mm_storeu_si128((void *)(out.q + i), _mm512_cvtsepi32_epi8(v));
        if (out.y)
            _mm512_storeu_ps(out.y + i, _mm512_cvtepi32_ps(v));
    }
    qf_error_lanes lanes;
    float found = _mm512_reduce_max_ps(r.most);
    sums->max_error = found > sums->max_error ? found : sums->max_error;
    if (!step && found > QF_CLIPPED * scales[0])
        r.clipped = count_clipped(run, out.q, type, i, scales[0]);
    sums->clipped += r.clipped;
    _mm512_storeu_ps(lanes.signal, r.signal);
    _mm512_storeu_ps(lanes.noise, r.noise);
    bool finite = !_mm512_fpclass_ps_mask(r.signal, NOT_FINITE) || all_finite(run, type, i);
    finite &= finish(run, type, i, n, scales, step, lo, hi, out, &lanes, sums);
    if (sums->with_ends)
        sums->ends += r.ends + qf_ends_scalar(out.q + packed, n - packed, lo, hi);
    qf_errors_join(&lanes, sums);
    return finite;
}

static inline bool measure(const void *x, qf_element type, size_t n, const float *scales,
                           size_t step, int lo, int hi, qf_quantized out, qf_error_sums *sums)
{
    bool finite = true;
    for (size_t at = 0; at < n; at += QF_ERROR_RUN) {
        size_t m = n - at < QF_ERROR_RUN ? n - at : QF_ERROR_RUN;
        finite &= measure_run((const char *)x + at * qf_element_size(type), type, m,
                              scales + at * step, step, lo, hi, qf_quantized_behind(out, at), sums);
    }
    return finite;
}

bool qf_measure_avx512(const void *x, qf_element type, size_t n, const float *scales, size_t step,
                       int lo, int hi, qf_quantized out, qf_error_sums *sums)
{
    switch (type) {
    case QF_F16:
        return step ? measure(x, QF_F16, n, scales, 1, lo, hi, out, sums)
                    : measure(x, QF_F16, n, scales, 0, lo, hi, out, sums);
    case QF_BF16:
        return step ? measure(x, QF_BF16, n, scales, 1, lo, hi, out, sums)
                    : measure(x, QF_BF16, n, scales, 0, lo, hi, out, sums);
    case QF_F32:
        break;
    }
    return step ? measure(x, QF_F32, n, scales, 1, lo, hi, out, sums)
                : measure(x, QF_F32, n, scales, 0, lo, hi, out, sums);
}
