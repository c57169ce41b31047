/* SPDX-License-Identifier: Apache-2.0 */
#include <getopt.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"

static const char help[] =
    "usage: quantfold export --model M.onnx [--record R.txt] --save-path OUT/PREFIX [OPTIONS]\n\n"
    "Writes OUT/PREFIX_deploy_model.onnx and OUT/PREFIX_fake_quant_model.onnx.\n\n"
    "  --model FILE            trained ONNX model\n"
    "  --config FILE           QAT configuration (JSON); checked against model and record\n"
    "  --record FILE           scale and offset record (protobuf text); not needed for a model\n"
    "                          with QuantizeLinear and DequantizeLinear nodes (QDQ)\n"
    "  --save-path PATH        folder and file name prefix of the output\n"
    "  --input-names A,B       new names of the graph's inputs, in order\n"
    "  --output-names X,Y      new names of the graph's outputs, in order\n"
    "  --dynamic-axes JSON     {\"x\": {\"0\": \"batch\"}} or {\"x\": [0, 2]}; @FILE reads a file\n"
    "  --from WHAT             auto (default), qdq, float: take QuantizeLinear and\n"
    "                          DequantizeLinear into the layers, or leave them as they are\n"
    "  --on-unsupported WHAT   error (default), float: a QDQ layer that cannot be expressed\n"
    "  --free-qdq WHAT         keep (default), drop: QDQ pairs of no quantized layer\n"
    "  --emit WHAT             both (default), deploy, fake-quant\n"
    "  --external WHEN         auto (default), always, never: weights in .external files\n"
    "  --external-threshold N  bytes at which auto moves the largest weights out (2000000000)\n"
    "  --external-layout HOW   per-tensor (default), single: one page-aligned file a model\n"
    "  --fake-quant-weights F  float (default, the reference's form), int8 (a quarter of the\n"
    "                          bytes, cast in the graph), shared (int8 in files of both models)\n"
    "  --weight-only SCHEME    w8a16, w4a16, w4a16:group=128 (scales are found), or record "
    "(entries\n"
    "                          with scale_w and no scale_d): MatMul and Gemm weights as integers\n"
    "                          with a DequantizeLinear, activations as they are\n"
    "  --include REGEX         of these, the weights of such tensor or node names alone\n"
    "  --exclude REGEX         but not these; both POSIX extended regular expressions\n"
    "  --dedup                 write external tensors of the same bytes once (those inside the\n"
    "                          .onnx cannot be shared)\n"
    "  --threads N             cores to use (default: all)\n"
    "  --io HOW                auto (default), pwrite, mmap, direct: how output is written\n"
    "  --no-fsync              do not wait until the output is on disk (--fsync: do, the default)\n"
    "  --memory-limit SIZE     resident memory, as 512M or 2G (default: a quarter of the RAM)\n"
    "  --manifest              write PREFIX.manifest.json too: hashes and error statistics\n"
    "  --resume                go on where a killed run ended; keep what is done if this one "
    "fails\n"
    "  --shard I/N             write part I (from 0) of N, to be put in place by 'quantfold\n"
    "                          commit'; slurm: the numbers of this job step or array task\n"
    "  --progress HOW          auto (default: a bar on a terminal, else a line every 10 s),\n"
    "                          always (every second), never, json (an event a line), on stderr\n"
    "  --dry-run               validate and print the plan; write nothing\n"
    "  --json                  the result as JSON on standard output\n"
    "  -v, --verbose           list every layer      -q, --quiet   no warnings, no summary\n";

typedef struct arguments {
    cli_inputs inputs;
    qf_export_options options;
    char *input_names, *output_names; /* split in place */
    const char *dynamic_axes;
    cli_when progress;
    bool dry_run, json, verbose, quiet;
} arguments;

/* ---- reading the command line ---- */

