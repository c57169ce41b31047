/* SPDX-License-Identifier: Apache-2.0 */
/* Hash map from strings to pointers (open addressing, XXH3). Keys are borrowed, not copied. */
#ifndef QF_BASE_STRMAP_H
#define QF_BASE_STRMAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct qf_strmap_slot {
    const char *key; /* NULL: empty */
    void *value;     /* NULL: removed */
} qf_strmap_slot;

/* Zero-initialise to start. */
typedef struct qf_strmap {
    qf_strmap_slot *slots;
    uint32_t *hashes; /* of the slots' keys, 0: empty; a search reads no key but the one it wants */
    size_t cap, used;
} qf_strmap;

/* NULL when absent. */
void *qf_strmap_get(const qf_strmap *map, const char *key);
/* Inserts or replaces; `value` NULL removes. False when memory is exhausted. */
bool qf_strmap_set(qf_strmap *map, const char *key, void *value);
/* The key's value; if it has none, `value` enters and is what returns. NULL when memory is
 * exhausted. */
void *qf_strmap_add(qf_strmap *map, const char *key, void *value);
/* Removes the key if this is its value. */
void qf_strmap_drop(qf_strmap *map, const char *key, const void *value);
void qf_strmap_release(qf_strmap *map);

#endif
