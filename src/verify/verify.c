/* SPDX-License-Identifier: Apache-2.0 */
/* The checks one behind the other. None ends at what it finds. */
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "exec/stage.h"
#include "verify/against.h"
#include "checkpoint/folder.h"
#include "verify/agree.h"
#include "verify/checkpoint.h"
#include "verify/structure.h"

/* Models that are looked at: those of the targets, then the runnable one. */
enum { RUNNABLE = QF_TARGETS, MODELS };

typedef struct verifier {
    const qf_verify_options *options;
    qf_diagnostics *findings;
    qf_verify_result *result;
    qf_arena arena;
    qf_place place;
    bool checkable; /* there is something whose inside is looked at */
    bool open[MODELS], walkable[MODELS], sound[MODELS];
    qf_subject subjects[MODELS];
    qf_diagnostics *aside;     /* what is wrong with a runnable model beside its deploy model */
    qf_manifest_files used;    /* locations of external data, */
    size_t used_by_targets;    /* those of the runnable model alone behind so many */
    qf_manifest_inputs inputs; /* that the manifest names */
    qf_diag_mark mark;
    qf_error *err;
} verifier;

_Static_assert((int)QF_PLACE_DEPLOY == (int)QF_DEPLOY && (int)QF_PLACE_MODELS == (int)QF_TARGETS,
               "models are numbered alike");

static const char *const roles[MODELS] = {"deploy model", "fake_quant model", "runnable model"};

static void warn(verifier *v, const char *file, const char *text)
{
    qf_diag_add(v->findings, QF_WARNING, (qf_where){.file = file}, "%s", text);
}

/* Ends a check: what was found since the last one is its. */
static void end_check(verifier *v, qf_verify_check check)
{
    qf_diag_mark now = qf_diag_now(v->findings);
    v->result->errors[check] = now.errors - v->mark.errors;
    for (int c = (int)check; c < QF_VERIFY_CHECKS; c++)
        v->result->listed[c] = now.count;
    v->mark = now;
}

/* ---- structure ---- */

/* What holds of any model. */
static qf_status open_model(verifier *v, int t, const char *path, qf_diagnostics *findings)
{
    qf_subject *s = &v->subjects[t];
    qf_diag_mark before = qf_diag_now(findings);
    qf_status status = qf_subject_open(path, roles[t], findings, s, &v->open[t], v->err);
    if (status != QF_OK || !v->open[t])
        return status;
    v->result->models++;
    status = qf_check_tensors(s, &v->result->tensors, v->err);
    if (status == QF_OK)
        status = qf_check_graph(s, &v->walkable[t], v->err);
    v->sound[t] = qf_diag_now(findings).errors == before.errors;
    return status;
}

static qf_status check_model(verifier *v, int t)
{
    qf_subject *s = &v->subjects[t];
    uint64_t layers = 0, alone = 0;
    qf_diag_mark before = qf_diag_now(v->findings);
    qf_status status = open_model(v, t, v->place.paths[t], v->findings);
    if (status != QF_OK || !v->walkable[t])
        return status;
    status = t == QF_DEPLOY ? qf_check_deploy(s, &layers, v->err)
                            : qf_check_fake_quant(s, &layers, v->err);
    if (status == QF_OK)
        status = qf_check_weight_only(s, &alone, v->err);
    if (t == QF_DEPLOY || !v->open[QF_DEPLOY])
        v->result->layers = layers + alone;
    if (status == QF_OK && !s->quantized)
        warn(v, v->place.paths[t], "no layer of the model is quantized");
    v->sound[t] = qf_diag_now(v->findings).errors == before.errors;
    return status;
}

/* One that will be written anew is not looked at. Beside a deploy model, whatever is wrong with it
 * comes to the same: it is not what is made of that. */
static qf_status check_runnable_alone(verifier *v)
{
    if (!v->place.runnable_exists || v->options->skip_runnable)
        return QF_OK;
    bool beside = v->place.exists[QF_DEPLOY];
    if (beside && !v->aside)
        v->aside = qf_diagnostics_create();
    if (beside && !v->aside)
        return qf_fail_memory(v->err);
    return open_model(v, RUNNABLE, v->place.runnable, beside ? v->aside : v->findings);
}

