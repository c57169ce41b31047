/* SPDX-License-Identifier: Apache-2.0 */
/* Every kernel of every instruction set that this machine runs equals the scalar definition bit for
 * bit: random data, exact ties, subnormals, extremes; every length from 0 to 257; unaligned starts;
 * and nothing is written behind the end. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels.h"

enum { LENGTHS = 258, ROOM = LENGTHS + 64, GUARD = 0x5a };

static uint32_t seed = 2463534242u;

static uint32_t random_bits(void)
{
    seed ^= seed << 13;
    seed ^= seed >> 17;
    return seed ^= seed << 5;
}

static float from_bits(uint32_t bits)
{
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

static float random_scale(void)
{
    return from_bits(0x3a000000u + random_bits() % 0x04000000u);
}

typedef enum data_kind { RANDOM, TIES, SUBNORMAL, EXTREME, ANY_FINITE, KINDS } data_kind;

/* Values to be divided by `scale`. In TIES, (k + 0.5) * scale lies between two steps, where a
 * multiplication by the reciprocal would give other results. */
static float value(data_kind kind, float scale)
{
    static const float extremes[] = {0.0f,      -0.0f, 3.4028235e38f, -3.4028235e38f, 1e-45f,
                                     -1.2e-38f, 1.0f,  127.5f,        -128.5f};
    switch (kind) {
    case TIES:
        return ((float)((int)(random_bits() % 280) - 140) + 0.5f) * scale;
    case SUBNORMAL:
        return from_bits(random_bits() & 0x807fffffu);
    case EXTREME:
        return extremes[random_bits() % 9];
    case ANY_FINITE: {
        uint32_t bits = random_bits();
        return from_bits((bits & 0x7f800000u) == 0x7f800000u ? bits & 0xbfffffffu : bits);
    }
    default:
        return ((float)(random_bits() % 20000) - 10000.0f) * 1e-4f * 200.0f * scale;
    }
}

/* One case: n elements of each stored type at `shift` bytes past an aligned address. */
typedef struct sample {
    size_t n, shift;
    float scale, scales[ROOM];
    unsigned char f32[ROOM * 4 + 64], f16[ROOM * 2 + 64], bf16[ROOM * 2 + 64], f64[ROOM * 8 + 64];
    int8_t q[ROOM];
} sample;

static uint16_t to_half(float f)
{
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    uint16_t h = (uint16_t)((bits >> 16 & 0x8000u) | (random_bits() & 0x7fffu));
    return (h & 0x7c00u) == 0x7c00u ? h & 0xbfffu : h;
}

static void fill(sample *s, size_t n, data_kind kind)
{
    s->n = n;
    s->shift = random_bits() % 64;
    s->scale = kind == SUBNORMAL && n % 2 ? 1e-40f : random_scale();
    for (size_t i = 0; i < n; i++) {
        s->scales[i] = n % 3 ? random_scale() : s->scale;
        float v = value(kind, s->scales[i]);
        double d = (double)v * (1.0 + (double)random_bits() * 0x1p-60);
        uint16_t h = to_half(v);
        memcpy(s->f32 + s->shift + 4 * i, &v, 4);
        memcpy(s->f64 + s->shift + 8 * i, &d, 8);
        memcpy(s->f16 + s->shift + 2 * i, &h, 2);
        uint32_t bits;
        memcpy(&bits, &v, 4);
        h = (uint16_t)(bits >> 16);
        memcpy(s->bf16 + s->shift + 2 * i, &h, 2);
        s->q[i] = (int8_t)random_bits();
    }
}

/* What a kernel made, and what the definition made, from one sample. */
typedef struct results {
    unsigned char bytes[2][ROOM * 8];
} results;

static void clear(results *r)
{
    memset(r->bytes, GUARD, sizeof r->bytes);
}

static void same(const results *r, const char *kernel, const qf_kernels *k, size_t n)
{
    if (memcmp(r->bytes[0], r->bytes[1], sizeof r->bytes[0]) == 0)
        return;
    fail_msg("%s of %s differs from the definition at length %zu", kernel, k->name, n);
}

typedef void (*check_fn)(const qf_kernels *k, const sample *s, unsigned char *out);

static void check_load_f16(const qf_kernels *k, const sample *s, unsigned char *out)
{
    k->load_f16(s->f16 + s->shift, s->n, (float *)(void *)out);
}

