/* SPDX-License-Identifier: Apache-2.0 */
#include "quant/config.h"

#include <float.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "base/file.h"
#include "base/json.h"
#include "base/spill.h"
#include "base/strmap.h"
#include "quant/text_token.h"

/* cJSON makes an object of about 80 bytes of each value, even of one that takes two bytes of text;
 * this many are far more than any model has layers for. */
enum { MAX_VALUES = 4 * 1000 * 1000 };

struct qf_config {
    char *path;
    qf_file_id id;
    qf_arena arena; /* holds the names */
    qf_config_layer *layers;
    size_t layer_count, layer_cap;
    bool force_fp16;
};

/* What a check needs to know and to say. */
typedef struct checker {
    qf_config *config;
    qf_diagnostics *findings;
    const char *layer; /* "" at the top level */
    bool out_of_memory;
} checker;

#define COUNT(array) (sizeof(array) / sizeof(array)[0])

#define REPORT(c, severity, ...) \
    qf_diag_add((c)->findings, severity, \
                (qf_where){.file = (c)->config->path, .item = (c)->layer}, __VA_ARGS__)

typedef struct shown {
    char text[80];
} shown;

/* A value as JSON text, if it is short. */
static shown show(const cJSON *value)
{
    shown s;
    /* the cJSON manual asks for 5 bytes more than the text needs */
    if (!cJSON_PrintPreallocated((cJSON *)(uintptr_t)value, s.text, sizeof s.text, false))
        snprintf(s.text, sizeof s.text, "%s",
                 cJSON_IsString(value)   ? "a long string"
                 : cJSON_IsObject(value) ? "an object"
                                         : "a long value");
    return s;
}

/* ---- The text ----------------------------------------------------------------------------- */

static void report_at(checker *c, const char *text, size_t offset, const char *what)
{
    qf_where where = {.file = c->config->path};
    qf_text_place(text, offset, &where.line, &where.column);
    qf_diag_add(c->findings, QF_ERROR, where, "%s", what);
}

/* Offset of \u0000, which cJSON would take for the end of its string; `length` if there is none. */
static size_t find_nul_escape(const char *text, size_t length)
{
    for (size_t i = 0; i + 6 <= length; i++) {
        if (text[i] != '\\')
            continue;
        if (memcmp(text + i, "\\u0000", 6) == 0)
            return i;
        i++; /* the escaped character, which may be another backslash */
    }
    return length;
}

static bool text_ok(checker *c, const char *text, size_t length)
{
    size_t good = qf_utf8_prefix(text, length), values = 0;
    if (good < length) {
        report_at(c, text, good,
                  text[good] ? "a byte that is not valid UTF-8" : "a NUL byte; this is no JSON");
        return false;
    }
    size_t nul = find_nul_escape(text, length);
    if (nul < length) {
        report_at(c, text, nul, "a string holds the character NUL");
        return false;
    }
    for (size_t i = 0; i < length; i++)
        values += text[i] == ',' || text[i] == '[' || text[i] == '{';
    if (values > MAX_VALUES) {
        REPORT(c, QF_ERROR, "the configuration has %zu values; at most %d are accepted", values,
               MAX_VALUES);
        return false;
    }
    return true;
}

/* Says where the text stops being JSON, or that it is no object. */
static void report_syntax(checker *c, const char *text, size_t length)
{
    const char *end = text;
    /* the NUL belongs to the text: with it, anything behind the object is an error */
    cJSON *root = qf_json_parse(text, length + 1, &end, true, &c->out_of_memory);
    if (root && !cJSON_IsObject(root))
        REPORT(c, QF_ERROR, "the configuration must be a JSON object, not %s", show(root).text);
    else
        report_at(c, text, (size_t)(end - text),
                  "JSON syntax error here or just before: look for a missing or extra comma, "
                  "quote or bracket (more than 1000 levels are not accepted either)");
    cJSON_Delete(root);
}

/* White space as cJSON sees it. */
static const char *skip_space(const char *at, const char *end)
{
    while (at < end && (unsigned char)*at <= ' ')
        at++;
    return at;
}

