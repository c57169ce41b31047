/* SPDX-License-Identifier: Apache-2.0 */
/* QAT configurations: what is read, and each rule with inputs that break it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <dirent.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "quant/config.h"

#define COUNT(array) (sizeof(array) / sizeof(array)[0])

/* Opens a configuration with this text. */
static qf_status open_bytes(const char *text, size_t length, qf_config **out, qf_diagnostics *list,
                            qf_error *err)
{
    char path[] = "/tmp/qf_config_XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, text, length), (ssize_t)length);
    close(fd);
    qf_status status = qf_config_open(path, out, list, err);
    unlink(path);
    return status;
}

static qf_status open_text(const char *text, qf_config **out, qf_diagnostics *list, qf_error *err)
{
    return open_bytes(text, strlen(text), out, list, err);
}

#define HEAD "\"version\":1,\"batch_num\":1,"
#define LAYER(body) "{" HEAD "\"conv\":{" body "}}"
#define DATA(body) LAYER("\"retrain_data_config\":{" body "}")
#define WEIGHT(body) LAYER("\"retrain_weight_config\":{" body "}")
#define BITS(act, wts) \
    LAYER("\"retrain_data_config\":{\"dst_type\":\"" act \
          "\"},\"retrain_weight_config\":{\"dst_type\":\"" wts "\"}")

static void test_layers(void **state)
{
    (void)state;
    qf_config *config;
    qf_error err;
    qf_diagnostics *list = qf_diagnostics_create();
    const char *text =
        "{\"version\": true, \"batch_num\": 20, \"fakequant_precision_mode\": \"FORCE_FP16_QUANT\","
        "\"a\": {},"
        "\"b\": {\"retrain_enable\": false},"
        "\"c.d\": {\"retrain_enable\": true, \"retrain_data_config\": {\"algo\": \"ulq_quantize\","
        "  \"clip_max\": 3, \"clip_min\": -2.5e0, \"fixed_min\": false, \"dst_type\": \"INT16\"},"
        "  \"retrain_weight_config\": {\"algo\": \"ulq_retrain\", \"channel_wise\": true,"
        "  \"dst_type\": \"INT8\"}},"
        "\"AvgPool\": {\"retrain_enable\": false, \"retrain_weight_config\": {\"dst_type\":"
        "  \"INT4\", \"channel_wise\": false, \"algo\": \"arq_retrain\"}}}";
    assert_int_equal(open_text(text, &config, list, &err), QF_OK);
    assert_int_equal(qf_diagnostics_count(list), 0);
    static const qf_config_layer expect[] = {
        {.name = "a", .enabled = true, .act_bits = 8, .wts_bits = 8},
        {.name = "b", .act_bits = 8, .wts_bits = 8},
        {.name = "c.d", .enabled = true, .act_bits = 16, .wts_bits = 8, .channel_wise = QF_YES},
        {.name = "AvgPool", .act_bits = 8, .wts_bits = 4, .channel_wise = QF_NO},
    };
    assert_int_equal(qf_config_layer_count(config), COUNT(expect));
    for (size_t i = 0; i < COUNT(expect); i++) {
        const qf_config_layer *layer = qf_config_layer_at(config, i);
        assert_string_equal(layer->name, expect[i].name);
        assert_int_equal(layer->enabled, expect[i].enabled);
        assert_int_equal(layer->act_bits, expect[i].act_bits);
        assert_int_equal(layer->wts_bits, expect[i].wts_bits);
        assert_int_equal(layer->channel_wise, expect[i].channel_wise);
    }
    assert_true(qf_config_force_fp16(config));
    qf_config_close(config);
    qf_diagnostics_free(list);
}

