/* SPDX-License-Identifier: Apache-2.0 */
/* Whose the staging folder is, by its plan and its lock. What is there of this output is taken up
 * or shared; what is of another goes, unless somebody is writing it. */
#include <errno.h>
#include <string.h>
#include <sys/file.h>
#include <time.h>

#include "base/json.h"
#include "exec/outcome.h"

/* What the plan in the staging folder is to this run. */
typedef enum claim_state {
    CLAIM_FOREIGN,          /* another output's, or none */
    CLAIM_SHARED_OTHERWISE, /* of this output, among another number of shards */
    CLAIM_OURS,
} claim_state;

static qf_status read_claim(const qf_outcome *o, claim_state *state, qf_error *err)
{
    char hash[QF_HASH_TEXT];
    uint64_t shards;
    cJSON *plan;
    qf_status status = qf_staged_plan_read(&o->stage, &plan, err);
    qf_hash_text(&o->fingerprint, hash);
    const char *theirs =
        cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(plan, "fingerprint"));
    *state = CLAIM_FOREIGN;
    if (theirs && strcmp(theirs, hash) == 0)
        *state = qf_json_get_integer(plan, "shards", &shards) && shards == qf_outcome_shards(o)
                     ? CLAIM_OURS
                     : CLAIM_SHARED_OTHERWISE;
    cJSON_Delete(plan);
    return status;
}

/* Not as long as others who wait for the same. */
static void wait_a_little(void)
{
    enum { MOST = 40 * 1000 * 1000 };
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    t = (struct timespec){.tv_nsec = t.tv_nsec % MOST};
    nanosleep(&t, NULL);
}

/* Makes the plan this run's, alone in the folder. Of the same output among another number of
 * shards, only what says that they are done goes: files that one of them has written may be about
 * to be written again. */
static qf_status take_over(qf_outcome *o, claim_state state, qf_error *err)
{
    qf_status status = QF_OK;
    if (state == CLAIM_OURS)
        return QF_OK;
    if (state == CLAIM_SHARED_OTHERWISE)
        status = qf_journal_void(&o->stage, &o->fingerprint, o->piece_count, err);
    else if (!qf_stage_empty(&o->stage))
        status =
            qf_fail_errno(err, o->stage.partial, errno, "cannot clean up after an earlier run");
    return status == QF_OK ? qf_staged_plan_write(o, err) : status;
}

static qf_status fail_lock(const qf_stage *stage, qf_error *err)
{
    return qf_fail_errno(err, stage->partial, errno, "cannot lock the staging folder");
}

/* The staging folder becomes that of this output. What is there of another goes, unless somebody is
 * writing it: a shard tries for a while, for others may be about to do the same. It waits without a
 * lock: of shards that wait with one, none would ever get the folder for itself. */
static qf_status claim_shared(qf_outcome *o, qf_error *err)
{
    enum { TRIES = 500 };
    qf_stage *stage = &o->stage;
    for (int i = 0; i < TRIES; i++) {
        claim_state state;
        if (i > 0 && qf_stage_lock(stage->partial_fd, LOCK_SH | LOCK_NB) != 0) {
            if (errno != EWOULDBLOCK)
                return fail_lock(stage, err);
            wait_a_little();
            continue;
        }
        qf_status status = read_claim(o, &state, err);
        if (status != QF_OK || state == CLAIM_OURS)
            return status;
        if (qf_stage_lock(stage->partial_fd, LOCK_EX | LOCK_NB) == 0) {
            status = read_claim(o, &state, err);
            if (status == QF_OK)
                status = take_over(o, state, err);
            if (qf_stage_lock(stage->partial_fd, LOCK_SH) != 0 && status == QF_OK)
                status = fail_lock(stage, err);
            return status;
        }
        if (errno != EWOULDBLOCK)
            return fail_lock(stage, err);
        qf_stage_lock(stage->partial_fd, LOCK_UN);
        wait_a_little();
    }
    return qf_fail_at(err, QF_ERR_INPUT, (qf_where){.file = stage->partial},
                      "shards of another output, or of the same one from other inputs or in "
                      "another number, are being written to the same save path");
}

qf_status qf_outcome_claim(qf_outcome *o, qf_error *err)
{
    qf_status status;
    claim_state state;
    if (o->sharded) {
        status = claim_shared(o, err);
        o->stage.resumed = o->options->resume;
        return status;
    }
    if (!o->options->resume)
        return QF_OK;
    status = read_claim(o, &state, err);
    o->stage.resumed = status == QF_OK && state != CLAIM_FOREIGN;
    return status == QF_OK ? take_over(o, state, err) : status;
}

qf_status qf_outcome_find_whole(qf_outcome *o, bool *whole, qf_error *err)
{
    claim_state state = CLAIM_FOREIGN;
    bool asked = o->stage.recovered && o->options->resume && !o->sharded;
    qf_status status = asked ? read_claim(o, &state, err) : QF_OK;
    *whole = status == QF_OK && state != CLAIM_FOREIGN;
    if (*whole) {
        o->totals.bytes_kept = o->totals.bytes_written;
        o->stage.keep = false;
    }
    return status;
}
