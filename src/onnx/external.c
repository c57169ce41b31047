/* SPDX-License-Identifier: Apache-2.0 */
#include "onnx/external.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/error.h"
#include "base/strmap.h"

typedef struct resolver {
    qf_model *model;
    qf_arena *arena;
    qf_strmap by_location; /* location -> index of the file + 1 */
    qf_refused_fn note;    /* NULL: what is refused ends it */
    void *user;
    qf_error *err;
} resolver;

typedef struct external_entry {
    const char *location;
    uint64_t offset, length;
    bool has_length;
} external_entry;

static qf_status refuse(resolver *r, const Onnx__TensorProto *tensor, const char *format,
                        const char *detail)
{
    return qf_fail_at(r->err, QF_ERR_INPUT,
                      (qf_where){.file = r->model->files[0].path,
                                 .item = tensor->name ? tensor->name : "(unnamed tensor)"},
                      format, detail);
}

/* Digits only: no sign, no space, no overflow. */
static bool parse_u64(const char *text, uint64_t *out)
{
    uint64_t v = 0;
    if (!*text)
        return false;
    for (; *text; text++) {
        if (*text < '0' || *text > '9' || v > (UINT64_MAX - 9) / 10)
            return false;
        v = v * 10 + (uint64_t)(*text - '0');
    }
    *out = v;
    return true;
}

static qf_status read_entry(resolver *r, const Onnx__TensorProto *tensor, external_entry *entry)
{
    *entry = (external_entry){0};
    for (size_t i = 0; i < tensor->n_external_data; i++) {
        const Onnx__StringStringEntryProto *e = tensor->external_data[i];
        const char *key = e->key ? e->key : "", *value = e->value ? e->value : "";
        if (strcmp(key, "location") == 0) {
            entry->location = value;
        } else if (strcmp(key, "offset") == 0) {
            if (!parse_u64(value, &entry->offset))
                return refuse(r, tensor, "external_data offset '%s' is not a byte count", value);
        } else if (strcmp(key, "length") == 0) {
            if (!parse_u64(value, &entry->length))
                return refuse(r, tensor, "external_data length '%s' is not a byte count", value);
            entry->has_length = true;
        }
    }
    if (!entry->location || !*entry->location)
        return refuse(r, tensor, "%s", "the tensor is external but names no location");
    return QF_OK;
}

static bool has_parent_component(const char *path)
{
    while (*path) {
        size_t n = strcspn(path, "/");
        if (n == 2 && path[0] == '.' && path[1] == '.')
            return true;
        path += n + (path[n] == '/');
    }
    return false;
}

static qf_status open_location(resolver *r, const Onnx__TensorProto *tensor, const char *location,
                               size_t *file)
{
    qf_model *m = r->model;
    void *seen = qf_strmap_get(&r->by_location, location);
    if (seen) {
        *file = (size_t)(uintptr_t)seen - 1;
        return QF_OK;
    }
    if (location[0] == '/' || has_parent_component(location))
        return refuse(r, tensor,
                      "external location '%s' leaves the model's folder; only relative paths "
                      "below it are read",
                      location);
    char joined[PATH_MAX], real[PATH_MAX];
    int n = snprintf(joined, sizeof joined, "%s/%s", m->folder, location);
    if (n < 0 || (size_t)n >= sizeof joined)
        return refuse(r, tensor, "external location '%.200s...' is too long a path", location);
    if (!realpath(joined, real)) {
        if (qf_is_absent(errno))
            return refuse(r, tensor, "external data file '%s' does not exist", joined);
        return qf_fail_errno(r->err, joined, errno, "cannot resolve the external data of tensor %s",
                             tensor->name ? tensor->name : "");
    }
    size_t base = strlen(m->folder);
    bool inside = strncmp(real, m->folder, base) == 0 &&
                  (real[base] == '/' || (base == 1 && m->folder[0] == '/'));
    if (!inside)
        return refuse(r, tensor, "external location '%s' is a link out of the model's folder",
                      location);
    if (!qf_grow((void **)&m->files, &m->file_cap, m->file_count + 1, sizeof *m->files))
        return qf_fail_memory(r->err);
    char what[160];
    snprintf(what, sizeof what, "external data of tensor '%.120s'",
             tensor->name ? tensor->name : "");
    qf_status status = qf_file_open(real, what, &m->files[m->file_count], r->err);
    if (status != QF_OK)
        return status;
    *file = m->file_count++;
    if (!qf_strmap_set(&r->by_location, location, (void *)(uintptr_t)(*file + 1)))
        return qf_fail_memory(r->err);
    return QF_OK;
}

