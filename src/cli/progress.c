/* SPDX-License-Identifier: Apache-2.0 */
/* The progress line, and stopping when asked. */
#include <signal.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "cli/cli.h"

enum { BAR = 24, NAME = 28 };
static const double quiet_seconds = 0.5; /* short runs show nothing */
static const double plain_seconds = 5;   /* between lines where there is no terminal */

static volatile sig_atomic_t stop;

static void on_signal(int number)
{
    (void)number;
    stop = 1;
}

void cli_catch_signals(void)
{
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGHUP, &action, NULL);
}

bool cli_interrupted(void)
{
    return stop;
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

void cli_progress_init(cli_progress *progress, cli_when when)
{
    progress->terminal = isatty(STDERR_FILENO);
    progress->on = when == CLI_ALWAYS || (when == CLI_AUTO && progress->terminal);
    progress->started = now();
    progress->last = 0;
}

static void draw(const cli_progress *p, uint64_t done, uint64_t total, const char *tensor)
{
    char a[32], b[32], c[32];
    double seconds = now() - p->started, part = total ? (double)done / (double)total : 1;
    double rate = seconds > 0 ? (double)done / seconds : 0;
    double left = rate > 0 ? (double)(total - done) / rate : 0;
    cli_bytes(done, a);
    cli_bytes(total, b);
    cli_bytes((uint64_t)rate, c);
    if (!p->terminal) {
        fprintf(stderr, "quantfold: %3.0f %%  %s of %s, %s/s, %.0f s left\n", part * 100, a, b, c,
                left);
        return;
    }
    int filled = (int)(part * BAR);
    fputs("\r[", stderr);
    for (int i = 0; i < BAR; i++)
        fputc(i < filled ? '#' : '.', stderr);
    fprintf(stderr, "] %3.0f %% %s/%s %s/s %.0fs ", part * 100, a, b, c, left);
    size_t n = strlen(tensor);
    cli_put_text(stderr, n > NAME ? tensor + n - NAME : tensor);
    fputs("\033[K", stderr);
}

bool cli_progress_step(uint64_t done, uint64_t total, const char *tensor, void *user)
{
    cli_progress *p = user;
    double t = now();
    bool due = t - p->started >= quiet_seconds && (p->terminal || t - p->last >= plain_seconds);
    if (p->on && due && done < total) {
        draw(p, done, total, tensor);
        p->last = t;
    }
    return !stop;
}

void cli_progress_end(cli_progress *progress)
{
    if (progress->on && progress->terminal && progress->last > 0)
        fputs("\r\033[K", stderr);
}
