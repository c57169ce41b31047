/* SPDX-License-Identifier: Apache-2.0 */
#include "verify/subject.h"

#include <errno.h>
#include <libgen.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/spill.h"
#include "onnx/external.h"
#include "onnx/scan.h"
#include "verify/finding.h"

void qf_subject_note(const qf_subject *subject, const char *item, const char *format, ...)
{
    char message[900];
    va_list args;
    va_start(args, format);
    vsnprintf(message, sizeof message, format, args);
    va_end(args);
    qf_diag_add(subject->findings, QF_ERROR, (qf_where){.file = subject->path, .item = item}, "%s",
                message);
}

/* Input that is wrong is a finding; what is left is the caller's to report. */
static qf_status note(qf_subject *s, qf_status status, const qf_error *found, qf_error *err)
{
    if (status == QF_ERR_INPUT) {
        qf_note_error(s->findings, s->path, found);
        return QF_OK;
    }
    if (status != QF_OK && err)
        *err = *found;
    return status;
}

/* External data that cannot be read; its file is named from the folder that was given on. */
static void note_external(const qf_error *found, void *user)
{
    qf_subject *s = user;
    char file[PATH_MAX];
    size_t n = strlen(s->model.folder);
    const char *slash = strrchr(s->path, '/');
    const char *name = strncmp(found->file, s->model.folder, n) == 0 && found->file[n] == '/'
                           ? found->file + n + 1
                           : NULL;
    if (name)
        snprintf(file, sizeof file, "%.*s%s", slash ? (int)(slash - s->path) + 1 : 0, s->path,
                 name);
    qf_note_error(s->findings, name ? file : s->path, found);
}

static qf_status find_folder(qf_subject *s, const char *path, qf_error *err)
{
    char real[PATH_MAX];
    if (!realpath(path, real))
        return qf_fail_errno(err, path, errno, "cannot resolve the model's path");
    s->model.folder = strdup(dirname(real));
    return s->model.folder ? QF_OK : qf_fail_memory(err);
}

/* Scans and unpacks; `proto` stays NULL if that cannot be done. */
static qf_status read_graph(qf_subject *s, qf_error *err)
{
    unsigned char *skeleton = NULL;
    size_t length = 0;
    qf_status status = qf_scan(&s->model.files[0], &s->model.payloads, &skeleton, &length, err);
    if (status == QF_OK) {
        status = qf_skeleton_unpack(skeleton, length, s->path, &s->arena, &s->proto, err);
        if (status != QF_OK)
            s->proto = NULL;
    }
    qf_spill_free(skeleton);
    return status;
}

static qf_status start(qf_subject *s, const char *path, const char *role, qf_diagnostics *findings,
                       qf_error *err)
{
    *s = (qf_subject){.role = role, .findings = findings};
    qf_arena_init(&s->arena);
    s->path = qf_arena_strdup(&s->arena, path);
    bool room = qf_grow((void **)&s->model.files, &s->model.file_cap, 1, sizeof *s->model.files);
    return s->path && room ? QF_OK : qf_fail_memory(err);
}

/* Whether an export made the node. */
static bool is_made(const qf_node *node)
{
    const char *name = node->proto->name ? node->proto->name : "";
    return qf_node_is(node, "AscendQuant") || qf_node_is(node, "AscendDequant") ||
           qf_node_is(node, "BasicLSTMInplaceFillWindowCache") ||
           qf_node_is(node, "BasicGRUInplaceFillWindowCache") || strstr(name, ".fakequant.") ||
           strstr(name, ".fakedequant.") || qf_is_weight_only(node);
}

/* From the mapped file on. */
static qf_status finish(qf_subject *s, bool external, bool *readable, qf_error *err)
{
    qf_error found;
    qf_status status = note(s, read_graph(s, &found), &found, err);
    if (status == QF_OK && s->proto && external)
        status = qf_external_resolve_noting(&s->model, &s->arena, s->proto, note_external, s, err);
    if (status == QF_OK && s->proto)
        status = qf_ir_build_noting(&s->arena, s->proto, s->path, s->findings, &s->ir, err);
    *readable = status == QF_OK && s->proto;
    for (size_t i = 0; *readable && i < s->ir.node_count; i++)
        s->quantized |= is_made(s->ir.by_id[i]);
    return status;
}

qf_status qf_subject_open(const char *path, const char *role, qf_diagnostics *findings,
                          qf_subject *out, bool *readable, qf_error *err)
{
    *readable = false;
    qf_status status = start(out, path, role, findings, err);
    bool opened = false;
    if (status == QF_OK) {
        qf_error found;
        status = qf_file_open(path, role, &out->model.files[0], &found);
        opened = status == QF_OK;
        out->model.file_count = opened;
        status = note(out, status, &found, err);
    }
    if (opened)
        status = find_folder(out, path, err);
    if (opened && status == QF_OK)
        status = finish(out, true, readable, err);
    status = qf_files_check(out->model.files, out->model.file_count, status, err);
    *readable = *readable && status == QF_OK;
    if (!*readable)
        qf_subject_close(out);
    return status;
}

qf_status qf_subject_read(qf_file *file, const char *role, qf_diagnostics *findings,
                          qf_subject *out, bool *readable, qf_error *err)
{
    *readable = false;
    qf_status status = start(out, file->path, role, findings, err);
    if (status != QF_OK) {
        qf_file_close(file);
    } else {
        out->model.files[0] = *file;
        out->model.file_count = 1;
        *file = (qf_file){0};
        status = finish(out, false, readable, err);
    }
    if (!*readable)
        qf_subject_close(out);
    return status;
}

void qf_subject_close(qf_subject *s)
{
    for (size_t i = 0; i < s->model.file_count; i++)
        qf_file_close(&s->model.files[i]);
    free(s->model.files);
    free(s->model.folder);
    qf_payloads_release(&s->model.payloads);
    qf_ir_release(&s->ir);
    qf_arena_release(&s->arena);
    *s = (qf_subject){0};
}

const Onnx__TensorProto *qf_subject_constant(qf_value *value)
{
    return value ? qf_value_constant(value) : NULL;
}

const char *qf_subject_node_name(const qf_node *node)
{
    if (!node->graph)
        return node->name;
    if (node->proto->name && *node->proto->name)
        return node->proto->name;
    return node->proto->n_output && *node->proto->output[0] ? node->proto->output[0] : node->name;
}

bool qf_same_text(const char *a, const char *b)
{
    return strcmp(a ? a : "", b ? b : "") == 0;
}

const char *qf_external_entry(const Onnx__TensorProto *tensor, const char *key)
{
    for (size_t i = 0; i < tensor->n_external_data; i++) {
        const Onnx__StringStringEntryProto *e = tensor->external_data[i];
        if (e->key && e->value && strcmp(e->key, key) == 0)
            return e->value;
    }
    return NULL;
}

bool qf_is_name(const char *text, const char *start, const char *end)
{
    size_t n = strlen(start), m = strlen(end);
    if (strncmp(text, start, n) != 0 || strncmp(text + n, end, m) != 0)
        return false;
    text += n + m;
    return text[strspn(text, "0123456789")] == '\0';
}
