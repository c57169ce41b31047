/* SPDX-License-Identifier: Apache-2.0 */
#include "quant/describe.h"

#include <string.h>

#include "base/json.h"

static cJSON *new_item(cJSON *array)
{
    cJSON *item = cJSON_CreateObject();
    if (item && cJSON_AddItemToArray(array, item))
        return item;
    cJSON_Delete(item);
    return NULL;
}

/* How much of int32 the largest element of a bias takes. */
static bool add_bias(cJSON *item, const qf_plan *plan, const qf_layer *l)
{
    const qf_payload *p = &plan->payloads.items[l->bias_payload[QF_DEPLOY]];
    int64_t largest = 0;
    for (uint64_t at = 0; at < p->raw_length; at += sizeof(int32_t)) {
        int32_t value;
        memcpy(&value, (const char *)p->bytes + at, sizeof value);
        int64_t magnitude = value < 0 ? -(int64_t)value : value;
        largest = magnitude > largest ? magnitude : largest;
    }
    uint64_t elements = p->raw_length / sizeof(int32_t);
    cJSON *bias = cJSON_AddObjectToObject(item, "bias");
    return bias && qf_json_add_number(bias, "elements", (double)elements) &&
           qf_json_add_number(bias, "largest", (double)largest) &&
           qf_json_add_number(bias, "share_of_int32", (double)largest * 0x1p-31);
}

static bool add_weight(cJSON *weights, const qf_job *job)
{
    cJSON *item = new_item(weights);
    return item && qf_json_add_text(item, "tensor", job->tensor) &&
           /* the first of the layers that share it */
           qf_json_add_text(item, "layer", job->layer);
}

static bool add_named(cJSON *item, const qf_layer_info *info)
{
    return qf_json_add_text(item, "name", info->name) && qf_json_add_text(item, "key", info->key) &&
           qf_json_add_text(item, "op_type", info->op_type) &&
           qf_json_add_number(item, "activation_bits", info->activation_bits) &&
           qf_json_add_number(item, "weight_bits", info->weight_bits) &&
           qf_json_add_number(item, "scales", (double)info->channels) &&
           qf_json_add_number(item, "group", (double)info->group);
}

static bool add_layer(cJSON *layers, const qf_plan *plan, size_t index)
{
    const qf_layer_info info = qf_plan_layer(plan, index);
    cJSON *item = new_item(layers);
    bool ok = item && add_named(item, &info);
    cJSON *weights = ok ? cJSON_AddArrayToObject(item, "weights") : NULL;
    if (!weights)
        return false;
    if (index >= plan->layer_count) {
        const qf_float_layer *f = &plan->float_layers[index - plan->layer_count];
        return add_weight(weights, plan->matrices[f->matrix].job);
    }
    const qf_layer *l = &plan->layers[index];
    for (size_t w = 0; ok && w < l->weight_count; w++)
        ok = add_weight(weights, l->weights[w].job);
    ok = ok && qf_json_add_number(item, "scale_d", (double)l->scale_d) &&
         qf_json_add_number(item, "offset_d", l->offset_d) &&
         cJSON_AddBoolToObject(item, "batch_norm_folded", l->folded);
    if (ok && qf_op_is_rnn(l->op))
        ok = qf_json_add_number(item, "scale_h", (double)l->scale_h) &&
             qf_json_add_number(item, "offset_h", l->offset_h);
    return ok && (!l->has_bias || add_bias(item, plan, l));
}

static bool add_input(cJSON *root, const char *key, const char *path, const qf_file_id *id)
{
    const char *slash = strrchr(path, '/');
    cJSON *item = cJSON_AddObjectToObject(root, key);
    return item && qf_json_add_text(item, "name", slash ? slash + 1 : path) &&
           qf_json_add_number(item, "bytes", (double)id->size) &&
           qf_json_add_text(item, "hash", id->hash);
}

static bool add_layers(cJSON *root, const qf_plan *plan)
{
    cJSON *layers = cJSON_AddArrayToObject(root, "layers");
    cJSON *skipped = layers ? cJSON_AddArrayToObject(root, "skipped") : NULL;
    bool ok = skipped != NULL;
    for (size_t i = 0; ok && i < qf_plan_layer_count(plan); i++)
        ok = add_layer(layers, plan, i);
    for (size_t i = 0; ok && i < qf_plan_skipped_count(plan); i++) {
        const qf_skipped_layer s = qf_plan_skipped(plan, i);
        cJSON *item = new_item(skipped);
        ok = item && qf_json_add_text(item, "name", s.name) &&
             qf_json_add_text(item, "op_type", s.op_type) &&
             qf_json_add_text(item, "reason", s.reason);
    }
    return ok;
}

cJSON *qf_plan_describe(const qf_plan *plan, bool layers)
{
    const qf_file_id *record = qf_record_id(plan->record);
    cJSON *root = cJSON_CreateObject();
    bool ok = root != NULL;
    if (ok && record)
        ok = add_input(root, "record", qf_record_path(plan->record), record);
    if (ok && plan->config_path)
        ok = add_input(root, "config", plan->config_path, &plan->config_id);
    if (ok && layers)
        ok = add_layers(root, plan);
    if (ok)
        return root;
    cJSON_Delete(root);
    return NULL;
}
