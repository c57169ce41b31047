/* SPDX-License-Identifier: Apache-2.0 */
/* An export: its options, and what is done with them. */
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/spill.h"
#include "cli/door.h"

static const char *const emits[] = {"both", "deploy", "fake-quant", "runnable", NULL};
static const char *const layouts[] = {"per-tensor", "single", NULL};
static const char *const forms[] = {"float", "int8", "shared", NULL};
const char *const cli_free_qdqs[] = {"keep", "drop", NULL};

_Static_assert(offsetof(qf_export_options, shard_count) ==
                   offsetof(qf_export_options, shard) + sizeof(uint32_t),
               "CLI_SHARD sets both");

const cli_option cli_export_table[] = {
    {.name = "model", .kind = CLI_PATH, .at = offsetof(cli_export, inputs.model)},
    {.name = "config", .kind = CLI_PATH, .at = offsetof(cli_export, inputs.config)},
    {.name = "record", .kind = CLI_PATH, .at = offsetof(cli_export, inputs.record)},
    {.name = "save-path", .kind = CLI_PATH, .at = offsetof(cli_export, options.save_path)},
    {.name = "input-names", .kind = CLI_NAMES, .at = offsetof(cli_export, input_names)},
    {.name = "output-names", .kind = CLI_NAMES, .at = offsetof(cli_export, output_names)},
    {.name = "dynamic-axes", .kind = CLI_AXES, .at = offsetof(cli_export, dynamic_axes)},
    {.name = "from",
     .kind = CLI_WORD,
     .at = offsetof(cli_export, options.source),
     .words = cli_sources},
    {.name = "on-unsupported",
     .kind = CLI_WORD,
     .at = offsetof(cli_export, options.on_unsupported),
     .words = cli_on_unsupported},
    {.name = "free-qdq",
     .kind = CLI_WORD,
     .at = offsetof(cli_export, options.free_qdq),
     .words = cli_free_qdqs},
    {.name = "emit", .kind = CLI_WORD, .at = offsetof(cli_export, options.emit), .words = emits},
    {.name = "external",
     .kind = CLI_WORD,
     .at = offsetof(cli_export, options.external),
     .words = cli_externals},
    {.name = "external-threshold",
     .kind = CLI_NUMBER,
     .at = offsetof(cli_export, options.external_threshold),
     .most = INT64_MAX},
    {.name = "external-layout",
     .kind = CLI_WORD,
     .at = offsetof(cli_export, options.external_layout),
     .words = layouts},
    {.name = "fake-quant-weights",
     .kind = CLI_WORD,
     .at = offsetof(cli_export, options.fake_quant_weights),
     .words = forms},
    {.name = "weight-only", .kind = CLI_TEXT, .at = offsetof(cli_export, options.weight_only)},
    {.name = "include", .kind = CLI_TEXT, .at = offsetof(cli_export, options.include)},
    {.name = "exclude", .kind = CLI_TEXT, .at = offsetof(cli_export, options.exclude)},
    {.name = "dedup", .kind = CLI_FLAG, .at = offsetof(cli_export, options.dedup)},
    {.name = "threads",
     .kind = CLI_COUNT,
     .command_only = true,
     .at = offsetof(cli_export, options.threads),
     .most = 1024},
    {.name = "io", .kind = CLI_WORD, .at = offsetof(cli_export, options.io), .words = cli_ios},
    {.name = "fsync", .kind = CLI_OFF, .at = offsetof(cli_export, options.no_sync)},
    {.name = "no-fsync", .kind = CLI_FLAG, .at = offsetof(cli_export, options.no_sync)},
    {.name = "memory-limit", .kind = CLI_SIZE, .at = offsetof(cli_export, options.memory_limit)},
    {.name = "manifest", .kind = CLI_FLAG, .at = offsetof(cli_export, options.manifest)},
    {.name = "stats", .kind = CLI_FLAG, .at = offsetof(cli_export, options.stats)},
    {.name = "resume", .kind = CLI_FLAG, .at = offsetof(cli_export, options.resume)},
    {.name = "shard",
     .kind = CLI_SHARD,
     .command_only = true,
     .at = offsetof(cli_export, options.shard)},
    {.name = "progress",
     .kind = CLI_WORD,
     .command_only = true,
     .at = offsetof(cli_export, manner.progress),
     .words = cli_whens},
    {.name = "dry-run",
     .kind = CLI_FLAG,
     .command_only = true,
     .at = offsetof(cli_export, manner.dry_run)},
    {.name = "json",
     .kind = CLI_FLAG,
     .command_only = true,
     .at = offsetof(cli_export, manner.json)},
    {.name = "verbose",
     .letter = 'v',
     .kind = CLI_FLAG,
     .command_only = true,
     .at = offsetof(cli_export, manner.verbose)},
    {.name = "quiet",
     .letter = 'q',
     .kind = CLI_FLAG,
     .command_only = true,
     .at = offsetof(cli_export, manner.quiet)},
    {0}};

