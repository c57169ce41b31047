/* SPDX-License-Identifier: Apache-2.0 */
/* The kernels of every instruction set that this machine runs, against arithmetic done another way
 * (float64, known values). test_kernel_variants.c compares the instruction sets. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <string.h>

#include "kernels.h"

enum { LENGTHS = 258 };

static uint32_t seed = 12345;

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

/* Values where division, reciprocal and the tie rule disagree: (k + 0.5) * scale. */
static void fill_ties(float *x, size_t n, float scale)
{
    for (size_t i = 0; i < n; i++)
        x[i] = ((float)((int)(random_bits() % 280) - 140) + 0.5f) * scale;
}

static int expected(float x, float scale, int lo, int hi)
{
    float quotient = x / scale; /* the one float32 rounding of the contract */
    double floor_part = floor((double)quotient), rest = (double)quotient - floor_part;
    double rounded = rest > 0.5                 ? floor_part + 1
                     : rest < 0.5               ? floor_part
                     : fmod(floor_part, 2) == 0 ? floor_part
                                                : floor_part + 1;
    return rounded < lo ? lo : rounded > hi ? hi : (int)rounded;
}

static void test_quantize(void **state)
{
    (void)state;
    static const int bits[] = {8, 7, 6, 4};
    float x[LENGTHS], scales[LENGTHS];
    int8_t q[LENGTHS], columns[LENGTHS];
    for (size_t v = 0; qf_kernels_at(v); v++) {
        for (size_t b = 0; b < 4; b++) {
            int lo = -(1 << (bits[b] - 1)), hi = -lo - 1;
            for (size_t n = 0; n < LENGTHS; n++) {
                float scale = from_bits(0x3a000000u + random_bits() % 0x04000000u);
                fill_ties(x, n, scale);
                for (size_t i = 0; i < n; i++) {
                    scales[i] = i % 3 ? scale : from_bits(0x3a000000u + random_bits() % 0x1000000u);
                    if (i % 5 == 4)
                        x[i] = from_bits(random_bits() & 0xbf7fffffu); /* any finite value */
                }
                assert_true(
                    qf_kernels_at(v)->quantize_f32(x, n, scale, lo, hi, (qf_quantized){.q = q}));
                assert_true(qf_kernels_at(v)->quantize_columns_f32(x, 1, n, scales, lo, hi,
                                                                   (qf_quantized){.q = columns}));
                for (size_t i = 0; i < n; i++) {
                    assert_int_equal(q[i], expected(x[i], scale, lo, hi));
                    assert_int_equal(columns[i], expected(x[i], scales[i], lo, hi));
                }
            }
        }
    }
}

static void test_ties_go_to_even(void **state)
{
    (void)state;
    const float x[] = {0.5f,   1.5f,   2.5f,    -0.5f, -1.5f, -2.5f,
                       126.5f, 127.5f, -128.5f, 1e30f, -1e30f};
    const int8_t want[] = {0, 2, 2, 0, -2, -2, 126, 127, -128, 127, -128};
    int8_t q[11];
    for (size_t v = 0; qf_kernels_at(v); v++) {
        assert_true(qf_kernels_at(v)->quantize_f32(x, 11, 1.0f, -128, 127, (qf_quantized){.q = q}));
        assert_memory_equal(q, want, sizeof want);
    }
}

/* x/s and x*(1/s) differ on many ties; a kernel that multiplied would fail here. */
static void test_division_not_reciprocal(void **state)
{
    (void)state;
    size_t differ = 0;
    for (int k = -127; k < 127; k++) {
        float scale = 0.0123f, x = ((float)k + 0.5f) * scale;
        int8_t q;
        for (size_t v = 0; qf_kernels_at(v); v++) {
            assert_true(
                qf_kernels_at(v)->quantize_f32(&x, 1, scale, -128, 127, (qf_quantized){.q = &q}));
            assert_int_equal(q, expected(x, scale, -128, 127));
        }
        differ += (int)rintf(x * (1.0f / scale)) != q;
    }
    assert_true(differ > 0); /* the data does tell the two apart */
}

static void test_nonfinite_is_seen(void **state)
{
    (void)state;
    float x[67], scales[67];
    int8_t q[67];
    const float bad[] = {INFINITY, -INFINITY, NAN};
    for (size_t i = 0; i < 67; i++)
        scales[i] = 1.0f;
    for (size_t v = 0; qf_kernels_at(v); v++) {
        for (size_t at = 0; at < 67; at++) {
            for (size_t i = 0; i < 67; i++)
                x[i] = 3.4e38f;
            assert_true(
                qf_kernels_at(v)->quantize_f32(x, 67, 1e-3f, -128, 127, (qf_quantized){.q = q}));
            x[at] = bad[at % 3];
            assert_false(
                qf_kernels_at(v)->quantize_f32(x, 67, 1.0f, -128, 127, (qf_quantized){.q = q}));
            assert_false(qf_kernels_at(v)->quantize_columns_f32(x, 1, 67, scales, -128, 127,
                                                                (qf_quantized){.q = q}));
        }
    }
}

static void test_load_f16(void **state)
{
    (void)state;
    for (size_t v = 0; qf_kernels_at(v); v++) {
        for (uint32_t h = 0; h < 65536; h++) {
            unsigned char bytes[3] = {0, (unsigned char)h, (unsigned char)(h >> 8)};
            uint32_t exponent = h >> 10 & 31, mantissa = h & 1023;
            double want = exponent ? ldexp(1024.0 + mantissa, (int)exponent - 25)
                                   : ldexp((double)mantissa, -24);
            float got;
            qf_kernels_at(v)->load_f16(bytes + 1, 1, &got); /* unaligned */
            if (exponent == 31) {
                assert_true(mantissa ? isnan(got) : isinf(got));
                continue;
            }
            assert_true((double)got == (h & 0x8000 ? -want : want));
            assert_true(!signbit(got) == !(h & 0x8000));
        }
    }
}

