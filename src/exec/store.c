/* SPDX-License-Identifier: Apache-2.0 */
/* Quantized elements on their way into the outputs, in every form. */
#include <stdlib.h>
#include <string.h>

#include "exec/blocks.h"

enum { GATHER = 1024 }; /* elements whose scales are written out side by side */

/* y[i] = q[i] times its scale. */
static void dequantize_span(const qf_job *job, uint64_t first, size_t n, const int8_t *q, float *y)
{
    float gathered[GATHER];
    for (size_t done = 0; done < n;) {
        size_t run = (size_t)qf_at_most(n - done, GATHER);
        qf_gather_scales(job, first + done, run, gathered);
        qf_kernels_get()->dequantize_columns(q + done, run, gathered, y + done);
        done += run;
    }
}

qf_status qf_store_room(const qf_sink *sink, int slot, qf_job_output out, uint64_t offset, size_t n,
                        unsigned char **at, qf_error *err)
{
    return sink->room(sink->user, slot, out.file, out.offset + offset, n, at, err);
}

bool qf_is_aligned(const void *p)
{
    return (uintptr_t)p % sizeof(float) == 0;
}

/* Stores up to QF_BLOCK quantized elements from flat index `first` on, in any form but INT4_ROWS.
 */
qf_status qf_store_ints(const qf_job *job, qf_target target, uint64_t first, size_t n,
                        const int8_t *q, qf_scratch *s, const qf_sink *sink, qf_error *err)
{
    const qf_kernels *k = qf_kernels_get();
    qf_job_output out = job->out[target];
    bool pairs = out.format == QF_FORMAT_INT4_FLAT, bytes = out.format == QF_FORMAT_INT8;
    unsigned char *at;
    uint64_t offset = pairs ? first / 2 : bytes ? first : first * 4;
    size_t length = pairs ? (n + 1) / 2 : bytes ? n : n * 4;
    qf_status status = qf_store_room(sink, (int)target, out, offset, length, &at, err);
    if (status != QF_OK)
        return status;
    if (bytes) {
        memcpy(at, q, n);
    } else if (pairs) {
        k->pack_pairs(q, n / 2, at);
        if (n % 2) /* only the last block of all can be odd */
            at[n / 2] = (unsigned char)(q[n - 1] & 15);
    } else {
        float *y = qf_is_aligned(at) ? (float *)(void *)at : qf_scratch_floats(&s->floats);
        if (!y)
            return qf_fail_memory(err);
        if (out.format == QF_FORMAT_FLOAT_SCALED)
            dequantize_span(job, first, n, q, y);
        else
            k->widen(q, n, y);
        if ((unsigned char *)y != at)
            memcpy(at, y, length);
    }
    return QF_OK;
}

/* Pairs of rows of a region, each packed into one row of bytes. */
static qf_status store_row_pairs(const qf_job *job, qf_target target, qf_region r, const int8_t *q,
                                 const qf_sink *sink, qf_error *err)
{
    for (uint64_t i = 0; i < r.rows / 2; i++) {
        const int8_t *low = q + 2 * i * r.cols;
        for (uint64_t c = 0; c < r.cols; c += QF_ROOM) {
            size_t n = (size_t)qf_at_most(r.cols - c, QF_ROOM);
            unsigned char *at;
            uint64_t offset = (r.row / 2 + i) * job->cols + r.col + c;
            qf_status status =
                qf_store_room(sink, (int)target, job->out[target], offset, n, &at, err);
            if (status != QF_OK)
                return status;
            qf_kernels_get()->pack_rows(low + c, low + r.cols + c, n, at);
        }
    }
    return QF_OK;
}

static void pack_words(const int8_t *q, size_t n, size_t per_byte, unsigned char flip,
                       unsigned char *out)
{
    size_t bytes = n / per_byte;
    if (per_byte == 2)
        qf_kernels_get()->pack_pairs(q, bytes, out);
    else
        memcpy(out, q, bytes);
    for (size_t i = 0; i < bytes; i++)
        out[i] ^= flip;
    if (n % per_byte) /* the half that is left is padding */
        out[bytes] = (unsigned char)((q[n - 1] & 15) ^ 8);
}

/* Rows that are packed into whole words each, several at a time. */
static qf_status store_words(const qf_job *job, qf_target target, qf_region r, const int8_t *q,
                             const qf_sink *sink, qf_error *err)
{
    size_t cols = (size_t)r.cols, per_byte = job->bits == 4 ? 2 : 1;
    size_t used = (cols + per_byte - 1) / per_byte, width = (used + 3) / 4 * 4;
    unsigned char flip = job->bits == 4 ? 0x88 : 0x80; /* two's complement to an offset */
    for (uint64_t row = 0; row < r.rows; row++) {
        for (size_t done = 0; done < width; done += QF_ROOM) {
            size_t n = width - done < QF_ROOM ? width - done : QF_ROOM;
            size_t from = done * per_byte,
                   count = cols - from < n * per_byte ? cols - from : n * per_byte;
            unsigned char *at;
            qf_status status = qf_store_room(sink, (int)target, job->out[target],
                                             (r.row + row) * width + done, n, &at, err);
            if (status != QF_OK)
                return status;
            pack_words(q + row * cols + from, count, per_byte, flip, at);
            memset(at + (count + per_byte - 1) / per_byte, 0,
                   n - (count + per_byte - 1) / per_byte);
        }
    }
    return QF_OK;
}

qf_status qf_store_region(const qf_job *job, qf_target target, qf_region r, const int8_t *q,
                          qf_scratch *s, const qf_sink *sink, qf_error *err)
{
    if (job->out[target].format == QF_FORMAT_INT4_ROWS)
        return store_row_pairs(job, target, r, q, sink, err);
    if (job->out[target].format == QF_FORMAT_WORDS)
        return store_words(job, target, r, q, sink, err);
    /* rows that are whole follow each other in the output */
    uint64_t run = r.cols == job->cols ? r.rows * r.cols : r.cols;
    for (uint64_t done = 0; done < r.rows * r.cols;) {
        uint64_t in_run = done % run;
        size_t n = (size_t)qf_at_most(run - in_run, QF_BLOCK);
        uint64_t first = (r.row + done / r.cols) * job->cols + r.col + done % r.cols;
        qf_status status = qf_store_ints(job, target, first, n, q + done, s, sink, err);
        if (status != QF_OK)
            return status;
        done += n;
    }
    return QF_OK;
}