static void test_accepted(void **state)
{
    (void)state;
    static const char *const cases[] = {
        LAYER(""),
        " \n\t" LAYER("") "\r\n ",
        "{" HEAD "\"fakequant_precision_mode\":\"DEFAULT\",\"conv\":{}}",
        "{\"version\":1,\"batch_num\":true,\"conv\":{}}",
        BITS("INT4", "INT4"),
        BITS("INT8", "INT8"),
        BITS("INT8", "INT4"),
        BITS("INT16", "INT8"),
        DATA("\"clip_max\":1e-9,\"clip_min\":-1"),
        /* the same key in different objects */
        "{" HEAD "\"a\":{\"retrain_enable\":true},\"b\":{\"retrain_enable\":true}}",
        "{" HEAD "\"caf\\u00e9 \\\\u0000\":{}}",
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        qf_config *config;
        qf_error err;
        qf_diagnostics *list = qf_diagnostics_create();
        if (open_text(cases[i], &config, list, &err) != QF_OK)
            fail_msg("<%s> was refused: %s", cases[i], err.message);
        assert_int_equal(qf_diagnostics_count(list), 0);
        assert_false(qf_config_force_fp16(config));
        qf_config_close(config);
        qf_diagnostics_free(list);
    }
}

static const struct refused {
    const char *text, *item, *says;
} refused[] = {
    {"{\"version\":2,\"batch_num\":1,\"c\":{}}", "", "version must be 1, not 2"},
    {"{\"version\":false,\"batch_num\":1,\"c\":{}}", "", "version must be 1, not false"},
    {"{\"version\":1.5,\"batch_num\":1,\"c\":{}}", "", "version must be 1, not 1.5"},
    {"{\"version\":\"1\",\"batch_num\":1,\"c\":{}}", "", "version must be 1, not \"1\""},
    {"{\"version\":{},\"batch_num\":1,\"c\":{}}", "", "version must be 1, not {"},
    {"{\"batch_num\":1,\"c\":{}}", "", "version is missing"},
    {"{\"version\":1,\"c\":{}}", "", "batch_num is missing"},
    {"{\"version\":1,\"batch_num\":0,\"c\":{}}", "", "batch_num must be an integer above 0"},
    {"{\"version\":1,\"batch_num\":-1,\"c\":{}}", "", "batch_num must be an integer above 0"},
    {"{\"version\":1,\"batch_num\":1.5,\"c\":{}}", "", "batch_num must be an integer above 0"},
    {"{\"version\":1,\"batch_num\":1e300,\"c\":{}}", "", "batch_num must be an integer above 0"},
    {"{\"version\":1,\"batch_num\":null,\"c\":{}}", "", "batch_num must be an integer above 0"},
    {"{" HEAD "\"fakequant_precision_mode\":\"FP16\",\"c\":{}}", "",
     "must be DEFAULT or FORCE_FP16_QUANT, not \"FP16\""},
    {"{" HEAD "\"fakequant_precision_mode\":1,\"c\":{}}", "", "must be DEFAULT or FORCE_FP16"},
    {"{" HEAD "\"bach_num\":1,\"c\":{}}", "bach_num", "did you mean \"batch_num\"?"},
    {"{" HEAD "\"conv1\":[],\"c\":{}}", "conv1", "must be an object, not []"},
    {"{" HEAD "\"skip_layers\":\"x\",\"c\":{}}", "skip_layers", "not a known key"},
    {LAYER("\"retrain_enable\":1"), "conv", "retrain_enable must be true or false, not 1"},
    {LAYER("\"retrain_data_config\":[]"), "conv", "retrain_data_config must be an object"},
    {LAYER("\"retrain_weight_config\":null"), "conv", "retrain_weight_config must be an object"},
    {LAYER("\"regular_prune_enable\":false"), "conv", "regular_prune_enable is not allowed"},
    {LAYER("\"regular_prune_config\":{}"), "conv", "regular_prune_config is not allowed"},
    {DATA("\"algo\":\"ulq\""), "conv", "algo must be ulq_quantize, not \"ulq\""},
    {DATA("\"clip_max\":1"), "conv", "clip_min is missing"},
    {DATA("\"clip_min\":-1"), "conv", "clip_max is missing"},
    {DATA("\"clip_max\":0,\"clip_min\":-1"), "conv", "clip_max must be a number above 0, not 0"},
    {DATA("\"clip_max\":1,\"clip_min\":0"), "conv", "clip_min must be a number below 0, not 0"},
    {DATA("\"clip_max\":true,\"clip_min\":-1"), "conv", "clip_max must be a number above 0"},
    {DATA("\"clip_max\":1e999,\"clip_min\":-1"), "conv", "clip_max must be a number above 0"},
    {DATA("\"clip_max\":1,\"clip_min\":\"-1\""), "conv", "clip_min must be a number below 0"},
    {DATA("\"fixed_min\":0"), "conv", "fixed_min must be true or false, not 0"},
    {DATA("\"dst_type\":\"INT6\""), "conv", "dst_type must be INT4, INT8 or INT16, not \"INT6\""},
    {DATA("\"dst_type\":8"), "conv", "dst_type must be INT4, INT8 or INT16, not 8"},
    {DATA("\"dst_tipe\":\"INT8\""), "conv",
     "\"dst_tipe\" is not a key of retrain_data_config; did you mean \"dst_type\"?"},
    {DATA("\"channel_wise\":true"), "conv", "\"channel_wise\" is not a key of retrain_data_config"},
    {WEIGHT("\"algo\":\"ulq_quantize\""), "conv", "algo must be arq_retrain or ulq_retrain"},
    {WEIGHT("\"channel_wise\":\"true\""), "conv", "channel_wise must be true or false"},
    {WEIGHT("\"dst_type\":\"int8\""), "conv", "dst_type must be INT4, INT8 or INT16"},
    {WEIGHT("\"chanel_wise\":true"), "conv", "did you mean \"channel_wise\"?"},
    {BITS("INT4", "INT8"), "conv", "A4W4, A8W4, A8W8 and A16W8"},
    {BITS("INT16", "INT4"), "conv", "INT16 of retrain_data_config does not go with INT4"},
    {BITS("INT8", "INT16"), "conv", "INT8 of retrain_data_config does not go with INT16"},
    {BITS("INT16", "INT16"), "conv", "does not go with"},
    {"{" HEAD "\"x.AvgPool1\":{\"retrain_weight_config\":{\"dst_type\":\"INT4\"}}}", "x.AvgPool1",
     "\"AvgPool\" in its name"},
    {"{" HEAD "\"c\":{\"retrain_enable\":false}}", "", "no layer has retrain_enable true"},
    {"{\"version\":1,\"batch_num\":1}", "", "no layer has retrain_enable true"},
    {"{" HEAD "\"version\":1,\"c\":{}}", "version", "\"version\" appears twice"},
    {"{" HEAD "\"c\":{},\"c\":{}}", "c", "\"c\" appears twice in the configuration"},
    {LAYER("\"retrain_enable\":true,\"retrain_enable\":true"), "conv",
     "\"retrain_enable\" appears twice in \"conv\""},
    {DATA("\"algo\":\"ulq_quantize\",\"algo\":\"ulq_quantize\""), "conv",
     "\"algo\" appears twice in \"retrain_data_config\""},
    {LAYER("\"odd\":[[{\"x\":1,\"x\":2}]]"), "conv", "\"x\" appears twice in \"odd\""},
};

