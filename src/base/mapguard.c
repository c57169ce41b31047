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

enum { SLOTS = 64 };

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
    bool off, installed;
    struct sigaction previous;
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
static void pass_on(int number, siginfo_t *info, void *context)
{
    const struct sigaction *p = &guards.previous;
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

static void on_fault(int number, siginfo_t *info, void *context)
{
    int e = errno;
    if (info->si_code <= 0 || !put_zeroes((uintptr_t)info->si_addr))
        pass_on(number, info, context);
    errno = e;
}

/* ---- installing it ---- */

static void install(void)
{
    struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    sigemptyset(&action.sa_mask);
    guards.page = (uintptr_t)sysconf(_SC_PAGESIZE);
    sigaction(SIGBUS, NULL, &guards.previous);
    guards.installed = sigaction(SIGBUS, &action, NULL) == 0;
}

/* A handler that somebody has installed since then stays; it may pass faults on to ours, which then
 * finds nothing guarded and passes them on too. */
static void uninstall(void)
{
    struct sigaction now;
    if (sigaction(SIGBUS, NULL, &now) != 0 || !(now.sa_flags & SA_SIGINFO) ||
        now.sa_sigaction != on_fault)
        return;
    sigaction(SIGBUS, &guards.previous, NULL);
    guards.installed = false;
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
        if (g->handled && guards.handled++ == 0 && !guards.installed)
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
