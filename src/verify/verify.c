/* SPDX-License-Identifier: Apache-2.0 */
/* The checks one behind the other. None ends at what it finds. */
#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "exec/stage.h"
#include "verify/against.h"
#include "verify/agree.h"
#include "verify/manifest.h"
#include "verify/place.h"
#include "verify/structure.h"

#define CHECKPOINT_MANIFEST "quantfold.manifest.json"

typedef struct verifier {
    const qf_verify_options *options;
    qf_diagnostics *findings;
    qf_verify_result *result;
    qf_arena arena;
    qf_place place;
    bool checkable; /* there is something whose inside is looked at */
    bool open[QF_TARGETS], walkable[QF_TARGETS];
    qf_subject subjects[QF_TARGETS];
    qf_manifest_inputs inputs; /* that the manifest names */
    qf_diag_mark mark;
    qf_error *err;
} verifier;

_Static_assert((int)QF_PLACE_DEPLOY == (int)QF_DEPLOY && (int)QF_PLACE_MODELS == (int)QF_TARGETS,
               "models are numbered alike");

static const char *const roles[QF_TARGETS] = {"deploy model", "fake_quant model"};

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

static qf_status check_model(verifier *v, int t)
{
    qf_subject *s = &v->subjects[t];
    uint64_t layers = 0, alone = 0;
    qf_status status =
        qf_subject_open(v->place.paths[t], roles[t], v->findings, s, &v->open[t], v->err);
    if (status != QF_OK || !v->open[t])
        return status;
    v->result->models++;
    status = qf_check_tensors(s, &v->result->tensors, v->err);
    if (status == QF_OK)
        status = qf_check_graph(s, &v->walkable[t], v->err);
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
    return status;
}

static bool has_models(const verifier *v)
{
    return v->place.exists[QF_DEPLOY] || v->place.exists[QF_FAKE_QUANT];
}

static qf_status note_missing(verifier *v)
{
    const char *other;
    if (v->place.runnable_exists) {
        warn(v, v->place.runnable,
             "a runnable model alone is not looked into; its bytes are compared with a manifest's");
        return QF_OK;
    }
    qf_status status = qf_place_suggest(&v->place, &other, v->err);
    if (status == QF_OK)
        qf_diag_add(v->findings, QF_ERROR, (qf_where){.file = v->options->prefix},
                    "there is neither %s nor %s, and no exported checkpoint; give the export's "
                    "--save-path%s%s%s",
                    v->place.paths[QF_DEPLOY], v->place.paths[QF_FAKE_QUANT],
                    other ? ", such as '" : "", other ? other : "", other ? "'" : "");
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
    v->result->done[QF_VERIFY_STRUCTURE] = v->result->models > 0;
    v->checkable = has_models(v);
    if (status == QF_OK && !v->checkable)
        status = note_missing(v);
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
        status = qf_agree(&v->subjects[QF_DEPLOY], &v->subjects[QF_FAKE_QUANT],
                          &v->result->agreeing, v->err);
    } else if (v->place.exists[QF_DEPLOY] != v->place.exists[QF_FAKE_QUANT]) {
        int missing = v->place.exists[QF_DEPLOY];
        qf_diag_add(v->findings, QF_WARNING, (qf_where){.file = v->place.paths[missing]},
                    "there is no %s, so that weights, biases and scales could not be compared "
                    "between the two models",
                    roles[missing]);
    } else if (v->place.exists[QF_DEPLOY]) {
        warn(v, NULL,
             "a model could not be read, or has a cycle, so that the two were not "
             "compared");
    }
    end_check(v, QF_VERIFY_AGREEMENT);
    return status;
}

/* ---- manifest ---- */

typedef struct listing {
    qf_manifest_files *files;
    bool memory;
} listing;

static qf_status list_location(Onnx__TensorProto *tensor, void *user)
{
    listing *l = user;
    bool external = tensor->has_data_location && tensor->data_location == 1;
    for (size_t i = 0; external && i < tensor->n_external_data; i++) {
        const Onnx__StringStringEntryProto *e = tensor->external_data[i];
        if (e->key && e->value && strcmp(e->key, "location") == 0)
            l->memory = l->memory && qf_manifest_files_add(l->files, e->value);
    }
    return QF_OK;
}

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
    else if (status == QF_OK && !*done && v->place.runnable_exists)
        qf_diag_add(v->findings, QF_ERROR, (qf_where){.file = path},
                    "there is no manifest, so that nothing is known of the runnable model "
                    "(--manifest at the export)");
    end_check(v, QF_VERIFY_MANIFEST);
    return status;
}

