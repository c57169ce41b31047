/* SPDX-License-Identifier: Apache-2.0 */
#include "simd_avx512.h"

enum { NOT_FINITE = 0x99 }; /* vfpclass: quiet and signalling NaN, both infinities */

typedef struct bounds {
    __m512 lo, hi;
} bounds;

/* rint(clamp(x / scale)) and whether x is finite. The conversion rounds to even. */
static inline __m512i quantize16(__m512 x, __m512 scale, bounds b, __mmask16 *bad)
{
    *bad |= _mm512_fpclass_ps_mask(x, NOT_FINITE);
    __m512 v = _mm512_div_ps(x, scale);
    return _mm512_cvtps_epi32(_mm512_min_ps(_mm512_max_ps(v, b.lo), b.hi));
}

static inline void store_floats(float *y, __m512i v, bool stream)
{
    if (stream)
        _mm512_stream_ps(y, _mm512_cvtepi32_ps(v));
    else
        _mm512_storeu_ps(y, _mm512_cvtepi32_ps(v));
}

/* `type` and `step` are constants in every caller; see quantize_scalar.c. */
static inline bool quantize(const void *x, size_t n, qf_element type, const float *scales,
                            size_t step, int lo, int hi, qf_quantized out)
{
    const bounds b = {_mm512_set1_ps((float)lo), _mm512_set1_ps((float)hi)};
    const __m512 first = _mm512_set1_ps(n ? scales[0] : 1.0f);
    bool stream = out.stream && (((uintptr_t)out.q | (uintptr_t)out.y) & 63) == 0;
    __mmask16 bad = 0;
    size_t i = 0;
    for (; i + 64 <= n; i += 64) {
        __m512i v[4];
        for (size_t j = 0; j < 4; j++) {
            __m512 s = step ? _mm512_loadu_ps(scales + i + 16 * j) : first;
            v[j] = quantize16(qf_stored16(x, i + 16 * j, type), s, b, &bad);
        }
        __m512i bytes = qf_bytes64(v[0], v[1], v[2], v[3]);
        if (out.q && stream)
            _mm512_stream_si512((void *)(out.q + i), bytes);
        else if (out.q)
            _mm512_storeu_si512(out.q + i, bytes);
        for (size_t j = 0; out.y && j < 4; j++)
            store_floats(out.y + i + 16 * j, v[j], stream);
    }
    for (; i < n; i += 16) {
        __mmask16 m = qf_first(n - i);
        __m512 s = step ? _mm512_mask_loadu_ps(first, m, scales + i) : first;
        __m512i v = quantize16(qf_stored_masked(x, i, type, m), s, b, &bad);
        if (out.q)
            _mm512_mask_cvtsepi32_storeu_epi8(out.q + i, m, v);
        if (out.y)
            _mm512_mask_storeu_ps(out.y + i, m, _mm512_cvtepi32_ps(v));
    }
    if (stream)
        _mm_sfence();
    return !bad;
}

bool qf_quantize_f32_avx512(const void *x, size_t n, float scale, int lo, int hi, qf_quantized out)
{
    return quantize(x, n, QF_F32, &scale, 0, lo, hi, out);
}

bool qf_quantize_f16_avx512(const void *x, size_t n, float scale, int lo, int hi, qf_quantized out)
{
    return quantize(x, n, QF_F16, &scale, 0, lo, hi, out);
}

bool qf_quantize_bf16_avx512(const void *x, size_t n, float scale, int lo, int hi, qf_quantized out)
{
    return quantize(x, n, QF_BF16, &scale, 0, lo, hi, out);
}

bool qf_quantize_columns_f32_avx512(const void *x, size_t n, const float *scales, int lo, int hi,
                                    qf_quantized out)
{
    return quantize(x, n, QF_F32, scales, 1, lo, hi, out);
}

bool qf_quantize_columns_f16_avx512(const void *x, size_t n, const float *scales, int lo, int hi,
                                    qf_quantized out)
{
    return quantize(x, n, QF_F16, scales, 1, lo, hi, out);
}

bool qf_quantize_columns_bf16_avx512(const void *x, size_t n, const float *scales, int lo, int hi,
                                     qf_quantized out)
{
    return quantize(x, n, QF_BF16, scales, 1, lo, hi, out);
}