static void test_refused(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(refused); i++) {
        qf_config *config = NULL;
        qf_error err;
        qf_diagnostics *list = qf_diagnostics_create();
        qf_status status = open_text(refused[i].text, &config, list, &err);
        if (status != QF_ERR_INPUT || config)
            fail_msg("<%s> was not refused", refused[i].text);
        bool found = false;
        for (size_t k = 0; k < qf_diagnostics_count(list); k++) {
            qf_diagnostic d = qf_diagnostics_at(list, k);
            found = found || (d.severity == QF_ERROR && strstr(d.message, refused[i].says) &&
                              strcmp(d.item, refused[i].item) == 0);
        }
        if (!found || qf_diagnostics_errors(list) != 1)
            fail_msg("<%s>: %zu errors, %s", refused[i].text, qf_diagnostics_errors(list),
                     err.message);
        assert_non_null(strstr(err.message, refused[i].says));
        assert_non_null(strstr(err.file, "qf_config_"));
        qf_diagnostics_free(list);
    }
}

static void test_all_findings(void **state)
{
    (void)state;
    qf_config *config;
    qf_error err;
    qf_diagnostics *list = qf_diagnostics_create();
    const char *text = "{\"version\":3,\"a\":{\"retrain_enable\":0,\"retrain_data_config\":"
                       "{\"algo\":1,\"x\":2}},\"b\":{\"retrain_weight_config\":{\"y\":1}}}";
    assert_int_equal(open_text(text, &config, list, &err), QF_ERR_INPUT);
    assert_int_equal(qf_diagnostics_errors(list), 6);
    assert_non_null(strstr(err.message, "and 5 more errors"));
    /* without a list the call fails all the same */
    assert_int_equal(open_text(text, &config, NULL, &err), QF_ERR_INPUT);
    assert_non_null(strstr(err.message, "version must be 1"));
    qf_diagnostics_free(list);
}

