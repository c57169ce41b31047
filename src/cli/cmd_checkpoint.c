/* SPDX-License-Identifier: Apache-2.0 */
#include <stdlib.h>

#include "cli/door.h"
#include "cli/ranks.h"

static const char help[] =
    "usage: quantfold checkpoint --model DIR --out DIR --scheme SCHEME [OPTIONS]\n\n"
    "Quantizes the linear weights of a Hugging Face folder (safetensors) and writes a folder that\n"
    "loaders of the compressed-tensors convention read.\n\n"
    "  --model DIR             the checkpoint: *.safetensors, config.json\n"
    "  --out DIR               target folder, made if it is not there\n"
    "  --scheme SCHEME         w8a16, w4a16: weights of 8 or 4 bits, with one scale a row, or one\n"
    "                          for N elements of a row with :group=N behind it (w4a16:group=128);\n"
    "                          w8a8: int8 activations too, quantized as they come\n"
    "  --include REGEX         weights to quantize, by tensor name (default: all linear weights\n"
    "                          but lm_head and routers)\n"
    "  --exclude REGEX         weights to leave as they are\n"
    "  --scales WHAT           minmax (default): from the weights; record: of --record; or a file, "
    "a\n"
    "                          record or safetensors with <module>.weight_scale tensors\n"
    "  --record FILE           record with scale_w for each module (--scales record)\n"
    "  --max-shard-size SIZE   new shards of at most that (default: the source's shards)\n"
    "  --threads N             cores to use (default: all)\n"
    "  --io HOW                auto (default), pwrite, mmap, direct: how output is written\n"
    "  --no-fsync              do not wait until the output is on disk\n"
    "  --memory-limit SIZE     resident memory, as 512M or 2G (default: a quarter of the RAM)\n"
    "  --manifest              write quantfold.manifest.json too: hashes and error statistics\n"
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
    "  -v, --verbose           list every weight     -q, --quiet   no summary\n";

/* ---- results ---- */

typedef struct counts {
    size_t quantized, left;
} counts;

static counts count_tensors(const qf_checkpoint_plan *plan)
{
    counts n = {0};
    for (size_t i = 0; i < qf_checkpoint_plan_tensor_count(plan); i++) {
        qf_checkpoint_tensor t = qf_checkpoint_plan_tensor(plan, i);
        n.quantized += t.bits != 0;
        n.left += t.reason && !t.bits;
    }
    return n;
}

static void print_tensor(const qf_checkpoint_tensor *t)
{
    printf("  %-7s ", t->bits ? (t->bits == 8 ? "int8" : "int4") : t->dtype);
    cli_put_text(stdout, t->name);
    printf("  %llu x %llu", (unsigned long long)t->rows, (unsigned long long)t->cols);
    if (t->bits && t->group)
        printf(", a scale for %llu elements", (unsigned long long)t->group);
    if (!t->bits)
        printf(": %s", t->reason);
    putchar('\n');
}

static void print_tensors(const cli_checkpoint *a, const qf_checkpoint_plan *plan)
{
    enum { SHOWN = 3 };
    size_t left = 0, all = count_tensors(plan).left;
    for (size_t i = 0; i < qf_checkpoint_plan_tensor_count(plan); i++) {
        qf_checkpoint_tensor t = qf_checkpoint_plan_tensor(plan, i);
        if (a->manner.verbose ? t.reason != NULL : t.reason && !t.bits && left++ < SHOWN)
            print_tensor(&t);
    }
    if (!a->manner.verbose && all > SHOWN)
        printf("  ... and %zu more that stay float; -v lists all\n", all - SHOWN);
}

static void print_files(const qf_checkpoint_plan *plan)
{
    enum { SHOWN = 12 };
    char size[32];
    size_t count = qf_checkpoint_plan_output_count(plan);
    for (size_t i = 0; i < count && i < SHOWN; i++) {
        qf_output_file f = qf_checkpoint_plan_output(plan, i);
        printf("  %9s  ", cli_bytes(f.bytes, size));
        cli_put_text(stdout, f.path);
        putchar('\n');
    }
    if (count > SHOWN)
        printf("  and %zu more files\n", count - SHOWN);
    for (size_t i = 0; i < qf_checkpoint_plan_passed_count(plan); i++) {
        printf("not taken along: ");
        cli_put_text(stdout, qf_checkpoint_plan_passed(plan, i));
        putchar('\n');
    }
}

static void print_summary(const cli_checkpoint *a, const qf_checkpoint_plan *plan,
                          const qf_report_totals *totals)
{
    counts n = count_tensors(plan);
    printf("%s %zu of %zu weight matrices (%s)\n", totals ? "quantized" : "would quantize",
           n.quantized, n.quantized + n.left, a->options.scheme);
    print_tensors(a, plan);
    if (totals && a->options.shard_count) {
        printf("staged this shard's part of %zu files\n", qf_checkpoint_plan_output_count(plan));
    } else {
        printf("%s\n", totals ? "wrote" : "would write");
        print_files(plan);
    }
    if (totals)
        cli_print_totals(*totals, a->options.shard, a->options.shard_count, "--out",
                         a->options.out);
}

