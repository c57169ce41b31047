/* SPDX-License-Identifier: Apache-2.0 */
/* Bump allocator: many small objects with one lifetime. Nothing is freed but the whole arena. */
#ifndef QF_BASE_ARENA_H
#define QF_BASE_ARENA_H

#include <protobuf-c/protobuf-c.h>
#include <stddef.h>

#include "base/error.h"

typedef struct qf_arena_block qf_arena_block;

typedef struct qf_arena {
    qf_arena_block *blocks;       /* newest first */
    size_t block_count;           /* taken so far */
    size_t used;                  /* bytes handed out by the newest block */
    ProtobufCAllocator allocator; /* lets protobuf-c unpack into the arena */
    bool exhausted;               /* an allocation has failed */
} qf_arena;

void qf_arena_init(qf_arena *arena);
void qf_arena_release(qf_arena *arena);
/* `size` bytes, aligned for pointers, 64-bit integers and doubles, zeroed; NULL when memory is
 * exhausted. */
void *qf_arena_alloc(qf_arena *arena, size_t size);
/* count * size bytes, zeroed; NULL when that overflows or memory is exhausted. */
void *qf_arena_array(qf_arena *arena, size_t count, size_t size);
/* Copy of a string or of `n` bytes with a NUL behind them. */
char *qf_arena_strdup(qf_arena *arena, const char *text);
char *qf_arena_strndup(qf_arena *arena, const char *text, size_t n);
char *qf_arena_printf(qf_arena *arena, const char *format, ...) QF_PRINTF(2, 3);

/* Makes room for at least `need` elements of `size` bytes in the malloc'ed array *items with room
 * for *cap; for what grows with the model there is qf_table_grow (spill.h). False when memory is
 * exhausted; the array is unchanged then. */
bool qf_grow(void **items, size_t *cap, size_t need, size_t size);

#endif
