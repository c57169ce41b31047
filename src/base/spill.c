/* SPDX-License-Identifier: Apache-2.0 */
#include "base/spill.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <pthread.h>
#include <stdalign.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/vfs.h>
#include <unistd.h>

typedef enum kind { SMALL, ANONYMOUS, SPILLED } kind;

/* Stands before each block. */
typedef struct head {
    alignas(16) struct head *next; /* in a list of spilled blocks that are free */
    size_t size;                   /* of a large block, with the head */
    kind kind;
} head;

enum {
    CLASSES = 64,             /* large blocks have a power of two of bytes */
    GROWTH = 8 * 1024 * 1024, /* the file grows by as much at least */
    FOLIO = 64 * 1024,
    ANONYMOUS_MAX = 24 * 1024 * 1024,
    NAME_MAX_BYTES = 4096,
};

/* Free blocks of the file stay mapped, because that makes them cheap to use again: the steps of a
 * plan take and release much the same amounts. The last block to go takes the file with it. */
static struct {
    pthread_mutex_t lock;
    size_t anonymous; /* bytes */
    size_t spilled;   /* blocks in use */
    int fd;
    bool open, refused; /* refused: there is no folder for a file */
    uint64_t length;    /* of the file */
    uint64_t used;      /* bytes of it that were given out at some time */
    head *unused[CLASSES];
} spill = {.lock = PTHREAD_MUTEX_INITIALIZER};

/* ---- the file ---- */

static bool is_on_disk(const char *folder)
{
    struct statfs fs;
    return statfs(folder, &fs) == 0 && fs.f_type != TMPFS_MAGIC && fs.f_type != RAMFS_MAGIC;
}

/* A file without a name in `folder`; -1 if that cannot be. */
static int open_in(const char *folder)
{
    if (!is_on_disk(folder))
        return -1;
    int fd = open(folder, O_TMPFILE | O_RDWR | O_EXCL | O_CLOEXEC, 0600);
    if (fd >= 0)
        return fd;
    char name[NAME_MAX_BYTES];
    int n = snprintf(name, sizeof name, "%s/quantfold-XXXXXX", folder);
    if (n < 0 || (size_t)n >= sizeof name)
        return -1;
    fd = mkostemp(name, O_CLOEXEC);
    if (fd >= 0 && unlink(name) != 0) {
        close(fd);
        return -1;
    }
    return fd;
}

static bool open_file(void)
{
    const char *folders[] = {getenv("TMPDIR"), "/var/tmp", "/tmp"};
    for (size_t i = 0; !spill.open && !spill.refused && i < 3; i++) {
        spill.fd = folders[i] && *folders[i] ? open_in(folders[i]) : -1;
        spill.open = spill.fd >= 0;
    }
    spill.refused = !spill.open;
    return spill.open;
}

/* 0 or an errno. */
static int allocate(uint64_t more)
{
    int result;
    do
        result = fallocate(spill.fd, 0, (off_t)spill.length, (off_t)more);
    while (result != 0 && errno == EINTR);
    if (result != 0)
        return errno;
    spill.length += more;
    return 0;
}

/* Space for `size` more bytes at the end of what is used. */
static bool extend(size_t size)
{
    if (spill.used + size <= spill.length)
        return true;
    uint64_t need = spill.used + size - spill.length;
    return (need < GROWTH && allocate(GROWTH) == 0) || allocate(need) == 0;
}

/* Writes zeroes: what is in the page cache, and dirty, costs a fault a fraction of what a fault on
 * a new page of a mapped file costs. In small pieces, because the system makes each one folio, all
 * of which it looks at in each fault on one of its pages. */
static bool fill(uint64_t offset, size_t size)
{
    static char zeroes[FOLIO];
    while (size) {
        ssize_t n = pwrite(spill.fd, zeroes, size < FOLIO ? size : FOLIO, (off_t)offset);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return false;
        offset += (uint64_t)n;
        size -= (size_t)n;
    }
    return true;
}

static void close_file(void)
{
    for (size_t i = 0; i < CLASSES; i++) {
        for (head *block = spill.unused[i], *next; block; block = next) {
            next = block->next;
            munmap(block, block->size);
        }
        spill.unused[i] = NULL;
    }
    close(spill.fd);
    spill.open = false;
    spill.length = spill.used = 0;
}

/* ---- blocks ---- */

static size_t class_of(size_t size)
{
    size_t n = 0;
    while ((size_t)1 << n < size)
        n++;
    return n;
}

