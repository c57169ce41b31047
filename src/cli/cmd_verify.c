/* SPDX-License-Identifier: Apache-2.0 */
#include <getopt.h>
#include <stdlib.h>

#include "cli/cli.h"

static const char help[] =
    "usage: quantfold verify OUT/PREFIX [--against M.onnx [--record R.txt] [--config C.json]]\n"
    "       quantfold verify FOLDER/ (of an exported checkpoint)\n\n"
    "Looks at what an export wrote and reports everything that is wrong with it: operators,\n"
    "attributes, dtypes, shapes, names and the data of every tensor; whether deploy and\n"
    "fake_quant hold the same numbers; hashes, if there is a manifest. Writes nothing. Exit\n"
    "code 0: sound; 1: something is wrong; 3: the system failed.\n\n"
    "  --against FILE          recompute every payload from this source model and compare\n"
    "  --record FILE           the record of the export; --config FILE: its QAT configuration\n"
    "  --weight-only SCHEME, --include REGEX, --exclude REGEX, --from WHAT,\n"
    "  --on-unsupported WHAT, --free-qdq WHAT, --input-names A,B, --output-names X,Y,\n"
    "  --dynamic-axes JSON, --external-threshold N\n"
    "                          with --against: as they were at the export. What was emitted,\n"
    "                          what is external and the form of fake_quant's weights are told\n"
    "                          from the files\n"
    "  --threads N             cores to recompute with (default: all)\n"
    "  --json                  the findings as JSON on standard output\n"
    "  -v, --verbose           what each check looked at      -q, --quiet   errors alone\n";

typedef struct arguments {
    qf_verify_options options;
    qf_export_options planned;
    char *input_names, *output_names; /* split in place */
    const char *dynamic_axes;
    bool json, verbose, quiet;
} arguments;

static const struct option long_options[] = {{"against", required_argument, NULL, 'm'},
                                             {"record", required_argument, NULL, 'r'},
                                             {"config", required_argument, NULL, 'c'},
                                             {"weight-only", required_argument, NULL, 'W'},
                                             {"include", required_argument, NULL, '+'},
                                             {"exclude", required_argument, NULL, '-'},
                                             {"from", required_argument, NULL, 'S'},
                                             {"on-unsupported", required_argument, NULL, 'u'},
                                             {"free-qdq", required_argument, NULL, 'Q'},
                                             {"input-names", required_argument, NULL, 'i'},
                                             {"output-names", required_argument, NULL, 'o'},
                                             {"dynamic-axes", required_argument, NULL, 'd'},
                                             {"external-threshold", required_argument, NULL, 'X'},
                                             {"threads", required_argument, NULL, 't'},
                                             {"json", no_argument, NULL, 'j'},
                                             {"verbose", no_argument, NULL, 'v'},
                                             {"quiet", no_argument, NULL, 'q'},
                                             {"help", no_argument, NULL, 'h'},
                                             {0}};

static bool set_planned(arguments *a, int option, const char *value)
{
    static const char *const pairs[] = {"keep", "drop", NULL};
    uint64_t n;
    int i = 0;
    switch (option) {
    case 'S':
        i = cli_choose("from", value, cli_sources);
        a->planned.source = (qf_source)i;
        return i >= 0;
    case 'u':
        i = cli_choose("on-unsupported", value, cli_on_unsupported);
        a->planned.on_unsupported = (qf_on_unsupported)i;
        return i >= 0;
    case 'Q':
        i = cli_choose("free-qdq", value, pairs);
        a->planned.free_qdq = (qf_free_qdq)i;
        return i >= 0;
    case 'X':
        return cli_read_number("external-threshold", value, INT64_MAX,
                               &a->planned.external_threshold);
    default:
        if (!cli_read_number("threads", value, 1024, &n))
            return false;
        a->options.threads = (int)n;
        return true;
    }
}

static bool set_option(arguments *a, int option, char *value)
{
    switch (option) {
    case 'm':
        a->options.model = value;
        return true;
    case 'r':
        a->options.record = value;
        return true;
    case 'c':
        a->options.config = value;
        return true;
    case 'W':
        a->planned.weight_only = value;
        return true;
    case '+':
        a->planned.include = value;
        return true;
    case '-':
        a->planned.exclude = value;
        return true;
    case 'i':
        a->input_names = value;
        return true;
    case 'o':
        a->output_names = value;
        return true;
    case 'd':
        a->dynamic_axes = value;
        return true;
    case 'j':
        a->json = true;
        return true;
    case 'v':
        a->verbose = true;
        return true;
    case 'q':
        a->quiet = true;
        return true;
    default:
        return set_planned(a, option, value);
    }
}