static bool has_models(const verifier *v)
{
    return v->place.exists[QF_DEPLOY] || v->place.exists[QF_FAKE_QUANT];
}

static qf_status note_missing(verifier *v)
{
    const char *other;
    qf_status status = qf_place_suggest(&v->place, &other, v->err);
    if (status == QF_OK)
        qf_diag_add(v->findings, QF_ERROR, (qf_where){.file = v->options->prefix},
                    "there is neither %s nor %s, and no exported checkpoint; give the export's "
                    "--save-path%s%s%s",
                    v->place.paths[QF_DEPLOY], v->place.paths[QF_FAKE_QUANT],
                    other ? ", such as '" : "", other ? other : "", other ? "'" : "");
    return status;
}

/* Whether each model that is there could be read, so that all external files that they use are
 * known. */
static bool all_are_open(const verifier *v)
{
    bool open = v->open[RUNNABLE] == v->place.runnable_exists;
    for (int t = 0; t < QF_TARGETS; t++)
        open = open && v->open[t] == v->place.exists[t];
    return open;
}

static qf_status list_location(Onnx__TensorProto *tensor, void *user)
{
    verifier *v = user;
    const char *location = qf_external_entry(tensor, "location");
    bool external = tensor->has_data_location && tensor->data_location == 1 && location;
    bool memory = !external || qf_manifest_files_add(&v->used, location);
    return memory ? QF_OK : qf_fail_memory(v->err);
}

static qf_status check_used(verifier *v)
{
    qf_status status = QF_OK;
    for (int t = 0; status == QF_OK && t < MODELS; t++) {
        if (t == RUNNABLE)
            v->used_by_targets = v->used.count;
        if (v->open[t])
            status = qf_model_each_tensor(v->subjects[t].proto, list_location, v);
    }
    if (status == QF_OK && v->result->models && all_are_open(v))
        status = qf_check_leftovers(&v->place, &v->used.seen, v->findings, v->err);
    return status;
}

static qf_status check_structure(verifier *v)
{
    char name[NAME_MAX + 1];
    bool unfinished = false;
    qf_stage_name(v->place.prefix, name);
    char *partial = qf_arena_printf(&v->arena, "%s/%s", v->place.folder, name);
    qf_status status = partial ? qf_exists(partial, &unfinished, v->err) : qf_fail_memory(v->err);
    for (int t = 0; status == QF_OK && t < QF_TARGETS; t++) {
        if (v->place.exists[t])
            status = check_model(v, t);
    }
    if (status == QF_OK)
        status = check_runnable_alone(v);
    v->result->done[QF_VERIFY_STRUCTURE] = v->result->models > 0;
    v->checkable = has_models(v) || v->place.runnable_exists;
    if (status == QF_OK && !v->checkable)
        status = note_missing(v);
    if (status == QF_OK)
        status = check_used(v);
    if (unfinished)
        warn(v, partial, "an export to this path was not finished; run it again");
    end_check(v, QF_VERIFY_STRUCTURE);
    return status;
}

/* ---- agreement ---- */

static qf_status check_agreement(verifier *v)
{
    qf_status status = QF_OK;
    if (v->walkable[QF_DEPLOY] && v->walkable[QF_FAKE_QUANT]) {
        v->result->done[QF_VERIFY_AGREEMENT] = true;
        qf_agreement layers;
        status = qf_agree(&v->subjects[QF_DEPLOY], &v->subjects[QF_FAKE_QUANT], &layers, v->err);
        v->result->agreeing = layers.compared;
        v->result->apart = layers.skipped;
    } else if (v->place.exists[QF_DEPLOY] != v->place.exists[QF_FAKE_QUANT]) {
        int missing = v->place.exists[QF_DEPLOY];
        qf_diag_add(v->findings, QF_WARNING, (qf_where){.file = v->place.paths[missing]},
                    "there is no %s, so that weights, biases and scales could not be compared "
                    "between the two models",
                    roles[missing]);
    } else if (v->place.exists[QF_DEPLOY]) {
        warn(v, v->place.paths[v->walkable[QF_DEPLOY] ? QF_FAKE_QUANT : QF_DEPLOY],
             "a model could not be read, or has a cycle, so that the two were not "
             "compared");
    }
    end_check(v, QF_VERIFY_AGREEMENT);
    return status;
}

