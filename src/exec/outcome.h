/* SPDX-License-Identifier: Apache-2.0 */
/* What the files share that bring an output from its plan into its place: output.c, which writes it
 * or a shard of it; claim.c and staged_plan.c, which keep it apart from others in the staging
 * folder; and commit.c, which brings its shards together. */
#ifndef QF_EXEC_OUTCOME_H
#define QF_EXEC_OUTCOME_H

#include "exec/journal.h"
#include "exec/output.h"
#include "exec/stage.h"

#define QF_STAGED_PLAN "plan.json"

typedef struct qf_outcome {
    const qf_output *output;
    const qf_run_options *options;
    bool sharded;
    bool kept; /* what is staged outlives a run that ends early */
    qf_part *pieces;
    size_t piece_count, weight_count;
    uint32_t *owners;
    qf_hash fingerprint;
    cJSON *manifest; /* template */
    qf_stage stage;
    bool staged;
    qf_journal journal;
    bool noted; /* there is a journal */
    qf_report_totals totals;
} qf_outcome;

/* ---- staged_plan.c ---- */

uint32_t qf_outcome_shards(const qf_outcome *o);
/* *plan is NULL if there is none or it is not sound. */
qf_status qf_staged_plan_read(const qf_stage *stage, cJSON **plan, qf_error *err);
/* Under a name of the process's own first, for other shards may be reading. */
qf_status qf_staged_plan_write(const qf_outcome *o, qf_error *err);

/* ---- claim.c ---- */

/* Makes what is in the staging folder this output's, and stage.resumed whether it is to be taken
 * up: what is another's goes. A run that is alone and does not resume has nothing to claim. */
qf_status qf_outcome_claim(qf_outcome *o, qf_error *err);
/* Whether the earlier run whose files have just been put in place was one of this very output. */
qf_status qf_outcome_find_whole(qf_outcome *o, bool *whole, qf_error *err);

#endif
