/* SPDX-License-Identifier: Apache-2.0 */
#include "report/summary.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/file.h"
#include "base/json.h"
#include "base/spill.h"
#include "base/strmap.h"
#include "exec/stage.h"

/* ---- members of any type ---- */

static const char *text_of(const cJSON *object, const char *key)
{
    const char *text = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(object, key));
    return text ? text : "";
}

static double number_of(const cJSON *object, const char *key)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, key);
    return cJSON_IsNumber(item) && isfinite(item->valuedouble) ? item->valuedouble : NAN;
}

/* A number that cannot be negative. */
static double count_of(const cJSON *object, const char *key)
{
    double value = number_of(object, key);
    return value >= 0 ? value : NAN;
}

static const cJSON *array_of(const cJSON *object, const char *key)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, key);
    return cJSON_IsArray(item) ? item : NULL;
}

/* ---- files ---- */

/* By how the name ends: what stands before it is the user's prefix or a tensor's name. */
static qf_report_model model_of(const char *name)
{
    static const struct {
        const char *end;
        qf_report_model model;
    } ends[] = {{"fake_quant_model.onnx", QF_REPORT_FAKE_QUANT},
                {"fake_quant_model.external", QF_REPORT_FAKE_QUANT},
                {"_fakequant.external", QF_REPORT_FAKE_QUANT},
                {"runnable_model.onnx", QF_REPORT_RUNNABLE},
                {"runnable_model.external", QF_REPORT_RUNNABLE},
                {"_runnable.external", QF_REPORT_RUNNABLE}};
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++) {
        if (qf_ends_with(name, ends[i].end))
            return ends[i].model;
    }
    return QF_REPORT_DEPLOY;
}

const char *qf_report_model_word(qf_report_model model)
{
    static const char *const words[] = {"deploy", "fake_quant", "runnable"};
    return words[model];
}

static bool read_files(qf_summary *s, const char *key, qf_report_file **out, size_t *count)
{
    const cJSON *item, *array = array_of(s->manifest, key);
    size_t n = (size_t)cJSON_GetArraySize(array);
    *out = qf_arena_array(&s->arena, n + 1, sizeof **out);
    *count = 0;
    if (!*out)
        return false;
    cJSON_ArrayForEach(item, array)
    {
        const char *name = text_of(item, "name");
        (*out)[(*count)++] = (qf_report_file){name, count_of(item, "bytes"), model_of(name)};
    }
    return true;
}

static void add_sizes(qf_summary *s)
{
    for (size_t i = 0; i < s->input_count; i++)
        s->before += isnan(s->inputs[i].bytes) ? 0 : s->inputs[i].bytes;
    for (size_t i = 0; i < s->output_count; i++) {
        const qf_report_file *f = &s->outputs[i];
        double bytes = isnan(f->bytes) ? 0 : f->bytes;
        s->after[f->model] += bytes;
    }
}

/* ---- weights ---- */

/* The counts of an array of at most QF_BINS, NULL if it is not one. */
static double *read_counts(qf_summary *s, const cJSON *array, int *count, bool *ok)
{
    const cJSON *item;
    int n = cJSON_GetArraySize(array), i = 0;
    *count = 0;
    if (n < 1 || n > QF_BINS)
        return NULL;
    double *counts = qf_arena_array(&s->arena, (size_t)n, sizeof *counts);
    if (!counts) {
        *ok = false;
        return NULL;
    }
    cJSON_ArrayForEach(item, array)
    {
        if (!cJSON_IsNumber(item) || !isfinite(item->valuedouble) || item->valuedouble < 0)
            return NULL;
        counts[i++] = item->valuedouble;
    }
    *count = n;
    return counts;
}

static bool read_histogram(qf_summary *s, const cJSON *weight, qf_histogram *out)
{
    const cJSON *h = cJSON_GetObjectItemCaseSensitive(weight, "histogram");
    bool ok = true;
    int float_count;
    if (!cJSON_IsObject(h))
        return true;
    *out = (qf_histogram){.from = number_of(h, "from"),
                          .to = number_of(h, "to"),
                          .sampled = count_of(h, "sampled"),
                          .below = count_of(h, "below"),
                          .above = count_of(h, "above")};
    out->ints = read_counts(s, array_of(h, "quantized"), &out->int_count, &ok);
    out->floats = read_counts(s, array_of(h, "float"), &float_count, &ok);
    if (float_count != QF_BINS)
        out->floats = NULL;
    if (!(out->to > out->from))
        out->ints = NULL;
    return ok;
}

/* What a manifest without statistics says too, and then what they say. */
static bool read_weight(qf_summary *s, const cJSON *weight, qf_row *row)
{
    row->has_weight = true;
    row->tensor = text_of(weight, "tensor");
    row->bits = count_of(weight, "bits");
    row->elements = count_of(weight, "elements");
    row->scales = count_of(weight, "scales");
    row->channels = count_of(weight, "channels");
    row->dead = count_of(weight, "dead_channels");
    row->saturated = count_of(weight, "saturated");
    row->clipped = count_of(weight, "clipped");
    row->scale_min = number_of(weight, "scale_min");
    row->scale_max = number_of(weight, "scale_max");
    row->near_zero = count_of(weight, "near_zero_scales");
    row->mean_square_error = count_of(weight, "mean_square_error");
    row->max_error = count_of(weight, "max_error");
    row->sqnr = number_of(weight, "sqnr_db");
    if (isnan(row->sqnr) && row->mean_square_error == 0)
        row->sqnr = INFINITY;
    s->measured |= !isnan(row->channels);
    return read_histogram(s, weight, &row->histogram);
}

