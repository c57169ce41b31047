/* SPDX-License-Identifier: Apache-2.0 */
#include <stdlib.h>

#include "cli/cli.h"
#include "cli/options.h"

static const char help[] =
    "usage: quantfold check --model M.onnx [--record R.txt] [--config C.json]\n"
    "                       [--from auto|qdq|float] [--on-unsupported error|float] [--json] "
    "[-q]\n"
    "                       [--weight-only SCHEME] [--include REGEX] [--exclude REGEX]\n\n"
    "Validates these against each other, as an export would, and reports everything\n"
    "that is wrong at once. Writes nothing and does not read the weights themselves: values\n"
    "that are not finite show only in an export. Exit code 0: nothing is wrong; 1: something\n"
    "is.\n";

typedef struct arguments {
    cli_inputs inputs;
    qf_export_options planned;
    bool json, quiet;
} arguments;

static const cli_option table[] = {
    {.name = "model", .kind = CLI_PATH, .at = offsetof(arguments, inputs.model)},
    {.name = "config", .kind = CLI_PATH, .at = offsetof(arguments, inputs.config)},
    {.name = "record", .kind = CLI_PATH, .at = offsetof(arguments, inputs.record)},
    {.name = "from",
     .kind = CLI_WORD,
     .at = offsetof(arguments, planned.source),
     .words = cli_sources},
    {.name = "on-unsupported",
     .kind = CLI_WORD,
     .at = offsetof(arguments, planned.on_unsupported),
     .words = cli_on_unsupported},
    {.name = "weight-only", .kind = CLI_TEXT, .at = offsetof(arguments, planned.weight_only)},
    {.name = "include", .kind = CLI_TEXT, .at = offsetof(arguments, planned.include)},
    {.name = "exclude", .kind = CLI_TEXT, .at = offsetof(arguments, planned.exclude)},
    {.name = "json", .kind = CLI_FLAG, .at = offsetof(arguments, json)},
    {.name = "quiet", .letter = 'q', .kind = CLI_FLAG, .at = offsetof(arguments, quiet)},
    {0}};

static qf_status check(const cli_inputs *inputs, const qf_export_options *options,
                       qf_diagnostics *diagnostics, size_t *layers)
{
    cli_opened opened;
    qf_plan *plan;
    qf_status status = cli_open(inputs, &opened, diagnostics);
    qf_status planned = cli_plan(&opened, NULL, options, diagnostics, &plan);
    *layers = plan ? qf_plan_layer_count(plan) : 0;
    qf_plan_free(plan);
    cli_close(&opened);
    return status == QF_OK ? planned : status;
}

int cmd_check(int argc, char **argv)
{
    arguments a = {0};
    qf_export_options_init(&a.planned);
    a.planned.save_path = "quantfold-check/"; /* names files that are never written */
    a.planned.ignore_target = true;
    int code = cli_read_options("check", help, table, &a, argc, argv, NULL);
    if (code >= 0)
        return code;
    if (!a.inputs.model)
        return cli_usage_error("check", "--model is needed");
    qf_diagnostics *diagnostics = qf_diagnostics_create();
    if (!diagnostics)
        return cli_out_of_memory();
    size_t layers;
    qf_status status = check(&a.inputs, &a.planned, diagnostics, &layers);
    cli_print_diagnostics(diagnostics, a.quiet);
    code = cli_exit_code(status);
    if (a.json) {
        cJSON *root = cli_json_root();
        cJSON_AddBoolToObject(root, "ok", status == QF_OK);
        cJSON_AddNumberToObject(root, "layers", (double)layers);
        cJSON_AddItemToObject(root, "findings", cli_json_diagnostics(diagnostics));
        int printed = cli_print_json(root);
        code = code ? code : printed;
    } else if (status == QF_OK) {
        printf("ok: %zu layers would be quantized\n", layers);
        code = cli_flush() ? code : EXIT_SYSTEM;
    }
    qf_diagnostics_free(diagnostics);
    return code;
}
