/* SPDX-License-Identifier: Apache-2.0 */
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"
#include "cli/options.h"

static const char help[] =
    "usage: quantfold report PREFIX [OPTIONS]\n\n"
    "Makes a page of what an export with --stats wrote to PREFIX (its --save-path, or the --out "
    "of\n"
    "a checkpoint, or a manifest): sizes, warnings, every layer with its errors, histograms of\n"
    "weights. The page is one HTML file that needs no network.\n\n"
    "  -o, --output FILE   where to write the page (default: PREFIX.report.html; -: standard "
    "output)\n"
    "      --json          the same data as JSON on standard output; a page only with --output\n"
    "  -q, --quiet         do not print the page's name\n";

typedef struct arguments {
    const char *prefix, *output;
    bool json, quiet;
} arguments;

static const cli_option table[] = {
    {.name = "output", .letter = 'o', .kind = CLI_PATH, .at = offsetof(arguments, output)},
    {.name = "json", .kind = CLI_FLAG, .at = offsetof(arguments, json)},
    {.name = "quiet", .letter = 'q', .kind = CLI_FLAG, .at = offsetof(arguments, quiet)},
    {0}};

/* -1: go on; else an exit code. */
static int read_arguments(int argc, char **argv, arguments *a)
{
    *a = (arguments){0};
    int code = cli_read_options("report", help, table, a, argc, argv, &a->prefix);
    if (code >= 0)
        return code;
    if (!a->prefix)
        return cli_usage_error("report", "PREFIX is needed");
    if (!*a->prefix)
        return cli_usage_error("report", "PREFIX is empty");
    if (a->json && a->output && strcmp(a->output, "-") == 0)
        return cli_usage_error("report", "--json takes standard output, so --output cannot be -");
    return -1;
}

/* Prints what a function of the library made. */
static qf_status print(qf_status (*make)(const char *, char **, size_t *, qf_error *),
                       const char *prefix, const char *end, qf_error *err)
{
    char *text;
    size_t length;
    qf_status status = make(prefix, &text, &length, err);
    if (status != QF_OK)
        return status;
    fwrite(text, 1, length, stdout);
    fputs(end, stdout);
    free(text);
    return QF_OK;
}

/* A signal must not leave the page's staging folder behind, and is waited for until the page is
 * there: making it takes no time to speak of. What only prints can be ended at any moment. */
static qf_status save(const arguments *a, qf_error *err)
{
    char *saved;
    cli_catch_signals();
    qf_status status = qf_summary_save(a->prefix, a->output, &saved, err);
    if (status != QF_OK)
        return status;
    if (!a->quiet && !a->json) {
        fputs("wrote ", stdout);
        cli_put_text(stdout, saved);
        putchar('\n');
    }
    free(saved);
    return QF_OK;
}

int cmd_report(int argc, char **argv)
{
    arguments a;
    qf_error err;
    int code = read_arguments(argc, argv, &a);
    if (code >= 0)
        return code;
    qf_status status = QF_OK;
    bool to_stdout = a.output && strcmp(a.output, "-") == 0;
    if (to_stdout)
        status = print(qf_summary_html, a.prefix, "", &err);
    else if (!a.json || a.output)
        status = save(&a, &err);
    if (status == QF_OK && a.json && cli_interrupted()) {
        status = QF_ERR_CANCELLED;
        err = (qf_error){.code = status, .message = "interrupted; the page was written"};
    } else if (status == QF_OK && a.json) {
        status = print(qf_summary_json, a.prefix, "\n", &err);
    }
    if (status != QF_OK) {
        cli_print_error(&err);
        return cli_exit_code(status);
    }
    return cli_flush() ? EXIT_DONE : EXIT_SYSTEM;
}
