/* SPDX-License-Identifier: Apache-2.0 */
#include "base/strmap.h"

#include <string.h>
#include <xxhash.h>

#include "base/spill.h"

/* Never 0, which says that a slot is empty. */
static uint32_t hash_of(const char *key)
{
    uint32_t hash = (uint32_t)XXH3_64bits(key, strlen(key));
    return hash ? hash : 1;
}

/* The slot of the key, or the empty one where it would stand. */
static size_t find(const qf_strmap *map, const char *key, uint32_t hash)
{
    size_t i = hash & (map->cap - 1);
    while (map->hashes[i] && (map->hashes[i] != hash || strcmp(map->slots[i].key, key) != 0))
        i = (i + 1) & (map->cap - 1);
    return i;
}

void *qf_strmap_get(const qf_strmap *map, const char *key)
{
    if (!map->cap)
        return NULL;
    return map->slots[find(map, key, hash_of(key))].value;
}

/* Of keys that are all different. */
static void move_slots(const qf_strmap *from, qf_strmap *to)
{
    for (size_t i = 0; i < from->cap; i++) {
        if (!from->slots[i].value)
            continue;
        size_t at = from->hashes[i] & (to->cap - 1);
        while (to->hashes[at])
            at = (at + 1) & (to->cap - 1);
        to->hashes[at] = from->hashes[i];
        to->slots[at] = from->slots[i];
        to->used++;
    }
}

static bool rehash(qf_strmap *map)
{
    qf_strmap grown = {.cap = map->cap ? map->cap * 2 : 64};
    if (grown.cap > SIZE_MAX / 2 / sizeof *grown.slots)
        return false;
    grown.slots = qf_spill_alloc(grown.cap * (sizeof *grown.slots + sizeof *grown.hashes));
    if (!grown.slots)
        return false;
    grown.hashes = (uint32_t *)(void *)(grown.slots + grown.cap);
    move_slots(map, &grown);
    qf_spill_free(map->slots);
    *map = grown;
    return true;
}

/* The key's slot, made if there is none; NULL when memory is exhausted. */
static qf_strmap_slot *enter(qf_strmap *map, const char *key)
{
    if (map->used * 4 >= map->cap * 3 && !rehash(map))
        return NULL;
    uint32_t hash = hash_of(key);
    size_t i = find(map, key, hash);
    if (!map->hashes[i])
        map->used++;
    map->hashes[i] = hash;
    if (!map->slots[i].value)
        map->slots[i].key = key;
    return &map->slots[i];
}

bool qf_strmap_set(qf_strmap *map, const char *key, void *value)
{
    if (!value) { /* the slot keeps the key that it has: this one may not live as long */
        if (map->cap)
            map->slots[find(map, key, hash_of(key))].value = NULL;
        return true;
    }
    qf_strmap_slot *slot = enter(map, key);
    if (slot)
        *slot = (qf_strmap_slot){key, value};
    return slot != NULL;
}

void *qf_strmap_add(qf_strmap *map, const char *key, void *value)
{
    qf_strmap_slot *slot = enter(map, key);
    if (slot && !slot->value)
        slot->value = value;
    return slot ? slot->value : NULL;
}

void qf_strmap_drop(qf_strmap *map, const char *key, const void *value)
{
    if (!map->cap)
        return;
    qf_strmap_slot *slot = &map->slots[find(map, key, hash_of(key))];
    if (slot->value == value)
        slot->value = NULL;
}

void qf_strmap_release(qf_strmap *map)
{
    qf_spill_free(map->slots);
    *map = (qf_strmap){0};
}
