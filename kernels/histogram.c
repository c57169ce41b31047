/* SPDX-License-Identifier: Apache-2.0 */
/* Counting by value, for pictures. It sees a sample of a weight (exec/stats.h), so one portable
 * form is enough; every operation rounds by itself, so its counts are the same everywhere. */
#include <string.h>

#include "kernels.h"

/* Neighbours often fall into one bin; counters of their own keep them from waiting for each other.
 */
enum { WAYS = 4, CHUNK = 1024 };

static void count_bins(const uint8_t *bins, size_t n, uint32_t *counts, size_t count)
{
    uint32_t ways[WAYS][QF_FLOAT_BINS];
    memset(ways, 0, sizeof ways);
    size_t i = 0;
    for (; i + WAYS <= n; i += WAYS) {
        uint8_t a = bins[i], b = bins[i + 1], c = bins[i + 2], d = bins[i + 3];
        ways[0][a]++;
        ways[1][b]++;
        ways[2][c]++;
        ways[3][d]++;
    }
    for (; i < n; i++)
        ways[0][bins[i]]++;
    for (size_t b = 0; b < count; b++)
        counts[b] += ways[0][b] + ways[1][b] + ways[2][b] + ways[3][b];
}

void qf_histogram_ints(const int8_t *q, size_t n, int bits, uint32_t counts[QF_BINS])
{
    uint8_t bins[CHUNK];
    int lo = -(1 << (bits - 1)), shift = bits > QF_BIN_BITS ? bits - QF_BIN_BITS : 0;
    for (size_t done = 0; done < n; done += CHUNK) {
        size_t m = n - done < CHUNK ? n - done : CHUNK;
        for (size_t i = 0; i < m; i++)
            bins[i] = (uint8_t)((q[done + i] - lo) >> shift);
        count_bins(bins, m, counts, QF_BINS);
    }
}

/* Bin 1 begins half a step below the least integer; bins are 2^bits / QF_BINS steps wide. */
static void bins_of(const float *x, size_t n, const float *scales, size_t step, int bits,
                    uint8_t *bins)
{
    const float width = (float)(1 << bits) / (float)QF_BINS, per_step = 1 / width; /* powers of 2 */
    const float from = -(float)(1 << (bits - 1)) - 0.5f - width, most = (float)(QF_FLOAT_BINS - 1);
    for (size_t i = 0; i < n; i++) {
        float bin = (x[i] / scales[i * step] - from) * per_step;
        bin = bin > 0 ? bin : 0;
        bin = bin < most ? bin : most;
        bins[i] = (uint8_t)(int)bin;
    }
}

void qf_histogram_floats(const void *x, qf_element type, size_t n, const float *scales, size_t step,
                         int bits, uint32_t counts[QF_FLOAT_BINS])
{
    const qf_kernels *k = qf_kernels_get();
    float values[CHUNK];
    uint8_t bins[CHUNK];
    for (size_t done = 0; done < n; done += CHUNK) {
        size_t m = n - done < CHUNK ? n - done : CHUNK;
        const char *at = (const char *)x + done * qf_element_size(type);
        if (type == QF_F32)
            memcpy(values, at, m * sizeof *values);
        else
            (type == QF_F16 ? k->load_f16 : k->load_bf16)(at, m, values);
        if (step)
            bins_of(values, m, scales + done, 1, bits, bins);
        else
            bins_of(values, m, scales, 0, bits, bins);
        count_bins(bins, m, counts, QF_FLOAT_BINS);
    }
}
