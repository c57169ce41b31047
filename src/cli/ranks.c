/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/ranks.h"

#ifdef QF_WITH_MPI

#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static struct {
    bool joined;
    int rank, size;
    char prefix[32];
} ranks = {.size = 1};

/* What starters tell the ranks: Open MPI's mpirun, PMIx (srun --mpi=pmix), PMI (MPICH and kin).
 * That a process is a task of srun is not enough: without --mpi, MPI_Init ends such a task. */
static bool is_rank(void)
{
    static const char *const signs[] = {"OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_RANK"};
    const char *off = getenv("QUANTFOLD_MPI");
    if (off && strcmp(off, "off") == 0)
        return false;
    for (size_t i = 0; i < sizeof signs / sizeof *signs; i++) {
        if (getenv(signs[i]))
            return true;
    }
    return false;
}

void cli_ranks_begin(int *argc, char ***argv)
{
    int level;
    if (ranks.joined || !is_rank())
        return;
    /* only the first thread calls MPI; errors of MPI end the run, which is its default */
    MPI_Init_thread(argc, argv, MPI_THREAD_FUNNELED, &level);
    MPI_Comm_rank(MPI_COMM_WORLD, &ranks.rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks.size);
    ranks.joined = true;
    if (ranks.rank > 0)
        snprintf(ranks.prefix, sizeof ranks.prefix, "rank %d: ", ranks.rank);
}

uint32_t cli_ranks_rank(void)
{
    return (uint32_t)ranks.rank;
}

uint32_t cli_ranks_size(void)
{
    return (uint32_t)ranks.size;
}

const char *cli_ranks_prefix(void)
{
    return ranks.prefix;
}

/* MPI_Wait would keep a core busy for as long as the slowest rank takes. */
static void wait_for(MPI_Request *request)
{
    enum { LEAST = 50 * 1000, MOST = 20 * 1000 * 1000 };
    struct timespec pause = {.tv_nsec = LEAST};
    for (int done = 0; MPI_Test(request, &done, MPI_STATUS_IGNORE), !done;) {
        nanosleep(&pause, NULL);
        pause.tv_nsec = pause.tv_nsec < MOST / 2 ? pause.tv_nsec * 2 : MOST;
    }
}

int cli_ranks_worst(int exit_code)
{
    MPI_Request request;
    int worst = exit_code;
    if (ranks.size == 1)
        return exit_code;
    MPI_Iallreduce(&exit_code, &worst, 1, MPI_INT, MPI_MAX, MPI_COMM_WORLD, &request);
    wait_for(&request);
    return worst;
}

int cli_ranks_first(int exit_code)
{
    MPI_Request request;
    if (ranks.size == 1)
        return exit_code;
    MPI_Ibcast(&exit_code, 1, MPI_INT, 0, MPI_COMM_WORLD, &request);
    wait_for(&request);
    return exit_code;
}

uint64_t cli_ranks_sum(uint64_t value)
{
    MPI_Request request;
    uint64_t sum = value;
    if (ranks.size == 1)
        return value;
    MPI_Iallreduce(&value, &sum, 1, MPI_UINT64_T, MPI_SUM, MPI_COMM_WORLD, &request);
    wait_for(&request);
    return sum;
}

void cli_ranks_abort(int exit_code)
{
    if (ranks.joined && ranks.size > 1)
        MPI_Abort(MPI_COMM_WORLD, exit_code);
}

void cli_ranks_end(void)
{
    if (ranks.joined)
        MPI_Finalize();
    ranks.joined = false;
}

#else

/* NOLINTNEXTLINE(readability-non-const-parameter): MPI_Init writes to it */
void cli_ranks_begin(int *argc, char ***argv)
{
    (void)argc;
    (void)argv;
}

uint32_t cli_ranks_rank(void)
{
    return 0;
}

uint32_t cli_ranks_size(void)
{
    return 1;
}

const char *cli_ranks_prefix(void)
{
    return "";
}

int cli_ranks_worst(int exit_code)
{
    return exit_code;
}

int cli_ranks_first(int exit_code)
{
    return exit_code;
}

uint64_t cli_ranks_sum(uint64_t value)
{
    return value;
}

void cli_ranks_abort(int exit_code)
{
    (void)exit_code;
}

void cli_ranks_end(void)
{
}

#endif
