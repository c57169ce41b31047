/* SPDX-License-Identifier: Apache-2.0 */
#include <getopt.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"

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
    "  --resume                go on where a killed run ended; keep what is done if this one "
    "fails\n"
    "  --shard I/N             write part I (from 0) of N, to be put in place by 'quantfold\n"
    "                          commit'; slurm: the numbers of this job step or array task\n"
    "  --progress HOW          auto (default: a bar on a terminal, else a line every 10 s),\n"
    "                          always (every second), never, json (an event a line), on stderr\n"
    "  --dry-run               validate and print the plan; write nothing\n"
    "  --json                  the result as JSON on standard output\n"
    "  -v, --verbose           list every weight     -q, --quiet   no summary\n";

typedef struct arguments {
    const char *model, *record;
    qf_checkpoint_options options;
    cli_when progress;
    bool dry_run, json, verbose, quiet;
} arguments;

static const struct option long_options[] = {{"model", required_argument, NULL, 'm'},
                                             {"out", required_argument, NULL, 'o'},
                                             {"scheme", required_argument, NULL, 's'},
                                             {"include", required_argument, NULL, 'i'},
                                             {"exclude", required_argument, NULL, 'x'},
                                             {"scales", required_argument, NULL, 'S'},
                                             {"record", required_argument, NULL, 'r'},
                                             {"max-shard-size", required_argument, NULL, 'X'},
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

static bool set_flag(arguments *a, int option)
{
    bool *flags[] = {['f'] = NULL,
                     ['F'] = &a->options.no_sync,
                     ['A'] = &a->options.manifest,
                     ['R'] = &a->options.resume,
                     ['n'] = &a->dry_run,
                     ['j'] = &a->json,
                     ['v'] = &a->verbose,
                     ['q'] = &a->quiet};
    if (option == 'f')
        a->options.no_sync = false;
    else
        *flags[option] = true;
    return true;
}

static bool set_option(arguments *a, int option, const char *value)
{
    uint64_t n;
    int i;
    switch (option) {
    case 'm':
        a->model = value;
        return true;
    case 'o':
        a->options.out = value;
        return true;
    case 's':
        a->options.scheme = value;
        return true;
    case 'i':
        a->options.include = value;
        return true;
    case 'x':
        a->options.exclude = value;
        return true;
    case 'S':
        a->options.scales = value;
        return true;
    case 'r':
        a->record = value;
        return true;
    case 'X':
        return cli_read_size("max-shard-size", value, &a->options.max_shard_bytes);
    case 'M':
        return cli_read_size("memory-limit", value, &a->options.memory_limit);
    case 't':
        if (!cli_read_number("threads", value, 1024, &n))
            return false;
        a->options.threads = (int)n;
        return true;
    case 'I':
        i = cli_choose("io", value, cli_ios);
        a->options.io = (qf_io)i;
        return i >= 0;
    case 'H':
        return cli_read_shard(value, &a->options.shard, &a->options.shard_count);
    case 'p':
        i = cli_choose("progress", value, cli_whens);
        a->progress = (cli_when)i;
        return i >= 0;
    default:
        return set_flag(a, option);
    }
}

/* `--scales record` is the file of --record. */
static int resolve_scales(arguments *a)
{
    bool named = a->options.scales && strcmp(a->options.scales, "record") == 0;
    if (named != (a->record != NULL))
        return cli_usage_error("checkpoint", "--scales record and --record FILE go together");
    if (named)
        a->options.scales = a->record;
    return -1;
}

/* -1: go on; else an exit code. */
static int read_arguments(int argc, char **argv, arguments *a)
{
    *a = (arguments){0};
    qf_checkpoint_options_init(&a->options);
    for (int c; (c = getopt_long(argc, argv, "vqh", long_options, NULL)) != -1;) {
        if (c == 'h') {
            fputs(help, stdout);
            return cli_flush() ? EXIT_DONE : EXIT_SYSTEM;
        }
        if (c == '?')
            return cli_usage_error("checkpoint", "the command line cannot be understood");
        if (!set_option(a, c, optarg))
            return EXIT_USAGE;
    }
    if (optind != argc)
        return cli_usage_error("checkpoint", "unexpected word '%s'", argv[optind]);
    if (!a->model || !a->options.out || !a->options.scheme)
        return cli_usage_error("checkpoint", "--model, --out and --scheme are needed");
    return resolve_scales(a);
}

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

static void print_tensors(const arguments *a, const qf_checkpoint_plan *plan)
{
    enum { SHOWN = 3 };
    size_t left = 0, all = count_tensors(plan).left;
    for (size_t i = 0; i < qf_checkpoint_plan_tensor_count(plan); i++) {
        qf_checkpoint_tensor t = qf_checkpoint_plan_tensor(plan, i);
        if (a->verbose ? t.reason != NULL : t.reason && !t.bits && left++ < SHOWN)
            print_tensor(&t);
    }
    if (!a->verbose && all > SHOWN)
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

static void print_summary(const arguments *a, const qf_checkpoint_plan *plan,
                          const qf_report *report)
{
    counts n = count_tensors(plan);
    printf("%s %zu of %zu weight matrices (%s)\n", report ? "quantized" : "would quantize",
           n.quantized, n.quantized + n.left, a->options.scheme);
    print_tensors(a, plan);
    printf("%s\n", report ? "wrote" : "would write");
    print_files(plan);
    if (report)
        cli_print_totals(qf_report_get(report), a->options.shard, a->options.shard_count, "--out",
                         a->options.out);
}

static int print_json(const qf_checkpoint_plan *plan, const qf_report *report, const qf_error *err)
{
    cJSON *root = cli_json_root();
    cJSON_AddBoolToObject(root, "ok", err == NULL);
    cJSON_AddBoolToObject(root, "written", report != NULL);
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
    if (report)
        cli_json_totals(root, qf_report_get(report));
    return cli_print_json(root);
}

/* ---- the command ---- */

static qf_status plan_and_write(arguments *a, qf_checkpoint **checkpoint, qf_checkpoint_plan **plan,
                                qf_report **report, qf_error *err)
{
    qf_status status = qf_checkpoint_open(a->model, checkpoint, err);
    if (status == QF_OK)
        status = qf_checkpoint_plan_create(*checkpoint, &a->options, plan, err);
    if (status != QF_OK || a->dry_run)
        return status;
    status = qf_checkpoint_export(*plan, report, err);
    cli_progress_end(a->options.progress_user, status);
    return status;
}

int cmd_checkpoint(int argc, char **argv)
{
    arguments a;
    qf_checkpoint *checkpoint = NULL;
    qf_checkpoint_plan *plan = NULL;
    qf_report *report = NULL;
    cli_progress progress;
    qf_error err;
    int code = read_arguments(argc, argv, &a);
    if (code >= 0)
        return code;
    cli_catch_signals();
    cli_progress_init(&progress, a.quiet ? CLI_NEVER : a.progress);
    a.options.progress = cli_progress_step;
    a.options.progress_user = &progress;
    qf_status status = plan_and_write(&a, &checkpoint, &plan, &report, &err);
    code = cli_exit_code(status);
    if (status != QF_OK)
        cli_print_error(&err);
    if (a.json) {
        int printed = print_json(plan, report, status == QF_OK ? NULL : &err);
        code = code ? code : printed;
    } else if (status == QF_OK && !a.quiet) {
        print_summary(&a, plan, report);
        code = cli_flush() ? code : EXIT_SYSTEM;
    }
    qf_report_free(report);
    qf_checkpoint_plan_free(plan);
    qf_checkpoint_close(checkpoint);
    return code;
}
