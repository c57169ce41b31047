/* SPDX-License-Identifier: Apache-2.0 */
/* Many exports by one process: docs/batch.md. */
#include <regex.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/strmap.h"
#include "cli/jobs.h"
#include "cli/places.h"

static const char help[] =
    "usage: quantfold batch JOBS.json [OPTIONS]\n\n"
    "Runs many exports, one after another, each on all cores, and prints a line for each.\n"
    "JOBS.json has a list of jobs, which take the options of 'export' and 'checkpoint' by their\n"
    "names, with underscores:\n\n"
    "  {\"defaults\": {\"no_fsync\": true},\n"
    "   \"jobs\": [{\"name\": \"a\", \"model\": \"a.onnx\", \"record\": \"a.txt\", \"save_path\": "
    "\"out/a\"},\n"
    "            {\"name\": \"b\", \"command\": \"checkpoint\", \"model\": \"llm/\", \"out\": "
    "\"out/llm\",\n"
    "             \"scheme\": \"w4a16:group=128\"}]}\n\n"
    "Paths that are relative are so to the folder of JOBS.json.\n\n"
    "  --only NAME             the job of that name, or all whose whole name the POSIX extended\n"
    "                          regular expression matches; may be given several times\n"
    "  --keep-going            go on after a job that failed (the default)\n"
    "  --fail-fast             do not\n"
    "  --resume                each job goes on where a killed run ended\n"
    "  --threads N             cores to use (default: all)\n"
    "  --progress HOW          auto (default: a bar on a terminal, else a line every 10 s),\n"
    "                          always (every second), never, json (an event a line), on stderr\n"
    "  --dry-run               validate all jobs; write nothing\n"
    "  --json                  the results as JSON on standard output\n"
    "  -v, --verbose           list the files of each job\n"
    "  -q, --quiet             no warnings, and lines of jobs that failed only\n\n"
    "Exit codes: 0 all jobs are done; else the most severe code of a job, 3 before 2 before 1;\n"
    "130 interrupted.\n";

typedef enum outcome { NOT_RUN, DONE, FAILED, STOPPED, OUTCOMES } outcome;

typedef struct batch {
    cli_manner manner;
    cli_texts only;
    bool fail_fast, keep_going, resume;
    int threads;
    cli_progress progress;
    cli_jobs jobs;
    const cli_job **chosen;
    size_t count;
    qf_strmap written; /* places of files, and the jobs that wrote them */
    char **places;     /* its keys */
    size_t place_count, place_cap;
    cJSON *results;
    size_t outcomes[OUTCOMES];
    int name_width;
    int code;
} batch;

static const cli_option table[] = {
    {.name = "only", .kind = CLI_EACH, .at = offsetof(batch, only)},
    {.name = "keep-going", .kind = CLI_FLAG, .at = offsetof(batch, keep_going)},
    {.name = "fail-fast", .kind = CLI_FLAG, .at = offsetof(batch, fail_fast)},
    {.name = "resume", .kind = CLI_FLAG, .at = offsetof(batch, resume)},
    {.name = "threads", .kind = CLI_COUNT, .at = offsetof(batch, threads), .most = 1024},
    {.name = "progress",
     .kind = CLI_WORD,
     .at = offsetof(batch, manner.progress),
     .words = cli_whens},
    {.name = "dry-run", .kind = CLI_FLAG, .at = offsetof(batch, manner.dry_run)},
    {.name = "json", .kind = CLI_FLAG, .at = offsetof(batch, manner.json)},
    {.name = "verbose", .letter = 'v', .kind = CLI_FLAG, .at = offsetof(batch, manner.verbose)},
    {.name = "quiet", .letter = 'q', .kind = CLI_FLAG, .at = offsetof(batch, manner.quiet)},
    {0}};

/* ---- choosing ---- */

