/* SPDX-License-Identifier: Apache-2.0 */
#include "exec/stats.h"

#include <stdlib.h>
#include <string.h>

#include "exec/blocks.h"
#include "exec/source.h"

/* ---- channels ---- */

/* How a channel that is a whole row or column lies. */
static qf_grouping lines_of(const qf_job *job)
{
    if (job->found)
        return job->found->by_column ? QF_GROUPED_COLUMNS : QF_GROUPED_ROWS;
    return job->grouping;
}

static uint64_t channel_of(const qf_job *job, uint64_t row, uint64_t col)
{
    qf_grouping lines = lines_of(job);
    if (lines == QF_UNGROUPED)
        return qf_channel_index(job, row, col);
    return lines == QF_GROUPED_COLUMNS ? col : row;
}

static uint64_t channel_count(const qf_job *job)
{
    return job->rows && job->cols ? channel_of(job, job->rows - 1, job->cols - 1) + 1 : 0;
}

/* How many elements from (row, col) on, in the order of the output, are in one channel. */
static uint64_t same_channel(const qf_job *job, uint64_t row, uint64_t col)
{
    qf_grouping lines = lines_of(job);
    if (lines != QF_UNGROUPED)
        return lines == QF_GROUPED_COLUMNS ? 1 : job->cols - col;
    if (job->col_div)
        return qf_at_most(job->cols - col, job->col_div - col % job->col_div);
    uint64_t whole = job->row_mod == 1 ? job->row_div - 1 - row % job->row_div : 0;
    return whole * job->cols + job->cols - col;
}

static bool any_set(const int8_t *q, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (q[i])
            return true;
    }
    return false;
}

static void mark(qf_collector *c, uint64_t channel, const int8_t *q, size_t n)
{
    if (!c->alive[channel] && any_set(q, n)) {
        c->alive[channel] = 1;
        c->unseen--;
    }
}

static void mark_alive(qf_collector *c, uint64_t first, size_t n, const int8_t *q)
{
    const qf_job *job = c->job;
    for (size_t done = 0; c->unseen && done < n;) {
        uint64_t row = (first + done) / job->cols, col = (first + done) % job->cols;
        size_t run = (size_t)qf_at_most(same_channel(job, row, col), n - done);
        mark(c, channel_of(job, row, col), q + done, run);
        done += run;
    }
}

/* ---- the sample ---- */

/* The next stretch of the sample that reaches beyond `from`, up to `to`: its bounds. False if there
 * is none. */
static bool next_sampled(const qf_job *job, uint64_t from, uint64_t to, uint64_t *start,
                         uint64_t *end)
{
    enum { STRIDE = 7 }; /* odd, so that it comes to every place of a period */
    if (from >= to)
        return false;
    *start = from;
    *end = to;
    if (job->rows * job->cols <= QF_SAMPLE_ALL)
        return true;
    for (uint64_t period = from / QF_SAMPLE_PERIOD;; period++) {
        uint64_t at = period * QF_SAMPLE_PERIOD + STRIDE * period % QF_SAMPLE_EVERY * QF_SAMPLE_RUN;
        if (at >= to)
            return false;
        if (at + QF_SAMPLE_RUN > from) {
            *start = at > from ? at : from;
            *end = qf_at_most(at + QF_SAMPLE_RUN, to);
            return true;
        }
    }
}

/* Integers at [first, first + n) in the order of the source. */
static void count_ints(qf_collector *c, uint64_t first, size_t n, const int8_t *q)
{
    uint64_t start, end, to = first + n;
    int hi = (1 << (c->job->bits - 1)) - 1;
    if (c->ends)
        c->stats.saturated += qf_kernels_get()->ends(q, n, -hi - 1, hi);
    for (uint64_t at = first; next_sampled(c->job, at, to, &start, &end); at = end) {
        qf_histogram_ints(q + (start - first), (size_t)(end - start), c->job->bits, c->stats.ints);
        c->stats.sampled += end - start;
    }
}

static void count_floats(qf_collector *c, uint64_t first, size_t n, const void *x, qf_element type,
                         const float *scales, size_t step)
{
    uint64_t start, end, to = first + n;
    for (uint64_t at = first; next_sampled(c->job, at, to, &start, &end); at = end) {
        size_t behind = (size_t)(start - first);
        qf_histogram_floats((const char *)x + behind * qf_element_size(type), type,
                            (size_t)(end - start), scales + behind * step, step, c->job->bits,
                            c->stats.floats);
    }
}

/* ---- what blocks tell ---- */

void qf_collect_scales(qf_collector *c, const float *scales, size_t n)
{
    if (!c)
        return;
    qf_stats *s = &c->stats;
    for (size_t i = 0; i < n; i++) {
        s->scale_min = !s->scales || scales[i] < s->scale_min ? scales[i] : s->scale_min;
        s->scale_max = !s->scales || scales[i] > s->scale_max ? scales[i] : s->scale_max;
        s->near_zero += scales[i] <= QF_NEAR_ZERO;
        s->scales++;
    }
}

void qf_collect_ints(qf_collector *c, uint64_t first, size_t n, const int8_t *q)
{
    if (!c)
        return;
    count_ints(c, first, n, q);
    mark_alive(c, first, n, q);
}

void qf_collect_floats(qf_collector *c, uint64_t first, size_t n, const void *x, qf_element type,
                       const float *scales, size_t step)
{
    if (c)
        count_floats(c, first, n, x, type, scales, step);
}

void qf_collect_column(qf_collector *c, uint64_t row, uint64_t col, size_t n, const int8_t *q,
                       const float *x, float scale)
{
    if (!c)
        return;
    uint64_t first = col * c->job->rows + row;
    count_ints(c, first, n, q);
    if (x)
        count_floats(c, first, n, x, QF_F32, &scale, 0);
    mark(c, channel_of(c->job, row, col), q, n);
}

/* ---- one weight ---- */

bool qf_collector_begin(qf_collector *c, const qf_job *job)
{
    c->stats = (qf_stats){.channels = channel_count(job)};
    c->job = job;
    c->ends = job->transposed || qf_source_is_integer(job->data_type);
    c->unseen = c->stats.channels;
    if (c->unseen > c->alive_room) {
        free(c->alive);
        c->alive = malloc((size_t)c->unseen);
        c->alive_room = c->alive ? (size_t)c->unseen : 0;
    }
    if (!c->alive && c->unseen)
        return false;
    if (c->unseen)
        memset(c->alive, 0, (size_t)c->unseen);
    if (!job->found)
        qf_collect_scales(c, job->scales, job->scale_count);
    return true;
}

void qf_collector_end(qf_collector *c, const qf_error_sums *sums)
{
    c->stats.dead = c->unseen;
    c->stats.saturated += sums->ends;
    c->job = NULL;
}

void qf_collector_release(qf_collector *c)
{
    free(c->alive);
    *c = (qf_collector){0};
}
