/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/jobs.h"

#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "base/strmap.h"
#include "cli/places.h"

enum { JOBS_MOST = 1000000, FILE_MOST = 1 << 28, SAID_MOST = 20 };

typedef struct reader {
    const char *path;
    cli_jobs *jobs;
    size_t errors;
    bool no_memory;
    /* what "defaults" makes of a job */
    const char *command;
    cli_export to_export;
    cli_checkpoint checkpoint;
} reader;

/* "<file>: <where>: <key>: <what>"; false. */
__attribute__((format(printf, 4, 5))) static bool complain(reader *r, const char *where,
                                                           const char *key, const char *format, ...)
{
    char text[CLI_WHY + 256];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (r->errors++ >= SAID_MOST)
        return false;
    fputs("quantfold: error: ", stderr);
    cli_put_text(stderr, r->path);
    for (int i = 0; i < 2; i++) {
        const char *part = i ? key : where;
        if (part)
            fputs(": ", stderr);
        cli_put_text(stderr, part ? part : "");
    }
    fputs(": ", stderr);
    cli_put_text(stderr, text);
    fputc('\n', stderr);
    return false;
}

/* Keeps an allocated text as long as the jobs; NULL, and it is freed, when memory is exhausted. */
static const char *keep(reader *r, char *text)
{
    cli_jobs *jobs = r->jobs;
    if (text && jobs->kept_count == jobs->kept_cap) {
        size_t cap = jobs->kept_cap ? 2 * jobs->kept_cap : 64;
        char **kept = realloc(jobs->kept, cap * sizeof *kept);
        if (kept) {
            jobs->kept = kept;
            jobs->kept_cap = cap;
        } else {
            free(text);
            text = NULL;
        }
    }
    r->no_memory |= !text;
    if (text)
        jobs->kept[jobs->kept_count++] = text;
    return text;
}

/* ---- values ---- */

/* `before`, the folder of the jobs file unless the path is absolute, the path. */
static const char *from_folder(reader *r, const char *before, const char *path)
{
    const char *slash = *path == '/' ? NULL : strrchr(r->path, '/');
    size_t folder = slash ? (size_t)(slash - r->path) + 1 : 0;
    size_t room = strlen(before) + folder + strlen(path) + 1;
    char *text = malloc(room);
    if (text)
        snprintf(text, room, "%s%.*s%s", before, (int)folder, r->path, path);
    return keep(r, text);
}

/* A list of names as a command line has it. NULL, `why` filled, if it is none. */
static const char *join_names(reader *r, const cJSON *list, char why[CLI_WHY])
{
    const cJSON *item;
    size_t room = 1, at = 0;
    cJSON_ArrayForEach(item, list)
    {
        if (!cJSON_IsString(item) || strchr(item->valuestring, ',')) {
            snprintf(why, CLI_WHY, "takes names, which have no commas");
            return NULL;
        }
        room += strlen(item->valuestring) + 1;
    }
    char *text = malloc(room);
    if (text)
        *text = '\0';
    cJSON_ArrayForEach(item, list)
    {
        if (text)
            at += (size_t)snprintf(text + at, room - at, "%s%s", at ? "," : "", item->valuestring);
    }
    return keep(r, text);
}

static bool is_word(const char *text, const char *const *words)
{
    while (*words && strcmp(text, *words) != 0)
        words++;
    return *words != NULL;
}

/* What a command line would have; NULL, with `why` or out of memory, if the value is none of the
 * option's. */
