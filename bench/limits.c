/* SPDX-License-Identifier: Apache-2.0 */
#include "limits.h"

#include <string.h>

#ifdef __x86_64__
#include <immintrin.h>

#define AVX512 __attribute__((target("avx512f,avx512bw,avx512dq")))
#define AVX2 __attribute__((target("avx2")))

/* `read` and `write` are constants in every caller. */
AVX512 static inline void traffic_avx512(const char *src, char *dst, size_t groups, size_t read,
                                         size_t write)
{
    for (size_t g = 0; g < groups; g++) {
        __m512i sum = _mm512_setzero_si512();
        for (size_t i = 0; i < read; i += 64)
            sum = _mm512_xor_si512(sum, _mm512_loadu_si512(src + g * read + i));
        for (size_t i = 0; i < write; i += 64)
            _mm512_stream_si512((void *)(dst + g * write + i), sum);
        if (!write) /* keeps the loads */
            __asm__ volatile("" : : "v"(sum));
    }
    _mm_sfence();
}

AVX2 static inline void traffic_avx2(const char *src, char *dst, size_t groups, size_t read,
                                     size_t write)
{
    for (size_t g = 0; g < groups; g++) {
        __m256i sum = _mm256_setzero_si256();
        for (size_t i = 0; i < read; i += 32)
            sum = _mm256_xor_si256(sum, _mm256_loadu_si256((const void *)(src + g * read + i)));
        for (size_t i = 0; i < write; i += 32)
            _mm256_stream_si256((void *)(dst + g * write + i), sum);
        if (!write)
            __asm__ volatile("" : : "x"(sum));
    }
    _mm_sfence();
}

#define CASES(traffic) \
    if (read == 512 && write == 128) \
        traffic(src, dst, groups, 512, 128); \
    else if (read == 512 && write == 640) \
        traffic(src, dst, groups, 512, 640); \
    else if (read == 512 && write == 64) \
        traffic(src, dst, groups, 512, 64); \
    else if (read == 256 && write == 128) \
        traffic(src, dst, groups, 256, 128); \
    else if (read == 512 && write == 0) \
        traffic(src, dst, groups, 512, 0); \
    else \
        traffic(src, dst, groups, read, write)

AVX512 static void cases_avx512(const char *src, char *dst, size_t groups, size_t read,
                                size_t write)
{
    CASES(traffic_avx512);
}

AVX2 static void cases_avx2(const char *src, char *dst, size_t groups, size_t read, size_t write)
{
    CASES(traffic_avx2);
}

/* Eight divisions under way, so that their latency does not show. */
AVX512 static float divide_avx512(const float *x, size_t n, float by)
{
    const __m512 d = _mm512_set1_ps(by);
    __m512 sum = _mm512_setzero_ps();
    for (size_t i = 0; i + 128 <= n; i += 128) {
        for (size_t j = 0; j < 128; j += 16)
            sum = _mm512_or_ps(sum, _mm512_div_ps(_mm512_loadu_ps(x + i + j), d));
    }
    return _mm512_cvtss_f32(sum);
}

AVX2 static float divide_avx2(const float *x, size_t n, float by)
{
    const __m256 d = _mm256_set1_ps(by);
    __m256 sum = _mm256_setzero_ps();
    for (size_t i = 0; i + 64 <= n; i += 64) {
        for (size_t j = 0; j < 64; j += 8)
            sum = _mm256_or_ps(sum, _mm256_div_ps(_mm256_loadu_ps(x + i + j), d));
    }
    return _mm256_cvtss_f32(sum);
}

static float divide_baseline(const float *x, size_t n, float by)
{
    const __m128 d = _mm_set1_ps(by);
    __m128 sum = _mm_setzero_ps();
    for (size_t i = 0; i + 32 <= n; i += 32) {
        for (size_t j = 0; j < 32; j += 4)
            sum = _mm_or_ps(sum, _mm_div_ps(_mm_loadu_ps(x + i + j), d));
    }
    return _mm_cvtss_f32(sum);
}

static int has_avx512(void)
{
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw");
}

void qf_limit_traffic(const void *src, void *dst, size_t n, size_t read, size_t write)
{
    if (has_avx512())
        cases_avx512(src, dst, n / 128, read, write);
    else if (__builtin_cpu_supports("avx2"))
        cases_avx2(src, dst, n / 128, read, write);
    else
        memcpy(dst, src, n / 128 * (write < read ? write : read));
}

qf_divider qf_limit_divider(const char *isa)
{
    if (strcmp(isa, "avx512") == 0)
        return has_avx512() ? divide_avx512 : NULL;
    if (strcmp(isa, "avx2") == 0)
        return __builtin_cpu_supports("avx2") ? divide_avx2 : NULL;
    return divide_baseline;
}

#else /* aarch64 */
#include <arm_neon.h>

void qf_limit_traffic(const void *src, void *dst, size_t n, size_t read, size_t write)
{
    for (size_t g = 0; g < n / 128; g++) {
        const uint8_t *from = (const uint8_t *)src + g * read;
        uint8_t *to = (uint8_t *)dst + g * write;
        uint8x16_t sum = vdupq_n_u8(0);
        for (size_t i = 0; i < read; i += 16)
            sum = veorq_u8(sum, vld1q_u8(from + i));
        for (size_t i = 0; i < write; i += 16)
            vst1q_u8(to + i, sum);
        if (!write)
            __asm__ volatile("" : : "w"(sum));
    }
}

static float divide_neon(const float *x, size_t n, float by)
{
    const float32x4_t d = vdupq_n_f32(by);
    uint32x4_t sum = vdupq_n_u32(0);
    for (size_t i = 0; i + 32 <= n; i += 32) {
        for (size_t j = 0; j < 32; j += 4)
            sum = vorrq_u32(sum, vreinterpretq_u32_f32(vdivq_f32(vld1q_f32(x + i + j), d)));
    }
    return vgetq_lane_f32(vreinterpretq_f32_u32(sum), 0);
}

qf_divider qf_limit_divider(const char *isa)
{
    (void)isa;
    return divide_neon;
}
#endif
