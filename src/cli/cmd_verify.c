/* SPDX-License-Identifier: Apache-2.0 */
#include <stdlib.h>
#include <string.h>

#include "base/diag.h"
#include "cli/door.h"
#include "verify/finding.h"
#include "verify/place.h"

static const char help[] =
    "usage: quantfold verify OUT/PREFIX [--against M.onnx [--record R.txt] [--config C.json]]\n"
    "       quantfold verify FOLDER/ (of an exported checkpoint)\n\n"
    "Looks at what an export wrote and reports everything that is wrong with it: operators,\n"
    "attributes, dtypes, shapes, names and the data of every tensor; whether deploy and\n"
    "fake_quant hold the same numbers; hashes, if there is a manifest; a runnable model, if\n"
    "there is one. Writes nothing, but with --runnable. Exit code 0: sound; 1: something is\n"
    "wrong; 2: wrong usage; 3: the system failed.\n\n"
    "  --against FILE          recompute every payload from this source model and compare\n"
    "  --record FILE           the record of the export; --config FILE: its QAT configuration\n"
    "  --weight-only SCHEME, --include REGEX, --exclude REGEX, --from WHAT,\n"
    "  --on-unsupported WHAT, --free-qdq WHAT, --input-names A,B, --output-names X,Y,\n"
    "  --dynamic-axes JSON, --external-threshold N\n"
    "                          with --against: as they were at the export. What was emitted,\n"
    "                          what is external and the form of fake_quant's weights are told\n"
    "                          from the files\n"
    "  --runnable              if it is sound, write OUT/PREFIX_runnable_model.onnx too: the "
    "deploy\n"
    "                          model that is there, in operators that ONNX Runtime has\n"
    "  --threads N             cores to recompute with (default: all)\n"
    "  --json                  the findings as JSON on standard output\n"
    "  -v, --verbose           what each check looked at      -q, --quiet   errors alone\n";

typedef struct arguments {
    const char *prefix;
    cli_export planned; /* as at the export */
    bool runnable, json, verbose, quiet;
} arguments;

static const cli_option table[] = {
    {.name = "against", .kind = CLI_PATH, .at = offsetof(arguments, planned.inputs.model)},
    {.name = "record", .kind = CLI_PATH, .at = offsetof(arguments, planned.inputs.record)},
    {.name = "config", .kind = CLI_PATH, .at = offsetof(arguments, planned.inputs.config)},
    {.name = "weight-only",
     .kind = CLI_TEXT,
     .at = offsetof(arguments, planned.options.weight_only)},
    {.name = "include", .kind = CLI_TEXT, .at = offsetof(arguments, planned.options.include)},
    {.name = "exclude", .kind = CLI_TEXT, .at = offsetof(arguments, planned.options.exclude)},
    {.name = "from",
     .kind = CLI_WORD,
     .at = offsetof(arguments, planned.options.source),
     .words = cli_sources},
    {.name = "on-unsupported",
     .kind = CLI_WORD,
     .at = offsetof(arguments, planned.options.on_unsupported),
     .words = cli_on_unsupported},
    {.name = "free-qdq",
     .kind = CLI_WORD,
     .at = offsetof(arguments, planned.options.free_qdq),
     .words = cli_free_qdqs},
    {.name = "input-names", .kind = CLI_NAMES, .at = offsetof(arguments, planned.input_names)},
    {.name = "output-names", .kind = CLI_NAMES, .at = offsetof(arguments, planned.output_names)},
    {.name = "dynamic-axes", .kind = CLI_AXES, .at = offsetof(arguments, planned.dynamic_axes)},
    {.name = "external-threshold",
     .kind = CLI_NUMBER,
     .at = offsetof(arguments, planned.options.external_threshold),
     .most = INT64_MAX},
    {.name = "runnable", .kind = CLI_FLAG, .at = offsetof(arguments, runnable)},
    {.name = "threads",
     .kind = CLI_COUNT,
     .at = offsetof(arguments, planned.options.threads),
     .most = 1024},
    {.name = "json", .kind = CLI_FLAG, .at = offsetof(arguments, json)},
    {.name = "verbose", .letter = 'v', .kind = CLI_FLAG, .at = offsetof(arguments, verbose)},
    {.name = "quiet", .letter = 'q', .kind = CLI_FLAG, .at = offsetof(arguments, quiet)},
    {0}};

/* The first option that was given and says nothing without --against; NULL: none. */
static const char *needs_source(const cli_export *given)
{
    cli_export plain;
    cli_export_init(&plain);
    const qf_export_options *a = &given->options, *b = &plain.options;
    const struct {
        const char *name;
        bool is_given;
    } options[] = {
        {"record", given->inputs.record},
        {"config", given->inputs.config},
        {"weight-only", a->weight_only},
        {"include", a->include},
        {"exclude", a->exclude},
        {"from", a->source != b->source},
        {"on-unsupported", a->on_unsupported != b->on_unsupported},
        {"free-qdq", a->free_qdq != b->free_qdq},
        {"input-names", given->input_names},
        {"output-names", given->output_names},
        {"dynamic-axes", given->dynamic_axes},
        {"external-threshold", a->external_threshold != b->external_threshold},
    };
    for (size_t i = 0; i < sizeof options / sizeof *options; i++) {
        if (options[i].is_given)
            return options[i].name;
    }
    return NULL;
}