static const struct option long_options[] = {{"model", required_argument, NULL, 'm'},
                                             {"config", required_argument, NULL, 'c'},
                                             {"record", required_argument, NULL, 'r'},
                                             {"save-path", required_argument, NULL, 's'},
                                             {"input-names", required_argument, NULL, 'i'},
                                             {"output-names", required_argument, NULL, 'o'},
                                             {"dynamic-axes", required_argument, NULL, 'd'},
                                             {"from", required_argument, NULL, 'S'},
                                             {"on-unsupported", required_argument, NULL, 'u'},
                                             {"free-qdq", required_argument, NULL, 'Q'},
                                             {"emit", required_argument, NULL, 'e'},
                                             {"external", required_argument, NULL, 'x'},
                                             {"external-threshold", required_argument, NULL, 'X'},
                                             {"external-layout", required_argument, NULL, 'L'},
                                             {"fake-quant-weights", required_argument, NULL, 'w'},
                                             {"weight-only", required_argument, NULL, 'W'},
                                             {"include", required_argument, NULL, '+'},
                                             {"exclude", required_argument, NULL, '-'},
                                             {"dedup", no_argument, NULL, 'D'},
                                             {"threads", required_argument, NULL, 't'},
                                             {"io", required_argument, NULL, 'I'},
                                             {"fsync", no_argument, NULL, 'f'},
                                             {"no-fsync", no_argument, NULL, 'F'},
                                             {"memory-limit", required_argument, NULL, 'M'},
                                             {"manifest", no_argument, NULL, 'A'},
                                             {"resume", no_argument, NULL, 'R'},
                                             {"shard", required_argument, NULL, 'H'},
                                             {"progress", required_argument, NULL, 'p'},
                                             {"dry-run", no_argument, NULL, 'n'},
                                             {"json", no_argument, NULL, 'j'},
                                             {"verbose", no_argument, NULL, 'v'},
                                             {"quiet", no_argument, NULL, 'q'},
                                             {"help", no_argument, NULL, 'h'},
                                             {0}};

static bool set_choice(arguments *a, int option, const char *word)
{
    static const char *const emits[] = {"both", "deploy", "fake-quant", NULL};
    static const char *const layouts[] = {"per-tensor", "single", NULL};
    static const char *const forms[] = {"float", "int8", "shared", NULL};
    static const char *const pairs[] = {"keep", "drop", NULL};
    int i;
    switch (option) {
    case 'S':
        i = cli_choose("from", word, cli_sources);
        a->options.source = (qf_source)i;
        break;
    case 'u':
        i = cli_choose("on-unsupported", word, cli_on_unsupported);
        a->options.on_unsupported = (qf_on_unsupported)i;
        break;
    case 'Q':
        i = cli_choose("free-qdq", word, pairs);
        a->options.free_qdq = (qf_free_qdq)i;
        break;
    case 'w':
        i = cli_choose("fake-quant-weights", word, forms);
        a->options.fake_quant_weights = (qf_fake_quant_weights)i;
        break;
    case 'e':
        i = cli_choose("emit", word, emits);
        a->options.emit = (qf_emit)i;
        break;
    case 'x':
        i = cli_choose("external", word, cli_whens);
        a->options.external = (qf_external)i;
        break;
    case 'L':
        i = cli_choose("external-layout", word, layouts);
        a->options.external_layout = (qf_external_layout)i;
        break;
    case 'I':
        i = cli_choose("io", word, cli_ios);
        a->options.io = (qf_io)i;
        break;
    default:
        i = cli_choose("progress", word, cli_whens);
        a->progress = (cli_when)i;
    }
    return i >= 0;
}

static bool set_number(arguments *a, int option, const char *word)
{
    uint64_t n;
    if (option == 'M')
        return cli_read_size("memory-limit", word, &a->options.memory_limit);
    if (option == 'X')
        return cli_read_number("external-threshold", word, INT64_MAX,
                               &a->options.external_threshold);
    if (!cli_read_number("threads", word, 1024, &n))
        return false;
    a->options.threads = (int)n;
    return true;
}

