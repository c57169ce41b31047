/* SPDX-License-Identifier: Apache-2.0 */
/* What is wrong with the choice of weights as a whole. */
#include <stdio.h>
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

bool qf_is_grouped(const qf_checkpoint_plan *p, const qf_checkpoint_tensor *weight)
{
    return !p->scheme.group || weight->cols % p->scheme.group == 0;
}

qf_status qf_refuse_groups(const qf_checkpoint_plan *p, qf_error *err)
{
    enum { SHOWN = 4 };
    char names[700] = "";
    size_t at = 0, count = 0;
    for (size_t i = 0; i < p->info_count; i++) {
        const qf_checkpoint_tensor *t = &p->infos[i];
        if (!t->bits || qf_is_grouped(p, t) || count++ >= SHOWN)
            continue;
        at += (size_t)snprintf(names + at, sizeof names - at, "%s%.120s (%llu)", at ? ", " : "",
                               t->name, (unsigned long long)t->cols);
    }
    if (!count)
        return QF_OK;
    return qf_fail_at(err, QF_ERR_INPUT, (qf_where){.file = p->checkpoint->path},
                      "the columns of %zu chosen weight%s cannot be divided into groups of %llu: "
                      "%s%s; choose another group, or leave them out with --exclude",
                      count, count == 1 ? "" : "s", (unsigned long long)p->scheme.group, names,
                      count > SHOWN ? ", ..." : "");
}