static void check_load_bf16(const qf_kernels *k, const sample *s, unsigned char *out)
{
    k->load_bf16(s->bf16 + s->shift, s->n, (float *)(void *)out);
}

static void check_load_f64(const qf_kernels *k, const sample *s, unsigned char *out)
{
    k->load_f64(s->f64 + s->shift, s->n, (float *)(void *)out);
}

static void check_scale(const qf_kernels *k, const sample *s, unsigned char *out)
{
    memcpy(out, s->f32 + s->shift, 4 * s->n);
    k->scale((float *)(void *)out, s->n, s->scale);
}

static const void *stored(const sample *s, qf_element type)
{
    return (type == QF_F32 ? s->f32 : type == QF_F16 ? s->f16 : s->bf16) + s->shift;
}

/* All widths and all choices of outputs; the float output lies at the end, aligned to a float only,
 * so that streaming kernels meet an unaligned one. */
static void quantize_all(const qf_kernels *k, const sample *s, unsigned char *out, qf_element type,
                         bool columns)
{
    static const int bits[] = {8, 7, 6, 4};
    int8_t *q = (int8_t *)out;
    float *y = (float *)(void *)(out + ROOM * 4);
    int width = bits[s->n % 4], lo = -(1 << (width - 1)), hi = -lo - 1;
    qf_quantized o = {
        .q = s->n % 5 == 1 ? NULL : q, .y = s->n % 5 == 2 ? NULL : y, .stream = s->n % 2 == 0};
    bool finite =
        columns ? qf_quantize_columns_for(k, type)(stored(s, type), 1, s->n, s->scales, lo, hi, o)
                : qf_quantize_for(k, type)(stored(s, type), s->n, s->scale, lo, hi, o);
    assert_true(finite);
}

static void check_quantize_f32(const qf_kernels *k, const sample *s, unsigned char *out)
{
    quantize_all(k, s, out, QF_F32, false);
}

static void check_quantize_f16(const qf_kernels *k, const sample *s, unsigned char *out)
{
    quantize_all(k, s, out, QF_F16, false);
}

static void check_quantize_bf16(const qf_kernels *k, const sample *s, unsigned char *out)
{
    quantize_all(k, s, out, QF_BF16, false);
}

static void check_columns_f32(const qf_kernels *k, const sample *s, unsigned char *out)
{
    quantize_all(k, s, out, QF_F32, true);
}

static void check_columns_f16(const qf_kernels *k, const sample *s, unsigned char *out)
{
    quantize_all(k, s, out, QF_F16, true);
}

static void check_columns_bf16(const qf_kernels *k, const sample *s, unsigned char *out)
{
    quantize_all(k, s, out, QF_BF16, true);
}

static void check_absmax(const qf_kernels *k, const sample *s, unsigned char *out)
{
    float *max = (float *)(void *)out;
    max[0] = s->n % 4 ? 0 : 1.5f;
    assert_true(k->absmax_f32(s->f32 + s->shift, s->n, max));
}

static void check_absmax_columns(const qf_kernels *k, const sample *s, unsigned char *out)
{
    memset(out, 0, 4 * s->n);
    assert_true(k->absmax_columns_f32(s->scales, s->n, (float *)(void *)out));
    assert_true(k->absmax_columns_f32(s->f32 + s->shift, s->n, (float *)(void *)out));
}

static const unsigned char *stored_as(const sample *s, qf_element type)
{
    return (type == QF_F32 ? s->f32 : type == QF_F16 ? s->f16 : s->bf16) + s->shift;
}

static void check_absmax_halves(const qf_kernels *k, const sample *s, unsigned char *out)
{
    float *max = (float *)(void *)out;
    max[0] = max[1] = s->n % 4 ? 0 : 1.5f;
    assert_true(k->absmax_f16(stored_as(s, QF_F16), s->n, max));
    assert_true(k->absmax_bf16(stored_as(s, QF_BF16), s->n, max + 1));
}

static void check_absmax_columns_halves(const qf_kernels *k, const sample *s, unsigned char *out)
{
    memset(out, 0, 8 * s->n);
    float *max = (float *)(void *)out;
    assert_true(k->absmax_columns_f16(stored_as(s, QF_F16), s->n, max));
    assert_true(k->absmax_columns_bf16(stored_as(s, QF_BF16), s->n, max + s->n));
}

