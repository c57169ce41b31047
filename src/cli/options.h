/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Options of a command in a table, so that a command line and a job of a batch read the same ones.
 *
 * An entry tells where in a struct its value goes and what it is. `--no-fsync` on a command line is
 * `"no_fsync": true` in a job.
 */
#ifndef QF_CLI_OPTIONS_H
#define QF_CLI_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "quantfold/quantfold.h"

typedef enum cli_kind {
    CLI_TEXT,   /* const char * */
    CLI_EACH,   /* a cli_texts: may be given several times */
    CLI_PATH,   /* const char *; in a job, from the folder of the jobs file on */
    CLI_SOURCE, /* const char *: one of `words`, or a path */
    CLI_NAMES,  /* const char *: names with commas between; in a job a list of them as well */
    CLI_AXES,   /* const char *: JSON or @FILE; in a job an object as well */
    CLI_FLAG,   /* bool */
    CLI_OFF,    /* bool, which is false where the option is given */
    CLI_WORD,   /* an enum: the word's place in `words` */
    CLI_COUNT,  /* int, up to `most` */
    CLI_NUMBER, /* uint64_t, up to `most` */
    CLI_SIZE,   /* uint64_t, bytes */
    CLI_SHARD   /* two uint32_t: a shard and their number */
} cli_kind;

typedef struct cli_option {
    const char *name; /* NULL ends a table */
    char letter;      /* 0: none */
    cli_kind kind;
    bool command_only; /* says how the command runs, or what it prints: nothing for a job */
    size_t at;         /* of the value in the struct */
    const char *const *words;
    uint64_t most;
} cli_option;

/* `list` is malloc'ed, its texts are not. */
typedef struct cli_texts {
    const char **list;
    size_t count;
} cli_texts;

enum { CLI_OPTIONS_MOST = 64, CLI_WHY = 512 };

/* Reads a command line, --help and -h included. *word is the one that is no option, NULL if there
 * is none; `word` NULL: there must be none. -1: go on; else an exit code. */
int cli_read_options(const char *command, const char *help, const cli_option *table, void *target,
                     int argc, char **argv, const char **word);
/* The option of that name; NULL if the table has none. */
const cli_option *cli_find_option(const cli_option *table, const char *name);
/* Sets an option from text, which is kept. On false, `why` says what it takes, or is empty if that
 * has been said. */
bool cli_set_option(const cli_option *option, void *target, const char *text, char why[CLI_WHY]);
/* Sets a CLI_FLAG or CLI_OFF. */
void cli_set_flag(const cli_option *option, void *target, bool given);
bool cli_takes_value(const cli_option *option);

#endif
