/* SPDX-License-Identifier: Apache-2.0 */
#include "checkpoint/selection.h"

#include <stdio.h>
#include <string.h>

#include "base/json.h"

static qf_status find_transposed_modules(const char *config, size_t length, bool *found,
                                         qf_error *err)
{
    static const char *const types[] = {"gpt2", "openai-gpt", "imagegpt", "decision_transformer"};
    bool exhausted = false;
    cJSON *root = qf_json_parse(config, length, NULL, false, &exhausted);
    const char *type = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(root, "model_type"));
    *found = false;
    for (size_t i = 0; type && i < sizeof types / sizeof *types; i++)
        *found |= strcmp(type, types[i]) == 0;
    cJSON_Delete(root);
    return exhausted ? qf_fail_memory(err) : QF_OK;
}

qf_status qf_selection_open(const char *include, const char *exclude, const char *config,
                            size_t config_length, qf_selection *out, qf_error *err)
{
    *out = (qf_selection){0};
    qf_status status =
        find_transposed_modules(config, config_length, &out->transposed_modules, err);
    if (status == QF_OK)
        status = qf_pattern_compile("include", include, &out->include, err);
    return status == QF_OK ? qf_pattern_compile("exclude", exclude, &out->exclude, err) : status;
}

void qf_selection_close(qf_selection *s)
{
    qf_pattern_release(&s->include);
    qf_pattern_release(&s->exclude);
}

/* The last part of the module's name: "mlp.gate" of "layers.0.mlp.gate.weight" is "gate". */
static size_t last_part(const char *tensor, const char **from)
{
    const char *end = strrchr(tensor, '.');
    if (!end)
        end = tensor + strlen(tensor);
    *from = end;
    while (*from > tensor && (*from)[-1] != '.')
        (*from)--;
    return (size_t)(end - *from);
}

static bool part_is(const char *part, size_t n, const char *word)
{
    return strlen(word) == n && strncmp(part, word, n) == 0;
}

/* T5, BART, Marian and Pegasus call their embedding `shared`; T5's biases of positions are one too.
 * GPT-2's are wte and wpe. */
static bool is_never_linear(const char *tensor)
{
    static const char *const words[] = {"wte", "wpe", "shared", "relative_attention_bias"};
    const char *part;
    size_t n = last_part(tensor, &part);
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        if (part_is(part, n, words[i]))
            return true;
    }
    char word[256];
    snprintf(word, sizeof word, "%.*s", (int)n, part);
    return strstr(word, "embed") || strstr(word, "Embed") || strstr(word, "norm") ||
           strstr(word, "Norm");
}

static bool is_router(const char *tensor)
{
    const char *part;
    size_t n = last_part(tensor, &part);
    return part_is(part, n, "gate") || part_is(part, n, "router") ||
           part_is(part, n, "shared_expert_gate");
}

static bool is_float(int32_t type)
{
    return type == ONNX__TENSOR_PROTO__DATA_TYPE__FLOAT ||
           type == ONNX__TENSOR_PROTO__DATA_TYPE__FLOAT16 ||
           type == ONNX__TENSOR_PROTO__DATA_TYPE__BFLOAT16 ||
           type == ONNX__TENSOR_PROTO__DATA_TYPE__DOUBLE || type == QF_DTYPE_F8_E4M3FN ||
           type == QF_DTYPE_F8_E5M2;
}

static const char *judge_default(const qf_selection *s, const qf_safetensor *t)
{
    enum { LEAST = 32 };
    const char *part;
    size_t n = last_part(t->name, &part);
    if (part_is(part, n, "lm_head"))
        return "lm_head stays float unless --include names it";
    if (is_router(t->name))
        return "it is a router";
    if (t->dims[0] < LEAST || t->dims[1] < LEAST)
        return "it is smaller than 32 x 32";
    if (s->transposed_modules)
        return "the model's linear layers are stored [in, out], which the convention has no form "
               "for";
    return "";
}

const char *qf_selection_judge(qf_selection *s, const qf_safetensor *t)
{
    size_t n = strlen(t->name);
    if (t->rank != 2 || !is_float(t->data_type) || n < 8 ||
        strcmp(t->name + n - 7, ".weight") != 0 || !t->dims[0] || !t->dims[1])
        return NULL;
    if (qf_pattern_matches(&s->exclude, t->name))
        return "excluded";
    if (s->include.on && !qf_pattern_matches(&s->include, t->name))
        return "not included";
    if (is_never_linear(t->name)) /* loaders have no form for it, whoever asks */
        return s->include.on ? "it is an embedding or a norm, which --include cannot choose"
                             : "it is an embedding or a norm";
    return s->include.on ? "" : judge_default(s, t);
}
