/* SPDX-License-Identifier: Apache-2.0 */
#include "exec/fingerprint.h"

#include <string.h>

static void add(XXH3_state_t *s, const void *data, size_t n)
{
    if (n)
        XXH3_128bits_update(s, data, n);
}

static void add_number(XXH3_state_t *s, uint64_t value)
{
    add(s, &value, sizeof value);
}

static void add_text(XXH3_state_t *s, const char *text)
{
    add(s, text ? text : "", text ? strlen(text) + 1 : 1);
}

static void add_floats(XXH3_state_t *s, const float *values, uint64_t n)
{
    add_number(s, values ? n : 0);
    add(s, values, values ? (size_t)n * sizeof *values : 0);
}

static void add_span(XXH3_state_t *s, const qf_span *span)
{
    add_number(s, (uint64_t)span->field);
    add_number(s, (uint64_t)span->file);
    add_number(s, span->offset);
    add_number(s, span->length);
}

static void add_place(XXH3_state_t *s, const qf_job_output *o)
{
    add_number(s, o->placed);
    add_number(s, o->placed ? (uint64_t)o->format : 0);
    add_number(s, o->placed ? (uint64_t)o->file : 0);
    add_number(s, o->placed ? o->offset : 0);
}

static void add_job(XXH3_state_t *s, const qf_job *job)
{
    const uint64_t shape[] = {(uint64_t)job->data_type,
                              job->rows,
                              job->cols,
                              job->transposed,
                              job->row_div,
                              job->row_mul,
                              job->row_mod,
                              job->col_div,
                              job->fold_div,
                              (uint64_t)job->bits};
    add_text(s, job->layer);
    add_text(s, job->tensor);
    add_span(s, &job->source);
    add(s, shape, sizeof shape);
    add_floats(s, job->scales, job->scale_count);
    add_floats(s, job->fold, job->fold ? qf_divide_up(job->rows, job->fold_div) : 0);
    for (int t = 0; t < QF_TARGETS; t++)
        add_place(s, &job->out[t]);
    if (job->found) {
        const qf_found *f = job->found;
        add_floats(s, &f->steps, 1);
        add_number(s, (uint64_t)f->scale_type);
        add_number(s, f->by_column);
        add_number(s, f->group);
        for (int t = 0; t < QF_TARGETS; t++)
            add_place(s, &f->out[t]);
    }
    if (job->prescale) {
        const qf_prescale *p = job->prescale;
        add_number(s, p->rows);
        add_number(s, p->cols);
        add_floats(s, p->scales, qf_divide_up(job->rows, p->rows) * p->across);
    }
}

qf_status qf_fingerprint(const qf_output *o, bool manifest, bool stats, qf_hash *out, qf_error *err)
{
    XXH3_state_t *s = XXH3_createState();
    if (!s)
        return qf_fail_memory(err);
    XXH3_128bits_reset(s);
    add_text(s, QF_VERSION);
    add_number(s, manifest); /* without one no errors are measured */
    add_number(s, stats);
    for (size_t i = 0; i < o->source_count; i++) {
        const char *slash = strrchr(o->sources[i].path, '/');
        add_text(s, slash ? slash + 1 : o->sources[i].path);
        add_number(s, o->sources[i].size);
        add_number(s, (uint64_t)o->sources[i].modified);
    }
    for (size_t i = 0; i < o->layout->file_count; i++) {
        add_text(s, o->layout->files[i].name);
        add_number(s, o->layout->files[i].size);
    }
    for (size_t i = 0; i < o->layout->literal_count; i++) {
        const qf_literal *l = &o->layout->literals[i];
        add_number(s, (uint64_t)l->file);
        add_number(s, l->offset);
        add_number(s, l->length);
        add(s, l->data, l->length);
    }
    for (size_t i = 0; i < o->layout->copy_count; i++) {
        const qf_copy *c = &o->layout->copies[i];
        add_span(s, &c->source);
        add_number(s, (uint64_t)c->data_type);
        add_number(s, c->decode);
        add_number(s, c->length);
        for (int t = 0; t < QF_TARGETS; t++)
            add_place(s, &c->out[t]);
    }
    for (size_t i = 0; i < o->job_count; i++)
        add_job(s, o->jobs[i]);
    *out = qf_hash_digest(s);
    XXH3_freeState(s);
    return QF_OK;
}
