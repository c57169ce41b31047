/* SPDX-License-Identifier: Apache-2.0 */
/* The progress line, and stopping when asked. */
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include "cli/cli.h"

enum { BAR = 24, NARROW = 60, WIDE = 400 };
static const double quiet_seconds = 0.5;  /* a terminal shows nothing of shorter runs */
static const double line_seconds = 10;    /* between lines where there is no terminal */
static const double wanted_seconds = 1;   /* the same where they were asked for */
static const double event_seconds = 0.5;  /* between JSON events */
static const double smooth_seconds = 3.0; /* that the rate looks back */

static volatile sig_atomic_t stop;

static void on_signal(int number)
{
    (void)number;
    stop = 1;
}

/* What is ignored, as by nohup or in a script's background, stays so. */
void cli_catch_signals(void)
{
    static const int signals[] = {SIGINT, SIGTERM, SIGHUP};
    struct sigaction before, action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    sigemptyset(&action.sa_mask);
    for (size_t i = 0; i < sizeof signals / sizeof *signals; i++) {
        if (sigaction(signals[i], NULL, &before) == 0 && before.sa_handler != SIG_IGN)
            sigaction(signals[i], &action, NULL);
    }
}

bool cli_interrupted(void)
{
    return stop;
}

double cli_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

void cli_progress_init(cli_progress *p, cli_when when, bool quiet)
{
    bool terminal = isatty(STDERR_FILENO);
    *p = (cli_progress){.form = CLI_FORM_NONE, .started = cli_seconds()};
    if (when == CLI_JSON)
        p->form = CLI_FORM_EVENTS;
    else if (when == CLI_ALWAYS || (when == CLI_AUTO && !quiet))
        p->form = terminal ? CLI_FORM_BAR : CLI_FORM_LINES;
    p->every = p->form == CLI_FORM_EVENTS ? event_seconds
               : terminal                 ? 0
               : when == CLI_ALWAYS       ? wanted_seconds
                                          : line_seconds;
    p->next = p->started + (terminal ? quiet_seconds : p->every);
}

/* Bytes a second of late: an average in which what was `smooth_seconds` ago counts a third. */
static void measure(cli_progress *p, uint64_t done)
{
    double t = cli_seconds(), since = t - (p->measured > 0 ? p->measured : p->started);
    if (since < 0.05)
        return;
    double rate = (double)(done - p->done) / since;
    double keep = p->measured > 0 ? smooth_seconds / (smooth_seconds + since) : 0;
    p->rate = keep * p->rate + (1 - keep) * rate;
    p->done = done;
    p->measured = t;
}

static double seconds_left(const cli_progress *p, uint64_t done, uint64_t total)
{
    return p->rate > 0 ? (double)(total - done) / p->rate : 0;
}

/* "75 s" -> "1:15". */
static const char *clock_text(double seconds, char out[32])
{
    unsigned long s = seconds < 1e9 ? (unsigned long)(seconds + 0.5) : 999999999;
    if (s < 60)
        snprintf(out, 32, "%lu s", s);
    else if (s < 3600)
        snprintf(out, 32, "%lu:%02lu", s / 60, s % 60);
    else
        snprintf(out, 32, "%lu:%02lu:%02lu", s / 3600, s / 60 % 60, s % 60);
    return out;
}

/* ---- forms ---- */

static int columns(void)
{
    struct winsize size;
    if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) != 0 || !size.ws_col)
        return 80;
    return size.ws_col < WIDE ? size.ws_col : WIDE;
}

/* The end of a name that fits; names are ASCII nearly always, so a byte is taken for a column. */
static void put_name(const char *name, int room)
{
    size_t n = strlen(name);
    if (room < 8)
        return;
    if (n + 1 <= (size_t)room) {
        fprintf(stderr, " ");
        cli_put_text(stderr, name);
        return;
    }
    name += n - (size_t)(room - 4);
    while (((unsigned char)*name & 0xc0) == 0x80) /* not in the middle of a character */
        name++;
    fputs(" ...", stderr);
    cli_put_text(stderr, name);
}

/* "3/20 " before what is said of a job of a batch, with its name where there is room. */
static int put_job(const cli_progress *p, bool name)
{
    if (!p->job)
        return 0;
    int n = fprintf(stderr, "%zu/%zu ", p->number, p->count);
    if (name) {
        cli_put_text(stderr, p->job);
        fputs(": ", stderr);
    }
    return n;
}

