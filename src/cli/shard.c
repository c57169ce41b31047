/* SPDX-License-Identifier: Apache-2.0 */
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"

static bool read_variable(const char *name, uint64_t *out)
{
    const char *text = getenv(name);
    return text && *text && strspn(text, "0123456789") == strlen(text) &&
           strlen(text) < sizeof "4294967295" && ((void)(*out = strtoull(text, NULL, 10)), true);
}

/* A job step counts its tasks; an array of jobs, the jobs. */
static bool read_slurm(uint64_t *shard, uint64_t *count)
{
    uint64_t id, first;
    if (read_variable("SLURM_ARRAY_TASK_ID", &id) &&
        read_variable("SLURM_ARRAY_TASK_MIN", &first) &&
        read_variable("SLURM_ARRAY_TASK_COUNT", count) && id >= first) {
        *shard = id - first;
        return true;
    }
    return read_variable("SLURM_PROCID", shard) && read_variable("SLURM_NTASKS", count);
}

bool cli_read_shard(const char *text, uint32_t *shard, uint32_t *count)
{
    uint64_t i = 0, n = 0;
    char behind;
    bool slurm = strcmp(text, "slurm") == 0;
    if (slurm && !read_slurm(&i, &n)) {
        fputs("quantfold: --shard slurm takes its number from SLURM_ARRAY_TASK_ID or SLURM_PROCID, "
              "which are not set: start it with srun or in a job array\n",
              stderr);
        return false;
    }
    unsigned a = 0, b = 0;
    if (!slurm && strspn(text, "0123456789/") == strlen(text) && strlen(text) < 20 &&
        sscanf(text, "%u/%u%c", &a, &b, &behind) == 2) {
        i = a;
        n = b;
    }
    if (i >= n || n > 100000) {
        fprintf(stderr,
                "quantfold: --shard takes I/N, with I from 0 to N - 1 and N at most 100000, or "
                "slurm; not '%s'\n",
                text);
        return false;
    }
    *shard = (uint32_t)i;
    *count = (uint32_t)n;
    return true;
}
