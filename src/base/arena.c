/* SPDX-License-Identifier: Apache-2.0 */
#include "base/arena.h"

#include <stdalign.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/spill.h"

#if defined(__SANITIZE_ADDRESS__)
#define QF_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define QF_ASAN 1
#endif
#endif

/* Under AddressSanitizer each object gets memory of its own and of its exact size, so that reading
 * past one is seen. */
#ifdef QF_ASAN
enum { FIRST_BYTES = 0, BLOCK_BYTES = 0, ROUND = 1 };
#else
/* An arena that has taken FIRST_BLOCKS small blocks is one that grows with the model. */
enum { FIRST_BYTES = 64 * 1024, BLOCK_BYTES = 1024 * 1024 - 64, ROUND = 8 };
#endif
enum { ALIGN = 16, FIRST_BLOCKS = 8 };

struct qf_arena_block {
    qf_arena_block *next;
    size_t cap;
    alignas(ALIGN) unsigned char data[];
};

#ifdef QF_ASAN
static qf_arena_block *new_block(size_t bytes)
{
    return calloc(1, bytes);
}

static void free_block(qf_arena_block *block)
{
    free(block);
}
#else
static qf_arena_block *new_block(size_t bytes)
{
    return qf_spill_alloc(bytes);
}

static void free_block(qf_arena_block *block)
{
    qf_spill_free(block);
}
#endif

static void *pb_alloc(void *arena, size_t size)
{
    return qf_arena_alloc(arena, size);
}

static void pb_free(void *arena, void *pointer)
{
    (void)arena;
    (void)pointer;
}

void qf_arena_init(qf_arena *arena)
{
    *arena = (qf_arena){.allocator = {.alloc = pb_alloc, .free = pb_free}};
}

void qf_arena_release(qf_arena *arena)
{
    qf_arena_block *block = arena->blocks;
    while (block) {
        qf_arena_block *next = block->next;
        free_block(block);
        block = next;
    }
    arena->blocks = NULL;
    arena->block_count = 0;
    arena->used = 0;
}

void *qf_arena_alloc(qf_arena *arena, size_t size)
{
    /* protobuf-c hands the allocator's data back, which must be this arena wherever it now lives */
    arena->allocator.allocator_data = arena;
    if (size > SIZE_MAX / 2)
        return NULL;
    size = (size + ROUND - 1) & ~(size_t)(ROUND - 1);
    if (!arena->blocks || !BLOCK_BYTES || arena->blocks->cap - arena->used < size) {
        size_t least = arena->block_count++ < FIRST_BLOCKS ? FIRST_BYTES : BLOCK_BYTES;
        size_t cap = size > least ? size : least;
        qf_arena_block *block = new_block(sizeof *block + cap);
        if (!block) {
            arena->exhausted = true;
            return NULL;
        }
        block->cap = cap;
        block->next = arena->blocks;
        arena->blocks = block;
        arena->used = 0;
    }
    void *p = arena->blocks->data + arena->used;
    arena->used += size;
    return p;
}

void *qf_arena_array(qf_arena *arena, size_t count, size_t size)
{
    if (size && count > SIZE_MAX / 2 / size)
        return NULL;
    return qf_arena_alloc(arena, count * size);
}

char *qf_arena_strndup(qf_arena *arena, const char *text, size_t n)
{
    char *copy = qf_arena_alloc(arena, n + 1);
    if (copy && n)
        memcpy(copy, text, n);
    return copy;
}

char *qf_arena_strdup(qf_arena *arena, const char *text)
{
    return qf_arena_strndup(arena, text, strlen(text));
}

char *qf_arena_printf(qf_arena *arena, const char *format, ...)
{
    va_list args, again;
    va_start(args, format);
    va_copy(again, args);
    int n = vsnprintf(NULL, 0, format, args);
    va_end(args);
    char *text = n < 0 ? NULL : qf_arena_alloc(arena, (size_t)n + 1);
    if (text)
        vsnprintf(text, (size_t)n + 1, format, again);
    va_end(again);
    return text;
}

bool qf_grow(void **items, size_t *cap, size_t need, size_t size)
{
    if (need <= *cap)
        return true;
    size_t next = *cap ? *cap : 8;
    while (next < need) {
        if (next > SIZE_MAX / 2 / size)
            return false;
        next *= 2;
    }
    void *grown = realloc(*items, next * size);
    if (!grown)
        return false;
    *items = grown;
    *cap = next;
    return true;
}