static bool set_option(arguments *a, int option, char *value)
{
    switch (option) {
    case 'm':
        a->inputs.model = value;
        return true;
    case 'c':
        a->inputs.config = value;
        return true;
    case 'r':
        a->inputs.record = value;
        return true;
    case 's':
        a->options.save_path = value;
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
    case 'W':
        a->options.weight_only = value;
        return true;
    case '+':
        a->options.include = value;
        return true;
    case '-':
        a->options.exclude = value;
        return true;
    case 'D':
        a->options.dedup = true;
        return true;
    case 'n':
        a->dry_run = true;
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
    case 'f':
        a->options.no_sync = false;
        return true;
    case 'F':
        a->options.no_sync = true;
        return true;
    case 'A':
        a->options.manifest = true;
        return true;
    case 'R':
        a->options.resume = true;
        return true;
    case 'H':
        return cli_read_shard(value, &a->options.shard, &a->options.shard_count);
    case 'X':
    case 't':
    case 'M':
        return set_number(a, option, value);
    default:
        return set_choice(a, option, value);
    }
}

/* -1: go on; else an exit code. */
static int read_arguments(int argc, char **argv, arguments *a)
{
    *a = (arguments){0};
    qf_export_options_init(&a->options);
    for (int c; (c = getopt_long(argc, argv, "vqh", long_options, NULL)) != -1;) {
        if (c == 'h') {
            fputs(help, stdout);
            return cli_flush() ? EXIT_DONE : EXIT_SYSTEM;
        }
        if (c == '?')
            return cli_usage_error("export", "the command line cannot be understood");
        if (!set_option(a, c, optarg))
            return EXIT_USAGE;
    }
    if (optind != argc)
        return cli_usage_error("export", "unexpected word '%s'", argv[optind]);
    if (!a->inputs.model || !a->options.save_path)
        return cli_usage_error("export", "--model and --save-path are needed");
    return -1;
}

/* ---- names and axes ---- */

bool cli_split_names(char *text, const char ***names, size_t *count)
{
    *names = NULL;
    *count = 0;
    if (!text)
        return true;
    size_t n = 1;
    for (const char *p = text; *p; p++)
        n += *p == ',';
    *names = malloc(n * sizeof **names);
    if (!*names)
        return false;
    for (char *part = text; part;) {
        char *comma = strchr(part, ',');
        if (comma)
            *comma = '\0';
        (*names)[(*count)++] = part;
        part = comma ? comma + 1 : NULL;
    }
    return true;
}

static char *read_file(const char *path)
{
    enum { MAX = 1 << 20 };
    FILE *f = fopen(path, "rb");
    char *text = f ? malloc(MAX + 1) : NULL;
    size_t n = text ? fread(text, 1, MAX + 1, f) : 0;
    bool good = text && !ferror(f) && n <= MAX;
    if (f)
        fclose(f);
    if (!good) {
        free(text);
        return NULL;
    }
    text[n] = '\0';
    return text;
}

qf_status cli_read_axes(const char *argument, qf_dynamic_axis **axes, size_t *count)
{
    qf_error err;
    *axes = NULL;
    *count = 0;
    if (!argument)
        return QF_OK;
    char *file = NULL;
    if (argument[0] == '@' && !(file = read_file(argument + 1))) {
        fprintf(stderr, "quantfold: error: %s: cannot read the dynamic axes\n", argument + 1);
        return QF_ERR_INPUT;
    }
    qf_status status = qf_dynamic_axes_parse(file ? file : argument, axes, count, &err);
    if (status != QF_OK)
        cli_print_error(&err);
    free(file);
    return status;
}

/* ---- results ---- */

/* "A8W8 per channel", "W4 in groups of 128, weight only", "A8" where there is no weight. */
static void print_scheme(const qf_layer_info *l)
{
    fputs("  ", stdout);
    if (l->activation_bits)
        printf("A%d", l->activation_bits);
    if (l->weight_bits)
        printf("W%d ", l->weight_bits);
    if (l->group)
        printf("in groups of %llu", (unsigned long long)l->group);
    else if (l->weight_bits)
        fputs(l->channels > 1 ? "per channel" : "per tensor", stdout);
    if (!l->activation_bits)
        fputs(", weight only", stdout);
}