/* Sums of one scale and of one a column, for each type. */
static void check_errors(const qf_kernels *k, const sample *s, unsigned char *out)
{
    for (int t = QF_F32; t <= QF_BF16; t++) {
        const unsigned char *x = stored_as(s, (qf_element)t);
        qf_error_sums sums = {0};
        qf_errors_for(k, (qf_element)t)(x, s->q, s->n, s->scale, &sums);
        qf_errors_columns_for(k, (qf_element)t)(x, s->q, s->n, s->scales, &sums);
        memcpy(out, &sums.signal, 8);
        memcpy(out + 8, &sums.noise, 8);
        memcpy(out + 16, &sums.max_error, 4);
        memcpy(out + 20, &sums.clipped, 8);
        out += 28;
    }
}

/* Integers and sums of one scale and of one a column, for each type; both are those of the kernels
 * one after the other. */
static void check_measure(const qf_kernels *k, const sample *s, unsigned char *out)
{
    for (int t = 0; t < 6; t++) {
        qf_element type = (qf_element)(t / 2);
        size_t step = (size_t)(t % 2);
        const unsigned char *x = stored_as(s, type);
        const float *scales = step ? s->scales : &s->scale;
        int8_t q[2][ROOM] = {{0}, {0}};
        float y[2][ROOM] = {{0}, {0}};
        qf_error_sums sums[2];
        qf_quantized to[2] = {{.q = q[0], .y = y[0]}, {.q = q[1], .y = y[1]}};
        memset(sums, 0, sizeof sums);
        sums[0].with_ends = t != 1; /* who does not ask for them gets none */
        bool finite = k->measure(x, type, s->n, scales, step, -8, 7, to[0], &sums[0]);
        if (step) {
            assert_int_equal(finite,
                             qf_quantize_columns_for(k, type)(x, 1, s->n, scales, -8, 7, to[1]));
            qf_errors_columns_for(k, type)(x, q[1], s->n, scales, &sums[1]);
        } else {
            assert_int_equal(finite, qf_quantize_for(k, type)(x, s->n, *scales, -8, 7, to[1]));
            qf_errors_for(k, type)(x, q[1], s->n, *scales, &sums[1]);
        }
        sums[1].ends = sums[0].with_ends ? k->ends(q[1], s->n, -8, 7) : 0;
        assert_memory_equal(q[0], q[1], sizeof q[0]);
        assert_memory_equal(y[0], y[1], sizeof y[0]);
        if (!finite)
            memset(sums, 0, sizeof sums);
        assert_memory_equal(&sums[0].signal, &sums[1].signal, 8);
        assert_memory_equal(&sums[0].noise, &sums[1].noise, 8);
        assert_memory_equal(&sums[0].max_error, &sums[1].max_error, 4);
        assert_int_equal(sums[0].clipped, sums[1].clipped);
        assert_int_equal(sums[0].ends, sums[1].ends);
        memcpy(out + t * 8, &sums[0].signal, 8);
        out[48 + t] = (unsigned char)sums[0].clipped;
    }
    k->measure(stored_as(s, QF_F32), QF_F32, s->n, &s->scale, 0, -128, 127,
               (qf_quantized){.q = (int8_t *)out + 64}, &(qf_error_sums){0});
}

/* Counts of any two values as ends. */
static void check_ends(const qf_kernels *k, const sample *s, unsigned char *out)
{
    uint64_t found[3] = {k->ends(s->q, s->n, -128, 127), k->ends(s->q, s->n, -8, 7),
                         k->ends(s->q, s->n, -64, 63)};
    memcpy(out, found, sizeof found);
}

static void check_minmax(const qf_kernels *k, const sample *s, unsigned char *out)
{
    float *min = (float *)(void *)out, *max = min + 1;
    *min = *max = s->n % 4 == 1 ? -0.0f : s->n % 4 ? 0 : 1.5f;
    assert_true(k->minmax(s->f32 + s->shift, s->n, min, max));
}

static void check_minmax_columns(const qf_kernels *k, const sample *s, unsigned char *out)
{
    float *min = (float *)(void *)out, *max = min + ROOM;
    for (size_t i = 0; i < s->n; i++)
        min[i] = max[i] = i % 3 ? s->scales[i] : -0.0f;
    assert_true(k->minmax_columns(s->f32 + s->shift, s->n, min, max));
}

static void check_widen(const qf_kernels *k, const sample *s, unsigned char *out)
{
    k->widen(s->q, s->n, (float *)(void *)out);
}