/* The value at *at, which moves behind it and the space that follows; NULL if there is none. */
static cJSON *next_value(checker *c, const char **at, const char *end)
{
    const char *behind = *at;
    cJSON *value = qf_json_parse(*at, (size_t)(end - *at), &behind, false, &c->out_of_memory);
    *at = skip_space(behind, end);
    return value;
}

/* The key and colon at *at, which moves on to the value. */
static cJSON *next_key(checker *c, const char **at, const char *end)
{
    cJSON *key = next_value(c, at, end);
    if (!cJSON_IsString(key) || *at == end || **at != ':') {
        cJSON_Delete(key);
        return NULL;
    }
    *at = skip_space(*at + 1, end);
    return key;
}

typedef void (*member_fn)(checker *c, const cJSON *value, void *user);

/* Calls `visit` for each member of the object, one at a time: as a tree, the configuration of a
 * large model would take many times the memory of its text. False if the text is not an object. */
static bool each_member(checker *c, const char *text, size_t length, member_fn visit, void *user)
{
    const char *at = text, *end = text + length;
    if (length >= 3 && memcmp(at, "\xef\xbb\xbf", 3) == 0)
        at += 3;
    at = skip_space(at, end);
    if (at == end || *at != '{')
        return false;
    at = skip_space(at + 1, end);
    bool more = at < end && *at != '}';
    while (more) {
        cJSON *key = next_key(c, &at, end), *value = key ? next_value(c, &at, end) : NULL;
        if (value) {
            value->string = key->valuestring;
            value->type |= cJSON_StringIsConst; /* the key keeps it */
            visit(c, value, user);
        }
        cJSON_Delete(value);
        cJSON_Delete(key);
        if (!value || at == end)
            return false;
        more = *at == ',';
        if (more)
            at = skip_space(at + 1, end);
    }
    return at < end && *at == '}' && skip_space(at + 1, end) == end;
}

/* Reports a key that its object, which is called `where`, or NULL at the top, has already. */
static void check_key(checker *c, qf_strmap *seen, const char *key, const char *where)
{
    if (qf_strmap_get(seen, key))
        REPORT(c, QF_ERROR, "key \"%s\" appears twice in %s%s%s; delete one", key,
               where ? "\"" : "", where ? where : "the configuration", where ? "\"" : "");
    else if (!qf_strmap_set(seen, key, seen))
        c->out_of_memory = true;
}

/* Reports keys that an object holds twice, at any depth. cJSON has limited the depth. `where` is
 * the key of the object itself. */
static void check_duplicates(checker *c, const cJSON *value, const char *where)
{
    qf_strmap seen = {0};
    for (const cJSON *child = value->child; child; child = child->next) {
        if (cJSON_IsObject(value))
            check_key(c, &seen, child->string, where);
        if (child->child)
            check_duplicates(c, child, child->string ? child->string : where);
    }
    qf_strmap_release(&seen);
}

/* The same for a member of the whole; `user`: keys seen so far. */
static void check_member_keys(checker *c, const cJSON *value, void *user)
{
    const char *key = qf_arena_strdup(&c->config->arena, value->string);
    if (!key) {
        c->out_of_memory = true;
        return;
    }
    c->layer = key;
    check_key(c, user, key, NULL);
    check_duplicates(c, value, key);
    c->layer = "";
}

static void pass_by(checker *c, const cJSON *value, void *user)
{
    (void)c;
    (void)value;
    (void)user;
}

/* False after reporting why the text cannot be used. */
static bool check_syntax(checker *c, const char *text, size_t length)
{
    if (!text_ok(c, text, length))
        return false;
    if (strspn(text, " \t\r\n") == length) {
        REPORT(c, QF_ERROR, "the configuration is empty; it must hold a JSON object");
        return false;
    }
    if (each_member(c, text, length, pass_by, NULL))
        return true;
    report_syntax(c, text, length);
    return false;
}

/* ---- Values ------------------------------------------------------------------------------- */

/* The choice of a string value among `count` words; -1 after reporting that it is none. */
static int check_word(checker *c, const cJSON *value, const char *const *words, size_t count)
{
    char allowed[128] = "";
    for (size_t i = 0; i < count; i++) {
        if (cJSON_IsString(value) && strcmp(value->valuestring, words[i]) == 0)
            return (int)i;
        size_t at = strlen(allowed);
        snprintf(allowed + at, sizeof allowed - at, "%s%s",
                 !i              ? ""
                 : i + 1 < count ? ", "
                                 : " or ",
                 words[i]);
    }
    REPORT(c, QF_ERROR, "%s must be %s, not %s", value->string, allowed, show(value).text);
    return -1;
}

