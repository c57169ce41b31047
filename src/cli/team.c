/* SPDX-License-Identifier: Apache-2.0 */
/* What an export does as one of several ranks: it is a shard, and the first rank commits. */
#include "cli/door.h"
#include "cli/ranks.h"

bool cli_ranks_join(int *argc, char ***argv, uint32_t *shard, uint32_t *shard_count,
                    cli_when *progress)
{
    cli_ranks_begin(argc, argv);
    if (cli_ranks_size() == 1)
        return true;
    if (*shard_count) {
        if (cli_ranks_rank() == 0)
            fputs("quantfold: --shard is for processes that know nothing of each other; ranks of "
                  "MPI are shards already: leave it out, or set QUANTFOLD_MPI=off\n",
                  stderr);
        return false;
    }
    *shard = cli_ranks_rank();
    *shard_count = cli_ranks_size();
    if (*shard)
        *progress = CLI_NEVER;
    return true;
}

/* Rank 0: puts in place what all have written. */
static int commit(const char *save_path, bool no_sync, qf_report_totals *totals, qf_error *err)
{
    qf_report *report = NULL;
    qf_status status = qf_commit(save_path, no_sync, &report, err);
    if (status != QF_OK) {
        cli_print_error(err);
        return cli_exit_code(status);
    }
    qf_report_totals whole = qf_report_get(report);
    totals->bytes_read = whole.bytes_read;
    totals->bytes_written = whole.bytes_written;
    totals->seconds += whole.seconds;
    qf_report_free(report);
    return EXIT_DONE;
}

int cli_ranks_finish(qf_status status, const char *save_path, bool no_sync, const qf_report *report,
                     qf_report_totals *totals, qf_error *err)
{
    int code = cli_exit_code(status);
    *totals = report ? qf_report_get(report) : (qf_report_totals){0};
    if (cli_ranks_size() == 1)
        return code;
    code = cli_ranks_worst(code);
    if (code != EXIT_DONE)
        return code;
    totals->bytes_kept = cli_ranks_sum(totals->bytes_kept);
    if (cli_ranks_rank() == 0)
        code = commit(save_path, no_sync, totals, err);
    return cli_ranks_first(code);
}
