/* SPDX-License-Identifier: Apache-2.0 */
#include "exec/manifest.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/spill.h"

/* A part of a file. */
typedef struct segment {
    qf_place place;
    size_t piece;
    int slot;
} segment;

static int by_place(const void *a, const void *b)
{
    const segment *x = a, *y = b;
    if (x->place.file != y->place.file)
        return x->place.file < y->place.file ? -1 : 1;
    return x->place.offset < y->place.offset ? -1 : x->place.offset > y->place.offset;
}

static const char *base_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

static cJSON *add_object(cJSON *array)
{
    cJSON *item = cJSON_CreateObject();
    if (item && !cJSON_AddItemToArray(array, item)) {
        cJSON_Delete(item);
        item = NULL;
    }
    return item;
}

/* ---- template ---- */

static bool add_inputs(cJSON *root, const qf_output *o)
{
    cJSON *array = cJSON_AddArrayToObject(root, "inputs");
    bool ok = array != NULL;
    for (size_t i = 0; ok && i < o->source_count; i++) {
        char modified[32];
        cJSON *item = add_object(array);
        snprintf(modified, sizeof modified, "%" PRId64, o->sources[i].modified);
        ok = item && qf_json_add_text(item, "name", base_name(o->sources[i].path)) &&
             qf_json_add_number(item, "bytes", (double)o->sources[i].size) &&
             qf_json_add_text(item, "modified_ns", modified);
    }
    return ok;
}

static const char *tensor_of(const qf_output *o, qf_part p, int slot)
{
    if (p.kind == QF_PART_JOB)
        return slot < QF_TARGETS || !o->jobs[p.index]->scale_tensor
                   ? o->jobs[p.index]->tensor
                   : o->jobs[p.index]->scale_tensor;
    return p.kind == QF_PART_COPY ? o->layout->copies[p.index].tensor : "";
}

static bool add_files(cJSON *root, const qf_output *o, const qf_part *pieces,
                      const segment *segments, size_t count)
{
    cJSON *files = cJSON_AddArrayToObject(root, "files");
    bool ok = files != NULL;
    size_t at = 0;
    for (size_t f = 0; ok && f < o->layout->file_count; f++) {
        cJSON *file = add_object(files), *parts = NULL;
        ok = file && qf_json_add_text(file, "name", o->layout->files[f].name) &&
             qf_json_add_number(file, "bytes", (double)o->layout->files[f].size) &&
             (parts = cJSON_AddArrayToObject(file, "parts"));
        for (; ok && at < count && (size_t)segments[at].place.file == f; at++) {
            const segment *s = &segments[at];
            cJSON *part = add_object(parts);
            ok = part &&
                 qf_json_add_text(part, "tensor", tensor_of(o, pieces[s->piece], s->slot)) &&
                 qf_json_add_number(part, "offset", (double)s->place.offset) &&
                 qf_json_add_number(part, "bytes", (double)s->place.length) &&
                 qf_json_add_number(part, "piece", (double)s->piece) &&
                 qf_json_add_number(part, "slot", s->slot);
        }
    }
    return ok;
}

static bool add_weights(cJSON *root, const qf_output *o, const qf_part *pieces, size_t count)
{
    cJSON *array = cJSON_AddArrayToObject(root, "weights");
    bool ok = array != NULL;
    for (size_t i = 0; ok && i < count; i++) {
        const qf_job *job = pieces[i].kind == QF_PART_JOB ? o->jobs[pieces[i].index] : NULL;
        if (!job || !job->bits)
            continue;
        cJSON *item = add_object(array);
        double scales = job->found ? (double)qf_job_scale_count(job) : (double)job->scale_count;
        ok = item && qf_json_add_text(item, "layer", job->layer) &&
             qf_json_add_text(item, "tensor", job->tensor) &&
             qf_json_add_text(item, "source_type", qf_dtype_name(job->data_type)) &&
             qf_json_add_number(item, "elements", (double)(job->rows * job->cols)) &&
             qf_json_add_number(item, "bits", job->bits) &&
             qf_json_add_number(item, "scales", scales) &&
             qf_json_add_number(item, "piece", (double)i);
    }
    return ok;
}