static void test_warnings(void **state)
{
    (void)state;
    qf_config *config;
    qf_error err;
    qf_diagnostics *list = qf_diagnostics_create();
    /* an error of somebody else's must not count */
    qf_diag_add(list, QF_ERROR, (qf_where){.item = "other"}, "other");
    const char *text = LAYER("\"retrain_enabled\":false,\"zzzzzzz\":1");
    assert_int_equal(open_text(text, &config, list, &err), QF_OK);
    assert_true(qf_config_layer_at(config, 0)->enabled);
    assert_int_equal(qf_diagnostics_count(list), 3);
    qf_diagnostic d = qf_diagnostics_at(list, 1);
    assert_int_equal(d.severity, QF_WARNING);
    assert_string_equal(d.item, "conv");
    assert_non_null(strstr(d.message, "is ignored; did you mean \"retrain_enable\"?"));
    d = qf_diagnostics_at(list, 2);
    assert_int_equal(d.severity, QF_WARNING);
    assert_null(strstr(d.message, "did you mean"));
    qf_config_close(config);
    qf_diagnostics_free(list);
}

static void test_bad_json(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        size_t length;         /* 0: up to the NUL */
        uint32_t line, column; /* cJSON may stop one character later */
        const char *says;
    } cases[] = {
        {"", 0, 0, 0, "empty"},
        {" \n\t", 0, 0, 0, "empty"},
        {"[]", 0, 0, 0, "must be a JSON object, not []"},
        {"3", 0, 0, 0, "must be a JSON object, not 3"},
        {"\"a\"", 0, 0, 0, "must be a JSON object, not \"a\""},
        {"{\n  \"version\": 1,\n  \"batch_num\": x\n}", 0, 3, 16, "JSON syntax error"},
        {"{\n  \"version\": 1,\n}", 0, 3, 1, "JSON syntax error"},
        {"{'version': 1}", 0, 1, 2, "JSON syntax error"},
        {"{\"version\": NaN}", 0, 1, 13, "JSON syntax error"},
        {"{\"version\": 1", 0, 1, 14, "JSON syntax error"},
        {"{} {}", 0, 1, 4, "JSON syntax error"},
        {"{}\n\nx", 0, 3, 1, "JSON syntax error"},
        {"{\n}\0{", 5, 2, 2, "NUL byte"},
        {"{\n\"\xff\": 1}", 0, 2, 2, "not valid UTF-8"},
        {"{\"a\\u0000b\": 1}", 0, 1, 4, "NUL"},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        qf_config *config;
        qf_error err;
        size_t length = cases[i].length ? cases[i].length : strlen(cases[i].text);
        qf_diagnostics *list = qf_diagnostics_create();
        assert_int_equal(open_bytes(cases[i].text, length, &config, list, &err), QF_ERR_INPUT);
        assert_int_equal(qf_diagnostics_errors(list), 1);
        if (err.line != cases[i].line || err.column < cases[i].column ||
            err.column > cases[i].column + 1 || !strstr(err.message, cases[i].says))
            fail_msg("<%s> failed with %s", cases[i].text, err.message);
        assert_int_equal(qf_diagnostics_at(list, 0).line, cases[i].line);
        qf_diagnostics_free(list);
    }
}

/* `count` times `piece`, between a head and a tail. */
static qf_status open_repeated(const char *head, const char *piece, size_t count, const char *tail,
                               qf_error *err)
{
    size_t n = strlen(head), step = strlen(piece);
    char *text = malloc(n + count * step + strlen(tail) + 1);
    assert_non_null(text);
    strcpy(text, head);
    for (size_t i = 0; i < count; i++, n += step)
        memcpy(text + n, piece, step);
    strcpy(text + n, tail);
    qf_config *config;
    qf_status status = open_text(text, &config, NULL, err);
    free(text);
    if (status == QF_OK)
        qf_config_close(config);
    return status;
}