static qf_row *add_row(qf_summary *s)
{
    if (!qf_table_grow((void **)&s->rows, &s->row_cap, s->row_count + 1, sizeof *s->rows))
        return NULL;
    qf_row *row = &s->rows[s->row_count++];
    *row = (qf_row){.layer = "", .op = "", .tensor = ""};
    double *numbers[] = {
        &row->activation_bits, &row->bits,         &row->elements,  &row->channels,
        &row->scales,          &row->group,        &row->scale_min, &row->scale_max,
        &row->near_zero,       &row->sqnr,         &row->clipped,   &row->mean_square_error,
        &row->max_error,       &row->saturated,    &row->dead,      &row->scale_d,
        &row->offset_d,        &row->bias_largest, &row->bias_share};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        *numbers[i] = NAN;
    return row;
}

/* ---- layers ---- */

/* The manifest's weights by what layers call them. */
typedef struct weight_map {
    qf_strmap by_name; /* "layer\ntensor" -> the weight */
    qf_strmap seen;    /* the same names: a layer has a row for it */
} weight_map;

static const char *name_weight(qf_summary *s, const cJSON *item)
{
    return qf_arena_printf(&s->arena, "%s\n%s", text_of(item, "layer"), text_of(item, "tensor"));
}

static bool map_weights(qf_summary *s, weight_map *map)
{
    const cJSON *item;
    cJSON_ArrayForEach(item, array_of(s->manifest, "weights"))
    {
        const char *name = name_weight(s, item);
        if (!name || !qf_strmap_set(&map->by_name, name, (void *)(uintptr_t)item))
            return false;
    }
    return true;
}

static void read_layer(const cJSON *layer, qf_row *row)
{
    const cJSON *bias = cJSON_GetObjectItemCaseSensitive(layer, "bias");
    row->layer = text_of(layer, "name");
    row->op = text_of(layer, "op_type");
    row->activation_bits = count_of(layer, "activation_bits");
    row->group = count_of(layer, "group");
    row->scale_d = number_of(layer, "scale_d");
    row->offset_d = number_of(layer, "offset_d");
    row->bias_largest = count_of(bias, "largest");
    row->bias_share = count_of(bias, "share_of_int32");
}

static bool add_layer(qf_summary *s, const cJSON *layer, weight_map *map)
{
    const cJSON *item, *weights = array_of(layer, "weights");
    if (!cJSON_GetArraySize(weights)) {
        qf_row *row = add_row(s);
        if (row)
            read_layer(layer, row);
        return row != NULL;
    }
    cJSON_ArrayForEach(item, weights)
    {
        const char *name = name_weight(s, item);
        qf_row *row = name ? add_row(s) : NULL;
        if (!row || !qf_strmap_set(&map->seen, name, s))
            return false;
        read_layer(layer, row);
        row->tensor = text_of(item, "tensor");
        const cJSON *weight = qf_strmap_get(&map->by_name, name);
        if (weight && !read_weight(s, weight, row))
            return false;
    }
    return true;
}

/* Weights of no layer: all, where the manifest names none. */
static bool add_other_weights(qf_summary *s, const weight_map *map)
{
    const cJSON *item;
    cJSON_ArrayForEach(item, array_of(s->manifest, "weights"))
    {
        const char *name = name_weight(s, item);
        if (!name)
            return false;
        if (qf_strmap_get(&map->seen, name))
            continue;
        qf_row *row = add_row(s);
        if (!row || !read_weight(s, item, row))
            return false;
        row->layer = text_of(item, "layer");
    }
    return true;
}

static bool read_rows(qf_summary *s)
{
    weight_map map = {0};
    const cJSON *item, *layers = array_of(s->manifest, "layers");
    bool ok = map_weights(s, &map);
    cJSON_ArrayForEach(item, layers)
    {
        ok = ok && add_layer(s, item, &map);
    }
    ok = ok && add_other_weights(s, &map);
    s->layer_count = layers ? (double)cJSON_GetArraySize(layers) : (double)NAN;
    qf_strmap_release(&map.by_name);
    qf_strmap_release(&map.seen);
    return ok;
}

static bool read_skipped(qf_summary *s)
{
    const cJSON *item, *array = array_of(s->manifest, "skipped");
    s->skipped =
        qf_arena_array(&s->arena, (size_t)cJSON_GetArraySize(array) + 1, sizeof *s->skipped);
    if (!s->skipped)
        return false;
    cJSON_ArrayForEach(item, array)
    {
        s->skipped[s->skipped_count++] = (qf_skipped_row){
            text_of(item, "name"), text_of(item, "op_type"), text_of(item, "reason")};
    }
    return true;
}