/* *list is NULL if there are none. False when memory is exhausted. */
static bool list_segments(const qf_output *o, const qf_part *pieces, size_t count, segment **list,
                          size_t *out)
{
    size_t cap = 0;
    *list = NULL;
    *out = 0;
    for (size_t i = 0; i < count; i++) {
        qf_place places[QF_SLOTS];
        qf_part_places(pieces[i], o->jobs, o->layout, places);
        for (int s = 0; s < QF_SLOTS; s++) {
            if (!places[s].used || !places[s].length)
                continue;
            if (!qf_table_grow((void **)list, &cap, *out + 1, sizeof **list))
                return false;
            (*list)[(*out)++] = (segment){places[s], i, s};
        }
    }
    if (*out)
        qsort(*list, *out, sizeof **list, by_place);
    return true;
}

qf_status qf_manifest_template(const qf_output *o, const qf_part *pieces, size_t count, cJSON **out,
                               qf_error *err)
{
    size_t n;
    segment *segments;
    bool ok = list_segments(o, pieces, count, &segments, &n);
    cJSON *root = ok ? cJSON_CreateObject() : NULL;
    ok = root && qf_json_add_text(root, "quantfold", QF_VERSION) &&
         qf_json_add_text(root, "hash", "xxh3-128");
    for (const cJSON *item = o->about ? o->about->child : NULL; ok && item; item = item->next) {
        cJSON *copy = cJSON_Duplicate(item, true);
        ok = copy && cJSON_AddItemToObject(root, item->string, copy);
    }
    ok = ok && add_inputs(root, o) && add_files(root, o, pieces, segments, n) &&
         add_weights(root, o, pieces, count);
    qf_spill_free(segments);
    if (!ok) {
        cJSON_Delete(root);
        return qf_fail_memory(err);
    }
    *out = root;
    return QF_OK;
}

/* ---- results ---- */

/* The result that an object of the template names, which is then not named any more. */
static const qf_result *take_result(cJSON *item, const qf_result *results, size_t count)
{
    uint64_t piece;
    if (!qf_json_get_integer(item, "piece", &piece) || piece >= count || !results[piece].known)
        return NULL;
    cJSON_DeleteItemFromObjectCaseSensitive(item, "piece");
    return &results[piece];
}

/* 0: memory is exhausted; -1: it is no template. */
static int fill_part(cJSON *part, const qf_result *results, size_t count, XXH3_state_t *whole)
{
    uint64_t slot;
    char text[QF_HASH_TEXT];
    const qf_result *r = take_result(part, results, count);
    if (!r || !qf_json_get_integer(part, "slot", &slot) || slot >= QF_SLOTS)
        return -1;
    cJSON_DeleteItemFromObjectCaseSensitive(part, "slot");
    XXH3_128bits_update(whole, &r->hashes[slot], sizeof r->hashes[slot]);
    qf_hash_text(&r->hashes[slot], text);
    return qf_json_add_text(part, "hash", text);
}

static int fill_file(cJSON *file, const qf_result *results, size_t count)
{
    XXH3_state_t *whole = XXH3_createState();
    cJSON *part;
    int good = whole != NULL;
    if (whole)
        XXH3_128bits_reset(whole);
    cJSON_ArrayForEach(part, cJSON_GetObjectItemCaseSensitive(file, "parts"))
    {
        if (good == 1)
            good = fill_part(part, results, count, whole);
    }
    if (good == 1) {
        char text[QF_HASH_TEXT];
        qf_hash hash = qf_hash_digest(whole);
        qf_hash_text(&hash, text);
        good = qf_json_add_text(file, "hash_of_part_hashes", text);
    }
    XXH3_freeState(whole);
    return good;
}

