/* SPDX-License-Identifier: Apache-2.0 */
#include "onnx/same.h"

#include <string.h>
#include <sys/mman.h>
#include <xxhash.h>

enum {
    BLOCK = 4096,            /* bytes that are looked at in one place */
    SAMPLES = 4,             /* places, spread over the span */
    CHUNK = 4 * 1024 * 1024, /* bytes that are compared before their pages are let go of */
};

/* Lets go of pages that were read. */
static void let_go(const qf_span *span, uint64_t from, uint64_t n, const qf_file *sources)
{
    const unsigned char *at = span->data + from;
    qf_file_advise(&sources[span->file], at, at + n, MADV_DONTNEED);
}

static uint64_t at_most(uint64_t value, uint64_t limit)
{
    return value < limit ? value : limit;
}

char *qf_same_key(qf_arena *arena, const qf_span *span, int32_t data_type, const qf_file *sources)
{
    XXH64_hash_t hash = 0;
    for (uint64_t i = 0; i < SAMPLES; i++) {
        uint64_t from = span->length / SAMPLES * i, n = at_most(span->length - from, BLOCK);
        hash = XXH3_64bits_withSeed(span->data + from, (size_t)n, hash);
        let_go(span, from, n, sources);
    }
    return qf_arena_printf(arena, "%d:%d:%llu:%016llx", (int)data_type,
                           (int)qf_field_is_varint(span->field), (unsigned long long)span->length,
                           (unsigned long long)hash);
}

bool qf_same_bytes(const qf_span *a, const qf_span *b, const qf_file *sources)
{
    if (a->length != b->length || qf_field_is_varint(a->field) != qf_field_is_varint(b->field))
        return false;
    bool same = true;
    for (uint64_t at = 0; a->data != b->data && same && at < a->length; at += CHUNK) {
        uint64_t n = at_most(a->length - at, CHUNK);
        same = memcmp(a->data + at, b->data + at, (size_t)n) == 0;
        let_go(a, at, n, sources);
        let_go(b, at, n, sources);
    }
    return same;
}

static bool same_scales(const qf_job *a, const qf_job *b)
{
    const qf_found *f = a->found, *g = b->found;
    if (f && g)
        return f->steps == g->steps && f->scale_type == g->scale_type &&
               f->by_column == g->by_column && f->group == g->group && a->prescale == b->prescale;
    return !f && !g && a->scale_count == b->scale_count && a->row_div == b->row_div &&
           a->row_mul == b->row_mul && a->row_mod == b->row_mod && a->col_div == b->col_div &&
           (!a->scale_count ||
            memcmp(a->scales, b->scales, a->scale_count * sizeof *a->scales) == 0);
}

bool qf_same_work(const qf_job *a, const qf_job *b)
{
    return a->data_type == b->data_type && a->rows == b->rows && a->cols == b->cols &&
           a->transposed == b->transposed && a->bits == b->bits && a->fold == b->fold &&
           a->fold_div == b->fold_div && a->out[QF_DEPLOY].format == b->out[QF_DEPLOY].format &&
           a->out[QF_FAKE_QUANT].format == b->out[QF_FAKE_QUANT].format && same_scales(a, b);
}
