/* SPDX-License-Identifier: Apache-2.0 */
#include <cjson/cJSON.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/spill.h"
#include "checkpoint/plan.h"

enum { ALIGN = 8, LENGTH_BYTES = 8 };

/* ---- which tensor in which shard ---- */

/* Tensors that one tensor of the source became stand together. */
static bool goes_with_last(const qf_checkpoint_plan *p, size_t i)
{
    const qf_out_tensor *t = &p->tensors[i];
    return !t->copied && !(t->job && !t->scales); /* shape and scales follow their integers */
}

static qf_status keep_shards(qf_checkpoint_plan *p, qf_error *err)
{
    const qf_checkpoint *c = p->checkpoint;
    p->shard_count = c->shard_count;
    p->shards = qf_arena_array(&p->arena, p->shard_count + 1, sizeof *p->shards);
    if (!p->shards)
        return qf_fail_memory(err);
    for (size_t i = 0; i < c->shard_count; i++)
        p->shards[i] = c->infos[i].name;
    for (size_t i = 0, last = 0; i < p->tensor_count; i++) {
        const qf_out_tensor *t = &p->tensors[i];
        if (!goes_with_last(p, i))
            last = (size_t)(t->copied ? t->copied->file : t->job->source.file);
        p->tensors[i].shard = last;
    }
    return QF_OK;
}

/* Shards filled in order, up to the limit. */
static qf_status cut_shards(qf_checkpoint_plan *p, qf_error *err)
{
    uint64_t filled = 0;
    size_t shard = 0;
    for (size_t i = 0; i < p->tensor_count;) {
        uint64_t bytes = p->tensors[i].length;
        size_t end = i + 1;
        for (; end < p->tensor_count && goes_with_last(p, end); end++)
            bytes += p->tensors[end].length;
        if (filled && filled + bytes > p->options.max_shard_bytes) {
            shard++;
            filled = 0;
        }
        filled += bytes;
        for (; i < end; i++)
            p->tensors[i].shard = shard;
    }
    p->shard_count = shard + 1;
    p->shards = qf_arena_array(&p->arena, p->shard_count, sizeof *p->shards);
    if (!p->shards)
        return qf_fail_memory(err);
    for (size_t i = 0; i < p->shard_count; i++) {
        p->shards[i] = p->shard_count == 1
                           ? QF_SINGLE_NAME
                           : qf_arena_printf(&p->arena, "model-%05zu-of-%05zu.safetensors", i + 1,
                                             p->shard_count);
        if (!p->shards[i])
            return qf_fail_memory(err);
    }
    return QF_OK;
}

/* By shard; in it the widest elements first, so that all are aligned without holes. */
static int by_place(const void *a, const void *b)
{
    const qf_out_tensor *x = a, *y = b;
    if (x->shard != y->shard)
        return x->shard < y->shard ? -1 : 1;
    if (x->bits != y->bits)
        return x->bits > y->bits ? -1 : 1;
    return x->order < y->order ? -1 : x->order > y->order;
}

/* ---- headers ---- */

static bool add_dims(cJSON *entry, const qf_out_tensor *t)
{
    cJSON *shape = cJSON_AddArrayToObject(entry, "shape");
    const int64_t *dims = t->copied ? t->copied->dims : t->dims;
    size_t rank = t->copied ? t->copied->rank : t->dims[1] < 0 ? 1 : 2;
    bool ok = shape != NULL;
    for (size_t i = 0; ok && i < rank; i++) {
        cJSON *n = cJSON_CreateNumber((double)dims[i]);
        ok = n && cJSON_AddItemToArray(shape, n);
    }
    return ok;
}

static bool add_entry(cJSON *header, const qf_out_tensor *t, uint64_t offset)
{
    const double ends[] = {(double)offset, (double)(offset + t->length)};
    cJSON *entry = cJSON_AddObjectToObject(header, t->name);
    cJSON *offsets = NULL;
    bool ok = entry && cJSON_AddStringToObject(entry, "dtype", t->dtype) && add_dims(entry, t) &&
              (offsets = cJSON_CreateDoubleArray(ends, 2));
    if (ok && cJSON_AddItemToObject(entry, "data_offsets", offsets))
        return true;
    cJSON_Delete(offsets);
    return false;
}