/* -1: go on; else an exit code. */
static int read_arguments(int argc, char **argv, arguments *a)
{
    *a = (arguments){0};
    cli_export_init(&a->planned);
    int code = cli_read_options("verify", help, table, a, argc, argv, &a->prefix);
    if (code >= 0)
        return code;
    if (!a->prefix || !*a->prefix)
        return cli_usage_error("verify", "the output to look at must be named");
    const char *option = a->planned.inputs.model ? NULL : needs_source(&a->planned);
    if (option)
        return cli_usage_error("verify", "--%s needs --against", option);
    return -1;
}

/* ---- results ---- */

/* Errors as lines on stderr, of too many the first ones. */
static void print_findings(const qf_diagnostics *list, bool quiet)
{
    enum { MOST = 50 }; /* lines */
    size_t told = 0, kept = 0;
    for (size_t i = 0; i < qf_diagnostics_count(list); i++) {
        qf_diagnostic d = qf_diagnostics_at(list, i);
        bool error = d.severity == QF_ERROR;
        if (error ? told < MOST : !quiet)
            cli_print_finding(&d);
        told += error && told < MOST;
        kept += error;
    }
    if (qf_diagnostics_errors(list) > told)
        fprintf(stderr, "quantfold: error: and %zu more errors (--json has %s%zu)\n",
                qf_diagnostics_errors(list) - told,
                qf_diagnostics_errors(list) > kept ? "the first " : "all ", kept);
}

static const char *const checks[] = {"structure", "agreement", "manifest", "against", "runnable"};

static int print_json(const arguments *a, const qf_diagnostics *list, const qf_verify_result *r,
                      bool ok, const char *runnable)
{
    cJSON *root = cli_json_root(), *made = cJSON_CreateObject();
    cJSON *findings = cli_json_diagnostics(list);
    size_t i = 0;
    for (int c = 0; r && c < QF_VERIFY_CHECKS; c++) {
        cJSON *check = cJSON_AddObjectToObject(made, checks[c]);
        cJSON_AddBoolToObject(check, "done", r->done[c]);
        cJSON_AddNumberToObject(check, "errors", (double)r->errors[c]);
        for (; i < r->listed[c]; i++)
            cJSON_AddStringToObject(cJSON_GetArrayItem(findings, (int)i), "check", checks[c]);
    }
    for (; i < (size_t)cJSON_GetArraySize(findings); i++) /* no check made it */
        cJSON_AddNullToObject(cJSON_GetArrayItem(findings, (int)i), "check");
    cJSON_AddBoolToObject(root, "ok", ok);
    if (a->runnable && runnable)
        cli_json_text(root, "runnable", runnable);
    else if (a->runnable)
        cJSON_AddNullToObject(root, "runnable");
    cJSON_AddItemToObject(root, "findings", findings);
    cJSON_AddItemToObject(root, "checks", made);
    if (r) {
        cJSON_AddNumberToObject(root, "models", (double)r->models);
        cJSON_AddNumberToObject(root, "layers", (double)r->layers);
        cJSON_AddNumberToObject(root, "agreeing", (double)r->agreeing);
        cJSON_AddNumberToObject(root, "tensors", (double)r->tensors);
        cJSON_AddNumberToObject(root, "hashed", (double)r->hashed);
        cJSON_AddNumberToObject(root, "recomputed", (double)r->recomputed);
        cJSON_AddNumberToObject(root, "apart", (double)r->apart);
        cJSON_AddNumberToObject(root, "shards", (double)r->shards);
    }
    return cli_print_json(root);
}

static void print_count(uint64_t count, const char *what, const char *end)
{
    printf("%llu %s%s%s", (unsigned long long)count, what, count == 1 ? "" : "s", end);
}

static void print_check(const qf_verify_result *r, int check)
{
    char size[32];
    printf("  %-10s ", checks[check]);
    if (!r->done[check]) {
        puts("not made");
        return;
    }
    switch ((qf_verify_check)check) {
    case QF_VERIFY_STRUCTURE:
        if (r->shards) {
            print_count(r->shards, "file", " of tensors, ");
            print_count(r->tensors, "tensor", ", ");
            print_count(r->layers, "quantized weight", "");
            break;
        }
        print_count(r->models, "model", ", ");
        print_count(r->layers, "quantized layer", ", ");
        print_count(r->tensors, "tensor", "");
        break;
    case QF_VERIFY_AGREEMENT:
        print_count(r->agreeing, "layer", " in both models");
        if (r->apart)
            printf(", %llu could not be compared", (unsigned long long)r->apart);
        break;
    case QF_VERIFY_MANIFEST:
        printf("%s hashed", cli_bytes(r->hashed, size));
        break;
    case QF_VERIFY_AGAINST:
        printf("%s recomputed", cli_bytes(r->recomputed, size));
        break;
    case QF_VERIFY_RUNNABLE:
        printf("as made of the deploy model");
        break;
    }
    printf(": ");
    print_count(r->errors[check], "error", "\n");
}

