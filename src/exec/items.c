/* SPDX-License-Identifier: Apache-2.0 */
/* What a thread takes at a time: large pieces are split into items, small ones batched into one. */
#include "base/spill.h"
#include "exec/running.h"

enum { SMALL = 256 * 1024 }; /* bytes of output: below, a piece is batched with others */

/* Whether this process writes the piece; all that a piece writes to has one owner. */
static bool is_ours(const qf_running *r, qf_part p)
{
    qf_place places[QF_SLOTS];
    if (!r->work->owners)
        return true;
    qf_part_places(p, r->work->jobs, r->work->layout, places);
    for (int i = 0; i < QF_SLOTS; i++) {
        if (places[i].used)
            return r->work->owners[places[i].file] == r->work->shard;
    }
    return false;
}

/* Whether one thread makes the whole piece. */
static bool is_undivided(const qf_running *r, qf_part p)
{
    return r->work->journal || (p.kind == QF_PART_JOB && qf_job_two_pass(qf_piece_job(r, p)));
}

static bool add_item(qf_running *r, qf_item it)
{
    if (!qf_table_grow((void **)&r->items, &r->cap, r->count + 1, sizeof *r->items))
        return false;
    r->items[r->count++] = it;
    r->total += it.bytes;
    return true;
}

/* Splits a large piece at multiples of its blocks. */
static bool add_large(qf_running *r, uint32_t at, uint64_t bytes, uint64_t largest)
{
    uint64_t blocks = qf_piece_blocks(r, r->pieces[at]);
    uint64_t step = r->scale.out / (largest / blocks + 1) + 1;
    if (is_undivided(r, r->pieces[at]))
        step = blocks;
    for (uint64_t first = 0; first < blocks; first += step) {
        uint64_t n = blocks - first < step ? blocks - first : step;
        uint64_t share = bytes / blocks * n + (first + n == blocks ? bytes % blocks : 0);
        if (!add_item(r, (qf_item){first, n, share, at, 1}))
            return false;
    }
    return true;
}

bool qf_items_make(qf_running *r)
{
    qf_item batch = {0};
    uint64_t source = 0; /* of the batch */
    for (uint32_t i = 0; i < r->piece_count; i++) {
        qf_part p = r->pieces[i];
        uint64_t largest, bytes = qf_piece_bytes(r, p, &largest);
        /* a batch is pieces one behind the other */
        bool ours = is_ours(r, p);
        if (!ours && batch.pieces) {
            if (!add_item(r, batch))
                return false;
            batch = (qf_item){0};
            source = 0;
        }
        if (!ours)
            continue;
        uint64_t length = p.kind == QF_PART_LITERAL ? 0 : qf_piece_span(r, p)->length;
        bool small = p.kind == QF_PART_LITERAL || !qf_piece_blocks(r, p) ||
                     (largest < SMALL && length < 4 * SMALL);
        if (small) {
            source += length;
            if (!batch.pieces)
                batch.piece = i;
            batch.pieces++;
            batch.bytes += bytes;
        }
        if (batch.pieces && (!small || batch.bytes >= QF_ITEM_BYTES || source >= r->scale.step)) {
            if (!add_item(r, batch))
                return false;
            batch = (qf_item){0};
            source = 0;
        }
        if (!small && !add_large(r, i, bytes, largest))
            return false;
    }
    return !batch.pieces || add_item(r, batch);
}
