/* SPDX-License-Identifier: Apache-2.0 */
/* An output against what an export from these inputs would write. */
#ifndef QF_VERIFY_AGAINST_H
#define QF_VERIFY_AGAINST_H

#include "quant/plan.h"
#include "verify/manifest.h"
#include "verify/subject.h"

typedef struct qf_against {
    const qf_verify_options *options;
    const char *prefix;               /* the save path */
    qf_subject *found[QF_TARGETS];    /* NULL: it is not there, or cannot be read */
    bool runnable;                    /* found[QF_DEPLOY] is a runnable model, the deploy model its
                                         source */
    const qf_manifest_inputs *inputs; /* that the manifest names */
    qf_diagnostics *findings;
    uint64_t bytes; /* recomputed */
    qf_error *err;
} qf_against;

/* Plans anew, and compares graphs and every payload; nothing is written. */
qf_status qf_check_against(qf_against *against);

/* A runnable model, and the deploy model beside it (runnable.c). */
typedef struct qf_runnable_check {
    const char *save_path, *path, *deploy; /* paths of the two models */
    qf_subject *runnable;                  /* its findings are `found`; NULL: it cannot be walked */
    qf_diagnostics *found;                 /* what is wrong with it, one by one */
    qf_diagnostics *findings;
    int threads;
} qf_runnable_check;
/* Whether the one is what would be made of the other, as one finding. *done: that can be told. */
qf_status qf_check_runnable(const qf_runnable_check *check, bool *done, qf_error *err);

/* ---- between their files ---- */

/* against.c: the models that are there with those of the plan. `exact`: byte by byte at last. */
qf_status qf_compare_with_plan(qf_against *against, qf_plan *plan, bool exact);

/* infer.c: the plan whose files are most like those that are there, and whether they are the same
 * files, of the same lengths. Inputs that are wrong are findings, and *out is then NULL. */
typedef struct qf_inputs {
    qf_model *model;
    qf_record *record;
    qf_config *config;
} qf_inputs;
qf_status qf_infer_plan(qf_against *against, const qf_inputs *inputs, qf_plan **out, bool *exact);

/* recompute.c: what is compared with the result of the plan's jobs. */
typedef struct qf_claim {
    int file; /* of the layout, where the plan puts it */
    uint64_t offset, length;
    qf_target target;
    const Onnx__TensorProto *tensor; /* as found */
    struct qf_reading *reading;
    uint64_t differs; /* first byte that does; UINT64_MAX: none so far */
    unsigned char wanted[8], got[8];
} qf_claim;
typedef struct qf_claims {
    qf_claim *items;
    size_t count, cap;
} qf_claims;
/* Runs the jobs on all cores and compares; claims are sorted, and those that differ say where. */
qf_status qf_recompute(qf_against *against, qf_plan *plan, qf_claims *claims);

#endif