static qf_status check_manifest(verifier *v)
{
    qf_manifest_files present = {0};
    listing l = {.files = &present, .memory = true};
    char *name = qf_arena_printf(&v->arena, "%s%smanifest.json", v->place.prefix,
                                 *v->place.prefix ? "." : "");
    if (!has_models(v) && v->place.runnable_exists)
        l.memory = qf_manifest_files_add(&present, v->place.runnable_name);
    for (int t = 0; name && l.memory && t < QF_TARGETS; t++) {
        if (v->place.exists[t])
            l.memory = qf_manifest_files_add(&present, v->place.names[t]);
        if (v->open[t] && l.memory)
            qf_model_each_tensor(v->subjects[t].proto, list_location, &l);
    }
    qf_status status = name && l.memory ? check_hashes(v, name, &present) : qf_fail_memory(v->err);
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

/* ---- checkpoints ---- */

static qf_status is_checkpoint(verifier *v, bool *found)
{
    static const char *const marks[] = {CHECKPOINT_MANIFEST, "model.safetensors.index.json",
                                        "model.safetensors"};
    qf_status status = QF_OK;
    *found = false;
    if (has_models(v) || *v->place.prefix)
        return QF_OK;
    for (size_t i = 0; status == QF_OK && i < sizeof marks / sizeof *marks && !*found; i++) {
        const char *path = qf_arena_printf(&v->arena, "%s/%s", v->place.folder, marks[i]);
        status = path ? qf_exists(path, found, v->err) : qf_fail_memory(v->err);
    }
    return status;
}

/* Names of the shards that lie in the folder. */
static qf_status list_shards(verifier *v, qf_manifest_files *files)
{
    DIR *dir = opendir(v->place.folder);
    bool memory = true;
    if (!dir)
        return qf_fail_errno(v->err, v->place.folder, errno, "cannot list the folder");
    for (struct dirent *e; memory && (errno = 0, e = readdir(dir));) {
        if (!qf_ends_with(e->d_name, ".safetensors") &&
            strcmp(e->d_name, "model.safetensors.index.json") != 0)
            continue;
        char *name = qf_arena_strdup(&v->arena, e->d_name);
        memory = name && qf_manifest_files_add(files, name);
    }
    int e = memory ? errno : 0;
    closedir(dir);
    if (e)
        return qf_fail_errno(v->err, v->place.folder, e, "cannot list the folder");
    return memory ? QF_OK : qf_fail_memory(v->err);
}

static qf_status check_checkpoint(verifier *v)
{
    qf_checkpoint *checkpoint = NULL;
    qf_manifest_files present = {0};
    qf_error err;
    qf_status status = qf_checkpoint_open(v->place.folder, &checkpoint, &err);
    if (status == QF_ERR_INPUT) {
        qf_diagnostics_add_error(v->findings, &err);
        status = QF_OK;
    } else if (status != QF_OK && v->err) {
        *v->err = err;
    }
    v->checkable = true;
    v->result->models = checkpoint != NULL;
    v->result->done[QF_VERIFY_STRUCTURE] = true;
    qf_checkpoint_close(checkpoint);
    end_check(v, QF_VERIFY_STRUCTURE);
    end_check(v, QF_VERIFY_AGREEMENT);
    if (status != QF_OK)
        return status;
    status = list_shards(v, &present);
    if (status == QF_OK)
        status = check_hashes(v, CHECKPOINT_MANIFEST, &present);
    if (v->options->model)
        warn(v, NULL, "payloads of checkpoints are not recomputed");
    end_check(v, QF_VERIFY_AGAINST);
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
        status = is_checkpoint(v, &checkpoint);
    if (status != QF_OK || checkpoint)
        return status == QF_OK ? check_checkpoint(v) : status;
    status = check_structure(v);
    if (status == QF_OK)
        status = check_agreement(v);
    if (status == QF_OK)
        status = check_manifest(v);
    if (status == QF_OK)
        status = check_against(v);
    for (int t = 0; t < QF_TARGETS; t++) {
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
    for (int t = 0; t < QF_TARGETS; t++) {
        if (v.open[t])
            qf_subject_close(&v.subjects[t]);
    }
    qf_place_release(&v.place);
    qf_arena_release(&v.arena);
    if (status == QF_OK)
        *out = result;
    return status;
}