static qf_choice check_bool(checker *c, const cJSON *value)
{
    if (!cJSON_IsBool(value)) {
        REPORT(c, QF_ERROR, "%s must be true or false, not %s", value->string, show(value).text);
        return QF_UNSET;
    }
    return cJSON_IsTrue(value) ? QF_YES : QF_NO;
}

/* An integer as Python sees one, where true is 1 and false is 0. */
static bool as_integer(const cJSON *value, double *out)
{
    if (cJSON_IsBool(value))
        *out = cJSON_IsTrue(value);
    else if (cJSON_IsNumber(value))
        *out = value->valuedouble;
    else
        return false;
    return *out >= -9007199254740992.0 && *out <= 9007199254740992.0 &&
           (double)(int64_t)*out == *out;
}

static void check_version(checker *c, const cJSON *value)
{
    double number;
    if (!as_integer(value, &number) || number < 1 || number > 1)
        REPORT(c, QF_ERROR, "version must be 1, not %s", show(value).text);
}

static void check_batch_num(checker *c, const cJSON *value)
{
    double number;
    if (!as_integer(value, &number) || number < 1)
        REPORT(c, QF_ERROR, "batch_num must be an integer above 0, not %s", show(value).text);
}

static void check_clip(checker *c, const cJSON *value, bool positive)
{
    double number = cJSON_IsNumber(value) ? value->valuedouble : 0;
    if (positive ? number > 0 && number <= DBL_MAX : number < 0 && number >= -DBL_MAX)
        return;
    REPORT(c, QF_ERROR, "%s must be a number %s 0, not %s", value->string,
           positive ? "above" : "below", show(value).text);
}

static void report_unknown(checker *c, qf_severity severity, const char *key, const char *place,
                           const char *const *known, size_t count)
{
    const char *near = qf_suggest(key, known, count);
    const char *effect = severity == QF_WARNING ? " and is ignored" : "";
    if (near)
        REPORT(c, severity, "\"%s\" is not a key of %s%s; did you mean \"%s\"?", key, place, effect,
               near);
    else
        REPORT(c, severity, "\"%s\" is not a key of %s%s", key, place, effect);
}

/* ---- Layers ------------------------------------------------------------------------------- */

static const char *const types[] = {"INT4", "INT8", "INT16"};
static const int type_bits[] = {4, 8, 16};

static int check_type(checker *c, const cJSON *value)
{
    int i = check_word(c, value, types, COUNT(types));
    return i < 0 ? 0 : type_bits[i];
}

static bool is_key(const cJSON *value, const char *key)
{
    return strcmp(value->string, key) == 0;
}

static bool check_object(checker *c, const cJSON *value)
{
    if (cJSON_IsObject(value))
        return true;
    REPORT(c, QF_ERROR, "%s must be an object, not %s", value->string, show(value).text);
    return false;
}

/* Bits are 0 if they are wrong. */
static void check_data(checker *c, const cJSON *data, qf_config_layer *layer)
{
    static const char *const keys[] = {"algo", "clip_max", "clip_min", "fixed_min", "dst_type"};
    static const char *const algos[] = {"ulq_quantize"};
    const cJSON *max = NULL, *min = NULL;
    if (!check_object(c, data)) {
        layer->act_bits = 0;
        return;
    }
    for (const cJSON *value = data->child; value; value = value->next) {
        if (is_key(value, "algo"))
            check_word(c, value, algos, COUNT(algos));
        else if (is_key(value, "clip_max"))
            check_clip(c, max = value, true);
        else if (is_key(value, "clip_min"))
            check_clip(c, min = value, false);
        else if (is_key(value, "fixed_min"))
            layer->fixed_min = check_bool(c, value) == QF_YES;
        else if (is_key(value, "dst_type"))
            layer->act_bits = check_type(c, value);
        else
            report_unknown(c, QF_ERROR, value->string, data->string, keys, COUNT(keys));
    }
    if (!max != !min)
        REPORT(c, QF_ERROR, "clip_max and clip_min must be given together; %s is missing",
               max ? "clip_min" : "clip_max");
    layer->has_clip = max && min;
    layer->clip_max = layer->has_clip ? (float)max->valuedouble : 0;
    layer->clip_min = layer->has_clip ? (float)min->valuedouble : 0;
}

