/* SPDX-License-Identifier: Apache-2.0 */
/* The export of a safetensors checkpoint: its options, and what is done with them. */
#include <string.h>

#include "cli/door.h"
#include "cli/ranks.h"

/* of --scales; anything else is a file */
static const char *const scales[] = {"minmax", "record", NULL};

_Static_assert(offsetof(qf_checkpoint_options, shard_count) ==
                   offsetof(qf_checkpoint_options, shard) + sizeof(uint32_t),
               "CLI_SHARD sets both");

const cli_option cli_checkpoint_table[] = {
    {.name = "model", .kind = CLI_PATH, .at = offsetof(cli_checkpoint, model)},
    {.name = "out", .kind = CLI_PATH, .at = offsetof(cli_checkpoint, options.out)},
    {.name = "scheme", .kind = CLI_TEXT, .at = offsetof(cli_checkpoint, options.scheme)},
    {.name = "include", .kind = CLI_TEXT, .at = offsetof(cli_checkpoint, options.include)},
    {.name = "exclude", .kind = CLI_TEXT, .at = offsetof(cli_checkpoint, options.exclude)},
    {.name = "scales",
     .kind = CLI_SOURCE,
     .at = offsetof(cli_checkpoint, options.scales),
     .words = scales},
    {.name = "record", .kind = CLI_PATH, .at = offsetof(cli_checkpoint, record)},
    {.name = "max-shard-size",
     .kind = CLI_SIZE,
     .at = offsetof(cli_checkpoint, options.max_shard_bytes)},
    {.name = "threads",
     .kind = CLI_COUNT,
     .command_only = true,
     .at = offsetof(cli_checkpoint, options.threads),
     .most = 1024},
    {.name = "io", .kind = CLI_WORD, .at = offsetof(cli_checkpoint, options.io), .words = cli_ios},
    {.name = "fsync", .kind = CLI_OFF, .at = offsetof(cli_checkpoint, options.no_sync)},
    {.name = "no-fsync", .kind = CLI_FLAG, .at = offsetof(cli_checkpoint, options.no_sync)},
    {.name = "memory-limit",
     .kind = CLI_SIZE,
     .at = offsetof(cli_checkpoint, options.memory_limit)},
    {.name = "manifest", .kind = CLI_FLAG, .at = offsetof(cli_checkpoint, options.manifest)},
    {.name = "stats", .kind = CLI_FLAG, .at = offsetof(cli_checkpoint, options.stats)},
    {.name = "resume", .kind = CLI_FLAG, .at = offsetof(cli_checkpoint, options.resume)},
    {.name = "shard",
     .kind = CLI_SHARD,
     .command_only = true,
     .at = offsetof(cli_checkpoint, options.shard)},
    {.name = "progress",
     .kind = CLI_WORD,
     .command_only = true,
     .at = offsetof(cli_checkpoint, manner.progress),
     .words = cli_whens},
    {.name = "dry-run",
     .kind = CLI_FLAG,
     .command_only = true,
     .at = offsetof(cli_checkpoint, manner.dry_run)},
    {.name = "json",
     .kind = CLI_FLAG,
     .command_only = true,
     .at = offsetof(cli_checkpoint, manner.json)},
    {.name = "verbose",
     .letter = 'v',
     .kind = CLI_FLAG,
     .command_only = true,
     .at = offsetof(cli_checkpoint, manner.verbose)},
    {.name = "quiet",
     .letter = 'q',
     .kind = CLI_FLAG,
     .command_only = true,
     .at = offsetof(cli_checkpoint, manner.quiet)},
    {0}};

void cli_checkpoint_init(cli_checkpoint *job)
{
    *job = (cli_checkpoint){0};
    qf_checkpoint_options_init(&job->options);
}

const char *cli_checkpoint_resolve(cli_checkpoint *job)
{
    bool named = job->options.scales && strcmp(job->options.scales, "record") == 0;
    if (named != (job->record != NULL))
        return "--scales record and --record FILE go together";
    if (named)
        job->options.scales = job->record;
    return NULL;
}

qf_status cli_checkpoint_prepare(const cli_checkpoint *job, cli_checkpoint_run *run)
{
    *run = (cli_checkpoint_run){0};
    qf_status status = qf_checkpoint_open(job->model, &run->checkpoint, &run->err);
    if (status == QF_OK)
        status = qf_checkpoint_plan_create(run->checkpoint, &job->options, &run->plan, &run->err);
    if (status == QF_OK && cli_interrupted()) {
        run->err = (qf_error){.code = QF_ERR_CANCELLED, .message = "interrupted"};
        status = QF_ERR_CANCELLED;
    }
    return status;
}

void cli_checkpoint_warn(const cli_checkpoint_run *run, const char *job)
{
    enum { SHOWN = 3 };
    size_t there = 0, count = qf_checkpoint_plan_output_count(run->plan);
    for (size_t i = 0; i < count; i++)
        there += qf_checkpoint_plan_output(run->plan, i).exists;
    if (!there)
        return;
    fprintf(stderr, "quantfold: %s%s", cli_ranks_prefix(), job ? "" : "warning: ");
    cli_put_text(stderr, job ? job : "");
    fprintf(stderr, "%s%zu file%s there already and will be replaced: ", job ? ": warning: " : "",
            there, there == 1 ? " is" : "s are");
    size_t shown = 0;
    for (size_t i = 0; i < count && shown < SHOWN; i++) {
        qf_output_file f = qf_checkpoint_plan_output(run->plan, i);
        if (!f.exists)
            continue;
        fputs(shown++ ? ", " : "", stderr);
        cli_put_text(stderr, f.path);
    }
    fputs(there > SHOWN ? ", ...\n" : "\n", stderr);
}

qf_status cli_checkpoint_write(const cli_checkpoint *job, cli_checkpoint_run *run)
{
    qf_status status = qf_checkpoint_export(run->plan, &run->report, &run->err);
    cli_progress_end(job->options.progress_user, status);
    return status;
}

void cli_checkpoint_release(cli_checkpoint_run *run)
{
    qf_report_free(run->report);
    qf_checkpoint_plan_free(run->plan);
    qf_checkpoint_close(run->checkpoint);
}
