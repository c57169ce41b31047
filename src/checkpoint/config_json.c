/* SPDX-License-Identifier: Apache-2.0 */
/* config.json with the quantization that the shards have, and the index: the convention of
 * compressed-tensors. */
#include <cjson/cJSON.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "checkpoint/plan.h"

static const char member[] = "quantization_config";

/* ---- what the source says ---- */

/* `part`: the member of the root that says so; empty for the root itself. */
static qf_status refuse_quantized(const qf_checkpoint *c, const char *part, const char *name,
                                  const char *method, qf_error *err)
{
    return qf_fail_at(err, QF_ERR_INPUT, (qf_where){.file = c->path, .item = QF_CONFIG_NAME},
                      "the checkpoint is quantized already (quant_method '%s' in %s%s%s); give the "
                      "one that it was made from. Of quantized ones, only 8-bit floats (fp8) are "
                      "read, where one %s for the whole model says so",
                      method, part, *part ? "." : "", name, member);
}

/* The method that a value of quantization_config names; NULL if none. */
static const char *method_of(const cJSON *value)
{
    const char *name = cJSON_GetStringValue(value);
    return name ? name
                : cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(value, "quant_method"));
}

/* Whatever says at any depth that weights are quantized, as the parts of composed models do, but
 * for fp8 of the whole. A second member of the name is another loader's first. */
static qf_status refuse_methods(const qf_checkpoint *c, const cJSON *object, const char *part,
                                qf_error *err)
{
    qf_status status = QF_OK;
    size_t read = 0;
    for (const cJSON *i = object->child; status == QF_OK && i; i = i->next) {
        bool ours = strcmp(i->string, member) == 0;
        const char *method = method_of(i);
        bool fp8 = cJSON_IsObject(i) && method && strcmp(method, "fp8") == 0;
        if (cJSON_IsNull(i) || (ours && fp8 && !*part && !read++))
            continue;
        if (ours || strcmp(i->string, "compression_config") == 0)
            status = refuse_quantized(c, part, i->string, method ? method : "not given", err);
        else if (cJSON_IsObject(i))
            status = refuse_methods(c, i, *part ? part : i->string, err);
    }
    return status;
}

static int32_t float_type(const cJSON *config)
{
    const char *name = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(config, "dtype"));
    if (!name)
        name = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(config, "torch_dtype"));
    if (name && strcmp(name, "float16") == 0)
        return ONNX__TENSOR_PROTO__DATA_TYPE__FLOAT16;
    if (name && strcmp(name, "float32") == 0)
        return ONNX__TENSOR_PROTO__DATA_TYPE__FLOAT;
    return ONNX__TENSOR_PROTO__DATA_TYPE__BFLOAT16;
}

qf_status qf_checkpoint_source_blocks(const qf_checkpoint *c, uint64_t *rows, uint64_t *cols,
                                      int32_t *type, qf_error *err)
{
    bool exhausted = false;
    cJSON *config = qf_json_parse(c->config, c->config_length, NULL, false, &exhausted);
    const cJSON *old = cJSON_GetObjectItemCaseSensitive(config, member);
    const cJSON *block = cJSON_GetObjectItemCaseSensitive(old, "weight_block_size");
    qf_status status = exhausted ? qf_fail_memory(err) : QF_OK;
    *rows = *cols = 0;
    *type = float_type(config);
    if (status == QF_OK)
        status = refuse_methods(c, config, "", err);
    if (cJSON_GetArraySize(block) == 2 &&
        (!qf_json_integer(block->child, rows) || !qf_json_integer(block->child->next, cols)))
        *rows = *cols = 0;
    cJSON_Delete(config);
    return status;
}

/* ---- config.json ---- */

static bool add_arguments(cJSON *group, const char *name, int bits, const char *strategy,
                          uint64_t size, bool dynamic)
{
    cJSON *a = cJSON_AddObjectToObject(group, name);
    bool ok = a && cJSON_AddNumberToObject(a, "num_bits", bits) &&
              cJSON_AddStringToObject(a, "type", "int") &&
              cJSON_AddBoolToObject(a, "symmetric", true) &&
              cJSON_AddStringToObject(a, "strategy", strategy);
    ok = ok && (size ? cJSON_AddNumberToObject(a, "group_size", (double)size)
                     : cJSON_AddNullToObject(a, "group_size"));
    ok = ok && cJSON_AddNullToObject(a, "block_structure") &&
         cJSON_AddBoolToObject(a, "dynamic", dynamic) && cJSON_AddNullToObject(a, "actorder");
    ok = ok && (dynamic ? cJSON_AddNullToObject(a, "observer")
                        : cJSON_AddStringToObject(a, "observer", "minmax"));
    return ok && cJSON_AddObjectToObject(a, "observer_kwargs");
}

/* Modules that a loader might take for quantized ones: every one whose matrix stays float, since a
 * linear module may be named like an embedding (ELECTRA's embeddings_project). lm_head is there
 * even where its weight is not, being the embedding's. */
static bool add_ignored(cJSON *config, const qf_checkpoint_plan *p)
{
    cJSON *list = cJSON_AddArrayToObject(config, "ignore");
    bool head = false, ok = list != NULL;
    for (size_t i = 0; ok && i < p->info_count; i++) {
        const qf_checkpoint_tensor *t = &p->infos[i];
        size_t n = strlen(t->name);
        bool is_head = strcmp(t->name, "lm_head.weight") == 0;
        head |= is_head;
        if (!t->reason || t->bits)
            continue;
        char *module = strndup(t->name, n - strlen(".weight"));
        cJSON *item = module ? cJSON_CreateObject() : NULL;
        ok = item && qf_json_add_text(item, "name", module);
        if (ok)
            ok = cJSON_AddItemToArray(list, cJSON_DetachItemFromObject(item, "name"));
        cJSON_Delete(item);
        free(module);
    }
    cJSON *name = ok && !head ? cJSON_CreateString("lm_head") : NULL;
    return ok && (head || (name && cJSON_AddItemToArray(list, name)));
}