static void test_hostile_size(void **state)
{
    (void)state;
    qf_error err;
    /* deep but allowed, too deep, and more values than any model has layers for */
    assert_int_equal(open_repeated("{" HEAD "\"c\":{\"x\":", "[", 990, "", &err), QF_ERR_INPUT);
    assert_int_equal(open_repeated("{" HEAD "\"c\":{\"x\":", "{\"a\":", 100000, "", &err),
                     QF_ERR_INPUT);
    assert_int_equal(open_repeated("{" HEAD "\"c\":{\"x\":[", "1,", 4100000, "1]}}", &err),
                     QF_ERR_INPUT);
    assert_non_null(strstr(err.message, "at most 4000000"));
    assert_int_equal(open_repeated("{" HEAD "\"c\":{\"x\":[", "1,", 100000, "1]}}", &err), QF_OK);
}

static void test_files(void **state)
{
    (void)state;
    char path[] = "/tmp/qf_config_XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, LAYER(""), strlen(LAYER(""))), (ssize_t)strlen(LAYER("")));
    close(fd);
    qf_config *config;
    qf_error err;
    assert_int_equal(qf_config_open(path, &config, NULL, &err), QF_OK);
    assert_string_equal(qf_config_path(config), path);
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    const qf_file_id *id = qf_config_id(config);
    assert_true(id->device == st.st_dev && id->inode == st.st_ino);
    assert_int_equal(id->size, st.st_size);
    assert_int_equal(strlen(id->hash), 32);
    qf_config_close(config);
    config = NULL;

    assert_int_equal(truncate(path, (off_t)QF_CONFIG_MAX_BYTES + 1), 0);
    assert_int_equal(qf_config_open(path, &config, NULL, &err), QF_ERR_INPUT);
    unlink(path);
    assert_int_equal(qf_config_open(path, &config, NULL, &err), QF_ERR_INPUT);
    assert_int_equal(qf_config_open("/tmp", &config, NULL, &err), QF_ERR_INPUT);
    assert_int_equal(qf_config_open(NULL, &config, NULL, &err), QF_ERR_USAGE);
    assert_int_equal(qf_config_open(path, NULL, NULL, &err), QF_ERR_USAGE);
    assert_null(config);
    qf_config_close(NULL);
}

static const char *golden_folder(void)
{
    const char *given = getenv("QUANTFOLD_GOLDEN");
    if (given)
        return given;
#ifdef QUANTFOLD_SOURCE_DIR
    const char *source = QUANTFOLD_SOURCE_DIR;
#else
    const char *source = getenv("QUANTFOLD_SOURCE_DIR");
#endif
    static char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/../shared/golden", source ? source : ".");
    return path;
}

/* What the reference has written is accepted without a word. */
static void test_golden(void **state)
{
    (void)state;
    const char *folder = golden_folder();
    DIR *dir = opendir(folder);
    if (!dir)
        skip();
    size_t count = 0;
    for (const struct dirent *entry = readdir(dir); entry; entry = readdir(dir)) {
        char path[PATH_MAX + 300];
        snprintf(path, sizeof path, "%s/%s/config.json", folder, entry->d_name);
        if (access(path, R_OK) != 0)
            continue;
        qf_config *config;
        qf_error err;
        qf_diagnostics *list = qf_diagnostics_create();
        if (qf_config_open(path, &config, list, &err) != QF_OK)
            fail_msg("%s", err.message);
        assert_int_equal(qf_diagnostics_count(list), 0);
        assert_true(qf_config_layer_count(config) > 0);
        qf_config_close(config);
        qf_diagnostics_free(list);
        count++;
    }
    closedir(dir);
    assert_true(count > 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_layers),       cmocka_unit_test(test_accepted),
        cmocka_unit_test(test_refused),      cmocka_unit_test(test_all_findings),
        cmocka_unit_test(test_warnings),     cmocka_unit_test(test_bad_json),
        cmocka_unit_test(test_hostile_size), cmocka_unit_test(test_files),
        cmocka_unit_test(test_golden),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
