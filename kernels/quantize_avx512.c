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

/* Streaming stores want whole cache lines. */
static inline qf_quantized aligned_only(qf_quantized out)
{
    out.stream = out.stream && (((uintptr_t)out.q | (uintptr_t)out.y) & 63) == 0;
    return out;
}

/* 64 results at `at`. */
static inline void store(qf_quantized out, size_t at, const __m512i v[4])
{
    __m512i bytes = qf_bytes64(v[0], v[1], v[2], v[3]);
    if (out.q && out.stream)
        _mm512_stream_si512((void *)(out.q + at), bytes);
    else if (out.q)
        _mm512_storeu_si512(out.q + at, bytes);
    for (size_t j = 0; out.y && j < 4; j++) {
        __m512 y = _mm512_cvtepi32_ps(v[j]);
        if (out.stream)
            _mm512_stream_ps(out.y + at + 16 * j, y);
        else
            _mm512_storeu_ps(out.y + at + 16 * j, y);
    }
}

/* `type` and `step` are constants in every caller; see quantize_scalar.c. */
static inline bool quantize(const void *x, size_t n, qf_element type, const float *scales,
                            size_t step, int lo, int hi, qf_quantized out)
{
    const bounds b = {_mm512_set1_ps((float)lo), _mm512_set1_ps((float)hi)};
    const __m512 first = _mm512_set1_ps(n ? scales[0] : 1.0f);
    out = aligned_only(out);
    __mmask16 bad = 0;
    size_t i = 0;
    for (; i + 64 <= n; i += 64) {
        __m512i v[4];
        for (size_t j = 0; j < 4; j++) {
            __m512 s = step ? _mm512_loadu_ps(scales + i + 16 * j) : first;
            v[j] = quantize16(qf_stored16(x, i + 16 * j, type), s, b, &bad);
        }
        store(out, i, v);
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
    if (out.stream)
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

enum { BAND = 4 };

/* 64 columns of BAND rows, so that scales are loaded once for all of them. */
static inline void quantize_tile(const void *x, size_t n, size_t column, qf_element type,
                                 const float *scales, bounds b, qf_quantized out, __mmask16 *bad)
{
    __m512 s[4];
    for (size_t j = 0; j < 4; j++)
        s[j] = _mm512_loadu_ps(scales + column + 16 * j);
    for (size_t r = 0; r < BAND; r++) {
        size_t at = r * n + column;
        __m512i v[4];
        for (size_t j = 0; j < 4; j++)
            v[j] = quantize16(qf_stored16(x, at + 16 * j, type), s[j], b, bad);
        store(out, at, v);
    }
}

static inline bool quantize_rows(const void *x, size_t rows, size_t n, qf_element type,
                                 const float *scales, int lo, int hi, qf_quantized out)
{
    const bounds b = {_mm512_set1_ps((float)lo), _mm512_set1_ps((float)hi)};
    size_t r = 0, whole = n / 64 * 64;
    bool finite = true;
    qf_quantized to = aligned_only(out);
    to.stream = to.stream && n % 64 == 0;
    for (; r + BAND <= rows; r += BAND) {
        const char *band = (const char *)x + r * n * qf_element_size(type);
        qf_quantized band_to = qf_quantized_behind(to, r * n);
        __mmask16 bad = 0;
        for (size_t c = 0; c < whole; c += 64)
            quantize_tile(band, n, c, type, scales, b, band_to, &bad);
        for (size_t i = 0; whole < n && i < BAND; i++)
            finite &=
                quantize(band + (i * n + whole) * qf_element_size(type), n - whole, type,
                         scales + whole, 1, lo, hi, qf_quantized_behind(band_to, i * n + whole));
        finite &= !bad;
    }
    if (to.stream)
        _mm_sfence();
    for (; r < rows; r++)
        finite &= quantize((const char *)x + r * n * qf_element_size(type), n, type, scales, 1, lo,
                           hi, qf_quantized_behind(out, r * n));
    return finite;
}

bool qf_quantize_columns_f32_avx512(const void *x, size_t rows, size_t n, const float *scales,
                                    int lo, int hi, qf_quantized out)
{
    return quantize_rows(x, rows, n, QF_F32, scales, lo, hi, out);
}

bool qf_quantize_columns_f16_avx512(const void *x, size_t rows, size_t n, const float *scales,
                                    int lo, int hi, qf_quantized out)
{
    return quantize_rows(x, rows, n, QF_F16, scales, lo, hi, out);
}

bool qf_quantize_columns_bf16_avx512(const void *x, size_t rows, size_t n, const float *scales,
                                     int lo, int hi, qf_quantized out)
{
    return quantize_rows(x, rows, n, QF_BF16, scales, lo, hi, out);
}
