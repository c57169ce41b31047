/* SPDX-License-Identifier: Apache-2.0 */
#include <getopt.h>
#include <stdlib.h>

#include "cli/cli.h"

static const char help[] =
    "usage: quantfold check --model M.onnx [--record R.txt] [--config C.json]\n"
    "                       [--from auto|qdq|float] [--on-unsupported error|float] [--json] "
    "[-q]\n"
    "                       [--weight-only SCHEME] [--include REGEX] [--exclude REGEX]\n\n"
    "Validates these against each other, as an export would, and reports everything\n"
    "that is wrong at once. Writes nothing and does not read the weights themselves: values\n"
    "that are not finite show only in an export. Exit code 0: nothing is wrong; 1: something\n"
    "is.\n";

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
    static const struct option options[] = {{"model", required_argument, NULL, 'm'},
                                            {"config", required_argument, NULL, 'c'},
                                            {"record", required_argument, NULL, 'r'},
                                            {"from", required_argument, NULL, 'S'},
                                            {"on-unsupported", required_argument, NULL, 'u'},
                                            {"weight-only", required_argument, NULL, 'W'},
                                            {"include", required_argument, NULL, '+'},
                                            {"exclude", required_argument, NULL, '-'},
                                            {"json", no_argument, NULL, 'j'},
                                            {"quiet", no_argument, NULL, 'q'},
                                            {"help", no_argument, NULL, 'h'},
                                            {0}};
    cli_inputs inputs = {0};
    bool json = false, quiet = false;
    int word = 0;
    qf_export_options planned;
    qf_export_options_init(&planned);
    planned.save_path = "quantfold-check/"; /* names files that are never written */
    planned.ignore_target = true;
    for (int c; (c = getopt_long(argc, argv, "qh", options, NULL)) != -1;) {
        switch (c) {
        case 'm':
            inputs.model = optarg;
            break;
        case 'c':
            inputs.config = optarg;
            break;
        case 'r':
            inputs.record = optarg;
            break;
        case 'S':
            word = cli_choose("from", optarg, cli_sources);
            planned.source = (qf_source)word;
            break;
        case 'u':
            word = cli_choose("on-unsupported", optarg, cli_on_unsupported);
            planned.on_unsupported = (qf_on_unsupported)word;
            break;
        case 'W':
            planned.weight_only = optarg;
            break;
        case '+':
            planned.include = optarg;
            break;
        case '-':
            planned.exclude = optarg;
            break;
        case 'j':
            json = true;
            break;
        case 'q':
            quiet = true;
            break;
        case 'h':
            fputs(help, stdout);
            return cli_flush() ? EXIT_DONE : EXIT_SYSTEM;
        default:
            return cli_usage_error("check", "unknown option");
        }
        if (word < 0)
            return EXIT_USAGE;
    }
    if (!inputs.model || optind != argc)
        return cli_usage_error("check", "--model is needed");
    qf_diagnostics *diagnostics = qf_diagnostics_create();
    if (!diagnostics)
        return cli_out_of_memory();
    size_t layers;
    qf_status status = check(&inputs, &planned, diagnostics, &layers);
    cli_print_diagnostics(diagnostics, quiet);
    int code = cli_exit_code(status);
    if (json) {
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