static head *map(size_t size, int flags, int fd, uint64_t offset)
{
    void *block = mmap(NULL, size, PROT_READ | PROT_WRITE, flags, fd, (off_t)offset);
    return block == MAP_FAILED ? NULL : block;
}

/* A block from the end of the file, of which `wanted` bytes will be used soon. */
static head *take_new(size_t size, size_t wanted)
{
    if (!open_file())
        return NULL;
    head *block = NULL;
    if (extend(size) && fill(spill.used, wanted))
        block = map(size, MAP_SHARED, spill.fd, spill.used);
    if (!block && !spill.used)
        close_file(); /* its disk is full, or takes no space in advance */
    if (!block)
        return NULL;
    spill.used += size;
#ifdef MADV_POPULATE_WRITE
    madvise(block, wanted, MADV_POPULATE_WRITE); /* one call for many faults, if it is known */
#endif
    return block;
}

static void push_unused(head *block, size_t size)
{
    head **list = &spill.unused[class_of(size)];
    block->size = size;
    block->next = *list;
    *list = block;
}

/* One that was in use before, its first `zeroed` bytes cleared; a larger one is cut in halves, the
 * rest of which stays unused. */
static head *take_unused(size_t size, size_t zeroed)
{
    size_t n = class_of(size);
    while (n < CLASSES && !spill.unused[n])
        n++;
    if (n == CLASSES)
        return NULL;
    head *block = spill.unused[n];
    spill.unused[n] = block->next;
    for (size_t left = block->size / 2; left >= size; left /= 2)
        push_unused((head *)(void *)((char *)block + left), left);
    memset(block, 0, zeroed);
    return block;
}

static head *take_spilled(size_t size, size_t wanted)
{
    head *block = take_unused(size, wanted);
    if (!block)
        block = take_new(size, wanted);
    if (!block)
        return NULL;
    block->kind = SPILLED;
    spill.spilled++;
    return block;
}

/* At least `wanted` bytes of zeroes. */
static head *take_large(size_t wanted)
{
    size_t size = (size_t)1 << class_of(wanted);
    head *block = NULL;
    pthread_mutex_lock(&spill.lock);
    if (spill.anonymous + size > ANONYMOUS_MAX)
        block = take_spilled(size, wanted);
    if (!block && (block = map(size, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0))) {
        block->kind = ANONYMOUS;
        spill.anonymous += size;
    }
    if (block)
        block->size = size;
    pthread_mutex_unlock(&spill.lock);
    return block;
}

static void give_back(head *block)
{
    pthread_mutex_lock(&spill.lock);
    if (block->kind == ANONYMOUS) {
        spill.anonymous -= block->size;
        munmap(block, block->size);
    } else {
        push_unused(block, block->size);
        if (--spill.spilled == 0)
            close_file();
    }
    pthread_mutex_unlock(&spill.lock);
}

void *qf_spill_alloc(size_t size)
{
    if (size > SIZE_MAX / 4)
        return NULL;
    size += sizeof(head);
    head *block = size < QF_SPILL_LARGE ? calloc(1, size) : take_large(size);
    return block ? block + 1 : NULL;
}

void qf_spill_free(void *memory)
{
    if (!memory)
        return;
    head *block = (head *)memory - 1;
    if (block->kind == SMALL)
        free(block);
    else
        give_back(block);
}

/* ---- tables ---- */

static bool grow_small(void **items, size_t *cap, size_t count, size_t size)
{
    head *old = *items ? (head *)*items - 1 : NULL;
    head *block = realloc(old, sizeof *block + count * size);
    if (!block)
        return false;
    *block = (head){.kind = SMALL};
    *items = block + 1;
    *cap = count;
    return true;
}

bool qf_table_grow(void **items, size_t *cap, size_t need, size_t size)
{
    if (need <= *cap)
        return true;
    size_t count = *cap ? *cap : 8;
    while (count < need) {
        if (count > SIZE_MAX / 8 / size)
            return false;
        count *= 2;
    }
    if (sizeof(head) + count * size < QF_SPILL_LARGE)
        return grow_small(items, cap, count, size);
    void *grown = qf_spill_alloc(count * size);
    if (!grown)
        return false;
    if (*cap)
        memcpy(grown, *items, *cap * size);
    qf_spill_free(*items);
    *items = grown;
    /* large blocks are rounded up: all of it can be used */
    *cap = (((head *)grown - 1)->size - sizeof(head)) / size;
    return true;
}
