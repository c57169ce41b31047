/* SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <stdio.h>

#include "base/json.h"
#include "report/summary.h"

static cJSON *new_item(cJSON *array)
{
    cJSON *item = cJSON_CreateObject();
    if (item && cJSON_AddItemToArray(array, item))
        return item;
    cJSON_Delete(item);
    return NULL;
}

static bool add_file(cJSON *files, const qf_report_file *f, const char *model)
{
    cJSON *item = new_item(files);
    return item && qf_json_add_text(item, "name", f->name) &&
           qf_json_add_number(item, "bytes", f->bytes) &&
           (!model || qf_json_add_text(item, "model", model));
}

static bool add_sizes(cJSON *root, const qf_summary *s)
{
    cJSON *sizes = cJSON_AddObjectToObject(root, "sizes");
    bool ok = sizes && qf_json_add_number(sizes, "before", s->before);
    for (int i = 0; ok && i < QF_REPORT_MODELS; i++)
        ok = qf_json_add_number(sizes, qf_report_model_word((qf_report_model)i), s->after[i]);
    ok = ok && qf_json_add_number(sizes, "ratio", s->before / s->after[QF_REPORT_DEPLOY]);
    cJSON *inputs = ok ? cJSON_AddArrayToObject(sizes, "inputs") : NULL;
    cJSON *files = inputs ? cJSON_AddArrayToObject(sizes, "files") : NULL;
    ok = files != NULL;
    for (size_t i = 0; ok && i < s->input_count; i++)
        ok = add_file(inputs, &s->inputs[i], NULL);
    for (size_t i = 0; ok && i < s->output_count; i++)
        ok = add_file(files, &s->outputs[i], qf_report_model_word(s->outputs[i].model));
    return ok;
}

static bool add_warnings(cJSON *root, const qf_summary *s)
{
    cJSON *array = cJSON_AddArrayToObject(root, "warnings");
    bool ok = array != NULL;
    for (size_t i = 0; ok && i < s->warning_count; i++) {
        const qf_warning *w = &s->warnings[i];
        cJSON *item = new_item(array);
        ok = item && qf_json_add_text(item, "kind", qf_warning_word(w->kind)) &&
             qf_json_add_text(item, "layer", s->rows[w->row].layer) &&
             qf_json_add_text(item, "tensor", s->rows[w->row].tensor) &&
             qf_json_add_text(item, "message", w->message) &&
             qf_json_add_text(item, "advice", qf_warning_advice(w->kind));
    }
    return ok;
}

/* As text: a node for each number would take most of the memory of a large document. */
static bool add_counts(cJSON *object, const char *key, const double *counts, int n)
{
    char text[QF_BINS * 26 + 3] = "[";
    size_t at = 1;
    if (!counts)
        return cJSON_AddNullToObject(object, key) != NULL;
    for (int i = 0; i < n; i++)
        at += (size_t)snprintf(text + at, sizeof text - at, i ? ", %.15g" : "%.15g", counts[i]);
    snprintf(text + at, sizeof text - at, "]");
    return cJSON_AddRawToObject(object, key, text) != NULL;
}

static bool add_histogram(cJSON *item, const qf_histogram *h)
{
    cJSON *out = cJSON_AddObjectToObject(item, "histogram");
    return out && qf_json_add_number(out, "from", h->from) &&
           qf_json_add_number(out, "to", h->to) && qf_json_add_number(out, "sampled", h->sampled) &&
           qf_json_add_number(out, "below", h->below) &&
           qf_json_add_number(out, "above", h->above) &&
           add_counts(out, "float", h->floats, QF_BINS) &&
           add_counts(out, "quantized", h->ints, h->int_count);
}

/* What is not known is null. */
static bool add_row(cJSON *rows, const qf_row *r)
{
    const struct {
        const char *key;
        double value;
    } numbers[] = {{"activation_bits", r->activation_bits},
                   {"bits", r->bits},
                   {"elements", r->elements},
                   {"channels", r->channels},
                   {"scales", r->scales},
                   {"group", r->group},
                   {"scale_min", r->scale_min},
                   {"scale_max", r->scale_max},
                   {"near_zero_scales", r->near_zero},
                   {"sqnr_db", r->sqnr},
                   {"mean_square_error", r->mean_square_error},
                   {"max_error", r->max_error},
                   {"clipped", r->clipped},
                   {"clipped_percent", 100 * r->clipped / r->elements},
                   {"saturated", r->saturated},
                   {"saturated_percent", 100 * r->saturated / r->elements},
                   {"dead_channels", r->dead},
                   {"scale_d", r->scale_d},
                   {"offset_d", r->offset_d},
                   {"bias_largest", r->bias_largest},
                   {"bias_share_of_int32", r->bias_share}};
    cJSON *item = new_item(rows);
    bool ok = item && qf_json_add_text(item, "layer", r->layer) &&
              qf_json_add_text(item, "op_type", r->op) &&
              qf_json_add_text(item, "tensor", r->tensor) &&
              cJSON_AddBoolToObject(item, "exact", isinf(r->sqnr));
    for (size_t i = 0; ok && i < sizeof numbers / sizeof *numbers; i++)
        ok = qf_json_add_number(item, numbers[i].key, numbers[i].value);
    return ok && (!r->histogram.ints || add_histogram(item, &r->histogram));
}

static bool add_skipped(cJSON *root, const qf_summary *s)
{
    cJSON *array = cJSON_AddArrayToObject(root, "skipped");
    bool ok = array != NULL;
    for (size_t i = 0; ok && i < s->skipped_count; i++) {
        cJSON *item = new_item(array);
        ok = item && qf_json_add_text(item, "layer", s->skipped[i].layer) &&
             qf_json_add_text(item, "op_type", s->skipped[i].op) &&
             qf_json_add_text(item, "reason", s->skipped[i].reason);
    }
    return ok;
}

cJSON *qf_summary_to_json(const qf_summary *s)
{
    cJSON *root = cJSON_CreateObject(), *rows = NULL;
    bool ok = root && qf_json_add_text(root, "model", s->title) &&
              qf_json_add_text(root, "quantfold", s->version) &&
              cJSON_AddBoolToObject(root, "statistics", s->measured) &&
              qf_json_add_number(root, "layers", s->layer_count) && add_sizes(root, s) &&
              add_warnings(root, s) && (rows = cJSON_AddArrayToObject(root, "rows"));
    for (size_t i = 0; ok && i < s->row_count; i++)
        ok = add_row(rows, &s->rows[i]);
    if (ok && add_skipped(root, s))
        return root;
    cJSON_Delete(root);
    return NULL;
}
