/* SPDX-License-Identifier: Apache-2.0 */
#include "checkpoint/scales.h"

#include <math.h>
#include <string.h>

#include "base/spill.h"
#include "exec/job.h"
#include "exec/source.h"

static qf_status index_tensors(qf_scales *s, qf_arena *arena, qf_error *err)
{
    const char *metadata;
    qf_status status = qf_safetensors_read(&s->file, 0, arena, &s->tensors, &metadata, err);
    for (size_t i = 0; status == QF_OK && i < s->tensors.count; i++) {
        if (!qf_strmap_set(&s->by_name, s->tensors.items[i].name, &s->tensors.items[i]))
            status = qf_fail_memory(err);
    }
    return status;
}

static qf_status index_record(qf_scales *s, qf_error *err)
{
    const AMCTPytorchProto__ScaleOffsetRecord *message = qf_record_message(s->record);
    for (size_t i = 0; i < message->n_record; i++) {
        AMCTPytorchProto__MapFiledEntry *entry = message->record[i];
        if (entry->key && entry->value && !qf_strmap_set(&s->by_name, entry->key, entry->value))
            return qf_fail_memory(err);
    }
    return QF_OK;
}

qf_status qf_scales_open(const char *path, qf_arena *arena, qf_scales *out, qf_error *err)
{
    *out = (qf_scales){0};
    if (qf_ends_with(path, ".safetensors")) {
        qf_status status = qf_file_open(path, "scales", &out->file, err);
        return status == QF_OK ? index_tensors(out, arena, err) : status;
    }
    qf_status status = qf_record_open(path, &out->record, err);
    return status == QF_OK ? index_record(out, err) : status;
}

void qf_scales_close(qf_scales *s)
{
    qf_file_close(&s->file);
    qf_spill_free(s->tensors.items);
    qf_record_close(s->record);
    qf_strmap_release(&s->by_name);
}

static const char *path_of(const qf_scales *s)
{
    return s->record ? qf_record_path(s->record) : s->file.path;
}

/* The entry of a weight: a record's key is the module or the weight, a tensor's name the module's
 * weight_scale. */
static const void *entry_of(const qf_scales *s, qf_arena *arena, const char *name)
{
    int stem = (int)(strlen(name) - strlen(".weight"));
    const char *key = qf_arena_printf(arena, s->record ? "%.*s" : "%.*s.weight_scale", stem, name);
    const void *entry = key ? qf_strmap_get(&s->by_name, key) : NULL;
    return entry || !s->record ? entry : qf_strmap_get(&s->by_name, name);
}

static qf_status check(const qf_scales *s, const char *name, const float *scales, uint64_t n,
                       qf_error *err)
{
    for (uint64_t i = 0; i < n; i++) {
        if (!(scales[i] > 0) || !isfinite(scales[i]))
            return qf_fail_at(err, QF_ERR_INPUT, (qf_where){.file = path_of(s), .item = name},
                              "scale %llu is %g; a scale is greater than 0 and finite, also in the "
                              "weight's own float type",
                              (unsigned long long)i, (double)scales[i]);
    }
    return QF_OK;
}

qf_status qf_scales_find(const qf_scales *s, qf_arena *arena, const char *name, uint64_t count,
                         int32_t scale_type, const float **out, qf_error *err)
{
    const void *entry = entry_of(s, arena, name);
    if (!entry)
        return qf_fail_at(err, QF_ERR_INPUT, (qf_where){.file = path_of(s), .item = name},
                          "there are no scales for this weight; add them, or leave it out with "
                          "--exclude");
    const qf_safetensor *t = s->record ? NULL : entry;
    const AMCTPytorchProto__SingleLayerRecord *r = s->record ? entry : NULL;
    uint64_t given = 0;
    bool floats = t && (t->data_type == ONNX__TENSOR_PROTO__DATA_TYPE__FLOAT ||
                        t->data_type == ONNX__TENSOR_PROTO__DATA_TYPE__FLOAT16 ||
                        t->data_type == ONNX__TENSOR_PROTO__DATA_TYPE__BFLOAT16);
    if (r)
        given = r->n_scale_w;
    else if (floats)
        qf_dims_count(t->dims, t->rank, &given);
    if (given != 1 && given != count)
        return qf_fail_at(err, QF_ERR_INPUT, (qf_where){.file = path_of(s), .item = name},
                          "there are %llu float scales for this weight, and it needs 1 or %llu",
                          (unsigned long long)given, (unsigned long long)count);
    float *scales = qf_arena_array(arena, (size_t)count, sizeof *scales);
    if (!scales)
        return qf_fail_memory(err);
    if (r) {
        memcpy(scales, r->scale_w, (size_t)given * sizeof *scales);
    } else {
        const qf_span span = qf_safetensor_span(t, &s->file);
        const qf_varint_index none = {0};
        qf_source_floats(&span, &none, t->data_type, 0, (size_t)given, scales);
    }
    for (uint64_t i = 0; i < count; i++)
        scales[i] = qf_scale_round(scales[given == 1 ? 0 : i], scale_type);
    *out = scales;
    return check(s, name, scales, count, err);
}