/* POSIX expressions find the longest of the leftmost matches, so one of the whole if there is. */
static bool matches(const regex_t *regex, const char *name)
{
    regmatch_t all;
    return regexec(regex, name, 1, &all, 0) == 0 && all.rm_so == 0 && !name[all.rm_eo];
}

static int mark_chosen(const batch *b, const char *only, bool *chosen)
{
    regex_t regex;
    size_t found = 0;
    bool compiled = regcomp(&regex, only, REG_EXTENDED) == 0, named = false;
    for (size_t i = 0; i < b->jobs.count; i++)
        named |= strcmp(b->jobs.list[i].name, only) == 0;
    for (size_t i = 0; i < b->jobs.count; i++) {
        const char *name = b->jobs.list[i].name;
        bool mine = named ? strcmp(name, only) == 0 : compiled && matches(&regex, name);
        chosen[i] |= mine;
        found += mine;
    }
    if (compiled)
        regfree(&regex);
    return found
               ? EXIT_DONE
               : cli_usage_error("batch", "--only: no job has the name '%s', or matches it", only);
}

static int choose(batch *b)
{
    int code = EXIT_DONE;
    bool *chosen = calloc(b->jobs.count, sizeof *chosen);
    b->chosen = calloc(b->jobs.count, sizeof(cli_job *));
    if (!chosen || !b->chosen) {
        free(chosen);
        return cli_out_of_memory();
    }
    for (size_t i = 0; code == EXIT_DONE && i < b->only.count; i++)
        code = mark_chosen(b, b->only.list[i], chosen);
    for (size_t i = 0; code == EXIT_DONE && i < b->jobs.count; i++) {
        if (b->only.count && !chosen[i])
            continue;
        b->chosen[b->count++] = &b->jobs.list[i];
        int width = (int)strnlen(b->jobs.list[i].name, 32);
        b->name_width = width > b->name_width ? width : b->name_width;
    }
    free(chosen);
    return code;
}

/* ---- results ---- */

typedef struct result {
    const cli_job *job;
    qf_status status;
    double seconds;
    size_t file_count;
    uint64_t file_bytes;
    qf_report_totals totals;
    bool written;
    char *error; /* the first thing that went wrong; malloc'ed, may be NULL all the same */
    cJSON *findings, *files;
} result;

static void add_file(result *r, qf_output_file f)
{
    cJSON *item = cJSON_CreateObject();
    cli_json_text(item, "path", f.path);
    cJSON_AddNumberToObject(item, "bytes", (double)f.bytes);
    cJSON_AddItemToArray(r->files, item);
    r->file_count++;
    r->file_bytes += f.bytes;
}

static char *finding_text(const qf_diagnostic *d)
{
    char *text = NULL;
    size_t n;
    FILE *f = open_memstream(&text, &n);
    if (!f)
        return NULL;
    cli_put_finding(f, d);
    fclose(f);
    return text;
}

/* Takes over what an export found; says it on stderr, with the job's name. */
static void take_findings(const batch *b, result *r, const qf_diagnostics *list)
{
    size_t count = list ? qf_diagnostics_count(list) : 0;
    for (size_t i = 0; i < count; i++) {
        qf_diagnostic d = qf_diagnostics_at(list, i);
        if (d.severity == QF_ERROR && !r->error)
            r->error = finding_text(&d);
        if (d.severity != QF_ERROR && b->manner.quiet)
            continue;
        fputs("quantfold: ", stderr);
        cli_put_text(stderr, r->job->name);
        fputs(d.severity == QF_ERROR ? ": error: " : ": warning: ", stderr);
        cli_put_finding(stderr, &d);
        fputc('\n', stderr);
    }
    r->findings = list ? cli_json_diagnostics(list) : cJSON_CreateArray();
    if (r->status != QF_OK && !r->error)
        r->error = strdup(list ? qf_status_name(r->status) : "out of memory");
}

static outcome outcome_of(const result *r)
{
    return r->status == QF_OK ? DONE : r->status == QF_ERR_CANCELLED ? STOPPED : FAILED;
}

