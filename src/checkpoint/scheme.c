/* SPDX-License-Identifier: Apache-2.0 */
#include "checkpoint/scheme.h"

#include <cjson/cJSON.h>
#include <stdlib.h>
#include <string.h>

qf_status qf_scheme_parse(const char *text, qf_scheme *out, qf_error *err)
{
    static const char group[] = ":group=";
    static const struct {
        const char *name;
        int weight, activation;
    } schemes[] = {{"w8a16", 8, 16}, {"w8a8", 8, 8}, {"w4a16", 4, 16}};
    size_t n = strcspn(text, ":");
    for (size_t i = 0; i < sizeof schemes / sizeof *schemes; i++) {
        if (strlen(schemes[i].name) != n || strncmp(schemes[i].name, text, n) != 0)
            continue;
        *out = (qf_scheme){schemes[i].weight, schemes[i].activation, 0};
        if (!text[n])
            return QF_OK;
        const char *digits = text + n + sizeof group - 1;
        if (strncmp(text + n, group, sizeof group - 1) != 0 || schemes[i].activation != 16 ||
            !*digits || strspn(digits, "0123456789") != strlen(digits) || strlen(digits) > 6)
            break;
        out->group = strtoull(digits, NULL, 10);
        if (out->group >= 8 && out->group % 8 == 0)
            return QF_OK;
        return qf_fail(err, QF_ERR_USAGE, "a group is a multiple of 8 elements, not %s", digits);
    }
    return qf_fail(err, QF_ERR_USAGE,
                   "there is no scheme '%s'; schemes are w8a8, w8a16 and w4a16, the last two also "
                   "with :group=N behind them",
                   text);
}

static qf_status compile(const char *what, const char *text, regex_t *out, qf_error *err)
{
    char why[128];
    int code = regcomp(out, text, REG_EXTENDED | REG_NOSUB);
    if (code == 0)
        return QF_OK;
    regerror(code, out, why, sizeof why);
    return qf_fail(err, QF_ERR_USAGE, "%s is not a regular expression: '%s': %s", what, text, why);
}

static bool has_transposed_modules(const char *config, size_t length)
{
    static const char *const types[] = {"gpt2", "openai-gpt", "imagegpt", "decision_transformer"};
    cJSON *root = cJSON_ParseWithLength(config, length);
    const char *type = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(root, "model_type"));
    bool found = false;
    for (size_t i = 0; type && i < sizeof types / sizeof *types; i++)
        found |= strcmp(type, types[i]) == 0;
    cJSON_Delete(root);
    return found;
}

qf_status qf_selection_open(const char *include, const char *exclude, const char *config,
                            size_t config_length, qf_selection *out, qf_error *err)
{
    *out = (qf_selection){.transposed_modules = has_transposed_modules(config, config_length)};
    qf_status status = include ? compile("include", include, &out->include, err) : QF_OK;
    out->has_include = include && status == QF_OK;
    if (status == QF_OK && exclude) {
        status = compile("exclude", exclude, &out->exclude, err);
        out->has_exclude = status == QF_OK;
    }
    return status;
}

void qf_selection_close(qf_selection *s)
{
    if (s->has_include)
        regfree(&s->include);
    if (s->has_exclude)
        regfree(&s->exclude);
    s->has_include = s->has_exclude = false;
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

bool qf_is_never_linear(const char *tensor)
{
    const char *part;
    size_t n = last_part(tensor, &part);
    char word[256];
    snprintf(word, sizeof word, "%.*s", (int)n, part);
    return strstr(word, "embed") || strstr(word, "Embed") || strstr(word, "norm") ||
           strstr(word, "Norm") || part_is(part, n, "wte") || part_is(part, n, "wpe");
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
    if (qf_is_never_linear(t->name))
        return "it is an embedding or a norm";
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

const char *qf_selection_judge(const qf_selection *s, const qf_safetensor *t)
{
    size_t n = strlen(t->name);
    if (t->rank != 2 || !is_float(t->data_type) || n < 8 ||
        strcmp(t->name + n - 7, ".weight") != 0 || !t->dims[0] || !t->dims[1])
        return NULL;
    if (s->has_exclude && regexec(&s->exclude, t->name, 0, NULL, 0) == 0)
        return "excluded";
    if (s->has_include)
        return regexec(&s->include, t->name, 0, NULL, 0) == 0 ? "" : "not included";
    return judge_default(s, t);
}