/* The metadata that the source's shards have, or what transformers asks for. */
static bool add_metadata(cJSON *header, const qf_checkpoint *c)
{
    cJSON *metadata = NULL;
    const char *text = NULL;
    for (size_t i = 0; !text && i < c->shard_count; i++)
        text = c->infos[i].metadata;
    if (text)
        metadata = cJSON_Parse(text);
    else if ((metadata = cJSON_CreateObject()) &&
             !cJSON_AddStringToObject(metadata, "format", "pt")) {
        cJSON_Delete(metadata);
        metadata = NULL;
    }
    if (metadata && cJSON_AddItemToObject(header, "__metadata__", metadata))
        return true;
    cJSON_Delete(metadata);
    return false;
}

/* Length and header of a shard, and spaces up to where its data begins. */
static qf_status make_header(qf_checkpoint_plan *p, const qf_out_tensor *tensors, size_t count,
                             const unsigned char **out, size_t *length, qf_error *err)
{
    cJSON *header = cJSON_CreateObject();
    bool ok = header && add_metadata(header, p->checkpoint);
    uint64_t at = 0;
    for (size_t i = 0; ok && i < count; i++) {
        ok = add_entry(header, &tensors[i], at);
        at += tensors[i].length;
    }
    char *text = ok ? cJSON_PrintUnformatted(header) : NULL;
    cJSON_Delete(header);
    uint64_t n = text ? strlen(text) : 0, padded = (n + ALIGN - 1) / ALIGN * ALIGN;
    unsigned char *bytes = text ? qf_arena_alloc(&p->arena, LENGTH_BYTES + padded) : NULL;
    if (bytes) {
        memcpy(bytes, &padded, LENGTH_BYTES);
        memcpy(bytes + LENGTH_BYTES, text, n);
        memset(bytes + LENGTH_BYTES + n, ' ', padded - n);
    }
    free(text);
    if (!bytes)
        return qf_fail_memory(err);
    if (padded > QF_SAFETENSORS_HEADER_MOST)
        return qf_fail(err, QF_ERR_INPUT,
                       "a shard has so many tensors that its header is over the format's limit of "
                       "100,000,000 bytes; choose a smaller --max-shard-size");
    *out = bytes;
    *length = LENGTH_BYTES + padded;
    return QF_OK;
}

/* ---- the layout ---- */

static qf_status add_file(qf_layout *l, const char *name, uint64_t size, qf_error *err)
{
    if (!qf_table_grow((void **)&l->files, &l->file_cap, l->file_count + 1, sizeof *l->files))
        return qf_fail_memory(err);
    l->files[l->file_count++] = (qf_layout_file){name, size};
    return QF_OK;
}

static qf_status add_literal(qf_layout *l, uint64_t offset, const unsigned char *data, size_t n,
                             qf_error *err)
{
    if (!n)
        return QF_OK;
    if (!qf_table_grow((void **)&l->literals, &l->literal_cap, l->literal_count + 1,
                       sizeof *l->literals))
        return qf_fail_memory(err);
    l->literals[l->literal_count++] = (qf_literal){.target = QF_DEPLOY,
                                                   .file = (int)l->file_count - 1,
                                                   .offset = offset,
                                                   .data = data,
                                                   .length = n};
    return QF_OK;
}

static qf_job_output place(const qf_layout *l, qf_format format, uint64_t offset)
{
    return (qf_job_output){
        .format = format, .file = (int)l->file_count - 1, .offset = offset, .placed = true};
}

static qf_status add_copy(qf_layout *l, const char *file, const char *tensor, qf_span span,
                          uint64_t offset, qf_error *err)
{
    if (!span.length)
        return QF_OK;
    if (!qf_table_grow((void **)&l->copies, &l->copy_cap, l->copy_count + 1, sizeof *l->copies))
        return qf_fail_memory(err);
    qf_copy *copy = &l->copies[l->copy_count++];
    *copy = (qf_copy){.file = file,
                      .tensor = tensor,
                      .source = span,
                      .data_type = ONNX__TENSOR_PROTO__DATA_TYPE__UINT8,
                      .length = span.length};
    copy->out[0] = place(l, QF_FORMAT_NONE, offset);
    return QF_OK;
}