static cJSON *quantization(const qf_checkpoint_plan *p)
{
    const qf_form *s = &p->scheme;
    const char *format = s->activation_bits == 16 ? "pack-quantized" : "int-quantized";
    cJSON *config = cJSON_CreateObject();
    cJSON *groups = cJSON_AddObjectToObject(config, "config_groups");
    cJSON *group = cJSON_AddObjectToObject(groups, "group_0");
    cJSON *targets = cJSON_AddArrayToObject(group, "targets");
    cJSON *linear = cJSON_CreateString("Linear");
    bool ok = targets && linear && cJSON_AddItemToArray(targets, linear);
    ok = ok && add_arguments(group, "weights", s->weight_bits, s->group ? "group" : "channel",
                             s->group, false);
    ok = ok &&
         (s->activation_bits == 8 ? add_arguments(group, "input_activations", 8, "token", 0, true)
                                  : cJSON_AddNullToObject(group, "input_activations") != NULL);
    ok = ok && cJSON_AddNullToObject(group, "output_activations") &&
         cJSON_AddStringToObject(group, "format", format) &&
         cJSON_AddStringToObject(config, "format", format) &&
         cJSON_AddNullToObject(config, "global_compression_ratio") && add_ignored(config, p) &&
         cJSON_AddNullToObject(config, "kv_cache_scheme") &&
         cJSON_AddStringToObject(config, "quant_method", "compressed-tensors") &&
         cJSON_AddStringToObject(config, "quantization_status", "compressed");
    if (ok)
        return config;
    cJSON_Delete(config);
    return NULL;
}

/* Where the value that begins at `p` of a sound JSON text ends. */
static const char *value_end(const char *p)
{
    int depth = 0;
    bool text = false;
    for (; *p; p++) {
        if (text && *p == '\\' && p[1]) {
            p++;
        } else if (text) {
            text = *p != '"';
        } else if (*p == '"') {
            text = true;
        } else if (*p == '{' || *p == '[') {
            depth++;
        } else if (*p == '}' || *p == ']') {
            if (!depth--)
                return p;
        } else if (*p == ',' && !depth) {
            return p;
        }
    }
    return p;
}

/* The members of the root object of `config`, a sound JSON text that `root` is read from, without
 * the one that is replaced, however its name is written. As text, so that numbers stay written as
 * they are: loaders tell 10000.0 from 10000. */
static char *other_members(const char *config, const cJSON *root)
{
    char *out = malloc(strlen(config) + 1), *to = out;
    const char *p = strchr(config, '{');
    if (out)
        *out = '\0';
    if (!out || !p)
        return out;
    p++;
    for (const cJSON *item = root->child; item; item = item->next) {
        const char *end = value_end(p);
        if (strcmp(item->string, member) != 0) {
            if (to > out)
                *to++ = ',';
            memcpy(to, p, (size_t)(end - p));
            to += end - p;
        }
        p = *end == ',' ? end + 1 : end;
    }
    while (to > out && strchr(" \t\r\n", to[-1]))
        to--;
    *to = '\0';
    return out;
}

qf_status qf_checkpoint_config(qf_checkpoint_plan *p, const char **out, qf_error *err)
{
    bool exhausted = false;
    const qf_checkpoint *c = p->checkpoint;
    cJSON *config = quantization(p);
    cJSON *root = qf_json_parse(c->config, c->config_length, NULL, false, &exhausted);
    char *text = config ? cJSON_Print(config) : NULL;
    char *others = root ? other_members(c->config, root) : NULL;
    *out = text && others ? qf_arena_printf(&p->arena, "{%s%s\n  \"%s\": %s\n}\n", others,
                                            *others ? "," : "", member, text)
                          : NULL;
    cJSON_Delete(config);
    cJSON_Delete(root);
    free(text);
    free(others);
    return *out ? QF_OK : qf_fail_memory(err);
}

/* ---- the index ---- */

static int by_name(const void *a, const void *b)
{
    const qf_out_tensor *const *x = a, *const *y = b;
    return strcmp((*x)->name, (*y)->name);
}

qf_status qf_checkpoint_index(qf_checkpoint_plan *p, const char **out, qf_error *err)
{
    const qf_out_tensor **sorted = malloc((p->tensor_count + 1) * sizeof *sorted);
    cJSON *index = cJSON_CreateObject();
    cJSON *metadata = cJSON_AddObjectToObject(index, "metadata");
    cJSON *map = cJSON_AddObjectToObject(index, "weight_map");
    uint64_t total = 0;
    bool ok = sorted && metadata && map;
    for (size_t i = 0; ok && i < p->tensor_count; i++) {
        sorted[i] = &p->tensors[i];
        total += p->tensors[i].length;
    }
    if (ok)
        qsort(sorted, p->tensor_count, sizeof *sorted, by_name);
    ok = ok && qf_json_add_number(metadata, "total_size", (double)total);
    for (size_t i = 0; ok && i < p->tensor_count; i++)
        ok = cJSON_AddStringToObject(map, sorted[i]->name, p->shards[sorted[i]->shard]) != NULL;
    char *text = ok ? cJSON_Print(index) : NULL;
    *out = text ? qf_arena_strdup(&p->arena, text) : NULL;
    free(text);
    cJSON_Delete(index);
    free(sorted);
    return *out ? QF_OK : qf_fail_memory(err);
}