static void draw(const cli_progress *p, uint64_t done, uint64_t total, const char *tensor)
{
    char a[32], b[32], c[32], left[32], text[160];
    double part = total ? (double)done / (double)total : 1;
    int width = columns() - 1;
    fputc('\r', stderr);
    int n = put_job(p, false);
    if (width >= NARROW) {
        int filled = (int)(part * BAR);
        fputc('[', stderr);
        for (int i = 0; i < BAR; i++)
            fputc(i < filled ? '#' : '.', stderr);
        fputs("] ", stderr);
        n += BAR + 3;
    }
    int length = snprintf(text, sizeof text, "%3.0f %% %s/%s %s/s %s", part * 100,
                          cli_bytes(done, a), cli_bytes(total, b), cli_bytes((uint64_t)p->rate, c),
                          clock_text(seconds_left(p, done, total), left));
    fprintf(stderr, "%.*s", width - n > 0 ? width - n : 0, text);
    put_name(tensor, width - n - length);
    fputs("\033[K", stderr);
}

static void print_line(const cli_progress *p, uint64_t done, uint64_t total, const char *tensor)
{
    char a[32], b[32], c[32], left[32];
    double part = total ? (double)done / (double)total : 1;
    fputs("quantfold: ", stderr);
    put_job(p, true);
    fprintf(stderr, "%.0f %% (%s of %s), %s/s, %s left", part * 100, cli_bytes(done, a),
            cli_bytes(total, b), cli_bytes((uint64_t)p->rate, c),
            clock_text(seconds_left(p, done, total), left));
    if (*tensor)
        fputs(", ", stderr);
    cli_put_text(stderr, tensor);
    fputc('\n', stderr);
}

static void print_event(cJSON *event)
{
    char *text = event ? cJSON_PrintUnformatted(event) : NULL;
    if (text)
        fprintf(stderr, "%s\n", text);
    free(text);
    cJSON_Delete(event);
}

static cJSON *new_event(const cli_progress *p, const char *name)
{
    cJSON *event = cJSON_CreateObject();
    cJSON_AddStringToObject(event, "event", name);
    if (p->job) {
        cli_json_text(event, "job", p->job);
        cJSON_AddNumberToObject(event, "job_number", (double)p->number);
        cJSON_AddNumberToObject(event, "job_count", (double)p->count);
    }
    return event;
}

static void print_start(const cli_progress *p, uint64_t total)
{
    cJSON *event = new_event(p, "start");
    cJSON_AddNumberToObject(event, "bytes_total", (double)total);
    print_event(event);
}

static void print_step(const cli_progress *p, uint64_t done, uint64_t total, const char *tensor)
{
    cJSON *event = new_event(p, "progress");
    cJSON_AddNumberToObject(event, "bytes_done", (double)done);
    cJSON_AddNumberToObject(event, "bytes_total", (double)total);
    cJSON_AddNumberToObject(event, "bytes_per_second", p->rate);
    cJSON_AddNumberToObject(event, "seconds_left", seconds_left(p, done, total));
    cli_json_text(event, "tensor", tensor);
    print_event(event);
}

bool cli_progress_step(uint64_t done, uint64_t total, const char *tensor, void *user)
{
    cli_progress *p = user;
    double t = cli_seconds();
    measure(p, done);
    p->total = total;
    if (p->form == CLI_FORM_EVENTS && !p->begun)
        print_start(p, total);
    p->begun = true;
    /* before anything is done there is no rate, and so no time to tell */
    bool due = p->form != CLI_FORM_NONE && t >= p->next && done > 0 && done < total;
    if (due) {
        if (p->form == CLI_FORM_BAR)
            draw(p, done, total, tensor);
        else if (p->form == CLI_FORM_LINES)
            print_line(p, done, total, tensor);
        else
            print_step(p, done, total, tensor);
        p->shown = true;
        p->next = t + p->every;
    }
    return !stop;
}

void cli_progress_end(cli_progress *p, qf_status status)
{
    char size[32], time[32];
    if (p->form == CLI_FORM_BAR && p->shown)
        fputs("\r\033[K", stderr);
    if (p->form == CLI_FORM_LINES && p->shown && status == QF_OK) {
        fputs("quantfold: ", stderr);
        put_job(p, true);
        fprintf(stderr, "100 %% (%s), %s\n", cli_bytes(p->total, size),
                clock_text(cli_seconds() - p->started, time));
    }
    if (p->form != CLI_FORM_EVENTS)
        return;
    cJSON *event = new_event(p, "end");
    cJSON_AddNumberToObject(event, "bytes_done", (double)(status == QF_OK ? p->total : p->done));
    cJSON_AddNumberToObject(event, "seconds", cli_seconds() - p->started);
    cJSON_AddStringToObject(event, "status",
                            status == QF_OK              ? "done"
                            : status == QF_ERR_CANCELLED ? "cancelled"
                                                         : "failed");
    print_event(event);
}