static qf_status add_shard(qf_checkpoint_plan *p, const char *name, const qf_out_tensor *tensors,
                           size_t count, qf_error *err)
{
    const unsigned char *header;
    size_t length = 0;
    qf_layout *l = &p->layout;
    const qf_file *files = p->checkpoint->files;
    qf_status status = make_header(p, tensors, count, &header, &length, err);
    uint64_t at = length;
    for (size_t i = 0; i < count; i++)
        at += tensors[i].length;
    if (status == QF_OK)
        status = add_file(l, name, at, err);
    if (status == QF_OK)
        status = add_literal(l, 0, header, length, err);
    at = length;
    for (size_t i = 0; status == QF_OK && i < count; i++) {
        const qf_out_tensor *t = &tensors[i];
        if (t->bytes)
            status = add_literal(l, at, t->bytes, (size_t)t->length, err);
        else if (t->copied)
            status = add_copy(l, files[t->copied->file].path, t->name,
                              qf_safetensor_span(t->copied, files), at, err);
        else if (t->scales)
            t->job->found->out[0] = place(l, QF_FORMAT_NONE, at);
        else
            t->job->out[0] = place(l, t->job->out[0].format, at);
        at += t->length;
    }
    return status;
}

static qf_status add_shards(qf_checkpoint_plan *p, qf_error *err)
{
    qf_status status = QF_OK;
    size_t at = 0;
    for (size_t s = 0; status == QF_OK && s < p->shard_count; s++) {
        size_t from = at;
        while (at < p->tensor_count && p->tensors[at].shard == s)
            at++;
        if (at > from || !p->options.max_shard_bytes)
            status = add_shard(p, p->shards[s], p->tensors + from, at - from, err);
    }
    return status;
}

static qf_status add_text(qf_checkpoint_plan *p, const char *name, const char *text, qf_error *err)
{
    qf_status status = add_file(&p->layout, name, strlen(text), err);
    return status == QF_OK
               ? add_literal(&p->layout, 0, (const unsigned char *)text, strlen(text), err)
               : status;
}

/* Where the target lies in the source's folder: "out/"; NULL if it is not in it, or not there. What
 * an earlier run has left in it does not go along. */
static const char *target_within(qf_checkpoint_plan *p)
{
    char source[PATH_MAX], target[PATH_MAX];
    if (!realpath(p->checkpoint->path, source) || !realpath(p->folder, target))
        return NULL;
    size_t n = strlen(source);
    if (strncmp(source, target, n) != 0 || target[n] != '/')
        return NULL;
    return qf_arena_printf(&p->arena, "%s/", target + n + 1);
}

/* What goes with the weights, and at last the texts that name them. */
static qf_status add_others(qf_checkpoint_plan *p, qf_error *err)
{
    const qf_checkpoint *c = p->checkpoint;
    qf_status status = QF_OK;
    const char *target = target_within(p);
    for (size_t i = c->shard_count; status == QF_OK && i < c->file_count; i++) {
        if (target && strncmp(c->infos[i].name, target, strlen(target)) == 0)
            continue;
        const qf_span all = {.data = c->files[i].data,
                             .length = c->files[i].size,
                             .field = QF_FIELD_RAW_DATA,
                             .file = (int)i};
        status = add_file(&p->layout, c->infos[i].name, c->files[i].size, err);
        if (status == QF_OK)
            status = add_copy(&p->layout, c->files[i].path, c->infos[i].name, all, 0, err);
    }
    const char *text;
    if (status == QF_OK && (c->indexed || p->shard_count > 1)) {
        status = qf_checkpoint_index(p, &text, err);
        if (status == QF_OK)
            status = add_text(p, QF_INDEX_NAME, text, err);
    }
    if (status == QF_OK)
        status = qf_checkpoint_config(p, &text, err);
    return status == QF_OK ? add_text(p, QF_CONFIG_NAME, text, err) : status;
}

qf_status qf_checkpoint_layout(qf_checkpoint_plan *p, qf_error *err)
{
    qf_status status = p->options.max_shard_bytes ? cut_shards(p, err) : keep_shards(p, err);
    if (status != QF_OK)
        return status;
    qsort(p->tensors, p->tensor_count, sizeof *p->tensors, by_place);
    p->layout.arena = &p->arena;
    status = add_shards(p, err);
    return status == QF_OK ? add_others(p, err) : status;
}
