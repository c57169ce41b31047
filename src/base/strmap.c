/* SPDX-License-Identifier: Apache-2.0 */
#include "base/strmap.h"

#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

static qf_strmap_slot *find(qf_strmap_slot *slots, size_t cap, const char *key)
{
    size_t i = (size_t)XXH3_64bits(key, strlen(key)) & (cap - 1);
    while (slots[i].key && strcmp(slots[i].key, key) != 0)
        i = (i + 1) & (cap - 1);
    return &slots[i];
}

void *qf_strmap_get(const qf_strmap *map, const char *key)
{
    if (!map->cap)
        return NULL;
    return find(map->slots, map->cap, key)->value;
}

static bool rehash(qf_strmap *map)
{
    size_t cap = map->cap ? map->cap * 2 : 64;
    qf_strmap_slot *slots = calloc(cap, sizeof *slots);
    if (!slots)
        return false;
    size_t used = 0;
    for (size_t i = 0; i < map->cap; i++) {
        if (map->slots[i].value) {
            *find(slots, cap, map->slots[i].key) = map->slots[i];
            used++;
        }
    }
    free(map->slots);
    *map = (qf_strmap){slots, cap, used};
    return true;
}

bool qf_strmap_set(qf_strmap *map, const char *key, void *value)
{
    if (map->used * 4 >= map->cap * 3 && !rehash(map))
        return false;
    qf_strmap_slot *slot = find(map->slots, map->cap, key);
    if (!slot->key)
        map->used++;
    *slot = (qf_strmap_slot){key, value};
    return true;
}

void qf_strmap_release(qf_strmap *map)
{
    free(map->slots);
    *map = (qf_strmap){0};
}