static void test_load_other(void **state)
{
    (void)state;
    const double d[] = {1.0, 1.0 + 0x1p-24, 1.0 + 0x1.8p-23, 1e-300, -1e300};
    const float want[] = {1.0f, 1.0f, 1.0f + 0x1p-22f, 0.0f, -INFINITY};
    const unsigned char bf[] = {0x80, 0x3f, 0x49, 0xc0}; /* 1.0, -3.140625 */
    float got[5];
    for (size_t v = 0; qf_kernels_at(v); v++) {
        qf_kernels_at(v)->load_f64(d, 5, got);
        assert_memory_equal(got, want, sizeof want);
        qf_kernels_at(v)->load_bf16(bf, 2, got);
        assert_true(got[0] == 1.0f && got[1] == -3.140625f);
    }
}

static void test_widen_and_pack(void **state)
{
    (void)state;
    int8_t q[256];
    float y[256], scales[256];
    uint8_t packed[128];
    for (int i = 0; i < 256; i++) {
        q[i] = (int8_t)(i - 128);
        scales[i] = 0.1f * (float)(i + 1);
    }
    for (size_t v = 0; qf_kernels_at(v); v++) {
        const qf_kernels *k = qf_kernels_at(v);
        k->widen(q, 256, y);
        for (int i = 0; i < 256; i++)
            assert_true(y[i] == (float)(i - 128));
        k->dequantize(q, 256, 0.3f, y);
        for (int i = 0; i < 256; i++)
            assert_true(y[i] == (float)(i - 128) * 0.3f);
        k->dequantize_columns(q, 256, scales, y);
        for (int i = 0; i < 256; i++)
            assert_true(y[i] == (float)(i - 128) * scales[i]);
        k->pack_pairs(q, 128, packed);
        for (int i = 0; i < 128; i++)
            assert_int_equal(packed[i], (q[2 * i] & 15) | (q[2 * i + 1] & 15) << 4);
        k->pack_rows(q, q + 128, 128, packed);
        for (int i = 0; i < 128; i++)
            assert_int_equal(packed[i], (q[i] & 15) | (q[i + 128] & 15) << 4);
        for (int i = 0; i < 256; i++)
            y[i] = (float)i;
        k->scale(y, 256, 1.0f / 3);
        for (int i = 0; i < 256; i++)
            assert_true(y[i] == (float)i * (1.0f / 3));
    }
}

static void test_bias_range(void **state)
{
    (void)state;
    const float one = 1.0f, fits[] = {-0x1p31f, 0x1.fffffep30f, 2.5f, -3.5f};
    const int32_t want[] = {INT32_MIN, 2147483520, 2, -4};
    const float over[] = {0.0f, 0x1p31f}, under[] = {-0x1.000002p31f}, nan[] = {NAN};
    const double exact[] = {2147483647.0, 2147483646.5}, past[] = {2147483647.5};
    int32_t q[4];
    for (size_t v = 0; qf_kernels_at(v); v++) {
        const qf_kernels *k = qf_kernels_at(v);
        assert_int_equal(k->bias_f32(fits, 4, &one, 1, q), 4);
        assert_memory_equal(q, want, sizeof want);
        assert_int_equal(k->bias_f32(over, 2, &one, 1, q), 1); /* exactly 2^31 */
        assert_int_equal(k->bias_f32(under, 1, &one, 1, q), 0);
        assert_int_equal(k->bias_f32(nan, 1, &one, 1, q), 0);
        assert_int_equal(k->bias_f64(exact, 2, &one, 1, q), 2);
        assert_int_equal(q[0], INT32_MAX);
        assert_int_equal(q[1], 2147483646);
        assert_int_equal(k->bias_f64(past, 1, &one, 1, q), 0);
    }
}

static void test_dequant_pack(void **state)
{
    (void)state;
    /* facts part 7 */
    const float scale_w[] = {0.011f, 0.012f, 0.013f, 0.014f};
    const uint64_t want[] = {0x390ddf51, 0x391ac513, 0x3927aad4, 0x39349096};
    const uint64_t half[] = {0x390dc000, 0x391ac000, 0x3927a000, 0x39348000};
    float deq[4];
    uint64_t packed[4];
    for (size_t v = 0; qf_kernels_at(v); v++) {
        qf_kernels_at(v)->dequant_scale(scale_w, 4, 0.0123f, deq);
        qf_kernels_at(v)->dequant_pack(deq, 4, UINT32_MAX, packed);
        assert_memory_equal(packed, want, sizeof want);
        qf_kernels_at(v)->dequant_pack(deq, 4, 0xFFFFE000u, packed);
        assert_memory_equal(packed, half, sizeof half);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_quantize),
        cmocka_unit_test(test_ties_go_to_even),
        cmocka_unit_test(test_division_not_reciprocal),
        cmocka_unit_test(test_nonfinite_is_seen),
        cmocka_unit_test(test_load_f16),
        cmocka_unit_test(test_load_other),
        cmocka_unit_test(test_widen_and_pack),
        cmocka_unit_test(test_bias_range),
        cmocka_unit_test(test_dequant_pack),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
