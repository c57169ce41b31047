/* SPDX-License-Identifier: Apache-2.0 */
/* What the subcommands share. The command line is a client of the public API alone. */
#ifndef QF_CLI_CLI_H
#define QF_CLI_CLI_H

#include <cjson/cJSON.h>
#include <stdio.h>

#include "quantfold/quantfold.h"

enum { EXIT_DONE = 0, EXIT_INPUT = 1, EXIT_USAGE = 2, EXIT_SYSTEM = 3, EXIT_INTERRUPTED = 130 };

int cmd_export(int argc, char **argv);
int cmd_check(int argc, char **argv);
int cmd_inspect(int argc, char **argv);
int cmd_record(int argc, char **argv);
int cmd_commit(int argc, char **argv);
int cmd_checkpoint(int argc, char **argv);
int cmd_batch(int argc, char **argv);
int cmd_report(int argc, char **argv);
int cmd_verify(int argc, char **argv);

/* Options that several subcommands take. */
typedef struct cli_inputs {
    const char *model, *config, *record;
} cli_inputs;

typedef struct cli_opened {
    qf_model *model;
    qf_config *config;
    qf_record *record; /* NULL also if none was named */
    bool incomplete;   /* something that was named could not be opened */
} cli_opened;

/* Opens what is named, going on after a failure so that all three are reported. Every failure
 * becomes a finding. Returns the first status that is not QF_OK. */
qf_status cli_open(const cli_inputs *inputs, cli_opened *out, qf_diagnostics *list);
/* Plans with what was opened; a failure becomes a finding. */
qf_status cli_plan(const cli_opened *opened, const qf_io_spec *io, const qf_export_options *options,
                   qf_diagnostics *list, qf_plan **plan);
/* Adds `err` to the list unless the failed call did (the list had `known` errors before it).
 * Returns `status`. */
qf_status cli_note(qf_diagnostics *list, qf_status status, const qf_error *err, size_t known);
void cli_close(cli_opened *opened);

int cli_exit_code(qf_status status);
/* Prints to stderr, control characters made visible: names come from files. */
void cli_print_error(const qf_error *err);
/* The text of a finding, without a line's end; as a line on stderr. */
void cli_put_finding(FILE *out, const qf_diagnostic *d);
void cli_print_finding(const qf_diagnostic *d);
/* `quiet` leaves warnings out. */
void cli_print_diagnostics(const qf_diagnostics *list, bool quiet);
/* "prefix: message" with a hint at --help; returns EXIT_USAGE. */
int cli_usage_error(const char *command, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
/* The words of --on-unsupported, --from and --free-qdq, in the order of the enums. */
extern const char *const cli_on_unsupported[], *const cli_sources[], *const cli_free_qdqs[];
/* Writes text with control characters as \xHH. */
void cli_put_text(FILE *out, const char *text);
/* A folder as a save path: with a slash at its end and nothing behind that. To be freed; NULL when
 * memory is exhausted. */
char *cli_folder_path(const char *folder);
/* 1234567 -> "1.2 MB". */
const char *cli_bytes(uint64_t bytes, char buffer[32]);
/* The words of --progress, --external and --io, in the order of the enums. */
extern const char *const cli_whens[], *const cli_externals[], *const cli_ios[];
/* How a run went, and what is to be done when it was a shard: `option` and `target` of commit. */
void cli_print_totals(qf_report_totals totals, uint32_t shard, uint32_t shard_count,
                      const char *option, const char *target);
void cli_json_totals(cJSON *root, qf_report_totals totals);
/* Reads "I/N", "slurm" (the variables of a job step or array task) or "slurm/N"; false with a
 * message. */
bool cli_read_shard(const char *text, uint32_t *shard, uint32_t *count);
/* Begins a JSON document; nothing but cJSON's and our functions may be called until it is printed.
 */
cJSON *cli_json_root(void);
/* Prints and deletes it; EXIT_DONE or EXIT_SYSTEM. */
int cli_print_json(cJSON *root);
/* Adds a string member; bytes that are not UTF-8 become U+FFFD: names come from files. */
void cli_json_text(cJSON *object, const char *key, const char *text);
/* Findings as a JSON array. */
cJSON *cli_json_diagnostics(const qf_diagnostics *list);
/* Version, build, instruction set and libraries, to stdout. */
void cli_print_version(void);
/* Whether everything written to stdout arrived. */
bool cli_flush(void);
/* Says so, and returns the exit code for it. */
int cli_out_of_memory(void);

/* ---- progress bar ---- */

typedef enum cli_when { CLI_AUTO, CLI_ALWAYS, CLI_NEVER, CLI_JSON } cli_when;

/* A bar that is drawn again and again; lines; JSON, an object a line. All on stderr. */
typedef enum cli_form { CLI_FORM_NONE, CLI_FORM_BAR, CLI_FORM_LINES, CLI_FORM_EVENTS } cli_form;

typedef struct cli_progress {
    cli_form form;
    double started, every, next; /* seconds */
    bool begun, shown;
    double measured, rate; /* when, and bytes a second */
    uint64_t done, total;
    const char *job; /* of a batch: its name, and which it is of how many; NULL: no batch */
    size_t number, count;
} cli_progress;

/* Of a clock that only goes on. */
double cli_seconds(void);
/* AUTO: a bar on a terminal, else a line now and then, and nothing where `quiet`. ALWAYS: lines
 * come faster. */
void cli_progress_init(cli_progress *progress, cli_when when, bool quiet);
/* A qf_progress_fn; `user` is a cli_progress. Stops the run after SIGINT or SIGTERM. */
bool cli_progress_step(uint64_t done, uint64_t total, const char *tensor, void *user);
void cli_progress_end(cli_progress *progress, qf_status status);
/* SIGINT, SIGTERM and SIGHUP ask for an orderly stop. */
void cli_catch_signals(void);
bool cli_interrupted(void);

#endif