static void check_dequantize(const qf_kernels *k, const sample *s, unsigned char *out)
{
    k->dequantize(s->q, s->n, s->scale, (float *)(void *)out);
}

static void check_dequantize_columns(const qf_kernels *k, const sample *s, unsigned char *out)
{
    k->dequantize_columns(s->q, s->n, s->scales, (float *)(void *)out);
}

static void check_pack_pairs(const qf_kernels *k, const sample *s, unsigned char *out)
{
    k->pack_pairs(s->q, s->n / 2, out);
}

static void check_pack_rows(const qf_kernels *k, const sample *s, unsigned char *out)
{
    k->pack_rows(s->q, s->q + s->n / 2, s->n / 2, out);
}

/* The results up to the first value that does not fit; behind it they are unspecified. */
static void check_bias_f32(const qf_kernels *k, const sample *s, unsigned char *out)
{
    float b[ROOM];
    memcpy(b, s->f32 + s->shift, 4 * s->n);
    size_t each = s->n % 2 ? 1 : s->n;
    size_t done = k->bias_f32(b, s->n, s->scales, each, (int32_t *)(void *)out);
    memset(out + 4 * done, GUARD, 4 * (s->n - done));
    out[ROOM * 4] = (unsigned char)done;
}

static void check_bias_f64(const qf_kernels *k, const sample *s, unsigned char *out)
{
    double b[ROOM];
    memcpy(b, s->f64 + s->shift, 8 * s->n);
    size_t each = s->n % 2 ? 1 : s->n;
    size_t done = k->bias_f64(b, s->n, s->scales, each, (int32_t *)(void *)out);
    memset(out + 4 * done, GUARD, 4 * (s->n - done));
    out[ROOM * 4] = (unsigned char)done;
}

static void check_dequant_scale(const qf_kernels *k, const sample *s, unsigned char *out)
{
    k->dequant_scale(s->scales, s->n, s->scale, (float *)(void *)out);
}

static void check_dequant_pack(const qf_kernels *k, const sample *s, unsigned char *out)
{
    k->dequant_pack(s->scales, s->n, s->n % 2 ? UINT32_MAX : 0xFFFFE000u, (uint64_t *)(void *)out);
}

static void check_nibbles(const qf_kernels *k, const sample *s, unsigned char *out)
{
    qf_element type = (qf_element)(s->n / 2 % 3);
    assert_true(qf_quantize_nibbles(k, stored(s, type), type, s->n & ~(size_t)1, s->scale, out));
}

static const struct {
    const char *name;
    check_fn check;
} checks[] = {
    {"load_f16", check_load_f16},
    {"load_bf16", check_load_bf16},
    {"load_f64", check_load_f64},
    {"scale", check_scale},
    {"quantize_f32", check_quantize_f32},
    {"quantize_f16", check_quantize_f16},
    {"quantize_bf16", check_quantize_bf16},
    {"quantize_columns_f32", check_columns_f32},
    {"quantize_columns_f16", check_columns_f16},
    {"quantize_columns_bf16", check_columns_bf16},
    {"absmax", check_absmax},
    {"absmax_columns", check_absmax_columns},
    {"absmax_f16, absmax_bf16", check_absmax_halves},
    {"absmax_columns_f16, absmax_columns_bf16", check_absmax_columns_halves},
    {"errors", check_errors},
    {"measure", check_measure},
    {"ends", check_ends},
    {"minmax", check_minmax},
    {"minmax_columns", check_minmax_columns},
    {"widen", check_widen},
    {"dequantize", check_dequantize},
    {"dequantize_columns", check_dequantize_columns},
    {"pack_pairs", check_pack_pairs},
    {"pack_rows", check_pack_rows},
    {"bias_f32", check_bias_f32},
    {"bias_f64", check_bias_f64},
    {"dequant_scale", check_dequant_scale},
    {"dequant_pack", check_dequant_pack},
    {"quantize_nibbles", check_nibbles},
};
enum { CHECKS = sizeof checks / sizeof *checks };