void cli_export_init(cli_export *job)
{
    *job = (cli_export){0};
    qf_export_options_init(&job->options);
}

/* ---- names and axes ---- */

/* Splits a copy at commas. */
static bool split_names(const char *names, char **text, const char ***list, size_t *count)
{
    if (!names)
        return true;
    size_t n = 1;
    for (const char *p = names; *p; p++)
        n += *p == ',';
    *text = strdup(names);
    *list = malloc(n * sizeof **list);
    if (!*text || !*list)
        return false;
    for (char *part = *text; part;) {
        char *comma = strchr(part, ',');
        if (comma)
            *comma = '\0';
        (*list)[(*count)++] = part;
        part = comma ? comma + 1 : NULL;
    }
    return true;
}

static qf_status read_axes(const char *argument, cli_export_run *run, qf_error *err)
{
    enum { MOST = 1 << 20 }; /* bytes */
    qf_status status = QF_OK;
    char *text = NULL;
    size_t length;
    if (!argument)
        return QF_OK;
    if (argument[0] == '@')
        status = qf_file_read_text(argument + 1, "file of dynamic axes", MOST, &text, &length, NULL,
                                   err);
    if (status == QF_OK)
        status = qf_dynamic_axes_parse(text ? text : argument, &run->axes,
                                       &run->io.dynamic_axis_count, err);
    qf_spill_free(text);
    return status;
}

qf_status cli_export_read_io(const cli_export *job, cli_export_run *run, qf_error *err)
{
    qf_io_spec *io = &run->io;
    if (!split_names(job->input_names, &run->texts[0], &run->names[0], &io->input_name_count) ||
        !split_names(job->output_names, &run->texts[1], &run->names[1], &io->output_name_count)) {
        *err = (qf_error){.code = QF_ERR_MEMORY, .message = "out of memory"};
        return QF_ERR_MEMORY;
    }
    qf_status status = read_axes(job->dynamic_axes, run, err);
    io->input_names = run->names[0];
    io->output_names = run->names[1];
    io->dynamic_axes = run->axes;
    return status;
}

/* ---- the export ---- */

qf_status cli_export_prepare(const cli_export *job, cli_export_run *run)
{
    qf_error err;
    *run = (cli_export_run){.list = qf_diagnostics_create()};
    if (!run->list)
        return QF_ERR_MEMORY;
    qf_status status = cli_export_read_io(job, run, &err);
    if (status != QF_OK)
        return cli_note(run->list, status, &err, 0);
    status = cli_open(&job->inputs, &run->opened, run->list);
    qf_status planned = cli_plan(&run->opened, &run->io, &job->options, run->list, &run->plan);
    status = status == QF_OK ? planned : status;
    if (status == QF_OK && cli_interrupted()) {
        err = (qf_error){.code = QF_ERR_CANCELLED, .message = "interrupted"};
        return cli_note(run->list, QF_ERR_CANCELLED, &err, 0);
    }
    return status;
}

qf_status cli_export_write(const cli_export *job, cli_export_run *run)
{
    qf_error err;
    size_t known = qf_diagnostics_errors(run->list);
    qf_status status = qf_export(run->plan, &run->report, &err);
    cli_progress_end(job->options.progress_user, status);
    return cli_note(run->list, status, &err, known);
}

void cli_export_release(cli_export_run *run)
{
    qf_report_free(run->report);
    qf_plan_free(run->plan);
    cli_close(&run->opened);
    qf_diagnostics_free(run->list);
    free(run->axes);
    for (int i = 0; i < 2; i++) {
        free(run->names[i]);
        free(run->texts[i]);
    }
}