static void print_outcome(const result *r, outcome o)
{
    char in[32], out[32];
    fputs("  ", stdout);
    if (o != DONE)
        cli_put_text(stdout, r->error ? r->error : "out of memory");
    else if (r->written)
        printf("%s in, %s out, %.2f s", cli_bytes(r->totals.bytes_read, in),
               cli_bytes(r->totals.bytes_written, out), r->seconds);
    else
        printf("%zu file%s, %s", r->file_count, r->file_count == 1 ? "" : "s",
               cli_bytes(r->file_bytes, out));
}

static void print_line(const batch *b, const result *r)
{
    static const char *const words[] = {"", "done", "failed", "stopped"};
    char out[32];
    outcome o = outcome_of(r);
    if (b->manner.quiet && o == DONE)
        return;
    printf("%-7s ", o == DONE && b->manner.dry_run ? "valid" : words[o]);
    cli_put_text(stdout, r->job->name);
    for (int n = (int)strlen(r->job->name); n < b->name_width; n++)
        putchar(' ');
    /* where both go to a terminal, the error stands there already */
    if (o == DONE || !isatty(STDOUT_FILENO) || !isatty(STDERR_FILENO))
        print_outcome(r, o);
    putchar('\n');
    const cJSON *file;
    const cJSON *files = b->manner.verbose && o == DONE ? r->files : NULL;
    cJSON_ArrayForEach(file, files)
    {
        double bytes = cJSON_GetNumberValue(cJSON_GetObjectItemCaseSensitive(file, "bytes"));
        printf("  %9s  ", cli_bytes((uint64_t)bytes, out));
        cli_put_text(stdout, cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(file, "path")));
        putchar('\n');
    }
    fflush(stdout);
}

static cJSON *new_result(const cli_job *job, const char *status)
{
    cJSON *item = cJSON_CreateObject();
    /* NOLINTNEXTLINE(clang-analyzer-core.NullDereference): all that are counted are chosen */
    cli_json_text(item, "name", job->name);
    cJSON_AddStringToObject(item, "command", job->is_checkpoint ? "checkpoint" : "export");
    cJSON_AddBoolToObject(item, "ok", strcmp(status, "done") == 0 || strcmp(status, "valid") == 0);
    cJSON_AddStringToObject(item, "status", status);
    return item;
}

/* The result's lists go over to the document. */
static void add_result(batch *b, result *r)
{
    outcome o = outcome_of(r);
    cJSON *item = new_result(r->job, o == DONE     ? (r->written ? "done" : "valid")
                                     : o == FAILED ? "failed"
                                                   : "stopped");
    cJSON_AddNumberToObject(item, "wall_seconds", r->seconds);
    if (o != DONE)
        cli_json_text(item, "error", r->error ? r->error : "out of memory");
    if (r->written)
        cli_json_totals(item, r->totals);
    cJSON_AddItemToObject(item, "findings", r->findings);
    cJSON_AddItemToObject(item, "files", r->files);
    cJSON_AddItemToArray(b->results, item);
    r->findings = r->files = NULL;
}

/* ---- places ---- */

/* The places of a job's files; false, with the result's status, if an earlier job of this batch
 * wrote one of them. Files of one tensor each have the tensor's name, so that two models in one
 * folder can have files of the same name. */
static bool take_places(batch *b, result *r, size_t count,
                        qf_output_file (*file)(const void *plan, size_t index), const void *plan)
{
    size_t need = b->place_count + count;
    if (need > b->place_cap) {
        char **more = realloc(b->places, 2 * need * sizeof *more);
        if (!more) {
            r->status = QF_ERR_MEMORY;
            return false;
        }
        b->places = more;
        b->place_cap = 2 * need;
    }
    for (size_t i = 0; i < count && r->status == QF_OK; i++) {
        qf_output_file f = file(plan, i);
        char *place = cli_place(f.path);
        const cli_job *other = place ? qf_strmap_get(&b->written, place) : NULL;
        add_file(r, f);
        if (!place || (other && other != r->job) ||
            !qf_strmap_set(&b->written, place, (void *)(uintptr_t)r->job)) {
            r->status = other ? QF_ERR_INPUT : QF_ERR_MEMORY;
            free(place);
            size_t room = other ? strlen(f.path) + strlen(other->name) + 128 : 0;
            r->error = other ? malloc(room) : NULL;
            if (r->error)
                snprintf(r->error, room,
                         "%s: job '%s' of this batch has written that file; give one of them "
                         "another folder",
                         f.path, other->name);
        } else {
            b->places[b->place_count++] = place;
        }
    }
    return r->status == QF_OK;
}

