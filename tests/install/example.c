/* SPDX-License-Identifier: Apache-2.0 */
/* The library from outside: the one call, and the same in steps. usage: example DATA SAVE_PATH */
#include <quantfold/quantfold.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static char model[4096], config[4096], record[4096];

static int fail(const char *what, const qf_error *err)
{
    fprintf(stderr, "%s: %s: %s\n", what, qf_status_name(err->code), err->message);
    return EXIT_FAILURE;
}

static bool stop_at_once(uint64_t done, uint64_t total, const char *tensor, void *user)
{
    (void)done;
    (void)total;
    (void)tensor;
    ++*(int *)user;
    return false;
}

/* A progress callback that returns false cancels, and nothing is written. */
static int cancel(const qf_export_options *options, qf_error *err)
{
    qf_export_options o = *options;
    char path[4200];
    int calls = 0;
    snprintf(path, sizeof path, "%s-cancelled", options->save_path);
    o.save_path = path;
    o.progress = stop_at_once;
    o.progress_user = &calls;
    if (qf_save_quant_retrain_model(config, model, record, &o, NULL, NULL, err) !=
            QF_ERR_CANCELLED ||
        calls == 0)
        return fail("cancelling did not cancel", err);
    strcat(path, "_deploy_model.onnx");
    if (fopen(path, "rb")) {
        fprintf(stderr, "a cancelled export left %s\n", path);
        return EXIT_FAILURE;
    }
    return EXIT_SUCCESS;
}

static int in_steps(const qf_export_options *options, qf_error *err)
{
    qf_model *m = NULL;
    qf_config *c = NULL;
    qf_record *r = NULL;
    qf_plan *plan = NULL;
    qf_report *report = NULL;
    qf_diagnostics *findings = qf_diagnostics_create();
    int code = EXIT_FAILURE;
    if (qf_model_open(model, &m, err) != QF_OK ||
        qf_config_open(config, &c, findings, err) != QF_OK ||
        qf_record_open(record, &r, err) != QF_OK) {
        fail("open", err);
    } else if (qf_plan_create(m, c, r, NULL, options, findings, &plan, err) != QF_OK) {
        fail("plan", err);
    } else if (qf_export(plan, &report, err) != QF_OK) {
        fail("export", err);
    } else if (qf_export(plan, NULL, err) != QF_ERR_USAGE) {
        fprintf(stderr, "a plan ran twice\n");
    } else {
        qf_report_totals t = qf_report_get(report);
        printf("%s: %zu layers, %zu files, %llu bytes\n", qf_version(), qf_plan_layer_count(plan),
               qf_plan_output_count(plan), (unsigned long long)t.bytes_written);
        code = qf_plan_layer_count(plan) && t.bytes_written ? EXIT_SUCCESS : EXIT_FAILURE;
    }
    qf_report_free(report);
    qf_plan_free(plan);
    qf_record_close(r);
    qf_config_close(c);
    qf_model_close(m);
    qf_diagnostics_free(findings);
    return code;
}

int main(int argc, char **argv)
{
    qf_error err = {0};
    qf_export_options options;
    if (argc != 3)
        return EXIT_FAILURE;
    snprintf(model, sizeof model, "%s/model.onnx", argv[1]);
    snprintf(config, sizeof config, "%s/config.json", argv[1]);
    snprintf(record, sizeof record, "%s/record.txt", argv[1]);
    qf_export_options_init(&options);
    options.save_path = argv[2];
    if (qf_save_quant_retrain_model(config, model, record, &options, NULL, NULL, &err) != QF_OK)
        return fail("save", &err);
    if (qf_save_quant_retrain_model(config, "missing.onnx", record, &options, NULL, NULL, &err) !=
            QF_ERR_INPUT ||
        strcmp(err.file, "missing.onnx") != 0)
        return fail("a missing model is not an input error", &err);
    if (cancel(&options, &err) != EXIT_SUCCESS)
        return EXIT_FAILURE;
    return in_steps(&options, &err);
}
