/* SPDX-License-Identifier: Apache-2.0 */
/* An export of either kind from its options to its files, for the command of its name and for
 * 'quantfold batch'. */
#ifndef QF_CLI_DOOR_H
#define QF_CLI_DOOR_H

#include "cli/cli.h"
#include "cli/options.h"

/* Of the command line; a job of a batch has the batch's. */
typedef struct cli_manner {
    cli_when progress;
    bool dry_run, json, verbose, quiet;
} cli_manner;

/* ---- export ---- */

typedef struct cli_export {
    cli_inputs inputs;
    qf_export_options options;
    const char *input_names, *output_names, *dynamic_axes;
    cli_manner manner;
} cli_export;
extern const cli_option cli_export_table[];

void cli_export_init(cli_export *job);

/* What there is of an export on its way. */
typedef struct cli_export_run {
    char *texts[2]; /* input and output names, split */
    const char **names[2];
    qf_dynamic_axis *axes;
    qf_io_spec io;
    cli_opened opened;
    qf_diagnostics *list; /* NULL: no memory even for that */
    qf_plan *plan;
    qf_report *report;
} cli_export_run;

/* Reads names and axes into run->io, which begins as zeros; part of what follows. */
qf_status cli_export_read_io(const cli_export *job, cli_export_run *run, qf_error *err);
/* Opens and plans; whatever is wrong is in run->list. Release in any case. */
qf_status cli_export_prepare(const cli_export *job, cli_export_run *run);
/* Writes what is planned; so is what goes wrong then. */
qf_status cli_export_write(const cli_export *job, cli_export_run *run);
void cli_export_release(cli_export_run *run);

/* ---- checkpoint ---- */

typedef struct cli_checkpoint {
    const char *model, *record;
    qf_checkpoint_options options;
    cli_manner manner;
} cli_checkpoint;
extern const cli_option cli_checkpoint_table[];

void cli_checkpoint_init(cli_checkpoint *job);
/* `--scales record` is the file of --record: NULL, or what is wrong with the two. */
const char *cli_checkpoint_resolve(cli_checkpoint *job);

typedef struct cli_checkpoint_run {
    qf_checkpoint *checkpoint;
    qf_checkpoint_plan *plan;
    qf_report *report;
    qf_error err; /* of what failed */
} cli_checkpoint_run;

qf_status cli_checkpoint_prepare(const cli_checkpoint *job, cli_checkpoint_run *run);
/* Says on stderr which files of the target a prepared run replaces; `job`: of a batch, or NULL. */
void cli_checkpoint_warn(const cli_checkpoint_run *run, const char *job);
qf_status cli_checkpoint_write(const cli_checkpoint *job, cli_checkpoint_run *run);
void cli_checkpoint_release(cli_checkpoint_run *run);

/* ---- ranks ---- */

/* Makes this process's rank its shard; `progress` is rank 0's alone. False, after a message, if a
 * shard was asked for as well. */
bool cli_ranks_join(int *argc, char ***argv, uint32_t *shard, uint32_t *shard_count,
                    cli_when *progress);
/* After all have written their shards: rank 0 puts them in place. `status` and `report` are this
 * rank's; `totals` become those of the whole at rank 0, and all get the same exit code, the worst.
 * Alone, a process gets those of its own. `err` is set, and said, where the commit itself fails. */
int cli_ranks_finish(qf_status status, const char *save_path, bool no_sync, const qf_report *report,
                     qf_report_totals *totals, qf_error *err);

#endif