static const char *value_text(reader *r, const cli_option *o, const cJSON *item, char why[CLI_WHY])
{
    const char *text = cJSON_GetStringValue(item);
    double number = cJSON_IsNumber(item) ? item->valuedouble : -1;
    bool numeric = o->kind == CLI_COUNT || o->kind == CLI_NUMBER || o->kind == CLI_SIZE;
    if (numeric && number >= 0 && number <= 0x1p53 && number == floor(number)) {
        char digits[32];
        snprintf(digits, sizeof digits, "%.0f", number);
        return keep(r, strdup(digits));
    }
    if (o->kind == CLI_NAMES && cJSON_IsArray(item))
        return join_names(r, item, why);
    if (o->kind == CLI_AXES && cJSON_IsObject(item))
        return keep(r, cJSON_PrintUnformatted(item));
    if (!text || (numeric && o->kind != CLI_SIZE)) {
        snprintf(why, CLI_WHY, "takes %s",
                 numeric                ? "a whole number"
                 : o->kind == CLI_NAMES ? "a list of names, or a text with commas between them"
                 : o->kind == CLI_AXES  ? "an object or a text"
                                        : "a text");
        return NULL;
    }
    if (!*text) {
        snprintf(why, CLI_WHY, "is empty");
        return NULL;
    }
    if (o->kind == CLI_PATH || (o->kind == CLI_SOURCE && !is_word(text, o->words)))
        return from_folder(r, "", text);
    if (o->kind == CLI_AXES && *text == '@')
        return from_folder(r, "@", text + 1);
    return text;
}

static bool set_value(reader *r, const char *where, const cli_option *o, void *target,
                      const cJSON *item)
{
    char why[CLI_WHY] = "";
    if (o->command_only)
        return complain(r, where, item->string, "is an option of the command, not of a job");
    if (!cli_takes_value(o)) {
        if (!cJSON_IsBool(item))
            return complain(r, where, item->string, "takes true or false");
        cli_set_flag(o, target, cJSON_IsTrue(item));
        return true;
    }
    const char *text = value_text(r, o, item, why);
    if (text && cli_set_option(o, target, text, why))
        return true;
    return !r->no_memory && complain(r, where, item->string, "%s", why);
}

/* The option of a key, which has underscores in place of hyphens. */
static const cli_option *find_key(const cli_option *table, const char *key)
{
    char name[64];
    size_t n = strlen(key);
    if (n >= sizeof name || strchr(key, '-'))
        return NULL;
    for (size_t i = 0; i <= n; i++)
        name[i] = key[i] == '_' ? '-' : key[i];
    return cli_find_option(table, name);
}

/* ---- jobs ---- */

static bool is_command(const char *word)
{
    return word && (strcmp(word, "export") == 0 || strcmp(word, "checkpoint") == 0);
}

/* A default goes to the commands that know it. */
static void read_defaults(reader *r, const cJSON *defaults)
{
    static const char where[] = "defaults";
    const cJSON *item;
    cli_export_init(&r->to_export);
    cli_checkpoint_init(&r->checkpoint);
    r->command = "export";
    if (defaults && !cJSON_IsObject(defaults)) {
        complain(r, where, NULL, "must be an object");
        return;
    }
    cJSON_ArrayForEach(item, defaults)
    {
        const cli_option *e = find_key(cli_export_table, item->string);
        const cli_option *c = find_key(cli_checkpoint_table, item->string);
        if (strcmp(item->string, "command") == 0) {
            if (is_command(cJSON_GetStringValue(item)))
                r->command = item->valuestring;
            else
                complain(r, where, item->string, "takes export or checkpoint");
        } else if (!e && !c) {
            complain(r, where, item->string, "is not known");
        } else {
            bool good = !e || set_value(r, where, e, &r->to_export, item);
            if (good && c)
                set_value(r, where, c, &r->checkpoint, item);
        }
    }
}

/* The job's name as messages have it: what it is called, or its place in the list. */
static const char *name_job(reader *r, const cJSON *item, size_t number, char where[256])
{
    char fallback[32];
    const cJSON *name = cJSON_GetObjectItemCaseSensitive(item, "name");
    const char *text = cJSON_GetStringValue(name);
    snprintf(fallback, sizeof fallback, "job %zu", number);
    if (text)
        snprintf(where, 256, "job '%.200s'", text);
    else
        snprintf(where, 256, "job %zu", number);
    if (name && (!text || !*text))
        complain(r, where, "name", "takes a text");
    return text && *text ? text : keep(r, strdup(fallback));
}