static void test_every_length(void **state)
{
    (void)state;
    static sample s;
    static results r;
    const qf_kernels *definition = qf_kernels_at(0);
    assert_string_equal(definition->name, "scalar");
    for (size_t n = 0; n < LENGTHS; n++) {
        for (int kind = 0; kind < KINDS; kind++) {
            fill(&s, n, (data_kind)kind);
            for (size_t c = 0; c < CHECKS; c++) {
                for (size_t v = 1; qf_kernels_at(v); v++) {
                    clear(&r);
                    checks[c].check(definition, &s, r.bytes[0]);
                    checks[c].check(qf_kernels_at(v), &s, r.bytes[1]);
                    same(&r, checks[c].name, qf_kernels_at(v), n);
                }
            }
        }
    }
}

/* Sums over several chunks: those of a plain float64 loop but for rounding, the same bits in every
 * instruction set, and what lies beyond the integers' range counted. */
static void test_errors_of_many(void **state)
{
    (void)state;
    enum { MANY = 5003 };
    static float x[MANY];
    static int8_t q[MANY];
    const float scale = 0.01f;
    double signal = 0, noise = 0;
    size_t ends = 0;
    for (size_t i = 0; i < MANY; i++) {
        x[i] = ((float)(random_bits() % 25000) - 12500.0f) * 1e-4f;
        if (i % 701 == 3)
            x[i] = 1.5f;
        long n = lrintf(x[i] / scale);
        q[i] = (int8_t)(n > 127 ? 127 : n < -128 ? -128 : n);
        double e = (double)x[i] - (double)((float)q[i] * scale);
        ends += q[i] == -128 || q[i] == 127;
        signal += (double)x[i] * (double)x[i];
        noise += e * e;
    }
    qf_error_sums first = {0};
    for (size_t v = 0; qf_kernels_at(v); v++) {
        qf_error_sums sums = {0};
        qf_kernels_at(v)->errors_f32(x, q, MANY, scale, &sums);
        if (!v)
            first = sums;
        assert_memory_equal(&sums.signal, &first.signal, sizeof sums.signal);
        assert_memory_equal(&sums.noise, &first.noise, sizeof sums.noise);
        assert_memory_equal(&sums.max_error, &first.max_error, sizeof sums.max_error);
        assert_int_equal(sums.clipped, (MANY - 4) / 701 + 1);
        static int8_t made[MANY];
        qf_error_sums both = {0};
        assert_true(qf_kernels_at(v)->measure(x, QF_F32, MANY, &scale, 0, -128, 127,
                                              (qf_quantized){.q = made}, &both));
        assert_memory_equal(made, q, MANY);
        assert_memory_equal(&both.signal, &sums.signal, sizeof sums.signal);
        assert_memory_equal(&both.noise, &sums.noise, sizeof sums.noise);
        assert_int_equal(both.clipped, sums.clipped);
        assert_int_equal(qf_kernels_at(v)->ends(q, MANY, -128, 127), ends);
        assert_true(fabs(sums.signal / signal - 1) < 1e-6);
        assert_true(fabs(sums.noise / noise - 1) < 1e-4);
        assert_true(fabsf(sums.max_error - (1.5f - 1.27f)) < 1e-6f);
    }
}

/* A value that is not finite is seen wherever it stands. */
static void test_nonfinite_is_seen(void **state)
{
    (void)state;
    static const float bad[] = {INFINITY, -INFINITY, NAN};
    float x[LENGTHS], low[LENGTHS], high[LENGTHS], scales[LENGTHS];
    int8_t q[LENGTHS];
    qf_quantized out = {.q = q};
    for (size_t i = 0; i < LENGTHS; i++) {
        x[i] = -1.0f;
        scales[i] = 1.0f;
    }
    for (size_t v = 0; qf_kernels_at(v); v++) {
        const qf_kernels *k = qf_kernels_at(v);
        for (size_t n = 1; n < LENGTHS; n += n < 80 ? 1 : 59) {
            for (size_t at = 0; at < n; at++) {
                x[at] = bad[at % 3];
                memset(low, 0, sizeof low);
                memset(high, 0, sizeof high);
                assert_false(k->quantize_f32(x, n, 1.0f, -128, 127, out));
                qf_error_sums sums = {0};
                assert_false(k->measure(x, QF_F32, n, scales, 0, -128, 127, out, &sums));
                assert_false(k->measure(x, QF_F32, n, scales, 1, -128, 127, out, &sums));
                assert_false(k->quantize_columns_f32(x, 1, n, scales, -128, 127, out));
                assert_false(k->absmax_f32(x, n, high));
                high[0] = 0;
                assert_false(k->absmax_columns_f32(x, n, high));
                assert_false(k->minmax(x, n, low, high + 1));
                memset(low, 0, sizeof low);
                memset(high, 0, sizeof high);
                assert_false(k->minmax_columns(x, n, low, high));
                x[at] = -1.0f;
            }
            assert_true(k->quantize_f32(x, n, 1.0f, -128, 127, out));
        }
    }
}

