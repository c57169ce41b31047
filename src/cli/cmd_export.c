/* SPDX-License-Identifier: Apache-2.0 */
#include <stdlib.h>
#include <string.h>

#include "cli/door.h"
#include "cli/ranks.h"

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
    "  --emit WHAT             both (default), deploy, fake-quant, runnable: the deploy model in\n"
    "                          operators that ONNX Runtime has; --model may be a deploy model\n"
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
    "  --stats                 statistics of every weight into that file, for 'quantfold report'\n"
    "  --resume                go on where a killed run ended; keep what is done if this one "
    "fails\n"
    "  --shard I/N             write part I (from 0) of N, to be put in place by 'quantfold\n"
    "                          commit'; slurm: the numbers of this job step or array task;\n"
    "                          slurm/N: the shard's number alone\n"
    "  --progress HOW          auto (default: a bar on a terminal, else a line every 10 s),\n"
    "                          always (every second), never, json (an event a line), on stderr\n"
    "  --dry-run               validate and print the plan; write nothing\n"
    "  --json                  the result as JSON on standard output\n"
    "  -v, --verbose           list every layer      -q, --quiet   no warnings, no summary\n";

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

static void print_summary(const cli_export *a, const qf_plan *plan, const qf_report_totals *totals)
{
    char saved[32];
    size_t layers = qf_plan_layer_count(plan) + qf_plan_skipped_count(plan);
    if (layers || a->options.emit != QF_EMIT_RUNNABLE) /* a deploy model has its layers quantized */
        printf("%s %zu of %zu layers\n", totals ? "quantized" : "would quantize",
               qf_plan_layer_count(plan), layers);
    if (a->manner.verbose)
        print_layers(plan);
    else
        print_skipped(plan);
    if (totals && a->options.shard_count) {
        printf("staged this shard's part of %zu files\n", qf_plan_output_count(plan));
    } else {
        printf("%s\n", totals ? "wrote" : "would write");
        print_outputs(plan);
    }
    if (qf_plan_bytes_saved(plan))
        printf("saved %s by writing equal tensors once\n",
               cli_bytes(qf_plan_bytes_saved(plan), saved));
    if (!totals)
        return;
    cli_print_totals(*totals, a->options.shard, a->options.shard_count, "--save-path",
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

static int print_result_json(const qf_plan *plan, const qf_report_totals *totals, int code,
                             const qf_diagnostics *diagnostics)
{
    cJSON *root = cli_json_root();
    cJSON_AddBoolToObject(root, "ok", code == EXIT_DONE);
    cJSON_AddBoolToObject(root, "written", totals != NULL);
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
    if (totals)
        cli_json_totals(root, *totals);
    return cli_print_json(root);
}

/* ---- the command ---- */

/* Of ranks, the first speaks for all in what all find alike; *code becomes the same for all. */
static void say_findings(const cli_export *a, const cli_export_run *run, int *code)
{
    int first = cli_ranks_first(*code);
    bool leader = cli_ranks_rank() == 0;
    if (!run->list)
        cli_out_of_memory();
    else if (leader || !first)
        cli_print_diagnostics(run->list, a->manner.quiet || !leader);
    *code = first ? first : cli_ranks_worst(*code);
}

static int run(cli_export *a)
{
    cli_export_run r;
    cli_progress progress;
    cli_progress_init(&progress, a->manner.progress, a->manner.quiet);
    a->options.progress = cli_progress_step;
    a->options.progress_user = &progress;

    qf_report_totals totals = {0}, *written = NULL;
    qf_status status = cli_export_prepare(a, &r);
    int code = cli_exit_code(status);
    say_findings(a, &r, &code);
    if (code == EXIT_DONE && !a->manner.dry_run) {
        size_t known = qf_diagnostics_count(r.list);
        status = cli_export_write(a, &r);
        if (qf_diagnostics_count(r.list) > known) {
            qf_diagnostic d = qf_diagnostics_at(r.list, known);
            cli_print_finding(&d);
        }
        qf_error err = {0};
        code = cli_ranks_finish(status, a->options.save_path, a->options.no_sync, r.report, &totals,
                                &err);
        if (*err.message)
            qf_diagnostics_add_error(r.list, &err);
        written = code == EXIT_DONE ? &totals : NULL;
    }
    if (cli_ranks_size() > 1)
        a->options.shard_count = 0; /* it is whole now */
    if (cli_ranks_rank() == 0 && r.list) {
        int printed = EXIT_DONE;
        if (a->manner.json)
            printed = print_result_json(r.plan, written, code, r.list);
        else if (code == EXIT_DONE && !a->manner.quiet) {
            print_summary(a, r.plan, written);
            printed = cli_flush() ? EXIT_DONE : EXIT_SYSTEM;
        }
        code = code ? code : printed;
    }
    cli_export_release(&r);
    a->options.progress_user = NULL;
    return code;
}

int cmd_export(int argc, char **argv)
{
    cli_export a;
    cli_export_init(&a);
    int code = cli_read_options("export", help, cli_export_table, &a, argc, argv, NULL);
    if (code >= 0)
        return code;
    if (!a.inputs.model || !a.options.save_path)
        return cli_usage_error("export", "--model and --save-path are needed");
    cli_catch_signals();
    bool joined =
        cli_ranks_join(&argc, &argv, &a.options.shard, &a.options.shard_count, &a.manner.progress);
    code = joined ? run(&a) : EXIT_USAGE;
    cli_ranks_end();
    return code;
}
