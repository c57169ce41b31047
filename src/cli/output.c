/* SPDX-License-Identifier: Apache-2.0 */
/* Messages, JSON and opening the inputs. */
#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"

int cli_exit_code(qf_status status)
{
    switch (status) {
    case QF_OK:
        return EXIT_DONE;
    case QF_ERR_INPUT:
        return EXIT_INPUT;
    case QF_ERR_USAGE:
        return EXIT_USAGE;
    case QF_ERR_CANCELLED:
        return EXIT_INTERRUPTED;
    case QF_ERR_SYSTEM:
    case QF_ERR_MEMORY:
        break;
    }
    return EXIT_SYSTEM;
}

void cli_put_text(FILE *out, const char *text)
{
    for (; *text; text++) {
        unsigned char c = (unsigned char)*text;
        if (c < 0x20 || c == 0x7f)
            fprintf(out, "\\x%02x", c);
        else
            fputc(c, out);
    }
}

void cli_print_error(const qf_error *err)
{
    fputs("quantfold: error: ", stderr);
    cli_put_text(stderr, err->message);
    fputc('\n', stderr);
}

static void print_finding(const qf_diagnostic *d)
{
    fprintf(stderr, "quantfold: %s: ", d->severity == QF_ERROR ? "error" : "warning");
    if (*d->file) {
        cli_put_text(stderr, d->file);
        if (d->line)
            fprintf(stderr, ":%u:%u", d->line, d->column);
        fputs(": ", stderr);
    }
    if (*d->item) {
        cli_put_text(stderr, d->item);
        fputs(": ", stderr);
    }
    cli_put_text(stderr, d->message);
    fputc('\n', stderr);
}

void cli_print_diagnostics(const qf_diagnostics *list, bool quiet)
{
    size_t errors = 0;
    for (size_t i = 0; i < qf_diagnostics_count(list); i++) {
        qf_diagnostic d = qf_diagnostics_at(list, i);
        if (d.severity == QF_ERROR || !quiet)
            print_finding(&d);
        errors += d.severity == QF_ERROR;
    }
    if (qf_diagnostics_errors(list) > errors)
        fprintf(stderr, "quantfold: error: and %zu more errors\n",
                qf_diagnostics_errors(list) - errors);
}

int cli_usage_error(const char *command, const char *format, ...)
{
    va_list args;
    fputs("quantfold: ", stderr);
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fprintf(stderr, "\nTry: quantfold %s%s--help\n", command ? command : "", command ? " " : "");
    return EXIT_USAGE;
}

const char *cli_bytes(uint64_t bytes, char buffer[32])
{
    static const char *const units[] = {"B", "kB", "MB", "GB", "TB"};
    double value = (double)bytes;
    size_t unit = 0;
    while (value >= 999.5 && unit + 1 < sizeof units / sizeof *units) {
        value /= 1000;
        unit++;
    }
    snprintf(buffer, 32, unit && value < 99.95 ? "%.1f %s" : "%.0f %s", value, units[unit]);
    return buffer;
}

bool cli_flush(void)
{
    if (fflush(stdout) == 0 && !ferror(stdout))
        return true;
    fprintf(stderr, "quantfold: error: cannot write to standard output: %s\n", strerror(errno));
    return false;
}

int cli_print_json(cJSON *root)
{
    char *text = cJSON_Print(root);
    cJSON_Delete(root);
    if (!text) {
        fputs("quantfold: error: out of memory\n", stderr);
        return EXIT_SYSTEM;
    }
    puts(text);
    free(text);
    return cli_flush() ? EXIT_DONE : EXIT_SYSTEM;
}

cJSON *cli_json_diagnostics(const qf_diagnostics *list)
{
    cJSON *array = cJSON_CreateArray();
    for (size_t i = 0; i < qf_diagnostics_count(list); i++) {
        qf_diagnostic d = qf_diagnostics_at(list, i);
        cJSON *item = cJSON_CreateObject();
        cJSON_AddStringToObject(item, "severity", d.severity == QF_ERROR ? "error" : "warning");
        cJSON_AddStringToObject(item, "file", d.file);
        cJSON_AddNumberToObject(item, "line", d.line);
        cJSON_AddNumberToObject(item, "column", d.column);
        cJSON_AddStringToObject(item, "item", d.item);
        cJSON_AddStringToObject(item, "message", d.message);
        cJSON_AddItemToArray(array, item);
    }
    return array;
}

static void note(qf_status *first, qf_status status, const qf_error *err)
{
    if (status == QF_OK)
        return;
    if (*first == QF_OK)
        *first = status;
    if (err)
        cli_print_error(err);
}

qf_status cli_open(const cli_inputs *inputs, cli_opened *out, qf_diagnostics *diagnostics)
{
    qf_error err;
    qf_status first = QF_OK;
    *out = (cli_opened){0};
    note(&first, qf_model_open(inputs->model, &out->model, &err), &err);
    note(&first, qf_record_open(inputs->record, &out->record, &err), &err);
    if (inputs->config) {
        size_t known = qf_diagnostics_errors(diagnostics);
        qf_status status = qf_config_open(inputs->config, &out->config, diagnostics, &err);
        bool listed = qf_diagnostics_errors(diagnostics) > known;
        note(&first, status, listed ? NULL : &err);
    }
    return first;
}

void cli_close(cli_opened *opened)
{
    qf_config_close(opened->config);
    qf_record_close(opened->record);
    qf_model_close(opened->model);
}
