/* SPDX-License-Identifier: Apache-2.0 */
#include "exec/hasher.h"

#include <stdlib.h>
#include <string.h>

#ifdef QF_XXHASH_DISPATCH
/* xxHash looks at the processor in its first call, which must not come from two threads at once. */
__attribute__((constructor)) static void choose_hash(void)
{
    (void)XXH3_64bits_dispatch("", 0);
}
#endif

bool qf_hasher_init(qf_hasher *hasher, qf_sink inner)
{
    *hasher = (qf_hasher){.inner = inner};
    bool ok = true;
    for (int i = 0; i < QF_SLOTS; i++)
        ok &= (hasher->slots[i].state = XXH3_createState()) != NULL;
    return ok;
}

void qf_hasher_release(qf_hasher *hasher)
{
    for (int i = 0; i < QF_SLOTS; i++)
        XXH3_freeState(hasher->slots[i].state);
    *hasher = (qf_hasher){0};
}

/* By the next request for a slot, the room of the last one is filled. */
static void take(qf_hash_slot *s)
{
    if (s->length)
        XXH3_128bits_update(s->state, s->at, s->length);
    s->length = 0;
}

static qf_status room(void *user, int slot, int file, uint64_t offset, size_t n, unsigned char **at,
                      qf_error *err)
{
    qf_hasher *h = user;
    qf_hash_slot *s = &h->slots[slot];
    take(s);
    s->broken |= s->used && (s->file != file || s->next != offset);
    qf_status status = h->inner.room(h->inner.user, slot, file, offset, n, at, err);
    if (status != QF_OK)
        return status;
    s->used = true;
    s->file = file;
    s->next = offset + n;
    s->at = *at;
    s->length = s->broken ? 0 : n;
    return QF_OK;
}

qf_sink qf_hasher_sink(qf_hasher *hasher)
{
    return (qf_sink){room, hasher};
}

void qf_hasher_begin(qf_hasher *hasher)
{
    for (int i = 0; i < QF_SLOTS; i++) {
        qf_hash_slot *s = &hasher->slots[i];
        XXH3_128bits_reset(s->state);
        s->used = s->broken = false;
        s->length = 0;
    }
}

bool qf_hasher_end(qf_hasher *hasher, int slot, qf_hash *out)
{
    qf_hash_slot *s = &hasher->slots[slot];
    take(s);
    if (!s->broken)
        *out = qf_hash_digest(s->state);
    return !s->broken;
}

bool qf_hash_staged(const qf_stage *stage, const qf_place *place, qf_hash *out)
{
    enum { STEP = 1024 * 1024 };
    XXH3_state_t *state = XXH3_createState();
    unsigned char *buffer = malloc(STEP);
    bool ok = state && buffer;
    if (ok)
        XXH3_128bits_reset(state);
    for (uint64_t done = 0; ok && done < place->length;) {
        size_t n = (size_t)qf_at_most(place->length - done, STEP);
        ok = qf_stage_read(stage, (size_t)place->file, place->offset + done, buffer, n);
        if (ok)
            XXH3_128bits_update(state, buffer, n);
        done += n;
    }
    if (ok)
        *out = qf_hash_digest(state);
    free(buffer);
    XXH3_freeState(state);
    return ok;
}