/* 16-bit floats that are not finite, in every position of a vector. */
static void test_nonfinite_halves_are_seen(void **state)
{
    (void)state;
    static const uint16_t bad_f16[] = {0x7c00, 0xfc00, 0x7e01, 0x7c01};
    static const uint16_t bad_bf16[] = {0x7f80, 0xff80, 0x7fc1, 0x7f81};
    uint16_t x[70] = {0};
    float scales[70], y[70];
    for (size_t i = 0; i < 70; i++)
        scales[i] = 1.0f;
    for (size_t v = 0; qf_kernels_at(v); v++) {
        const qf_kernels *k = qf_kernels_at(v);
        for (size_t at = 0; at < 70; at++) {
            x[at] = bad_f16[at % 4];
            assert_false(k->quantize_f16(x, 70, 1.0f, -128, 127, (qf_quantized){.y = y}));
            assert_false(
                k->quantize_columns_f16(x, 1, 70, scales, -128, 127, (qf_quantized){.y = y}));
            memset(y, 0, sizeof y);
            assert_false(k->absmax_f16(x, 70, y));
            memset(y, 0, sizeof y);
            assert_false(k->absmax_columns_f16(x, 70, y));
            x[at] = bad_bf16[at % 4];
            memset(y, 0, sizeof y);
            assert_false(k->absmax_bf16(x, 70, y));
            memset(y, 0, sizeof y);
            assert_false(k->absmax_columns_bf16(x, 70, y));
            assert_false(k->quantize_bf16(x, 70, 1.0f, -128, 127, (qf_quantized){.y = y}));
            assert_false(
                k->quantize_columns_bf16(x, 1, 70, scales, -128, 127, (qf_quantized){.y = y}));
            x[at] = 0;
            assert_true(k->quantize_f16(x, 70, 1.0f, -128, 127, (qf_quantized){.y = y}));
        }
    }
}

/* Long aligned runs, where the streaming stores are in use. */
static void test_streaming(void **state)
{
    (void)state;
    enum { N = 100000 };
    float *x = aligned_alloc(64, 4 * (N + 32)), *y = aligned_alloc(64, 8 * (N + 32));
    int8_t *q = aligned_alloc(64, 2 * (N + 32));
    assert_true(x && y && q);
    for (size_t i = 0; i < N; i++)
        x[i] = value((data_kind)(i % KINDS), 0.0123f);
    for (size_t v = 0; qf_kernels_at(v); v++) {
        const qf_kernels *k = qf_kernels_at(v);
        for (size_t n = N - 65; n <= N; n += 13) {
            memset(q, GUARD, 2 * (N + 32));
            memset(y, GUARD, 8 * (N + 32));
            assert_true(k->quantize_f32(x, n, 0.0123f, -128, 127,
                                        (qf_quantized){.q = q, .y = y, .stream = true}));
            assert_true(qf_kernels_at(0)->quantize_f32(
                x, n, 0.0123f, -128, 127, (qf_quantized){.q = q + N + 32, .y = y + N + 32}));
            assert_memory_equal(q, q + N + 32, N + 32);
            assert_memory_equal(y, y + N + 32, 4 * (N + 32));
        }
    }
    free(x);
    free(y);
    free(q);
}

/* Several rows at once, of every width around the tiles, one after the other in memory. */
static void test_rows_of_columns(void **state)
{
    (void)state;
    enum { ROWS = 9, MAX = 200 };
    static float x[ROWS * MAX + 1], y[2][ROWS * MAX + 16];
    static int8_t q[2][ROWS * MAX + 64];
    float scales[MAX];
    for (size_t n = 1; n <= MAX; n++) {
        size_t rows = n % (ROWS + 1);
        for (size_t i = 0; i < n; i++)
            scales[i] = random_scale();
        for (size_t i = 0; i < rows * n; i++)
            x[i + 1] = value((data_kind)(i % KINDS), scales[i % n]);
        for (size_t v = 0; qf_kernels_at(v); v++) {
            for (int t = 0; t < 2; t++) {
                memset(q[t], GUARD, sizeof q[t]);
                memset(y[t], GUARD, sizeof y[t]);
                const qf_kernels *k = qf_kernels_at(t ? v : 0);
                qf_quantized out = {q[t], n % 3 ? y[t] : NULL, n % 2 == 0};
                assert_true(k->quantize_columns_f32(x + 1, rows, n, scales, -128, 127, out));
            }
            assert_memory_equal(q[0], q[1], sizeof q[0]);
            assert_memory_equal(y[0], y[1], sizeof y[0]);
            if (rows) {
                float kept = x[rows * n];
                x[rows * n] = NAN;
                assert_false(qf_kernels_at(v)->quantize_columns_f32(
                    x + 1, rows, n, scales, -128, 127, (qf_quantized){.q = q[1]}));
                x[rows * n] = kept;
            }
        }
    }
}