static int print_json(const qf_checkpoint_plan *plan, const qf_report_totals *totals,
                      const qf_error *err, int code)
{
    cJSON *root = cli_json_root();
    cJSON_AddBoolToObject(root, "ok", code == EXIT_DONE);
    cJSON_AddBoolToObject(root, "written", totals != NULL);
    if (err)
        cli_json_text(root, "error", err->message);
    cJSON *tensors = plan ? cJSON_AddArrayToObject(root, "tensors") : NULL;
    for (size_t i = 0; plan && i < qf_checkpoint_plan_tensor_count(plan); i++) {
        qf_checkpoint_tensor t = qf_checkpoint_plan_tensor(plan, i);
        if (!t.reason)
            continue;
        cJSON *item = cJSON_CreateObject();
        cli_json_text(item, "name", t.name);
        cJSON_AddStringToObject(item, "dtype", t.dtype);
        cJSON_AddNumberToObject(item, "rows", (double)t.rows);
        cJSON_AddNumberToObject(item, "cols", (double)t.cols);
        cJSON_AddNumberToObject(item, "bits", t.bits);
        cJSON_AddNumberToObject(item, "group", (double)t.group);
        cJSON_AddStringToObject(item, "reason", t.reason);
        cJSON_AddItemToArray(tensors, item);
    }
    cJSON *files = plan ? cJSON_AddArrayToObject(root, "files") : NULL;
    for (size_t i = 0; plan && i < qf_checkpoint_plan_output_count(plan); i++) {
        qf_output_file f = qf_checkpoint_plan_output(plan, i);
        cJSON *item = cJSON_CreateObject();
        cli_json_text(item, "path", f.path);
        cJSON_AddNumberToObject(item, "bytes", (double)f.bytes);
        cJSON_AddItemToArray(files, item);
    }
    if (totals)
        cli_json_totals(root, *totals);
    return cli_print_json(root);
}

/* ---- the command ---- */

/* As in cmd_export.c. */
static void say_error(const cli_checkpoint_run *run, int *code)
{
    int first = cli_ranks_first(*code);
    if (*code && (cli_ranks_rank() == 0 || !first))
        cli_print_error(&run->err);
    *code = first ? first : cli_ranks_worst(*code);
}

static int finish(qf_status status, cli_checkpoint *a, cli_checkpoint_run *run,
                  qf_report_totals *totals)
{
    char *path = cli_folder_path(a->options.out);
    if (!path) { /* the others wait for this one */
        cli_ranks_abort(EXIT_SYSTEM);
        return cli_out_of_memory();
    }
    int code = cli_ranks_finish(status, path, a->options.no_sync, run->report, totals, &run->err);
    free(path);
    return code;
}

static int run(cli_checkpoint *a)
{
    cli_checkpoint_run r;
    cli_progress progress;
    cli_progress_init(&progress, a->manner.progress, a->manner.quiet);
    a->options.progress = cli_progress_step;
    a->options.progress_user = &progress;
    qf_report_totals totals = {0}, *written = NULL;
    qf_status status = cli_checkpoint_prepare(a, &r);
    int code = cli_exit_code(status);
    say_error(&r, &code);
    if (code == EXIT_DONE && cli_ranks_rank() == 0 && !a->manner.quiet)
        cli_checkpoint_warn(&r, NULL);
    if (code == EXIT_DONE && !a->manner.dry_run) {
        status = cli_checkpoint_write(a, &r);
        if (status != QF_OK)
            cli_print_error(&r.err);
        code = finish(status, a, &r, &totals);
        written = code == EXIT_DONE ? &totals : NULL;
    }
    if (cli_ranks_size() > 1)
        a->options.shard_count = 0; /* it is whole now */
    if (cli_ranks_rank() == 0) {
        int printed = EXIT_DONE;
        if (a->manner.json)
            printed = print_json(r.plan, written, code && *r.err.message ? &r.err : NULL, code);
        else if (code == EXIT_DONE && !a->manner.quiet) {
            print_summary(a, r.plan, written);
            printed = cli_flush() ? EXIT_DONE : EXIT_SYSTEM;
        }
        code = code ? code : printed;
    }
    cli_checkpoint_release(&r);
    a->options.progress_user = NULL;
    return code;
}

int cmd_checkpoint(int argc, char **argv)
{
    cli_checkpoint a;
    cli_checkpoint_init(&a);
    int code = cli_read_options("checkpoint", help, cli_checkpoint_table, &a, argc, argv, NULL);
    if (code >= 0)
        return code;
    if (!a.model || !a.options.out || !a.options.scheme)
        return cli_usage_error("checkpoint", "--model, --out and --scheme are needed");
    const char *wrong = cli_checkpoint_resolve(&a);
    if (wrong)
        return cli_usage_error("checkpoint", "%s", wrong);
    cli_catch_signals();
    bool joined =
        cli_ranks_join(&argc, &argv, &a.options.shard, &a.options.shard_count, &a.manner.progress);
    code = joined ? run(&a) : EXIT_USAGE;
    cli_ranks_end();
    return code;
}
