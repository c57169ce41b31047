/* SPDX-License-Identifier: Apache-2.0 */
/* Messages, JSON and opening the inputs. */
#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "cli/cli.h"
#include "cli/ranks.h"

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

/* Whether a control character of Unicode begins here: below U+0020, U+007F to U+009F, the latter
 * also as the bytes that they are outside of UTF-8. `left`: how many bytes more the character
 * before has. */
static bool is_control(const unsigned char *p, int left)
{
    bool second = *p >= 0x80 && *p < 0xa0, behind = p[1] >= 0x80 && p[1] < 0xa0;
    return *p < 0x20 || *p == 0x7f || (second && !left) || (*p == 0xc2 && behind);
}

void cli_put_text(FILE *out, const char *text)
{
    int left = 0;
    bool escaped = false; /* the byte before began a control character of two */
    for (const unsigned char *p = (const unsigned char *)text; *p; p++) {
        if (escaped || is_control(p, left)) {
            fprintf(out, "\\x%02x", *p);
            escaped = !escaped && *p == 0xc2;
            left = 0;
            continue;
        }
        fputc(*p, out);
        if ((*p & 0xc0) != 0x80)
            left = *p >= 0xf0 ? 3 : *p >= 0xe0 ? 2 : *p >= 0xc2 ? 1 : 0;
        else
            left -= left > 0;
    }
}

void cli_print_error(const qf_error *err)
{
    fprintf(stderr, "quantfold: %serror: ", cli_ranks_prefix());
    cli_put_text(stderr, err->message);
    fputc('\n', stderr);
}

void cli_put_finding(FILE *out, const qf_diagnostic *d)
{
    if (*d->file) {
        cli_put_text(out, d->file);
        if (d->line)
            fprintf(out, ":%u:%u", d->line, d->column);
        fputs(": ", out);
    }
    if (*d->item) {
        cli_put_text(out, d->item);
        fputs(": ", out);
    }
    cli_put_text(out, d->message);
}

void cli_print_finding(const qf_diagnostic *d)
{
    fprintf(stderr, "quantfold: %s%s: ", cli_ranks_prefix(),
            d->severity == QF_ERROR ? "error" : "warning");
    cli_put_finding(stderr, d);
    fputc('\n', stderr);
}

void cli_print_diagnostics(const qf_diagnostics *list, bool quiet)
{
    size_t errors = 0;
    for (size_t i = 0; i < qf_diagnostics_count(list); i++) {
        qf_diagnostic d = qf_diagnostics_at(list, i);
        if (d.severity == QF_ERROR || !quiet)
            cli_print_finding(&d);
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

int cli_out_of_memory(void)
{
    fputs("quantfold: error: out of memory\n", stderr);
    return EXIT_SYSTEM;
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

/* What cannot be added to a document for want of memory is missing in it without a word: only errno
 * tells, which nothing else sets meanwhile. */
cJSON *cli_json_root(void)
{
    errno = 0;
    return cJSON_CreateObject();
}

int cli_print_json(cJSON *root)
{
    char *text = errno == ENOMEM ? NULL : cJSON_Print(root);
    cJSON_Delete(root);
    if (!text)
        return cli_out_of_memory();
    puts(text);
    free(text);
    return cli_flush() ? EXIT_DONE : EXIT_SYSTEM;
}

void cli_json_text(cJSON *object, const char *key, const char *text)
{
    qf_json_add_text(object, key, text);
}

cJSON *cli_json_diagnostics(const qf_diagnostics *list)
{
    cJSON *array = cJSON_CreateArray();
    for (size_t i = 0; i < qf_diagnostics_count(list); i++) {
        qf_diagnostic d = qf_diagnostics_at(list, i);
        cJSON *item = cJSON_CreateObject();
        cJSON_AddStringToObject(item, "severity", d.severity == QF_ERROR ? "error" : "warning");
        cli_json_text(item, "file", d.file);
        cJSON_AddNumberToObject(item, "line", d.line);
        cJSON_AddNumberToObject(item, "column", d.column);
        cli_json_text(item, "item", d.item);
        cli_json_text(item, "message", d.message);
        cJSON_AddItemToArray(array, item);
    }
    return array;
}

qf_status cli_note(qf_diagnostics *list, qf_status status, const qf_error *err, size_t known)
{
    if (status != QF_OK && qf_diagnostics_errors(list) == known)
        qf_diagnostics_add_error(list, err);
    return status;
}

static void keep_first(qf_status *first, qf_status status)
{
    if (*first == QF_OK)
        *first = status;
}

qf_status cli_open(const cli_inputs *inputs, cli_opened *out, qf_diagnostics *list)
{
    qf_error err;
    qf_status first = QF_OK;
    *out = (cli_opened){0};
    size_t known = qf_diagnostics_errors(list);
    keep_first(&first,
               cli_note(list, qf_model_open(inputs->model, &out->model, &err), &err, known));
    known = qf_diagnostics_errors(list);
    if (inputs->record)
        keep_first(&first,
                   cli_note(list, qf_record_open(inputs->record, &out->record, &err), &err, known));
    known = qf_diagnostics_errors(list);
    if (inputs->config) {
        qf_status status = qf_config_open(inputs->config, &out->config, list, &err);
        keep_first(&first, cli_note(list, status, &err, known));
    }
    out->incomplete = first != QF_OK;
    return first;
}

qf_status cli_plan(const cli_opened *opened, const qf_io_spec *io, const qf_export_options *options,
                   qf_diagnostics *list, qf_plan **plan)
{
    qf_error err;
    *plan = NULL;
    bool record_missing = opened->incomplete && !opened->record;
    if (!opened->model || record_missing)
        return QF_ERR_INPUT;
    size_t known = qf_diagnostics_errors(list);
    qf_status status = qf_plan_create(opened->model, opened->config, opened->record, io, options,
                                      list, plan, &err);
    return cli_note(list, status, &err, known);
}

void cli_close(cli_opened *opened)
{
    qf_config_close(opened->config);
    qf_record_close(opened->record);
    qf_model_close(opened->model);
}

/* ---- words ---- */

const char *const cli_on_unsupported[] = {"error", "float", NULL};
const char *const cli_sources[] = {"auto", "float", "qdq", NULL};