static void check_needed(reader *r, const char *where, cli_job *job)
{
    const qf_export_options *e = &job->to_export.options;
    const qf_checkpoint_options *c = &job->checkpoint.options;
    if (!(job->is_checkpoint ? job->checkpoint.model : job->to_export.inputs.model))
        complain(r, where, "model", "is needed");
    if (!job->is_checkpoint && !e->save_path)
        complain(r, where, "save_path", "is needed");
    if (job->is_checkpoint && !c->out)
        complain(r, where, "out", "is needed");
    if (job->is_checkpoint && !c->scheme)
        complain(r, where, "scheme", "is needed");
    const char *wrong = job->is_checkpoint ? cli_checkpoint_resolve(&job->checkpoint) : NULL;
    if (wrong)
        complain(r, where, "scales", "%s", wrong);
}

static void read_job(reader *r, const cJSON *item, size_t number, cli_job *job)
{
    char where[256];
    if (!cJSON_IsObject(item)) {
        snprintf(where, sizeof where, "job %zu", number);
        complain(r, where, NULL, "must be an object");
        return;
    }
    *job = (cli_job){.to_export = r->to_export, .checkpoint = r->checkpoint};
    job->name = name_job(r, item, number, where);
    const cJSON *command = cJSON_GetObjectItemCaseSensitive(item, "command"), *value;
    const char *word = command ? cJSON_GetStringValue(command) : r->command;
    if (!is_command(word)) {
        complain(r, where, "command", "takes export or checkpoint");
        return;
    }
    job->is_checkpoint = strcmp(word, "checkpoint") == 0;
    const cli_option *table = job->is_checkpoint ? cli_checkpoint_table : cli_export_table;
    void *target = job->is_checkpoint ? (void *)&job->checkpoint : (void *)&job->to_export;
    bool seen[CLI_OPTIONS_MOST] = {false};
    size_t before = r->errors;
    cJSON_ArrayForEach(value, item)
    {
        if (strcmp(value->string, "name") == 0 || strcmp(value->string, "command") == 0)
            continue;
        const cli_option *o = find_key(table, value->string);
        if (!o)
            complain(r, where, value->string, "is not known to %s", word);
        else if (seen[o - table])
            complain(r, where, value->string, "is given twice");
        else
            set_value(r, where, o, target, value);
        if (o)
            seen[o - table] = true;
    }
    /* a default record is for the jobs that take one */
    const char *scales = job->checkpoint.options.scales;
    bool takes = scales && strcmp(scales, "record") == 0;
    if (job->is_checkpoint && !takes && !cJSON_GetObjectItemCaseSensitive(item, "record"))
        job->checkpoint.record = NULL;
    if (r->errors == before && !r->no_memory)
        check_needed(r, where, job);
}

/* No two jobs of one name, and none that writes where another does. */
static void check_apart(reader *r)
{
    qf_strmap names = {0}, places = {0};
    for (size_t i = 0; i < r->jobs->count && !r->no_memory; i++) {
        char where[256];
        cli_job *job = &r->jobs->list[i];
        snprintf(where, sizeof where, "job '%.200s'", job->name);
        if (qf_strmap_get(&names, job->name))
            complain(r, where, "name", "another job has that name");
        char *text = job->is_checkpoint ? cli_folder_path(job->checkpoint.options.out)
                                        : strdup(job->to_export.options.save_path);
        const char *place = text ? keep(r, cli_place(text)) : NULL;
        free(text);
        const cli_job *other = place ? qf_strmap_get(&places, place) : NULL;
        if (other)
            complain(r, where, job->is_checkpoint ? "out" : "save_path",
                     "job '%s' writes to the same place", other->name);
        r->no_memory |=
            !place || !qf_strmap_set(&names, job->name, job) || !qf_strmap_set(&places, place, job);
    }
    qf_strmap_release(&names);
    qf_strmap_release(&places);
}