static void print_layers(const qf_plan *plan)
{
    for (size_t i = 0; i < qf_plan_layer_count(plan); i++) {
        qf_layer_info l = qf_plan_layer(plan, i);
        printf("  %-13s ", l.op_type);
        cli_put_text(stdout, l.name);
        print_scheme(&l);
        printf("%s%s\n", l.has_bias ? ", bias" : "",
               l.batch_norm_folded ? ", batch norm folded" : "");
    }
    for (size_t i = 0; i < qf_plan_skipped_count(plan); i++) {
        qf_skipped_layer s = qf_plan_skipped(plan, i);
        printf("  %-13s ", s.op_type);
        cli_put_text(stdout, s.name);
        printf("  stays float: %s\n", s.reason);
    }
}

/* With many layers left in float, the first of each reason stand for the rest. */
static void print_skipped(const qf_plan *plan)
{
    enum { SHOWN = 3 };
    for (size_t i = 0; i < qf_plan_skipped_count(plan) && i < SHOWN; i++) {
        qf_skipped_layer s = qf_plan_skipped(plan, i);
        printf("  float    ");
        cli_put_text(stdout, s.name);
        printf(" (%s): %s\n", s.op_type, s.reason);
    }
    if (qf_plan_skipped_count(plan) > SHOWN)
        printf("  float    ... and %zu more; -v lists all\n", qf_plan_skipped_count(plan) - SHOWN);
}

static void print_outputs(const qf_plan *plan)
{
    enum { SHOWN = 12 };
    size_t count = qf_plan_output_count(plan), models = 0;
    char size[32];
    for (size_t i = 0; i < count; i++) {
        qf_output_file f = qf_plan_output(plan, i);
        size_t n = strlen(f.path);
        bool model = n > 5 && strcmp(f.path + n - 5, ".onnx") == 0;
        models += model;
        if (count > SHOWN && !model)
            continue;
        printf("  %9s  ", cli_bytes(f.bytes, size));
        cli_put_text(stdout, f.path);
        putchar('\n');
    }
    if (count > SHOWN)
        printf("  and %zu .external files beside them\n", count - models);
}

static void print_summary(const arguments *a, const qf_plan *plan, const qf_report *report)
{
    char saved[32];
    printf("%s %zu of %zu layers\n", report ? "quantized" : "would quantize",
           qf_plan_layer_count(plan), qf_plan_layer_count(plan) + qf_plan_skipped_count(plan));
    if (a->verbose)
        print_layers(plan);
    else
        print_skipped(plan);
    printf("%s\n", report ? "wrote" : "would write");
    print_outputs(plan);
    if (qf_plan_bytes_saved(plan))
        printf("saved %s by writing equal tensors once\n",
               cli_bytes(qf_plan_bytes_saved(plan), saved));
    if (!report)
        return;
    cli_print_totals(qf_report_get(report), a->options.shard, a->options.shard_count, "--save-path",
                     a->options.save_path);
}

static cJSON *layers_json(const qf_plan *plan)
{
    cJSON *array = cJSON_CreateArray();
    for (size_t i = 0; i < qf_plan_layer_count(plan); i++) {
        qf_layer_info l = qf_plan_layer(plan, i);
        cJSON *item = cJSON_CreateObject();
        cli_json_text(item, "name", l.name);
        cli_json_text(item, "key", l.key);
        cJSON_AddStringToObject(item, "op_type", l.op_type);
        cli_json_text(item, "weight", l.weight);
        cJSON_AddNumberToObject(item, "activation_bits", l.activation_bits);
        cJSON_AddNumberToObject(item, "weight_bits", l.weight_bits);
        cJSON_AddNumberToObject(item, "channels", (double)l.channels);
        cJSON_AddBoolToObject(item, "weight_only", l.activation_bits == 0);
        cJSON_AddNumberToObject(item, "group", (double)l.group);
        cJSON_AddBoolToObject(item, "bias", l.has_bias);
        cJSON_AddBoolToObject(item, "batch_norm_folded", l.batch_norm_folded);
        cJSON_AddItemToArray(array, item);
    }
    return array;
}