/* Sizes around the tiles of each instruction set, with strides wider than the matrix. */
static void test_transpose(void **state)
{
    (void)state;
    enum { MAX = 150, STRIDE = 160 };
    static const size_t sizes[] = {0, 1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 129, 150};
    static int8_t src[MAX * STRIDE], dst[STRIDE * MAX];
    for (size_t i = 0; i < sizeof src; i++)
        src[i] = (int8_t)random_bits();
    for (size_t v = 0; qf_kernels_at(v); v++) {
        for (size_t a = 0; a < 14; a++) {
            for (size_t b = 0; b < 14; b++) {
                size_t rows = sizes[a], cols = sizes[b];
                memset(dst, GUARD, sizeof dst);
                qf_kernels_at(v)->transpose(src, STRIDE, rows, cols, dst, STRIDE);
                for (size_t c = 0; c < MAX; c++) {
                    for (size_t r = 0; r < STRIDE; r++)
                        assert_int_equal(dst[c * STRIDE + r],
                                         c < cols && r < rows ? src[r * STRIDE + c] : GUARD);
                }
            }
        }
    }
}

/* The fused transposition against the plain loops. */
static void test_quantize_transposed(void **state)
{
    (void)state;
    enum { ROWS = 301, COLS = 131, STRIDE = 310 };
    static float src[COLS * STRIDE];
    static float y[ROWS * COLS];
    static int8_t q[ROWS * COLS];
    float scales[COLS];
    int8_t want;
    for (size_t c = 0; c < COLS; c++) {
        scales[c] = random_scale();
        for (size_t r = 0; r < STRIDE; r++)
            src[c * STRIDE + r] = value((data_kind)(r % KINDS), scales[c]);
    }
    const qf_kernels *definition = qf_kernels_at(0);
    for (size_t v = 0; qf_kernels_at(v); v++) {
        for (int form = 1; form < 4; form++) {
            qf_quantized out = {.q = form & 1 ? q : NULL, .y = form & 2 ? y : NULL};
            size_t done = qf_quantize_transposed(qf_kernels_at(v), src, QF_F32, STRIDE, ROWS, COLS,
                                                 scales, COLS, -128, 127, out);
            assert_int_equal(done, COLS);
            for (size_t r = 0; r < ROWS; r++) {
                for (size_t c = 0; c < COLS; c++) {
                    definition->quantize_f32(&src[c * STRIDE + r], 1, scales[c], -128, 127,
                                             (qf_quantized){.q = &want});
                    if (out.q)
                        assert_int_equal(q[r * COLS + c], want);
                    if (out.y)
                        assert_true(y[r * COLS + c] == (float)want);
                }
            }
        }
    }
    src[77 * STRIDE + 300] = NAN;
    for (size_t v = 0; qf_kernels_at(v); v++)
        assert_int_equal(qf_quantize_transposed(qf_kernels_at(v), src, QF_F32, STRIDE, ROWS, COLS,
                                                scales, COLS, -128, 127, (qf_quantized){.q = q}),
                         77);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_length),      cmocka_unit_test(test_errors_of_many),
        cmocka_unit_test(test_nonfinite_is_seen), cmocka_unit_test(test_nonfinite_halves_are_seen),
        cmocka_unit_test(test_streaming),         cmocka_unit_test(test_rows_of_columns),
        cmocka_unit_test(test_transpose),         cmocka_unit_test(test_quantize_transposed),
    };
    for (size_t v = 0; qf_kernels_at(v); v++)
        printf("kernels that run here: %s\n", qf_kernels_at(v)->name);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