/* ---- manifest ---- */

static qf_status check_hashes(verifier *v, const char *name, const qf_manifest_files *present)
{
    bool *done = &v->result->done[QF_VERIFY_MANIFEST];
    qf_status status = qf_check_manifest(v->place.folder, name, present, v->findings, done,
                                         &v->result->hashed, &v->inputs, v->err);
    char *path = qf_arena_printf(&v->arena, "%s/%s", v->place.folder, name);
    if (!path)
        return qf_fail_memory(v->err);
    if (status == QF_OK && !*done && v->checkable)
        warn(v, path,
             "there is no manifest, so that the files' bytes were not compared with what was "
             "written (--manifest at the export)");
    end_check(v, QF_VERIFY_MANIFEST);
    return status;
}

/* A manifest of the others does not name a runnable model that was made of them later. */
static qf_status check_manifest(verifier *v)
{
    qf_manifest_files present = {0};
    char *name = qf_arena_printf(&v->arena, "%s%smanifest.json", v->place.prefix,
                                 *v->place.prefix ? "." : "");
    bool memory = name != NULL, alone = !has_models(v);
    if (alone && v->place.runnable_exists)
        memory = memory && qf_manifest_files_add(&present, v->place.runnable_name);
    for (int t = 0; t < QF_TARGETS; t++) {
        if (v->place.exists[t])
            memory = memory && qf_manifest_files_add(&present, v->place.names[t]);
    }
    for (size_t i = 0; i < (alone ? v->used.count : v->used_by_targets); i++)
        memory = memory && qf_manifest_files_add(&present, v->used.names[i]);
    qf_status status = memory ? check_hashes(v, name, &present) : qf_fail_memory(v->err);
    qf_manifest_files_release(&present);
    return status;
}

/* ---- against the source ---- */

static qf_status check_against(verifier *v)
{
    qf_status status = QF_OK;
    if (v->options->model && v->result->models) {
        qf_against a = {.options = v->options,
                        .prefix = v->place.save_path,
                        .inputs = &v->inputs,
                        .findings = v->findings,
                        .err = v->err};
        for (int t = 0; t < QF_TARGETS; t++)
            a.found[t] = v->walkable[t] ? &v->subjects[t] : NULL;
        v->result->done[QF_VERIFY_AGAINST] = a.found[0] || a.found[1];
        if (v->result->done[QF_VERIFY_AGAINST])
            status = qf_check_against(&a);
        v->result->recomputed = a.bytes;
    }
    end_check(v, QF_VERIFY_AGAINST);
    return status;
}

/* ---- the runnable model ---- */

static qf_status check_runnable(verifier *v)
{
    qf_status status = QF_OK;
    bool there = v->place.runnable_exists && !v->options->skip_runnable;
    const qf_runnable_check check = {.save_path = v->place.save_path,
                                     .path = v->place.runnable,
                                     .deploy = v->place.paths[QF_DEPLOY],
                                     .runnable =
                                         v->walkable[RUNNABLE] ? &v->subjects[RUNNABLE] : NULL,
                                     .found = v->aside,
                                     .findings = v->findings,
                                     .threads = v->options->threads};
    if (there && !v->place.exists[QF_DEPLOY]) {
        warn(v, v->place.runnable,
             "there is no deploy model beside the runnable model, so that it could not be compared "
             "with what is made of one");
    } else if (there && v->walkable[RUNNABLE] && !v->sound[QF_DEPLOY]) {
        warn(v, v->place.runnable,
             "the deploy model is not sound, so that the runnable model was not compared with what "
             "is made of it");
    } else if (there) {
        status = qf_check_runnable(&check, &v->result->done[QF_VERIFY_RUNNABLE], v->err);
    }
    end_check(v, QF_VERIFY_RUNNABLE);
    return status;
}

