/* SPDX-License-Identifier: Apache-2.0 */
#include "base/mapguard.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "quantfold/quantfold.h"

/* A slot is free while `to` is 0. The handler reads slots without a lock: it looks at `to` before
 * and behind `from`, and `to` is 0 between one mapping and the next. */
struct qf_guard {
    _Atomic uintptr_t from, to;
    atomic_bool writable, struck;
    bool handled;       /* the handler was wanted when it was added */
    struct block *home; /* set once the slot has been used */
};

enum {
    SLOTS = 64,
    LEVELS = 2, /* handlers of ours that can stand, each above one of the host's */
};

/* Blocks are never given back, because the handler may be looking at them. */
typedef struct block {
    struct qf_guard slots[SLOTS];
    int used;
    struct block *_Atomic next;
} block;

static struct {
    pthread_mutex_t lock; /* of all but the slots, faults and previous */
    block first;
    block *roomy;   /* where a slot was taken or given back last */
    size_t handled; /* guards for which the handler is installed */
    bool off;
    int level; /* handlers that are installed, or that a host's has replaced since */
    struct sigaction previous[LEVELS];
    uintptr_t page;
    _Atomic uint64_t faults;
} guards = {.lock = PTHREAD_MUTEX_INITIALIZER, .roomy = &guards.first};

/* ---- the handler: nothing but loads, stores and mmap ---- */

static struct qf_guard *find(uintptr_t at, uintptr_t *to)
{
    for (block *b = &guards.first; b; b = atomic_load(&b->next)) {
        for (int i = 0; i < SLOTS; i++) {
            struct qf_guard *g = &b->slots[i];
            *to = atomic_load(&g->to);
            if (at < *to && at >= atomic_load(&g->from) && atomic_load(&g->to) == *to)
                return g;
        }
    }
    return NULL;
}

/* What is behind the place of a fault has been cut off as well, or is given up with it: one mapping
 * takes the place of all of it. False if that is not possible. */
static bool put_zeroes(uintptr_t at)
{
    uintptr_t to, page = guards.page;
    struct qf_guard *g = find(at, &to);
    if (!g)
        return false;
    /* before the zeroes can be seen */
    atomic_store(&g->struck, true);
    atomic_fetch_add(&guards.faults, 1);
    int protection = PROT_READ | (atomic_load(&g->writable) ? PROT_WRITE : 0);
    at &= ~(page - 1);
    to = (to + page - 1) & ~(page - 1);
    return mmap((void *)at, to - at, protection,
                MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0) != MAP_FAILED;
}

/* To whom the signal was going before. The default is to die of it: back to the instruction. */
static void pass_on(const struct sigaction *p, int number, siginfo_t *info, void *context)
{
    if (p->sa_flags & SA_SIGINFO) {
        p->sa_sigaction(number, info, context);
    } else if (p->sa_handler == SIG_IGN && info->si_code <= 0) {
        return; /* sent by somebody */
    } else if (p->sa_handler != SIG_DFL && p->sa_handler != SIG_IGN) {
        p->sa_handler(number);
    } else {
        signal(number, SIG_DFL);
        raise(number);
    }
}

/* A mapping that cannot be read; not, for one, an access that is not aligned. */
static bool is_missing(const siginfo_t *info)
{
    return info->si_code == BUS_ADRERR || info->si_code == BUS_OBJERR ||
           info->si_code == BUS_MCEERR_AR || info->si_code == BUS_MCEERR_AO;
}

static void handle(int level, int number, siginfo_t *info, void *context)
{
    int e = errno;
    if (!is_missing(info) || !put_zeroes((uintptr_t)info->si_addr))
        pass_on(&guards.previous[level], number, info, context);
    errno = e;
}

static void on_fault(int number, siginfo_t *info, void *context)
{
    handle(0, number, info, context);
}

static void on_fault_again(int number, siginfo_t *info, void *context)
{
    handle(1, number, info, context);
}

/* A host's handler that has replaced one of ours may pass on to it what is not its own. Above such
 * a handler goes another function, so that a fault does not go round in circles. */
static void (*const handlers[LEVELS])(int, siginfo_t *, void *) = {on_fault, on_fault_again};

/* ---- installing it ---- */

/* Which of ours that is; -1: none. */
static int level_of(const struct sigaction *action)
{
    for (int i = 0; i < LEVELS; i++) {
        if ((action->sa_flags & SA_SIGINFO) && action->sa_sigaction == handlers[i])
            return i;
    }
    return -1;
}

/* A host that has replaced all of ours keeps its handler. */
static void install(void)
{
    struct sigaction now, action = {.sa_flags = SA_SIGINFO | SA_ONSTACK};
    if (sigaction(SIGBUS, NULL, &now) != 0 || level_of(&now) >= 0 || guards.level == LEVELS)
        return;
    sigemptyset(&action.sa_mask);
    action.sa_sigaction = handlers[guards.level];
    guards.page = (uintptr_t)sysconf(_SC_PAGESIZE);
    guards.previous[guards.level] = now;
    if (sigaction(SIGBUS, &action, NULL) == 0)
        guards.level++;
}

/* A handler that somebody has installed since then stays; it may pass faults on to ours, which then
 * finds nothing guarded and passes them on too. */
static void uninstall(void)
{
    struct sigaction now;
    int level = sigaction(SIGBUS, NULL, &now) == 0 ? level_of(&now) : -1;
    if (level < 0)
        return;
    sigaction(SIGBUS, &guards.previous[level], NULL);
    guards.level = level;
}

/* ---- guards ---- */

/* A block with room. There can be a file for each tensor of a model, so full ones are passed over.
 */
static block *find_room(void)
{
    block *b = guards.roomy->used < SLOTS ? guards.roomy : &guards.first;
    while (b->used == SLOTS) {
        block *next = atomic_load(&b->next);
        if (!next) {
            next = calloc(1, sizeof *next);
            if (!next)
                return NULL;
            atomic_store(&b->next, next);
        }
        b = next;
    }
    return b;
}

static struct qf_guard *take_slot(void)
{
    block *b = find_room();
    if (!b)
        return NULL;
    struct qf_guard *g = b->slots;
    while (atomic_load(&g->to))
        g++;
    g->home = guards.roomy = b;
    b->used++;
    return g;
}

qf_guard *qf_guard_add(void *from, size_t length, bool writable)
{
    pthread_mutex_lock(&guards.lock);
    struct qf_guard *g = take_slot();
    if (g) {
        atomic_store(&g->struck, false);
        atomic_store(&g->writable, writable);
        g->handled = !guards.off;
        if (g->handled && guards.handled++ == 0)
            install();
        atomic_store(&g->from, (uintptr_t)from);
        atomic_store(&g->to, (uintptr_t)from + length);
    }
    pthread_mutex_unlock(&guards.lock);
    return g;
}

void qf_guard_remove(qf_guard *guard)
{
    if (!guard)
        return;
    pthread_mutex_lock(&guards.lock);
    atomic_store(&guard->to, 0);
    guard->home->used--;
    guards.roomy = guard->home;
    if (guard->handled && --guards.handled == 0)
        uninstall();
    pthread_mutex_unlock(&guards.lock);
}

bool qf_guard_struck(const qf_guard *guard)
{
    return guard && atomic_load(&guard->struck);
}

uint64_t qf_guard_faults(void)
{
    return atomic_load(&guards.faults);
}

void qf_handle_sigbus(bool on)
{
    pthread_mutex_lock(&guards.lock);
    guards.off = !on;
    pthread_mutex_unlock(&guards.lock);
}
