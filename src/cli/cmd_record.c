/* SPDX-License-Identifier: Apache-2.0 */
#include <stdlib.h>
#include <sys/stat.h>

#include "base/error.h"
#include "cli/cli.h"
#include "cli/options.h"

static const char help[] =
    "usage: quantfold record --model M.onnx --config C.json [--activations A.json] [OPTIONS]\n"
    "       quantfold record --model QDQ.onnx --from-qdq [OPTIONS]\n\n"
    "Writes the scale and offset record of a model, to be looked at, edited and exported with.\n"
    "The first form calculates it: weight scales from the weights of the layers that the config\n"
    "enables, activation scales from the values that activations take:\n\n"
    "    {\"conv1\": {\"min\": -0.7, \"max\": 2.0}, \"fc\": {\"scale_d\": 0.02, \"offset_d\": "
    "-12},\n"
    "     \"lstm\": {\"min\": -1, \"max\": 1, \"h_min\": -1, \"h_max\": 1}}\n\n"
    "or from clip_max and clip_min of the config. The second takes the scales of the model's\n"
    "QuantizeLinear and DequantizeLinear nodes.\n\n"
    "  --model FILE            ONNX model\n"
    "  --config FILE           QAT configuration (JSON)\n"
    "  --activations FILE      ranges of activations (JSON)\n"
    "  --from-qdq              take the record from a QDQ model\n"
    "  --on-unsupported WHAT   error (default), float: a QDQ layer that cannot be expressed\n"
    "  --output FILE           where to write the record (default: standard output)\n"
    "  --threads N             cores to use (default: all)\n"
    "  -q, --quiet             no warnings\n";

typedef struct arguments {
    const char *model, *config, *activations, *output;
    qf_on_unsupported on_unsupported;
    bool from_qdq, quiet;
    int threads;
} arguments;

static const cli_option table[] = {
    {.name = "model", .kind = CLI_PATH, .at = offsetof(arguments, model)},
    {.name = "config", .kind = CLI_PATH, .at = offsetof(arguments, config)},
    {.name = "activations", .kind = CLI_PATH, .at = offsetof(arguments, activations)},
    {.name = "from-qdq", .kind = CLI_FLAG, .at = offsetof(arguments, from_qdq)},
    {.name = "on-unsupported",
     .kind = CLI_WORD,
     .at = offsetof(arguments, on_unsupported),
     .words = cli_on_unsupported},
    {.name = "output", .kind = CLI_PATH, .at = offsetof(arguments, output)},
    {.name = "threads", .kind = CLI_COUNT, .at = offsetof(arguments, threads), .most = 1024},
    {.name = "quiet", .letter = 'q', .kind = CLI_FLAG, .at = offsetof(arguments, quiet)},
    {0}};

/* -1: go on; else an exit code. */
static int read_arguments(int argc, char **argv, arguments *a)
{
    *a = (arguments){0};
    int code = cli_read_options("record", help, table, a, argc, argv, NULL);
    if (code >= 0)
        return code;
    if (!a->model)
        return cli_usage_error("record", "--model is needed");
    if (a->from_qdq == (a->config != NULL))
        return cli_usage_error("record", "either --config or --from-qdq is needed");
    if (a->from_qdq && a->activations)
        return cli_usage_error("record", "--activations goes with --config");
    return -1;
}

static qf_status compute(const arguments *a, qf_model *model, qf_diagnostics *list, qf_record **out)
{
    qf_error err;
    qf_config *config = NULL;
    qf_ranges *ranges = NULL;
    size_t known = qf_diagnostics_errors(list);
    qf_status status = qf_config_open(a->config, &config, list, &err);
    status = cli_note(list, status, &err, known);
    known = qf_diagnostics_errors(list);
    if (a->activations) {
        qf_status opened = qf_ranges_open(a->activations, &ranges, &err);
        cli_note(list, opened, &err, known);
        status = status == QF_OK ? opened : status;
    }
    if (status == QF_OK) {
        known = qf_diagnostics_errors(list);
        status = qf_record_compute(model, config, ranges, a->threads, list, out, &err);
        cli_note(list, status, &err, known);
    }
    qf_ranges_close(ranges);
    qf_config_close(config);
    return status;
}

static bool are_same(const char *a, const char *b)
{
    struct stat s, t;
    return b && stat(a, &s) == 0 && stat(b, &t) == 0 && s.st_dev == t.st_dev &&
           s.st_ino == t.st_ino;
}

/* Before anything is calculated: inputs are never written. */
static qf_status check_output(const arguments *a, const qf_model *model, qf_error *err)
{
    bool input =
        a->output && (qf_model_has_file(model, a->output) || are_same(a->output, a->config) ||
                      are_same(a->output, a->activations));
    return input ? qf_fail_at(err, QF_ERR_INPUT, (qf_where){.file = a->output},
                              "the record would replace one of the files that it is made of; "
                              "choose another --output")
                 : QF_OK;
}

static qf_status make(const arguments *a, qf_diagnostics *list, qf_record **out)
{
    qf_error err;
    qf_model *model = NULL;
    size_t known = qf_diagnostics_errors(list);
    qf_status status = qf_model_open(a->model, &model, &err);
    if (status != QF_OK)
        return cli_note(list, status, &err, known);
    status = check_output(a, model, &err);
    if (status != QF_OK) {
        cli_note(list, status, &err, known);
    } else if (a->from_qdq) {
        status = qf_record_from_qdq(model, a->on_unsupported, list, out, &err);
        cli_note(list, status, &err, known);
    } else {
        status = compute(a, model, list, out);
    }
    qf_model_close(model);
    return status;
}

static int write_out(const arguments *a, const qf_record *record)
{
    qf_error err;
    char *text;
    size_t length;
    qf_status status = a->output ? qf_record_save(record, a->output, &err)
                                 : qf_record_format(record, &text, &length, &err);
    if (status != QF_OK) {
        cli_print_error(&err);
        return cli_exit_code(status);
    }
    if (a->output)
        return EXIT_DONE;
    fwrite(text, 1, length, stdout);
    free(text);
    return cli_flush() ? EXIT_DONE : EXIT_SYSTEM;
}

int cmd_record(int argc, char **argv)
{
    arguments a;
    int code = read_arguments(argc, argv, &a);
    if (code >= 0)
        return code;
    qf_record *record = NULL;
    qf_diagnostics *list = qf_diagnostics_create();
    if (!list)
        return cli_out_of_memory();
    qf_status status = make(&a, list, &record);
    cli_print_diagnostics(list, a.quiet);
    code = status == QF_OK ? write_out(&a, record) : cli_exit_code(status);
    qf_record_close(record);
    qf_diagnostics_free(list);
    return code;
}