static int check_weight(checker *c, const cJSON *weight, qf_choice *channel_wise)
{
    static const char *const keys[] = {"algo", "channel_wise", "dst_type"};
    static const char *const algos[] = {"arq_retrain", "ulq_retrain"};
    int bits = 8;
    if (!check_object(c, weight))
        return 0;
    for (const cJSON *value = weight->child; value; value = value->next) {
        if (is_key(value, "algo"))
            check_word(c, value, algos, COUNT(algos));
        else if (is_key(value, "channel_wise"))
            *channel_wise = check_bool(c, value);
        else if (is_key(value, "dst_type"))
            bits = check_type(c, value);
        else
            report_unknown(c, QF_ERROR, value->string, weight->string, keys, COUNT(keys));
    }
    return bits;
}

/* The pairs of types that the reference knows. Wrong bits are 0 and have been reported already. */
static void check_combination(checker *c, const qf_config_layer *layer)
{
    int act = layer->act_bits, wts = layer->wts_bits;
    bool known = (act == 4 && wts == 4) || (act == 8 && wts == 8) || (act == 16 && wts == 8) ||
                 (act == 8 && wts == 4);
    if (act && wts && !known)
        REPORT(c, QF_ERROR,
               "dst_type INT%d of retrain_data_config does not go with INT%d of "
               "retrain_weight_config; allowed are A4W4, A8W4, A8W8 and A16W8",
               act, wts);
    if (layer->enabled && wts == 4 && strstr(layer->name, "AvgPool"))
        REPORT(c, QF_ERROR,
               "dst_type of retrain_weight_config must not be INT4 in a layer with "
               "\"AvgPool\" in its name; use INT8");
}

static void check_layer(checker *c, const cJSON *object)
{
    static const char *const keys[] = {"retrain_enable", "retrain_data_config",
                                       "retrain_weight_config"};
    qf_config *config = c->config;
    qf_config_layer layer = {.enabled = true, .act_bits = 8, .wts_bits = 8};
    layer.name = qf_arena_strdup(&config->arena, object->string);
    if (!layer.name || !qf_table_grow((void **)&config->layers, &config->layer_cap,
                                      config->layer_count + 1, sizeof layer)) {
        c->out_of_memory = true;
        return;
    }
    c->layer = layer.name;
    for (const cJSON *value = object->child; value; value = value->next) {
        if (is_key(value, "retrain_enable"))
            layer.enabled = check_bool(c, value) != QF_NO;
        else if (is_key(value, "retrain_data_config"))
            check_data(c, value, &layer);
        else if (is_key(value, "retrain_weight_config"))
            layer.wts_bits = check_weight(c, value, &layer.channel_wise);
        else if (is_key(value, "regular_prune_enable") || is_key(value, "regular_prune_config"))
            REPORT(c, QF_ERROR, "%s is not allowed: pruning is not part of a QAT configuration",
                   value->string);
        else
            report_unknown(c, QF_WARNING, value->string, "a layer", keys, COUNT(keys));
    }
    check_combination(c, &layer);
    config->layers[config->layer_count++] = layer;
    c->layer = "";
}

/* ---- The whole ---------------------------------------------------------------------------- */

static void check_mode(checker *c, const cJSON *value)
{
    static const char *const modes[] = {"DEFAULT", "FORCE_FP16_QUANT"};
    c->config->force_fp16 = check_word(c, value, modes, COUNT(modes)) == 1;
}

static void check_stray(checker *c, const cJSON *value)
{
    static const char *const keys[] = {"version", "batch_num", "fakequant_precision_mode"};
    const char *near = qf_suggest(value->string, keys, COUNT(keys));
    c->layer = value->string;
    if (near)
        REPORT(c, QF_ERROR,
               "is not a known key, and the value of a layer must be an object, not %s; did you "
               "mean \"%s\"?",
               show(value).text, near);
    else
        REPORT(c, QF_ERROR,
               "is not a known key, and the value of a layer must be an object, not "
               "%s",
               show(value).text);
    c->layer = "";
}

