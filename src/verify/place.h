/* SPDX-License-Identifier: Apache-2.0 */
/* Where the output that is looked at lies: what was given, as the save path that it is meant as,
 * and the models of that name. */
#ifndef QF_VERIFY_PLACE_H
#define QF_VERIFY_PLACE_H

#include "base/arena.h"
#include "base/diag.h"
#include "base/strmap.h"

enum { QF_PLACE_DEPLOY, QF_PLACE_FAKE_QUANT, QF_PLACE_MODELS }; /* as qf_target */

typedef struct qf_place {
    qf_arena arena; /* of the texts */
    const char *save_path, *folder, *prefix;
    const char *names[QF_PLACE_MODELS], *paths[QF_PLACE_MODELS]; /* of the models */
    bool exists[QF_PLACE_MODELS];
    const char *runnable_name, *runnable; /* the runnable model, and its path */
    bool runnable_exists;
} qf_place;

/* Unless models have the name that is given: a folder without a slash behind it is meant as one,
 * and a file that an export wrote stands for its save path, one of a checkpoint for its folder.
 * Release in any case. */
qf_status qf_place_find(const char *given, qf_place *out, qf_error *err);
/* Of a folder without models of its own: the save path of others in it; NULL if there is none. */
qf_status qf_place_suggest(qf_place *place, const char **save_path, qf_error *err);
void qf_place_release(qf_place *place);

/* Warns of external files that no model uses; `used`: names of those that one of the place does
 * (leftovers.c). */
qf_status qf_check_leftovers(qf_place *place, const qf_strmap *used, qf_diagnostics *findings,
                             qf_error *err);

/* Whether something of this path is there. Fails if that cannot be told. */
qf_status qf_exists(const char *path, bool *exists, qf_error *err);

#endif