/* As text: a tree of its own for each number would take most of the memory of a large manifest. */
static bool add_counts(cJSON *object, const char *key, const uint32_t *counts, int n)
{
    char text[QF_BINS * 12 + 3] = "[";
    size_t at = 1;
    for (int i = 0; i < n; i++)
        at +=
            (size_t)snprintf(text + at, sizeof text - at, i ? ", %" PRIu32 : "%" PRIu32, counts[i]);
    snprintf(text + at, sizeof text - at, "]");
    return cJSON_AddRawToObject(object, key, text) != NULL;
}

/* Counts of the floats over their scales and of the integers, over one range. */
static bool add_histogram(cJSON *weight, const qf_stats *s, uint64_t bits)
{
    double half = (double)(1 << (bits - 1));
    int ints = bits < QF_BIN_BITS ? 1 << bits : QF_BINS;
    bool floats = false;
    for (int i = 0; i < QF_FLOAT_BINS; i++)
        floats |= s->floats[i] != 0;
    cJSON *h = cJSON_AddObjectToObject(weight, "histogram");
    return h && qf_json_add_number(h, "from", -half - 0.5) &&
           qf_json_add_number(h, "to", half - 0.5) &&
           qf_json_add_number(h, "sampled", (double)s->sampled) &&
           (!floats || (add_counts(h, "float", s->floats + 1, QF_BINS) &&
                        qf_json_add_number(h, "below", s->floats[0]) &&
                        qf_json_add_number(h, "above", s->floats[QF_BINS + 1]))) &&
           add_counts(h, "quantized", s->ints, ints);
}

static int fill_stats(cJSON *weight, const qf_stats *s)
{
    uint64_t bits;
    if (!qf_json_get_integer(weight, "bits", &bits) || !bits || bits > 8)
        return -1;
    bool ok = qf_json_add_number(weight, "channels", (double)s->channels) &&
              qf_json_add_number(weight, "dead_channels", (double)s->dead) &&
              qf_json_add_number(weight, "saturated", (double)s->saturated) &&
              qf_json_add_number(weight, "scale_min", (double)s->scale_min) &&
              qf_json_add_number(weight, "scale_max", (double)s->scale_max) &&
              qf_json_add_number(weight, "near_zero_scales", (double)s->near_zero);
    return ok && (!s->sampled || add_histogram(weight, s, bits));
}

static int fill_weight(cJSON *weight, const qf_result *results, size_t count, const qf_stats *stats)
{
    uint64_t elements;
    const qf_result *r = take_result(weight, results, count);
    if (!r || !qf_json_get_integer(weight, "elements", &elements))
        return -1;
    int good = r->stats ? fill_stats(weight, &stats[r->stats - 1]) : 1;
    if (good != 1 || !(r->signal > 0)) /* zeros, or integers already: nothing was rounded */
        return good;
    double noise = r->noise / (double)elements;
    return qf_json_add_number(weight, "sqnr_db", 10 * log10(r->signal / r->noise)) &&
           qf_json_add_number(weight, "mean_square_error", noise) &&
           qf_json_add_number(weight, "max_error", (double)r->max_error) &&
           qf_json_add_number(weight, "clipped", (double)r->clipped);
}

qf_status qf_manifest_fill(cJSON *manifest, const qf_result *results, size_t count,
                           const qf_stats *stats, qf_error *err)
{
    cJSON *item;
    int good = 1;
    cJSON_ArrayForEach(item, cJSON_GetObjectItemCaseSensitive(manifest, "files"))
    {
        if (good == 1)
            good = fill_file(item, results, count);
    }
    cJSON_ArrayForEach(item, cJSON_GetObjectItemCaseSensitive(manifest, "weights"))
    {
        if (good == 1)
            good = fill_weight(item, results, count, stats);
    }
    if (good < 0)
        return qf_fail(err, QF_ERR_INPUT,
                       "the plan in the staging folder is not sound; delete the "
                       "staging folder and start again");
    return good ? QF_OK : qf_fail_memory(err);
}