/* -1: go on; else an exit code. */
static int read_arguments(int argc, char **argv, arguments *a)
{
    *a = (arguments){0};
    qf_verify_options_init(&a->options);
    qf_export_options_init(&a->planned);
    for (int c; (c = getopt_long(argc, argv, "vqh", long_options, NULL)) != -1;) {
        if (c == 'h') {
            fputs(help, stdout);
            return cli_flush() ? EXIT_DONE : EXIT_SYSTEM;
        }
        if (c == '?')
            return cli_usage_error("verify", "the command line cannot be understood");
        if (!set_option(a, c, optarg))
            return EXIT_USAGE;
    }
    if (optind + 1 != argc)
        return cli_usage_error("verify", "the output to look at, and it alone, must be named");
    a->options.prefix = argv[optind];
    if (!a->options.model && (a->options.record || a->options.config))
        return cli_usage_error("verify", "--record and --config need --against");
    return -1;
}

/* ---- results ---- */

static const char *const checks[] = {"structure", "agreement", "manifest", "against"};

static int print_json(const qf_diagnostics *list, const qf_verify_result *r, bool sound)
{
    cJSON *root = cJSON_CreateObject(), *made = cJSON_CreateObject();
    cJSON *findings = cli_json_diagnostics(list);
    size_t i = 0;
    for (int c = 0; r && c < QF_VERIFY_CHECKS; c++) {
        cJSON *check = cJSON_AddObjectToObject(made, checks[c]);
        cJSON_AddBoolToObject(check, "done", r->done[c]);
        cJSON_AddNumberToObject(check, "errors", (double)r->errors[c]);
        for (; i < r->listed[c]; i++)
            cJSON_AddStringToObject(cJSON_GetArrayItem(findings, (int)i), "check", checks[c]);
    }
    cJSON_AddBoolToObject(root, "ok", sound);
    cJSON_AddItemToObject(root, "findings", findings);
    cJSON_AddItemToObject(root, "checks", made);
    if (r) {
        cJSON_AddNumberToObject(root, "models", (double)r->models);
        cJSON_AddNumberToObject(root, "layers", (double)r->layers);
        cJSON_AddNumberToObject(root, "agreeing", (double)r->agreeing);
        cJSON_AddNumberToObject(root, "tensors", (double)r->tensors);
        cJSON_AddNumberToObject(root, "hashed", (double)r->hashed);
        cJSON_AddNumberToObject(root, "recomputed", (double)r->recomputed);
    }
    return cli_print_json(root);
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
        printf("%llu models, %llu quantized layers, %llu tensors", (unsigned long long)r->models,
               (unsigned long long)r->layers, (unsigned long long)r->tensors);
        break;
    case QF_VERIFY_AGREEMENT:
        printf("%llu layers in both models", (unsigned long long)r->agreeing);
        break;
    case QF_VERIFY_MANIFEST:
        printf("%s hashed", cli_bytes(r->hashed, size));
        break;
    case QF_VERIFY_AGAINST:
        printf("%s recomputed", cli_bytes(r->recomputed, size));
        break;
    }
    printf(": %llu error%s\n", (unsigned long long)r->errors[check],
           r->errors[check] == 1 ? "" : "s");
}

static void print_summary(const arguments *a, const qf_verify_result *r, bool sound)
{
    cli_put_text(stdout, a->options.prefix);
    if (sound)
        printf(": sound\n");
    else
        printf(": not sound\n");
    for (int c = 0; c < QF_VERIFY_CHECKS; c++) {
        if (a->verbose || r->done[c])
            print_check(r, c);
    }
}

static int run(arguments *a, const qf_io_spec *io)
{
    qf_verify_result result;
    qf_error err;
    qf_diagnostics *list = qf_diagnostics_create();
    if (!list)
        return EXIT_SYSTEM;
    a->options.io = io;
    a->options.export_options = &a->planned;
    qf_status status = qf_verify(&a->options, list, &result, &err);
    if (status != QF_OK)
        qf_diagnostics_add_error(list, &err);
    bool sound = status == QF_OK && qf_diagnostics_errors(list) == 0;
    int code = status != QF_OK ? cli_exit_code(status) : sound ? EXIT_DONE : EXIT_INPUT;
    cli_print_diagnostics(list, a->quiet);
    if (a->json) {
        int printed = print_json(list, status == QF_OK ? &result : NULL, sound);
        code = code ? code : printed;
    } else if (status == QF_OK && !a->quiet) {
        print_summary(a, &result, sound);
        code = cli_flush() ? code : EXIT_SYSTEM;
    }
    qf_diagnostics_free(list);
    return code;
}

int cmd_verify(int argc, char **argv)
{
    arguments a;
    int code = read_arguments(argc, argv, &a);
    if (code >= 0)
        return code;
    const char **inputs, **outputs = NULL;
    qf_dynamic_axis *axes = NULL;
    qf_io_spec io = {0};
    if (!cli_split_names(a.input_names, &inputs, &io.input_name_count) ||
        !cli_split_names(a.output_names, &outputs, &io.output_name_count)) {
        free(inputs);
        return EXIT_SYSTEM;
    }
    io.input_names = inputs;
    io.output_names = outputs;
    qf_status status = cli_read_axes(a.dynamic_axes, &axes, &io.dynamic_axis_count);
    io.dynamic_axes = axes;
    code = status == QF_OK ? run(&a, &io) : cli_exit_code(status);
    free(inputs);
    free(outputs);
    free(axes);
    return code;
}