typedef struct presence {
    bool version, batch_num;
} presence;

static void check_member(checker *c, const cJSON *value, void *user)
{
    presence *p = user;
    if (is_key(value, "version")) {
        p->version = true;
        check_version(c, value);
    } else if (is_key(value, "batch_num")) {
        p->batch_num = true;
        check_batch_num(c, value);
    } else if (is_key(value, "fakequant_precision_mode")) {
        check_mode(c, value);
    } else if (cJSON_IsObject(value)) {
        check_layer(c, value);
    } else {
        check_stray(c, value);
    }
}

static void check_root(checker *c, const char *text, size_t length)
{
    presence p = {0};
    qf_strmap seen = {0};
    each_member(c, text, length, check_member_keys, &seen);
    qf_strmap_release(&seen);
    each_member(c, text, length, check_member, &p);
    if (!p.version)
        REPORT(c, QF_ERROR, "version is missing; write \"version\": 1");
    if (!p.batch_num)
        REPORT(c, QF_ERROR, "batch_num is missing; write \"batch_num\": 1");
    bool enabled = false;
    for (size_t i = 0; i < c->config->layer_count; i++)
        enabled = enabled || c->config->layers[i].enabled;
    if (!enabled)
        REPORT(c, QF_ERROR, "no layer has retrain_enable true; there is nothing to quantize");
}

static void forward(const qf_diagnostics *from, qf_diagnostics *to)
{
    for (size_t i = 0; i < qf_diagnostics_count(from); i++) {
        qf_diagnostic d = qf_diagnostics_at(from, i);
        qf_where where = {.file = d.file, .item = d.item, .line = d.line, .column = d.column};
        qf_diag_add(to, d.severity, where, "%s", d.message);
    }
}

/* Findings go into a list of our own first: the caller's may be NULL, or hold errors of others. */
static qf_status check_text(qf_config *config, const char *text, size_t length,
                            qf_diagnostics *diagnostics, qf_error *err)
{
    checker c = {.config = config, .findings = qf_diagnostics_create(), .layer = ""};
    if (!c.findings)
        return qf_fail_memory(err);
    if (check_syntax(&c, text, length))
        check_root(&c, text, length);
    qf_status status =
        c.out_of_memory ? qf_fail_memory(err) : qf_diag_status(c.findings, (qf_diag_mark){0}, err);
    if (status != QF_ERR_MEMORY) /* what was found for want of memory is not true */
        forward(c.findings, diagnostics);
    qf_diagnostics_free(c.findings);
    return status;
}

qf_status qf_config_open(const char *path, qf_config **out, qf_diagnostics *diagnostics,
                         qf_error *err)
{
    if (!path || !out)
        return qf_fail(err, QF_ERR_USAGE,
                       "qf_config_open needs a path and a place for the "
                       "configuration");
    qf_config *config = calloc(1, sizeof *config);
    if (!config)
        return qf_fail_memory(err);
    qf_arena_init(&config->arena);
    config->path = strdup(path);
    char *text = NULL;
    size_t length = 0;
    qf_status status = config->path ? qf_file_read_text(path, "config file", QF_CONFIG_MAX_BYTES,
                                                        &text, &length, &config->id, err)
                                    : qf_fail_memory(err);
    if (status == QF_OK)
        status = check_text(config, text, length, diagnostics, err);
    qf_spill_free(text);
    if (status != QF_OK) {
        qf_config_close(config);
        return status;
    }
    *out = config;
    return QF_OK;
}

void qf_config_close(qf_config *config)
{
    if (!config)
        return;
    qf_arena_release(&config->arena);
    qf_spill_free(config->layers);
    free(config->path);
    free(config);
}

size_t qf_config_layer_count(const qf_config *config)
{
    return config->layer_count;
}

const qf_config_layer *qf_config_layer_at(const qf_config *config, size_t index)
{
    return &config->layers[index];
}

bool qf_config_force_fp16(const qf_config *config)
{
    return config->force_fp16;
}

const char *qf_config_path(const qf_config *config)
{
    return config->path;
}

const qf_file_id *qf_config_id(const qf_config *config)
{
    return &config->id;
}
