/* SPDX-License-Identifier: Apache-2.0 */
/* --shard: a number of its own, or that of a Slurm task. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"

enum { SHARDS_MOST = 100000 };

static bool read_number(const char *text, uint64_t *out)
{
    return text && *text && strspn(text, "0123456789") == strlen(text) &&
           strlen(text) < sizeof "4294967295" && ((void)(*out = strtoull(text, NULL, 10)), true);
}

static bool read_variable(const char *name, uint64_t *out)
{
    return read_number(getenv(name), out);
}

static bool fail_not_set(const char *text)
{
    fprintf(
        stderr,
        "quantfold: --shard %s takes its number from SLURM_ARRAY_TASK_ID or SLURM_PROCID, which "
        "are not set: start it with srun or in a job array\n",
        text);
    return false;
}

/* An array of jobs, whose numbers are those of all shards only if it has no gaps. That of one task
 * which is not the first is one that is run again. */
static bool read_array(uint64_t id, uint64_t *shard, uint64_t *count)
{
    uint64_t first, last, step = 1;
    if (!read_variable("SLURM_ARRAY_TASK_MIN", &first) ||
        !read_variable("SLURM_ARRAY_TASK_COUNT", count) || id < first)
        return fail_not_set("slurm");
    if (!read_variable("SLURM_ARRAY_TASK_MAX", &last))
        last = first + *count - 1;
    read_variable("SLURM_ARRAY_TASK_STEP", &step);
    *shard = id - first;
    if (step == 1 && last - first + 1 == *count && *shard < *count && !(*count == 1 && first > 0))
        return true;
    fprintf(stderr,
            "quantfold: --shard slurm: task %" PRIu64 " of an array of %" PRIu64
            " tasks from %" PRIu64 " to %" PRIu64 " in steps of %" PRIu64
            " does not say how many shards there are; name their number, --shard slurm/N, with "
            "tasks from 0 to N - 1\n",
            id, *count, first, last, step);
    return false;
}

/* A job step counts its tasks. */
static bool read_slurm(uint64_t *shard, uint64_t *count)
{
    uint64_t id;
    if (read_variable("SLURM_ARRAY_TASK_ID", &id))
        return read_array(id, shard, count);
    if (!read_variable("SLURM_PROCID", shard) || !read_variable("SLURM_NTASKS", count))
        return fail_not_set("slurm");
    if (*shard < *count && *count <= SHARDS_MOST)
        return true;
    fprintf(stderr,
            "quantfold: --shard slurm: there is no task %" PRIu64 " (SLURM_PROCID) of %" PRIu64
            " (SLURM_NTASKS), or there are more than %d\n",
            *shard, *count, SHARDS_MOST);
    return false;
}

/* slurm/N: the number of shards is given, and the task's number is the shard's. */
static bool read_slurm_of(const char *text, uint64_t *shard, uint64_t count)
{
    bool array = read_variable("SLURM_ARRAY_TASK_ID", shard);
    if (!array && !read_variable("SLURM_PROCID", shard))
        return fail_not_set(text);
    if (*shard < count)
        return true;
    fprintf(stderr,
            "quantfold: --shard %s: %s is %" PRIu64 ", and shards are numbered from 0 to %" PRIu64
            "\n",
            text, array ? "SLURM_ARRAY_TASK_ID" : "SLURM_PROCID", *shard, count - 1);
    return false;
}

bool cli_read_shard(const char *text, uint32_t *shard, uint32_t *count)
{
    static const char slurm[] = "slurm/";
    uint64_t i = 0, n = 0;
    char behind;
    unsigned a = 0, b = 0;
    if (strcmp(text, "slurm") == 0) {
        if (!read_slurm(&i, &n))
            return false;
    } else if (strncmp(text, slurm, sizeof slurm - 1) == 0) {
        bool sound = read_number(text + sizeof slurm - 1, &n) && n > 0 && n <= SHARDS_MOST;
        if (sound && !read_slurm_of(text, &i, n))
            return false;
        n = sound ? n : 0;
    } else if (strspn(text, "0123456789/") == strlen(text) && strlen(text) < 20 &&
               sscanf(text, "%u/%u%c", &a, &b, &behind) == 2) {
        i = a;
        n = b;
    }
    if (i >= n || n > SHARDS_MOST) {
        fprintf(stderr,
                "quantfold: --shard takes I/N, with I from 0 to N - 1 and N at most %d, slurm or "
                "slurm/N; not '%s'\n",
                SHARDS_MOST, text);
        return false;
    }
    *shard = (uint32_t)i;
    *count = (uint32_t)n;
    return true;
}