/* A job that wrote nothing leaves its places, from the `known`th on, to others. */
static void leave_places(batch *b, const result *r, size_t known)
{
    for (size_t i = known; i < b->place_count; i++)
        qf_strmap_drop(&b->written, b->places[i], r->job);
}

/* ---- jobs ---- */

static qf_output_file export_file(const void *plan, size_t index)
{
    return qf_plan_output(plan, index);
}

static qf_output_file checkpoint_file(const void *plan, size_t index)
{
    return qf_checkpoint_plan_output(plan, index);
}

static void say_error(const result *r)
{
    fputs("quantfold: ", stderr);
    cli_put_text(stderr, r->job->name);
    fputs(": error: ", stderr);
    cli_put_text(stderr, r->error ? r->error : "out of memory");
    fputc('\n', stderr);
}

static void run_export(batch *b, result *r)
{
    cli_export job = r->job->to_export;
    cli_export_run run;
    job.options.threads = b->threads;
    job.options.resume |= b->resume;
    job.options.progress = cli_progress_step;
    job.options.progress_user = &b->progress;
    r->status = cli_export_prepare(&job, &run);
    if (r->status == QF_OK &&
        take_places(b, r, qf_plan_output_count(run.plan), export_file, run.plan) &&
        !b->manner.dry_run)
        r->status = cli_export_write(&job, &run);
    if (run.report) {
        r->totals = qf_report_get(run.report);
        r->written = true;
    }
    if (r->error)
        say_error(r);
    take_findings(b, r, run.list);
    cli_export_release(&run);
}

static void run_checkpoint(batch *b, result *r)
{
    cli_checkpoint job = r->job->checkpoint;
    cli_checkpoint_run run;
    job.options.threads = b->threads;
    job.options.resume |= b->resume;
    job.options.progress = cli_progress_step;
    job.options.progress_user = &b->progress;
    r->status = cli_checkpoint_prepare(&job, &run);
    bool has_error = r->status != QF_OK;
    if (r->status == QF_OK)
        take_places(b, r, qf_checkpoint_plan_output_count(run.plan), checkpoint_file, run.plan);
    if (r->status == QF_OK && !b->manner.quiet)
        cli_checkpoint_warn(&run, r->job->name);
    if (r->status == QF_OK && !b->manner.dry_run) {
        r->status = cli_checkpoint_write(&job, &run);
        has_error = r->status != QF_OK;
    }
    if (run.report) {
        r->totals = qf_report_get(run.report);
        r->written = true;
    }
    if (has_error)
        r->error = strdup(run.err.message);
    if (r->status != QF_OK)
        say_error(r);
    r->findings = cJSON_CreateArray();
    cli_checkpoint_release(&run);
}

static outcome run_job(batch *b, size_t index)
{
    result r = {.job = b->chosen[index], .files = cJSON_CreateArray()};
    double start = cli_seconds();
    size_t known = b->place_count;
    cli_progress_init(&b->progress, b->manner.progress, b->manner.quiet);
    b->progress.job = r.job->name; /* NOLINT(clang-analyzer-core.NullDereference): chosen */
    b->progress.number = index + 1;
    b->progress.count = b->count;
    if (r.job->is_checkpoint)
        run_checkpoint(b, &r);
    else
        run_export(b, &r);
    r.seconds = cli_seconds() - start;
    if (r.status != QF_OK)
        leave_places(b, &r, known);
    int code = cli_exit_code(r.status);
    b->code = code > b->code ? code : b->code;
    if (b->manner.json)
        add_result(b, &r);
    else
        print_line(b, &r);
    outcome o = outcome_of(&r);
    cJSON_Delete(r.findings);
    cJSON_Delete(r.files);
    free(r.error);
    return o;
}

