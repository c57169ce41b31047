/* SPDX-License-Identifier: Apache-2.0 */
/* The jobs file of 'quantfold batch': docs/batch.md. */
#ifndef QF_CLI_JOBS_H
#define QF_CLI_JOBS_H

#include <cjson/cJSON.h>

#include "cli/door.h"

typedef struct cli_job {
    const char *name;
    bool is_checkpoint;
    cli_export to_export; /* what it asks for, in that of its kind */
    cli_checkpoint checkpoint;
} cli_job;

typedef struct cli_jobs {
    cli_job *list;
    size_t count;
    cJSON *root; /* the file; texts of the jobs lie in it, and in `kept` */
    char **kept;
    size_t kept_count, kept_cap;
} cli_jobs;

/* Reads a jobs file and checks all that can be checked without opening what it names. All that is
 * wrong with it has been said when this returns an exit code other than EXIT_DONE. Release in any
 * case. */
int cli_jobs_read(const char *path, cli_jobs *out);
void cli_jobs_release(cli_jobs *jobs);

#endif