static void read_jobs(reader *r)
{
    const cJSON *list = NULL, *defaults = NULL, *item;
    cJSON_ArrayForEach(item, r->jobs->root)
    {
        bool jobs = strcmp(item->string, "jobs") == 0;
        if (!jobs && strcmp(item->string, "defaults") != 0)
            complain(r, NULL, item->string, "is not known: there are jobs and defaults");
        else if (jobs ? list != NULL : defaults != NULL)
            complain(r, NULL, item->string, "is given twice");
        else
            *(jobs ? &list : &defaults) = item;
    }
    read_defaults(r, defaults);
    /* NOLINTNEXTLINE(clang-analyzer-core.NullDereference): then it is no array */
    if (!cJSON_IsArray(list) || !list->child) {
        complain(r, NULL, "jobs", "must be a list of at least one job");
        return;
    }
    size_t count = (size_t)cJSON_GetArraySize(list), i = 0;
    if (count > JOBS_MOST) {
        complain(r, NULL, "jobs", "has more than %d jobs", JOBS_MOST);
        return;
    }
    r->jobs->list = calloc(count, sizeof *r->jobs->list);
    r->no_memory |= !r->jobs->list;
    cJSON_ArrayForEach(item, list)
    {
        if (r->no_memory)
            return;
        read_job(r, item, i + 1, &r->jobs->list[i]);
        i++;
    }
    r->jobs->count = count;
    if (!r->errors)
        check_apart(r);
}

/* ---- the file ---- */

static char *read_file(const char *path, size_t *length)
{
    char *text = NULL;
    size_t n = 0, cap = 0;
    FILE *f = fopen(path, "rb");
    for (size_t got = 1; f && got && n < FILE_MOST;) {
        if (n + 1 >= cap) {
            cap = cap ? 2 * cap : 1 << 16;
            char *more = realloc(text, cap);
            if (!more) {
                free(text);
                text = NULL;
                errno = ENOMEM;
                break;
            }
            text = more;
        }
        got = fread(text + n, 1, cap - n - 1, f);
        n += got;
    }
    if (f && text && (ferror(f) || n >= FILE_MOST)) {
        errno = ferror(f) ? errno : EFBIG;
        free(text);
        text = NULL;
    }
    int e = errno;
    if (f)
        fclose(f);
    errno = e;
    if (text)
        text[n] = '\0';
    *length = n;
    return text;
}

static void complain_of_json(reader *r, const char *text, const char *at)
{
    size_t line = 1, column = 1;
    for (const char *p = text; p && at && p < at; p++) {
        column = *p == '\n' ? 1 : column + 1;
        line += *p == '\n';
    }
    complain(r, NULL, NULL, "line %zu, column %zu: this is not JSON", line, column);
}

int cli_jobs_read(const char *path, cli_jobs *out)
{
    size_t length;
    const char *end = NULL;
    reader r = {.path = path, .jobs = out};
    *out = (cli_jobs){0};
    char *text = read_file(path, &length);
    if (!text) {
        int e = errno;
        complain(&r, NULL, NULL, "cannot read the jobs: %s", strerror(e));
        return e == ENOENT || e == EISDIR || e == EFBIG ? EXIT_INPUT : EXIT_SYSTEM;
    }
    out->root = cJSON_ParseWithOpts(text, &end, true);
    if (!out->root || strlen(text) != length)
        complain_of_json(&r, text, out->root ? text + strlen(text) : end);
    else if (!cJSON_IsObject(out->root))
        complain(&r, NULL, NULL, "must be an object with a list of jobs");
    else
        read_jobs(&r);
    free(text);
    if (r.errors > SAID_MOST)
        fprintf(stderr, "quantfold: error: and %zu more errors\n", r.errors - SAID_MOST);
    if (r.no_memory) {
        fputs("quantfold: error: out of memory\n", stderr);
        return EXIT_SYSTEM;
    }
    return r.errors ? EXIT_INPUT : EXIT_DONE;
}

void cli_jobs_release(cli_jobs *jobs)
{
    for (size_t i = 0; i < jobs->kept_count; i++)
        free(jobs->kept[i]);
    free(jobs->kept);
    free(jobs->list);
    cJSON_Delete(jobs->root);
    *jobs = (cli_jobs){0};
}
