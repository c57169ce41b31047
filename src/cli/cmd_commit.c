/* SPDX-License-Identifier: Apache-2.0 */
#include <getopt.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"

static const char help[] =
    "usage: quantfold commit --save-path OUT/PREFIX [OPTIONS]    (of shards of 'export')\n"
    "       quantfold commit --out DIR [OPTIONS]                 (of shards of 'checkpoint')\n\n"
    "Puts in place what 'export --shard I/N' or 'checkpoint --shard I/N' have written, once all N\n"
    "are done, and writes the manifest if they were given --manifest.\n\n"
    "  --no-fsync              do not wait until the names are on disk\n"
    "  --json                  the result as JSON on standard output\n"
    "  -q, --quiet             no summary\n";

typedef struct arguments {
    char *save_path;
    bool no_sync, json, quiet;
} arguments;

static const struct option long_options[] = {{"save-path", required_argument, NULL, 's'},
                                             {"out", required_argument, NULL, 'o'},
                                             {"no-fsync", no_argument, NULL, 'F'},
                                             {"json", no_argument, NULL, 'j'},
                                             {"quiet", no_argument, NULL, 'q'},
                                             {"help", no_argument, NULL, 'h'},
                                             {0}};

/* A folder as a save path: with nothing behind its last slash. */
static bool set_path(arguments *a, const char *value, bool folder)
{
    size_t n = strlen(value) + 2;
    free(a->save_path);
    a->save_path = malloc(n);
    if (a->save_path)
        snprintf(a->save_path, n, "%s%s", value, folder ? "/" : "");
    return a->save_path != NULL;
}

/* -1: go on; else an exit code. */
static int read_arguments(int argc, char **argv, arguments *a)
{
    bool ok = true;
    for (int c; ok && (c = getopt_long(argc, argv, "qh", long_options, NULL)) != -1;) {
        switch (c) {
        case 's':
        case 'o':
            ok = set_path(a, optarg, c == 'o');
            break;
        case 'F':
            a->no_sync = true;
            break;
        case 'j':
            a->json = true;
            break;
        case 'q':
            a->quiet = true;
            break;
        case 'h':
            fputs(help, stdout);
            return cli_flush() ? EXIT_DONE : EXIT_SYSTEM;
        default:
            return cli_usage_error("commit", "the command line cannot be understood");
        }
    }
    if (!ok)
        return cli_out_of_memory();
    if (optind != argc)
        return cli_usage_error("commit", "unexpected word '%s'", argv[optind]);
    if (!a->save_path)
        return cli_usage_error("commit", "--save-path or --out is needed");
    return -1;
}

static int print_result(const arguments *a, const qf_report *report)
{
    qf_report_totals t = qf_report_get(report);
    char size[32];
    if (a->json) {
        cJSON *root = cli_json_root();
        cJSON_AddStringToObject(root, "status", "done");
        cJSON_AddNumberToObject(root, "bytes_written", (double)t.bytes_written);
        cJSON_AddNumberToObject(root, "seconds", t.seconds);
        return cli_print_json(root);
    }
    if (!a->quiet)
        printf("put %s in place\n", cli_bytes(t.bytes_written, size));
    return cli_flush() ? EXIT_DONE : EXIT_SYSTEM;
}

int cmd_commit(int argc, char **argv)
{
    arguments a = {0};
    qf_report *report = NULL;
    qf_error err;
    int code = read_arguments(argc, argv, &a);
    if (code < 0) {
        qf_status status = qf_commit(a.save_path, a.no_sync, &report, &err);
        if (status != QF_OK)
            cli_print_error(&err);
        code = status == QF_OK ? print_result(&a, report) : cli_exit_code(status);
    }
    qf_report_free(report);
    free(a.save_path);
    return code;
}
