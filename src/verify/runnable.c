/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A runnable model beside its deploy model: it is planned anew of that, as verify --runnable would
 * write it, and compared with the file that is there. Nothing is written, and weights are read a
 * stretch at a time from both files, so that memory does not grow with them.
 *
 * Graphs are compared node by node and tensors byte by byte, not the files: a model that export
 * --emit runnable has made of the float model is as right, and may differ in what nothing is
 * calculated with, as does one with other options for external data.
 */
#include "verify/against.h"
#include "verify/finding.h"

/* One finding of all: the file is made anew, not mended. `wrong`: it is damaged, or there was one
 * to compare with. If not, it may be that of a float model, which tells more of its layers. */
static void note_other(const qf_runnable_check *check, bool wrong)
{
    const qf_diagnostics *list = check->found;
    size_t count = qf_diagnostics_errors(list), i = 0;
    if (!count)
        return;
    while (i + 1 < qf_diagnostics_count(list) && qf_diagnostics_at(list, i).severity != QF_ERROR)
        i++;
    qf_diagnostic first = qf_diagnostics_at(list, i);
    const qf_where where = {.file = check->path};
    const char *mark = *first.item ? ": " : "";
    if (!wrong)
        qf_diag_add(check->findings, QF_WARNING, where,
                    "no runnable model can be made of the deploy model beside it, so that this one "
                    "could not be compared (%s%s%s)",
                    first.item, mark, first.message);
    else
        qf_diag_add(check->findings, QF_ERROR, where,
                    "it is not the runnable model of the deploy model beside it, but damaged, or "
                    "of another export: 'quantfold verify %s --runnable' writes it anew; else "
                    "remove it (%zu difference%s, the first: %s%s%s)",
                    check->save_path, count, count == 1 ? "" : "s", first.item, mark,
                    first.message);
}

static qf_status compare(qf_against *a, const char *deploy, bool *made)
{
    qf_inputs inputs = {0};
    qf_plan *plan = NULL;
    bool exact;
    qf_error found;
    qf_status status = qf_model_open(deploy, &inputs.model, &found);
    *made = false;
    if (status == QF_ERR_INPUT) {
        qf_note_error(a->findings, deploy, &found);
        return QF_OK;
    }
    if (status != QF_OK && a->err)
        *a->err = found;
    if (status == QF_OK)
        status = qf_infer_plan(a, &inputs, &plan, &exact);
    *made = plan != NULL;
    if (status == QF_OK && plan)
        status = qf_compare_with_plan(a, plan, false);
    if (inputs.model)
        status = qf_files_check(inputs.model->files, inputs.model->file_count, status, a->err);
    qf_plan_free(plan);
    qf_model_close(inputs.model);
    return status;
}

qf_status qf_check_runnable(const qf_runnable_check *check, bool *done, qf_error *err)
{
    const qf_verify_options plain = {.threads = check->threads};
    const qf_manifest_inputs none = {0};
    qf_against a = {.options = &plain,
                    .prefix = check->save_path,
                    .found = {check->runnable},
                    .runnable = true,
                    .inputs = &none,
                    .findings = check->found,
                    .err = err};
    *done = true;
    bool damaged = qf_diagnostics_errors(check->found) > 0;
    qf_status status = check->runnable ? compare(&a, check->deploy, done) : QF_OK;
    if (status == QF_OK)
        note_other(check, damaged || *done);
    return status;
}
