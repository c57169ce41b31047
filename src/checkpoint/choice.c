/* SPDX-License-Identifier: Apache-2.0 */
/* What is wrong with the choice of weights as a whole. */
#include <string.h>

#include "checkpoint/plan.h"

/* Why the most of the matrices stay float, and how many; NULL if there is no matrix. */
static const char *commonest_reason(const qf_checkpoint_plan *p, size_t *most, size_t *matrices)
{
    enum { REASONS_MOST = 16 }; /* selection.c has fewer */
    const char *reasons[REASONS_MOST], *best = NULL;
    size_t counts[REASONS_MOST] = {0}, n = 0;
    *most = *matrices = 0;
    for (size_t i = 0; i < p->info_count; i++) {
        size_t k = 0;
        if (!p->infos[i].reason)
            continue;
        while (k < n && strcmp(reasons[k], p->infos[i].reason) != 0)
            k++;
        if (k == n && n < REASONS_MOST)
            reasons[n++] = p->infos[i].reason;
        if (k < n && ++counts[k] > *most) {
            *most = counts[k];
            best = reasons[k];
        }
        ++*matrices;
    }
    return best;
}

qf_status qf_refuse_unchosen(const qf_checkpoint_plan *p, qf_error *err)
{
    size_t most, matrices;
    const char *reason = commonest_reason(p, &most, &matrices);
    if (!reason)
        return qf_fail_at(err, QF_ERR_INPUT, (qf_where){.file = p->checkpoint->path},
                          "no weight is chosen: none of the %zu tensors is a linear weight, which "
                          "is a two-dimensional float tensor named '<module>.weight'",
                          p->checkpoint->tensors.count);
    return qf_fail_at(err, QF_ERR_INPUT, (qf_where){.file = p->checkpoint->path},
                      "no weight is chosen: of %zu weight matrices, %zu stay float because: %s; "
                      "--include and --exclude choose others",
                      matrices, most, reason);
}