static void print_summary(const arguments *a, const qf_verify_result *r, bool sound,
                          const char *runnable)
{
    cli_put_text(stdout, a->prefix);
    if (sound)
        printf(": sound\n");
    else
        printf(": not sound\n");
    for (int c = 0; c < QF_VERIFY_CHECKS; c++) {
        if (a->verbose || r->done[c])
            print_check(r, c);
    }
    if (runnable) {
        printf("  %-10s ", "written");
        cli_put_text(stdout, runnable);
        putchar('\n');
    }
}

/* ---- the command ---- */

static qf_status verify(const arguments *a, const qf_io_spec *io, qf_diagnostics *list,
                        qf_verify_result *result)
{
    qf_error err;
    qf_verify_options options;
    qf_verify_options_init(&options);
    options.prefix = a->prefix;
    options.model = a->planned.inputs.model;
    options.record = a->planned.inputs.record;
    options.config = a->planned.inputs.config;
    options.io = io;
    options.export_options = &a->planned.options;
    options.threads = a->planned.options.threads;
    options.skip_runnable = a->runnable;
    qf_status status = qf_verify(&options, list, result, &err);
    if (status != QF_OK)
        qf_note_error(list, *err.file ? NULL : a->prefix, &err);
    return status;
}

static qf_status export_runnable(const arguments *a, const qf_place *place, qf_diagnostics *list)
{
    qf_error err;
    cli_export job;
    cli_export_run run;
    cli_progress progress;
    cli_export_init(&job);
    job.inputs.model = place->paths[QF_PLACE_DEPLOY];
    job.options.save_path = place->save_path;
    job.options.emit = QF_EMIT_RUNNABLE;
    job.options.threads = a->planned.options.threads;
    cli_catch_signals();
    cli_progress_init(&progress, CLI_NEVER, true);
    job.options.progress = cli_progress_step;
    job.options.progress_user = &progress;
    qf_status status = cli_export_prepare(&job, &run);
    if (status == QF_OK)
        status = cli_export_write(&job, &run);
    if (run.list) {
        qf_note_errors(list, run.list);
    } else {
        qf_fail_memory(&err);
        qf_note_error(list, NULL, &err);
    }
    cli_export_release(&run);
    return status;
}

/* Makes the runnable model of the deploy model that is there; what is wrong is added to the list.
 */
static qf_status write_runnable(const arguments *a, qf_place *place, qf_diagnostics *list)
{
    qf_error err;
    qf_status status = qf_place_find(a->prefix, place, &err);
    if (status == QF_OK && place->exists[QF_PLACE_DEPLOY])
        return export_runnable(a, place, list);
    if (status == QF_OK)
        status = qf_fail_at(&err, QF_ERR_INPUT, (qf_where){.file = a->prefix},
                            "there is no deploy model to make runnable");
    qf_note_error(list, NULL, &err);
    return status;
}

static int run(const arguments *a, const qf_io_spec *io)
{
    qf_verify_result result;
    qf_place place = {0};
    qf_diagnostics *list = qf_diagnostics_create();
    if (!list)
        return cli_out_of_memory();
    qf_status status = verify(a, io, list, &result);
    bool seen = status == QF_OK, sound = seen && qf_diagnostics_errors(list) == 0;
    int code = !seen ? cli_exit_code(status) : sound ? EXIT_DONE : EXIT_INPUT;
    if (sound && a->runnable)
        code = cli_exit_code(write_runnable(a, &place, list));
    const char *written = code == EXIT_DONE ? place.runnable : NULL;
    print_findings(list, a->quiet);
    if (a->json) {
        int printed = print_json(a, list, seen ? &result : NULL, code == EXIT_DONE, written);
        code = code ? code : printed;
    } else if (seen && !a->quiet) {
        print_summary(a, &result, sound, written);
        code = cli_flush() ? code : EXIT_SYSTEM;
    }
    qf_place_release(&place);
    qf_diagnostics_free(list);
    return code;
}

int cmd_verify(int argc, char **argv)
{
    arguments a;
    qf_error err;
    cli_export_run names = {0};
    int code = read_arguments(argc, argv, &a);
    if (code >= 0)
        return code;
    qf_status status = cli_export_read_io(&a.planned, &names, &err);
    if (status != QF_OK)
        cli_print_error(&err);
    code = status == QF_OK ? run(&a, &names.io) : cli_exit_code(status);
    cli_export_release(&names);
    return code;
}
