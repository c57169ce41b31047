/* SPDX-License-Identifier: Apache-2.0 */
/* Pieces that are noted in the journal: what an earlier run has made is left as it is; of what is
 * made, hashes and statistics are taken. */
#include <string.h>
#include <sys/mman.h>

#include "base/memory.h"
#include "exec/running.h"

/* Whether an earlier run has written the piece and it is still what it was. */
static bool is_kept(const qf_running *r, size_t at, const qf_place places[QF_SLOTS])
{
    const qf_result *known = &r->work->journal->results[at];
    if (!known->known)
        return false;
    for (int i = 0; i < QF_SLOTS; i++) {
        qf_hash hash;
        if (places[i].used && (!qf_hash_staged(r->stage, &places[i], &hash) ||
                               memcmp(&hash, &known->hashes[i], sizeof hash) != 0))
            return false;
    }
    return true;
}

static bool add_pending(qf_worker *k, const qf_result *result, uint64_t bytes)
{
    if (!qf_grow((void **)&k->pending, &k->pending_cap, k->pending_count + 1, sizeof *result))
        return false;
    k->pending[k->pending_count++] = *result;
    k->pending_bytes += bytes;
    return true;
}

qf_status qf_pending_note(qf_worker *k, qf_error *err)
{
    qf_status status = QF_OK;
    for (size_t i = 0; status == QF_OK && i < k->pending_count; i++)
        status = qf_journal_add(k->run->work->journal, &k->pending[i], err);
    k->pending_count = 0;
    k->pending_bytes = 0;
    return status;
}

/* The hash of a copy's source, letting go of it behind. */
static qf_hash hash_source(qf_worker *k, qf_part p)
{
    const qf_copy *copy = qf_piece_copy(k->run, p);
    XXH3_state_t *state = k->hasher.slots[0].state;
    XXH3_128bits_reset(state);
    for (uint64_t at = 0; at < copy->length; at += QF_STEP_BYTES) {
        qf_range range = {at, qf_at_most(copy->length - at, QF_STEP_BYTES)};
        XXH3_128bits_update(state, copy->source.data + at, (size_t)range.length);
        qf_span_advise(k->run, &copy->source, range, MADV_DONTNEED);
    }
    return qf_hash_digest(state);
}

/* Hashes of what a piece has written. What did not go through in order is read back. */
static qf_status hash_piece(qf_worker *k, qf_part p, const qf_place places[QF_SLOTS],
                            qf_result *result, qf_error *err)
{
    const qf_running *r = k->run;
    const qf_literal *l = p.kind == QF_PART_LITERAL ? &r->work->layout->literals[p.index] : NULL;
    const qf_copy *copy = qf_piece_copy(r, p);
    qf_status status = QF_OK;
    for (int i = 0; i < QF_SLOTS && status == QF_OK; i++) {
        if (!places[i].used)
            continue;
        if (l)
            result->hashes[i] = qf_hash_of(l->data, l->length);
        else if (copy && !k->hasher.slots[i].used) /* moved inside the kernel */
            result->hashes[i] = hash_source(k, p);
        else if (!qf_hasher_end(&k->hasher, i, &result->hashes[i])) {
            status = qf_writer_flush(&k->writer, err);
            status = status == QF_OK ? qf_writer_finish(&k->writer, err) : status;
            if (status == QF_OK && !qf_hash_staged(r->stage, &places[i], &result->hashes[i]))
                status = qf_fail_at(err, QF_ERR_SYSTEM, (qf_where){.file = r->stage->partial},
                                    "what was written there cannot be read back");
        }
    }
    return status;
}

/* Begins the statistics of a weight, if they are wanted and the piece is one. */
static qf_status measure(qf_worker *k, qf_part p, qf_error *err)
{
    bool wanted = k->run->work->stats && p.kind == QF_PART_JOB && qf_piece_job(k->run, p)->bits;
    k->scratch.stats = wanted ? &k->stats : NULL;
    if (wanted && !qf_collector_begin(&k->stats, qf_piece_job(k->run, p)))
        return qf_fail_memory(err);
    return QF_OK;
}

qf_status qf_piece_run(qf_worker *k, uint32_t at, const qf_item *it, qf_error *err)
{
    qf_running *r = k->run;
    qf_part p = r->pieces[at];
    if (!r->work->journal)
        return qf_piece_make(k, p, it, err);
    qf_place places[QF_SLOTS];
    uint64_t largest, bytes = qf_piece_bytes(r, p, &largest);
    qf_part_places(p, r->work->jobs, r->work->layout, places);
    if (is_kept(r, at, places)) {
        atomic_fetch_add(&r->kept, bytes);
        return QF_OK;
    }
    qf_result result = {.piece = at};
    qf_hasher_begin(&k->hasher);
    k->errors = (qf_error_sums){.with_ends = r->work->stats};
    qf_status status = measure(k, p, err);
    if (status == QF_OK)
        status = qf_piece_make(k, p, it, err);
    if (status != QF_OK || qf_running_is_over(r))
        return status;
    result.signal = k->errors.signal;
    result.noise = k->errors.noise;
    result.max_error = k->errors.max_error;
    result.clipped = k->errors.clipped;
    if (k->scratch.stats) {
        qf_collector_end(&k->stats, &k->errors);
        result.stats = qf_journal_measure(r->work->journal, at, &k->stats.stats);
    }
    status = hash_piece(k, p, places, &result, err);
    if (status == QF_OK)
        status = qf_sources_check(r, err);
    if (status == QF_OK && !add_pending(k, &result, bytes))
        status = qf_fail_memory(err);
    return status;
}
