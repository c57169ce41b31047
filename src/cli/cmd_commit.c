/* SPDX-License-Identifier: Apache-2.0 */
#include <stdlib.h>

#include "cli/cli.h"
#include "cli/options.h"

static const char help[] =
    "usage: quantfold commit --save-path OUT/PREFIX [OPTIONS]    (of shards of 'export')\n"
    "       quantfold commit --out DIR [OPTIONS]                 (of shards of 'checkpoint')\n\n"
    "Puts in place what 'export --shard I/N' or 'checkpoint --shard I/N' have written, once all N\n"
    "are done, and writes the manifest if they were given --manifest.\n\n"
    "  --no-fsync              do not wait until the names are on disk\n"
    "  --json                  the result as JSON on standard output\n"
    "  -q, --quiet             no summary\n";

typedef struct arguments {
    const char *save_path, *out;
    bool no_sync, json, quiet;
} arguments;

static const cli_option table[] = {
    {.name = "save-path", .kind = CLI_PATH, .at = offsetof(arguments, save_path)},
    {.name = "out", .kind = CLI_PATH, .at = offsetof(arguments, out)},
    {.name = "no-fsync", .kind = CLI_FLAG, .at = offsetof(arguments, no_sync)},
    {.name = "json", .kind = CLI_FLAG, .at = offsetof(arguments, json)},
    {.name = "quiet", .letter = 'q', .kind = CLI_FLAG, .at = offsetof(arguments, quiet)},
    {0}};

/* `report` NULL: `err` is why. */
static int print_json(const qf_report *report, const qf_error *err)
{
    cJSON *root = cli_json_root();
    cJSON_AddBoolToObject(root, "ok", report != NULL);
    if (!report)
        cli_json_text(root, "error", err->message);
    if (report) {
        qf_report_totals t = qf_report_get(report);
        cJSON_AddNumberToObject(root, "bytes_written", (double)t.bytes_written);
        cJSON_AddNumberToObject(root, "seconds", t.seconds);
    }
    return cli_print_json(root);
}

static int commit(const arguments *a)
{
    qf_report *report = NULL;
    qf_error err;
    char size[32];
    char *path = a->out ? cli_folder_path(a->out) : NULL;
    if (a->out && !path)
        return cli_out_of_memory();
    qf_status status = qf_commit(path ? path : a->save_path, a->no_sync, &report, &err);
    int code = cli_exit_code(status), printed = EXIT_DONE;
    if (status != QF_OK)
        cli_print_error(&err);
    if (a->json) {
        printed = print_json(report, &err);
    } else if (report && !a->quiet) {
        uint64_t bytes = qf_report_get(report).bytes_written;
        if (bytes)
            printf("put %s in place\n", cli_bytes(bytes, size));
        else /* of an export, whose files no plan lists */
            printf("finished what an interrupted run had begun to put in place\n");
        printed = cli_flush() ? EXIT_DONE : EXIT_SYSTEM;
    }
    qf_report_free(report);
    free(path);
    return code ? code : printed;
}

int cmd_commit(int argc, char **argv)
{
    arguments a = {0};
    int code = cli_read_options("commit", help, table, &a, argc, argv, NULL);
    if (code >= 0)
        return code;
    if (!a.save_path == !a.out)
        return cli_usage_error("commit", "%s",
                               a.out ? "--save-path is of an export and --out of a checkpoint: "
                                       "only one of them can be given"
                                     : "--save-path or --out is needed");
    return commit(&a);
}