static int print_result_json(const qf_plan *plan, const qf_report *report, qf_status status,
                             const qf_diagnostics *diagnostics)
{
    cJSON *root = cJSON_CreateObject();
    cJSON_AddBoolToObject(root, "ok", status == QF_OK);
    cJSON_AddBoolToObject(root, "written", report != NULL);
    cJSON_AddItemToObject(root, "findings", cli_json_diagnostics(diagnostics));
    if (plan) {
        cJSON *skipped = cJSON_CreateArray(), *files = cJSON_CreateArray();
        for (size_t i = 0; i < qf_plan_skipped_count(plan); i++) {
            qf_skipped_layer s = qf_plan_skipped(plan, i);
            cJSON *item = cJSON_CreateObject();
            cli_json_text(item, "name", s.name);
            cJSON_AddStringToObject(item, "op_type", s.op_type);
            cli_json_text(item, "reason", s.reason);
            cJSON_AddItemToArray(skipped, item);
        }
        for (size_t i = 0; i < qf_plan_output_count(plan); i++) {
            qf_output_file f = qf_plan_output(plan, i);
            cJSON *item = cJSON_CreateObject();
            cli_json_text(item, "path", f.path);
            cJSON_AddNumberToObject(item, "bytes", (double)f.bytes);
            cJSON_AddItemToArray(files, item);
        }
        cJSON_AddItemToObject(root, "layers", layers_json(plan));
        cJSON_AddItemToObject(root, "skipped", skipped);
        cJSON_AddItemToObject(root, "files", files);
        cJSON_AddNumberToObject(root, "bytes_saved", (double)qf_plan_bytes_saved(plan));
    }
    if (report)
        cli_json_totals(root, qf_report_get(report));
    return cli_print_json(root);
}

/* ---- the command ---- */

static qf_status plan_and_export(arguments *a, const qf_io_spec *io, const cli_opened *opened,
                                 qf_diagnostics *list, qf_plan **plan, qf_report **report)
{
    qf_error err;
    qf_status status = cli_plan(opened, io, &a->options, list, plan);
    cli_print_diagnostics(list, a->quiet);
    if (status != QF_OK || qf_diagnostics_errors(list))
        return status;
    if (cli_interrupted()) {
        status = QF_ERR_CANCELLED;
        snprintf(err.message, sizeof err.message, "interrupted");
    } else if (!a->dry_run) {
        status = qf_export(*plan, report, &err);
        cli_progress_end(a->options.progress_user, status);
    }
    if (status != QF_OK) {
        qf_diagnostics_add_error(list, &err);
        cli_print_error(&err);
    }
    return status;
}

static int run(arguments *a, const qf_io_spec *io)
{
    cli_opened opened;
    qf_plan *plan = NULL;
    qf_report *report = NULL;
    cli_progress progress;
    qf_diagnostics *list = qf_diagnostics_create();
    if (!list)
        return EXIT_SYSTEM;
    cli_progress_init(&progress, a->quiet ? CLI_NEVER : a->progress);
    a->options.progress = cli_progress_step;
    a->options.progress_user = &progress;

    qf_status status = cli_open(&a->inputs, &opened, list);
    qf_status done = plan_and_export(a, io, &opened, list, &plan, &report);
    status = status == QF_OK ? done : status;
    int code = cli_exit_code(status);
    if (a->json) {
        int printed = print_result_json(plan, report, status, list);
        code = code ? code : printed;
    } else if (status == QF_OK && !a->quiet) {
        print_summary(a, plan, report);
        code = cli_flush() ? code : EXIT_SYSTEM;
    }
    qf_report_free(report);
    qf_plan_free(plan);
    cli_close(&opened);
    qf_diagnostics_free(list);
    return code;
}

int cmd_export(int argc, char **argv)
{
    arguments a;
    int code = read_arguments(argc, argv, &a);
    if (code >= 0)
        return code;
    const char **inputs, **outputs = NULL;
    qf_dynamic_axis *axes = NULL;
    qf_io_spec io = {0};
    cli_catch_signals();
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