bool qf_summary_read(qf_summary *s)
{
    s->version = text_of(s->manifest, "quantfold");
    s->scheme = text_of(s->manifest, "scheme");
    if (!read_files(s, "inputs", &s->inputs, &s->input_count) ||
        !read_files(s, "files", &s->outputs, &s->output_count) || !read_rows(s) || !read_skipped(s))
        return false;
    s->title = s->input_count && *s->inputs[0].name ? s->inputs[0].name : "model";
    add_sizes(s);
    return true;
}

/* ---- opening ---- */

/* *found: whether a file is there. What cannot be looked at is an error, not absent. */
static qf_status look_for(const char *path, bool *found, qf_error *err)
{
    struct stat st;
    if (!path)
        return qf_fail_memory(err);
    *found = stat(path, &st) == 0;
    if (!*found && !qf_is_absent(errno))
        return qf_fail_errno(err, path, errno, "cannot look for the manifest");
    *found = *found && S_ISREG(st.st_mode);
    return QF_OK;
}

/* The manifest of a save path or of a model there, in *place; where there is none, *found is false
 * and *place is where it would be: a folder with a config.json is a checkpoint. */
static qf_status find(qf_arena *arena, const char *path, const char **place, bool *found,
                      qf_error *err)
{
    char *folder, *prefix;
    *place = path;
    if (qf_ends_with(path, ".json"))
        return look_for(path, found, err);
    const char *of_model = qf_save_path_of(arena, path);
    qf_status status = qf_save_path_split(of_model ? of_model : path, &folder, &prefix, err);
    if (status != QF_OK)
        return status;
    const char *slash = qf_ends_with(folder, "/") ? "" : "/", *below = *prefix ? "/" : "";
    const char *config =
        qf_arena_printf(arena, "%s%s%s%sconfig.json", folder, slash, prefix, below);
    const char *places[] = {
        qf_arena_printf(arena, "%s%s%s%smanifest.json", folder, slash, prefix, *prefix ? "." : ""),
        qf_arena_printf(arena, "%s%s%s%squantfold.manifest.json", folder, slash, prefix, below),
        qf_arena_printf(arena, "%s%s%s/manifest.json", folder, slash, prefix)};
    free(folder);
    free(prefix);
    *found = false;
    for (size_t i = 0; status == QF_OK && !*found && i < sizeof places / sizeof *places; i++) {
        *place = places[i];
        status = look_for(places[i], found, err);
    }
    bool checkpoint = false;
    if (status == QF_OK && !*found)
        status = look_for(config, &checkpoint, err);
    if (status == QF_OK && !*found)
        *place = places[checkpoint];
    return status;
}

static qf_status parse(qf_summary *s, const char *place, qf_error *err)
{
    enum { MOST = 1 << 28 };
    char *text;
    size_t length;
    qf_status status = qf_file_read_text(place, "manifest", MOST, &text, &length, NULL, err);
    if (status != QF_OK)
        return status;
    bool exhausted = false;
    s->manifest = qf_json_parse(text, length, NULL, false, &exhausted);
    qf_spill_free(text);
    if (exhausted)
        return qf_fail_memory(err);
    if (!s->manifest)
        return qf_fail_at(err, QF_ERR_INPUT, (qf_where){.file = place},
                          "no JSON; the manifest is damaged, export once more");
    if (!array_of(s->manifest, "files"))
        return qf_fail_at(
            err, QF_ERR_INPUT, (qf_where){.file = place},
            "this is no manifest of quantfold; 'quantfold export --stats' writes one");
    return qf_summary_read(s) && qf_summary_warn(s) ? QF_OK : qf_fail_memory(err);
}

static qf_status open_manifest(qf_summary *s, const char *path, char **place, qf_error *err)
{
    const char *at;
    bool found;
    qf_status status = find(&s->arena, path, &at, &found, err);
    if (status != QF_OK)
        return status;
    if (!found)
        return qf_fail_at(err, QF_ERR_INPUT, (qf_where){.file = at},
                          "there is no manifest; give the --save-path or --out of an export that "
                          "had --stats, such as 'out/x/m'");
    *place = strdup(at);
    status = *place ? parse(s, at, err) : qf_fail_memory(err);
    if (status != QF_OK) {
        free(*place);
        *place = NULL;
    }
    return status;
}

qf_status qf_summary_open(const char *path, qf_summary **out, char **place, qf_error *err)
{
    qf_summary *s = calloc(1, sizeof *s);
    if (!s)
        return qf_fail_memory(err);
    qf_arena_init(&s->arena);
    qf_status status = open_manifest(s, path, place, err);
    if (status != QF_OK) {
        qf_summary_close(s);
        return status;
    }
    *out = s;
    return QF_OK;
}

void qf_summary_close(qf_summary *s)
{
    if (!s)
        return;
    cJSON_Delete(s->manifest);
    qf_spill_free(s->rows);
    qf_spill_free(s->warnings);
    qf_arena_release(&s->arena);
    free(s);
}
