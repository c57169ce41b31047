/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The processes of one run, under mpirun or srun: each does its shard. Without -Dmpi=enabled, or
 * started alone, a run is rank 0 of 1 and every call here returns at once.
 *
 * MPI carries exit codes and a count of bytes, nothing else. All ranks make the same calls in the
 * same order; one that cannot must call cli_ranks_abort, as the others would wait for it for ever.
 */
#ifndef QF_CLI_RANKS_H
#define QF_CLI_RANKS_H

#include <stdbool.h>
#include <stdint.h>

/* Joins the other ranks if this process was started as one of several: by mpirun, or by srun with
 * --mpi. QUANTFOLD_MPI=off keeps it from that: for a program that is itself a rank and starts
 * quantfold. */
void cli_ranks_begin(int *argc, char ***argv);
uint32_t cli_ranks_rank(void);
uint32_t cli_ranks_size(void);
/* "rank 3: " to go before a message, "" at rank 0. */
const char *cli_ranks_prefix(void);
/* Waits for all ranks. The highest of their exit codes, so that one that failed fails all. */
int cli_ranks_worst(int exit_code);
/* Waits for rank 0. Its exit code: what all ranks do alike fails alike, and it is enough that rank
 * 0 says so. */
int cli_ranks_first(int exit_code);
/* Waits for all ranks. The sum of their values. */
uint64_t cli_ranks_sum(uint64_t value);
/* Ends all ranks at once, if there are others. */
void cli_ranks_abort(int exit_code);
/* Leaves, after the last common call. */
void cli_ranks_end(void);

#endif
