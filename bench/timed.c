// SPDX-License-Identifier: Apache-2.0
/* Times a command and watches its memory.
 *
 *   timed [--prewarm MIB] [--every MICROSECONDS] --to FILE -- COMMAND ARGUMENT...
 *
 * FILE gets one line of JSON: exit code, wall, user and system seconds, peak resident bytes (from
 * the kernel) and peak anonymous bytes (sampled from /proc, every 5 ms by default). Peaks of a
 * process start with those of the one it was forked from, so this program must be, and is, a small
 * one.
 *
 * --prewarm touches and frees so much memory right before the clock starts: on a virtual machine
 * that gives free pages back to its host, the first use of a page costs a fault there, which would
 * otherwise land on whichever command happens to come first.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { MIB = 1 << 20, PAGE = 4096 };

static void die(const char *what)
{
    fprintf(stderr, "timed: %s: %s\n", what, strerror(errno));
    exit(1);
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static double seconds(struct timeval t)
{
    return (double)t.tv_sec + 1e-6 * (double)t.tv_usec;
}

/* In a child, whose peak memory is not this process's. */
static void prewarm(size_t bytes)
{
    pid_t pid = fork();
    if (pid < 0)
        die("fork");
    if (pid == 0) {
        char *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (p == MAP_FAILED)
            _exit(1);
        madvise(p, bytes, MADV_HUGEPAGE);
#pragma omp parallel for
        for (size_t i = 0; i < bytes; i += PAGE)
            p[i] = 1;
        _exit(0);
    }
    waitpid(pid, NULL, 0);
}

/* Anonymous resident bytes of a process, 0 if it is gone. */
static size_t anonymous_bytes(const char *status)
{
    char text[4096];
    int fd = open(status, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return 0;
    ssize_t n = read(fd, text, sizeof text - 1);
    close(fd);
    text[n < 0 ? 0 : n] = '\0';
    const char *line = strstr(text, "RssAnon:");
    return line ? (size_t)strtoul(line + 8, NULL, 10) * 1024 : 0;
}

/* Waits for the process, sampling; SIGCHLD ends a pause at once. */
static size_t watch(pid_t pid, long every, int *status, struct rusage *usage)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/status", (int)pid);
    struct timespec pause = {every / 1000000, every % 1000000 * 1000};
    sigset_t child;
    sigemptyset(&child);
    sigaddset(&child, SIGCHLD);
    size_t peak = 0;
    while (wait4(pid, status, WNOHANG, usage) == 0) {
        size_t bytes = anonymous_bytes(path);
        peak = bytes > peak ? bytes : peak;
        sigtimedwait(&child, NULL, &pause);
    }
    return peak;
}

static void report(const char *to, int status, double wall, const struct rusage *u, size_t anon)
{
    FILE *f = fopen(to, "w");
    if (!f)
        die(to);
    int code = WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
    fprintf(f,
            "{\"code\": %d, \"seconds\": %.6f, \"user\": %.6f, \"system\": %.6f, "
            "\"peak_rss\": %lld, \"peak_anon\": %zu}\n",
            code, wall, seconds(u->ru_utime), seconds(u->ru_stime), 1024LL * u->ru_maxrss, anon);
    if (fclose(f))
        die(to);
}

static void start(char **command, const sigset_t *mask)
{
    sigprocmask(SIG_SETMASK, mask, NULL);
    execvp(command[0], command);
    die(command[0]);
}

int main(int argc, char **argv)
{
    size_t mib = 0;
    long every = 5000;
    const char *to = NULL;
    int i = 1;
    for (; i + 1 < argc && strcmp(argv[i], "--"); i += 2) {
        if (!strcmp(argv[i], "--prewarm"))
            mib = strtoul(argv[i + 1], NULL, 10);
        else if (!strcmp(argv[i], "--every"))
            every = strtol(argv[i + 1], NULL, 10);
        else if (!strcmp(argv[i], "--to"))
            to = argv[i + 1];
        else
            break;
    }
    if (!to || i + 1 >= argc || strcmp(argv[i], "--")) {
        fputs("usage: timed [--prewarm MIB] [--every MICROSECONDS] --to FILE -- COMMAND...\n",
              stderr);
        return 2;
    }
    if (mib)
        prewarm(mib * MIB);
    sigset_t child, before;
    sigemptyset(&child);
    sigaddset(&child, SIGCHLD);
    sigprocmask(SIG_BLOCK, &child, &before);

    double begin = now();
    pid_t pid = fork();
    if (pid < 0)
        die("fork");
    if (pid == 0)
        start(argv + i + 1, &before);
    int status;
    struct rusage usage;
    size_t anon = watch(pid, every, &status, &usage);
    report(to, status, now() - begin, &usage, anon);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}