/* ---- the whole ---- */

static int print_document(batch *b, double seconds)
{
    cJSON *root = cli_json_root();
    cJSON_AddBoolToObject(root, "ok", b->code == EXIT_DONE);
    cJSON_AddNumberToObject(root, "done", (double)b->outcomes[DONE]);
    cJSON_AddNumberToObject(root, "failed", (double)b->outcomes[FAILED]);
    cJSON_AddNumberToObject(root, "not_run", (double)(b->outcomes[NOT_RUN] + b->outcomes[STOPPED]));
    cJSON_AddNumberToObject(root, "seconds", seconds);
    cJSON_AddItemToObject(root, "jobs", b->results);
    b->results = NULL;
    return cli_print_json(root);
}

static int print_summary(const batch *b, double seconds)
{
    size_t done = b->outcomes[DONE], failed = b->outcomes[FAILED];
    size_t rest = b->outcomes[NOT_RUN] + b->outcomes[STOPPED];
    if (b->manner.quiet)
        return cli_flush() ? EXIT_DONE : EXIT_SYSTEM;
    printf("%zu of %zu jobs %s", done, b->count, b->manner.dry_run ? "are valid" : "are done");
    if (failed)
        printf(", %zu failed", failed);
    if (rest)
        printf(", %zu not run", rest);
    printf(", %.2f s\n", seconds);
    return cli_flush() ? EXIT_DONE : EXIT_SYSTEM;
}

static int run_all(batch *b)
{
    double start = cli_seconds();
    size_t i = 0;
    cli_catch_signals();
    b->results = cJSON_CreateArray();
    for (bool on = true; on && i < b->count && !cli_interrupted(); i++) {
        outcome o = run_job(b, i);
        b->outcomes[o]++;
        on = o != STOPPED && !(o == FAILED && b->fail_fast);
    }
    if (cli_interrupted() && (i < b->count || b->outcomes[STOPPED])) {
        fprintf(stderr, "quantfold: interrupted: %zu of %zu jobs are done\n", b->outcomes[DONE],
                b->count);
        b->code = EXIT_INTERRUPTED;
    }
    for (; i < b->count; i++) {
        b->outcomes[NOT_RUN]++;
        if (b->manner.json)
            cJSON_AddItemToArray(b->results, new_result(b->chosen[i], "not run"));
    }
    double seconds = cli_seconds() - start;
    int printed = b->manner.json ? print_document(b, seconds) : print_summary(b, seconds);
    return b->code ? b->code : printed;
}

static void release(batch *b)
{
    for (size_t i = 0; i < b->place_count; i++)
        free(b->places[i]);
    free(b->places);
    qf_strmap_release(&b->written);
    cJSON_Delete(b->results);
    cli_jobs_release(&b->jobs);
    free(b->only.list);
    free(b->chosen);
}

int cmd_batch(int argc, char **argv)
{
    batch b = {0};
    const char *path = NULL;
    int code = cli_read_options("batch", help, table, &b, argc, argv, &path);
    if (code < 0 && !path)
        code = cli_usage_error("batch", "a jobs file is needed");
    if (code < 0 && b.fail_fast && b.keep_going)
        code = cli_usage_error("batch", "--keep-going and --fail-fast exclude each other");
    if (code < 0) {
        code = cli_jobs_read(path, &b.jobs);
        code = code == EXIT_DONE ? choose(&b) : code;
        code = code == EXIT_DONE ? run_all(&b) : code;
    }
    release(&b);
    return code;
}