/* ---- checkpoints ---- */

static qf_status check_checkpoint(verifier *v)
{
    qf_manifest_files present = {0};
    if (v->options->model)
        return qf_fail_at(v->err, QF_ERR_USAGE, (qf_where){.file = v->place.folder},
                          "this is an exported checkpoint, whose payloads are not recomputed; look "
                          "at it without --against, or with the manifest that checkpoint "
                          "--manifest writes");
    v->checkable = true;
    qf_status status = qf_check_checkpoint(&v->place, v->findings, v->result, v->err);
    v->result->done[QF_VERIFY_STRUCTURE] = true;
    end_check(v, QF_VERIFY_STRUCTURE);
    end_check(v, QF_VERIFY_AGREEMENT);
    if (status == QF_OK)
        status = qf_list_shards(&v->place, &present, v->err);
    if (status == QF_OK)
        status = check_hashes(v, QF_MANIFEST_NAME, &present);
    end_check(v, QF_VERIFY_AGAINST);
    end_check(v, QF_VERIFY_RUNNABLE);
    qf_manifest_files_release(&present);
    return status;
}

/* ---- the whole ---- */

void qf_verify_options_init_sized(qf_verify_options *options, size_t size)
{
    qf_verify_options defaults = {.struct_size = size};
    if (size > sizeof defaults)
        memset((char *)options + sizeof defaults, 0, size - sizeof defaults);
    memcpy(options, &defaults, size < sizeof defaults ? size : sizeof defaults);
}

static qf_status run(verifier *v)
{
    qf_status status = qf_place_find(v->options->prefix, &v->place, v->err);
    bool checkpoint = false;
    if (status == QF_OK)
        status = qf_is_checkpoint(&v->place, &checkpoint, v->err);
    if (status != QF_OK || checkpoint)
        return status == QF_OK ? check_checkpoint(v) : status;
    status = check_structure(v);
    if (status == QF_OK)
        status = check_agreement(v);
    if (status == QF_OK)
        status = check_manifest(v);
    if (status == QF_OK)
        status = check_against(v);
    if (status == QF_OK)
        status = check_runnable(v);
    for (int t = 0; t < MODELS; t++) {
        const qf_model *m = &v->subjects[t].model;
        if (v->open[t])
            status = qf_files_check(m->files, m->file_count, status, v->err);
    }
    return status;
}

qf_status qf_verify(const qf_verify_options *options, qf_diagnostics *diagnostics,
                    qf_verify_result *out, qf_error *err)
{
    qf_verify_options read;
    qf_verify_result result = {0};
    if (!options || options->struct_size < sizeof(size_t) + sizeof(char *) || !diagnostics || !out)
        return qf_fail(err, QF_ERR_USAGE,
                       "qf_verify takes options of qf_verify_options_init, a list of findings and "
                       "a result");
    qf_verify_options_init(&read);
    memcpy(&read, options, options->struct_size < sizeof read ? options->struct_size : sizeof read);
    if (!read.prefix || read.threads < 0 || read.threads > 1024)
        return qf_fail(err, QF_ERR_USAGE, "no prefix is given, or threads is out of range");
    verifier v = {.options = &read,
                  .findings = diagnostics,
                  .result = &result,
                  .mark = qf_diag_now(diagnostics),
                  .err = err};
    qf_diag_mark before = v.mark;
    qf_arena_init(&v.arena);
    qf_status status = run(&v);
    if (status == QF_ERR_INPUT) /* a file was changed meanwhile: what was seen counts for nothing */
        qf_diag_cut(diagnostics, before);
    for (int t = 0; t < MODELS; t++) {
        if (v.open[t])
            qf_subject_close(&v.subjects[t]);
    }
    qf_diagnostics_free(v.aside);
    qf_manifest_files_release(&v.used);
    qf_place_release(&v.place);
    qf_arena_release(&v.arena);
    if (status == QF_OK)
        *out = result;
    return status;
}