static qf_status resolve(Onnx__TensorProto *tensor, void *user)
{
    resolver *r = user;
    if (!tensor->has_data_location ||
        tensor->data_location != ONNX__TENSOR_PROTO__DATA_LOCATION__EXTERNAL)
        return QF_OK;
    external_entry entry;
    size_t file;
    qf_status status = read_entry(r, tensor, &entry);
    if (status == QF_OK)
        status = open_location(r, tensor, entry.location, &file);
    if (status != QF_OK)
        return status;

    uint64_t count;
    if (!qf_dims_count(tensor->dims, tensor->n_dims, &count) || !qf_dtype_bits(tensor->data_type))
        return refuse(r, tensor, "%s",
                      "an external tensor needs valid dims and a fixed-size dtype");
    uint64_t want = qf_raw_bytes(tensor->data_type, count);
    const qf_file *f = &r->model->files[file];
    if (!want)
        entry.offset = 0; /* nothing is read; aligned, it may lie behind the end of the file */
    uint64_t available = entry.offset <= f->size ? f->size - entry.offset : 0;
    qf_where where = {.file = f->path, .item = tensor->name ? tensor->name : "(unnamed tensor)"};
    if (entry.has_length && entry.length != want)
        return qf_fail_at(r->err, QF_ERR_INPUT, where,
                          "external_data length is %llu, but dtype and dims need %llu bytes",
                          (unsigned long long)entry.length, (unsigned long long)want);
    if (available < want)
        return qf_fail_at(r->err, QF_ERR_INPUT, where,
                          "the external data is short: %llu bytes at offset %llu are needed, the "
                          "file has %llu in all",
                          (unsigned long long)want, (unsigned long long)entry.offset,
                          (unsigned long long)f->size);

    size_t index = qf_payloads_add(
        &r->model->payloads, (qf_payload){.kind = QF_PAYLOAD_SPAN,
                                          .field = QF_FIELD_RAW_DATA,
                                          .span = {f->data ? f->data + entry.offset : NULL, want,
                                                   QF_FIELD_RAW_DATA, (int)file, entry.offset},
                                          .raw_length = want,
                                          .was_external = true});
    if (index == SIZE_MAX || !qf_tensor_set_payload(r->arena, tensor, index))
        return qf_fail_memory(r->err);
    return QF_OK;
}

static qf_status resolve_or_note(Onnx__TensorProto *tensor, void *user)
{
    resolver *r = user;
    qf_status status = resolve(tensor, r);
    if (status == QF_OK || status == QF_ERR_MEMORY || !r->note)
        return status;
    r->note(r->err, r->user);
    return QF_OK;
}

static qf_status resolve_all(resolver *r, Onnx__ModelProto *proto)
{
    qf_status status = qf_model_each_tensor(proto, resolve_or_note, r);
    qf_strmap_release(&r->by_location);
    return status;
}

qf_status qf_external_resolve(qf_model *model, qf_arena *arena, Onnx__ModelProto *proto,
                              qf_error *err)
{
    resolver r = {.model = model, .arena = arena, .err = err};
    return resolve_all(&r, proto);
}

qf_status qf_external_resolve_noting(qf_model *model, qf_arena *arena, Onnx__ModelProto *proto,
                                     qf_refused_fn note, void *user, qf_error *err)
{
    qf_error own;
    resolver r = {
        .model = model, .arena = arena, .note = note, .user = user, .err = err ? err : &own};
    return resolve_all(&r, proto);
}
