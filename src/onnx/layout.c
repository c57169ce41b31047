/* SPDX-License-Identifier: Apache-2.0 */
#include "onnx/layout.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "base/spill.h"
#include "onnx/same.h"
#include "onnx/splice.h"

enum {
    PAGE = 4096,  /* alignment of tensors in a single external file */
    SMALL = 1024, /* bytes: tensors below stay inline under QF_EXTERNAL_ALWAYS and are not shared */
    NAME_LIMIT = NAME_MAX,
};

enum { RUNNABLE = QF_TARGETS };
static const char *const external_suffix[] = {"_deploy.external", "_fakequant.external",
                                              "_runnable.external"};
static const char *const model_suffix[] = {"deploy_model", "fake_quant_model", "runnable_model"};

/* An external tensor that others of the same bytes may refer to. */
typedef struct lender {
    size_t payload;
    int32_t data_type;
    int file;
    uint64_t offset;
    const struct lender *next; /* another one of the same key */
} lender;

typedef struct layouter {
    qf_layout *out;
    Onnx__ModelProto *model;
    const qf_payloads *payloads;
    const qf_layout_request *request;
    /* Tensors that may be external: initializers, those of the main graph first, and what else was
     * external in the source. */
    Onnx__TensorProto **tensors;
    size_t tensor_count, tensor_cap;
    int single_file;   /* index of the one external file, -1 before it is made */
    qf_strmap lenders; /* qf_same_key -> lender */
    qf_error *err;
} layouter;

/* ---- names ---- */

static int name_index(const qf_layout_request *r)
{
    return r->runnable ? RUNNABLE : (int)r->target;
}

static bool unsafe(const char *name, size_t i)
{
    unsigned char c = (unsigned char)name[i];
    return c < 0x20 || c == 0x7f || strchr("/\\%~", c) || (i == 0 && c == '.');
}

char *qf_external_name(qf_arena *arena, const char *tensor, size_t limit)
{
    size_t n = strlen(tensor), at = 0;
    char *name = qf_arena_array(arena, n + 1, 3);
    if (!name)
        return NULL;
    for (size_t i = 0; i < n; i++) {
        if (unsafe(tensor, i))
            at += (size_t)snprintf(name + at, 4, "%%%02X", (unsigned char)tensor[i]);
        else
            name[at++] = tensor[i];
    }
    name[at] = '\0';
    if (at <= limit)
        return name;
    XXH128_hash_t hash = XXH3_128bits(tensor, n);
    enum { HASH_CHARS = 33 };
    size_t keep = limit > HASH_CHARS ? limit - HASH_CHARS : 0;
    while (keep && ((unsigned char)name[keep] & 0xc0) == 0x80)
        keep--; /* not in the middle of a UTF-8 character */
    return qf_arena_printf(arena, "%.*s~%016llx%016llx", (int)keep, name,
                           (unsigned long long)hash.high64, (unsigned long long)hash.low64);
}

/* Tensors of different subgraphs may share a name; their files get ~2, ~3, ... */
static const char *external_file_name(layouter *l, const char *tensor)
{
    const char *suffix = external_suffix[name_index(l->request)];
    char *base = qf_external_name(l->out->arena, tensor, NAME_LIMIT - strlen(suffix) - 8);
    char *name = base ? qf_arena_printf(l->out->arena, "%s%s", base, suffix) : NULL;
    if (!name || !qf_strmap_get(&l->out->names, name))
        return name;
    /* the map holds a counter for such a name, so that many equal names take no quadratic time */
    uintptr_t number = (uintptr_t)qf_strmap_get(&l->out->repeats, name);
    number = number ? number + 1 : 2;
    if (!qf_strmap_set(&l->out->repeats, name, (void *)number))
        return NULL;
    return qf_arena_printf(l->out->arena, "%s~%ju%s", base, (uintmax_t)number, suffix);
}

static char *model_file_name(layouter *l, const char *extension)
{
    const qf_layout_request *r = l->request;
    return qf_arena_printf(l->out->arena, "%s%s%s.%s", r->prefix, *r->prefix ? "_" : "",
                           model_suffix[name_index(r)], extension);
}

static qf_status add_file(layouter *l, const char *name, int *index)
{
    qf_layout *out = l->out;
    if (!name ||
        !qf_table_grow((void **)&out->files, &out->file_cap, out->file_count + 1,
                       sizeof *out->files) ||
        !qf_strmap_set(&out->names, name, out))
        return qf_fail_memory(l->err);
    if (strlen(name) > NAME_LIMIT)
        return qf_fail(l->err, QF_ERR_INPUT,
                       "the output file name '%.40s...' would have %zu bytes; at most %d are "
                       "possible, use a shorter prefix",
                       name, strlen(name), NAME_LIMIT);
    *index = (int)out->file_count;
    out->files[out->file_count++] = (qf_layout_file){.name = name};
    return QF_OK;
}

/* ---- placing payloads ---- */

static qf_status add_literal(layouter *l, int file, uint64_t offset, const void *data, size_t n)
{
    qf_layout *out = l->out;
    if (!n)
        return QF_OK;
    if (!qf_table_grow((void **)&out->literals, &out->literal_cap, out->literal_count + 1,
                       sizeof *out->literals))
        return qf_fail_memory(l->err);
    out->literals[out->literal_count++] = (qf_literal){l->request->target, file, offset, data, n};
    return QF_OK;
}

/* The copy of payload `index`; shared by the targets if both take it in the same form. */
static qf_copy *copy_for(layouter *l, size_t index, const qf_copy *wanted)
{
    qf_layout *out = l->out;
    if (index >= out->copy_of_count) {
        size_t known_count = out->copy_of_count, count = l->payloads->count;
        if (!qf_table_grow((void **)&out->copy_of, &out->copy_of_cap, count, sizeof(size_t)))
            return NULL;
        memset(out->copy_of + known_count, 0, (count - known_count) * sizeof(size_t));
        out->copy_of_count = count;
    }
    size_t known = out->copy_of[index];
    if (known && out->copies[known - 1].decode == wanted->decode &&
        !out->copies[known - 1].out[l->request->target].placed)
        return &out->copies[known - 1];
    if (!qf_table_grow((void **)&out->copies, &out->copy_cap, out->copy_count + 1,
                       sizeof *out->copies))
        return NULL;
    out->copies[out->copy_count] = *wanted;
    out->copy_of[index] = ++out->copy_count;
    return &out->copies[out->copy_count - 1];
}

/* Where a job is told the place of what it makes; NULL: the payload is nothing that one makes. */
static qf_job_output *made_by(const qf_payload *p, qf_target target)
{
    if (p->kind == QF_PAYLOAD_SCALES)
        return &p->job->found->out[target];
    return p->kind == QF_PAYLOAD_JOB ? &p->job->out[target] : NULL;
}

/* Puts payload `index` of `tensor` at `offset` of `file`; `raw`: as plain elements. */
static qf_status place(layouter *l, const Onnx__TensorProto *tensor, size_t index, int file,
                       uint64_t offset, bool raw)
{
    const qf_payload *p = &l->payloads->items[index];
    qf_target t = l->request->target;
    if (p->kind == QF_PAYLOAD_BYTES)
        return add_literal(l, file, offset, p->bytes, (size_t)p->raw_length);
    qf_job_output *made = made_by(p, t);
    if (made && made->placed)
        return qf_fail(l->err, QF_ERR_SYSTEM,
                       "internal error: tensor '%s' has two places in a model", p->job->tensor);
    if (made) {
        made->file = file;
        made->offset = offset;
        made->placed = true;
        return QF_OK;
    }
    const char *name = qf_arena_strdup(l->out->arena, tensor->name ? tensor->name : "(unnamed)");
    if (!name)
        return qf_fail_memory(l->err);
    qf_copy wanted = {.file = l->request->source,
                      .tensor = name,
                      .source = p->span,
                      .data_type = tensor->data_type,
                      .decode = raw && qf_field_is_varint(p->field)};
    wanted.length = wanted.decode ? p->raw_length : p->span.length;
    if (qf_dtype_bits(tensor->data_type) == 4)
        wanted.data_type = ONNX__TENSOR_PROTO__DATA_TYPE__UINT8; /* a stored int holds a pair */
    qf_copy *copy = copy_for(l, index, &wanted);
    if (!copy)
        return qf_fail_memory(l->err);
    copy->out[t] = (qf_job_output){.file = file, .offset = offset, .placed = true};
    return QF_OK;
}

/* ---- choosing what is external ---- */

static const qf_payload *payload_of(const layouter *l, const Onnx__TensorProto *tensor)
{
    return &l->payloads->items[qf_tensor_payload(tensor)];
}

static bool has_payload(const layouter *l, const Onnx__TensorProto *tensor)
{
    return qf_tensor_payload(tensor) < l->payloads->count;
}

static qf_status add_candidate(layouter *l, Onnx__TensorProto *tensor)
{
    if (!qf_table_grow((void **)&l->tensors, &l->tensor_cap, l->tensor_count + 1, sizeof tensor))
        return qf_fail_memory(l->err);
    l->tensors[l->tensor_count++] = tensor;
    return QF_OK;
}

static qf_status collect_initializers(layouter *l, Onnx__GraphProto *graph)
{
    qf_status status = QF_OK;
    for (size_t i = 0; status == QF_OK && i < graph->n_initializer; i++) {
        if (has_payload(l, graph->initializer[i]))
            status = add_candidate(l, graph->initializer[i]);
    }
    for (size_t i = 0; status == QF_OK && i < graph->n_node; i++) {
        for (size_t j = 0; status == QF_OK && j < graph->node[i]->n_attribute; j++) {
            Onnx__AttributeProto *a = graph->node[i]->attribute[j];
            if (a->g)
                status = collect_initializers(l, a->g);
            for (size_t k = 0; status == QF_OK && k < a->n_graphs; k++)
                status = collect_initializers(l, a->graphs[k]);
        }
    }
    return status;
}

/* All tensors start as inline; one that was external and is no initializer joins the candidates. */
static qf_status reset(Onnx__TensorProto *tensor, void *user)
{
    layouter *l = user;
    bool external = tensor->has_data_location && tensor->data_location != 0;
    if (!has_payload(l, tensor))
        return QF_OK;
    tensor->has_data_location = 0;
    tensor->n_external_data = 0;
    return external && payload_of(l, tensor)->was_external ? add_candidate(l, tensor) : QF_OK;
}

/* Initializers lose their location first, so that reset finds only other tensors external. */
static qf_status collect(layouter *l)
{
    qf_status status = collect_initializers(l, l->model->graph);
    for (size_t i = 0; status == QF_OK && i < l->tensor_count; i++)
        l->tensors[i]->has_data_location = 0;
    return status == QF_OK ? qf_model_each_tensor(l->model, reset, l) : status;
}

/* Whether a varint field can hold the dtype, in at most eight bytes an element. */
static bool field_holds(int field, int32_t data_type)
{
    switch (data_type) {
    case ONNX__TENSOR_PROTO__DATA_TYPE__INT64:
        return field == QF_FIELD_INT64_DATA;
    case ONNX__TENSOR_PROTO__DATA_TYPE__UINT32:
    case ONNX__TENSOR_PROTO__DATA_TYPE__UINT64:
        return field == QF_FIELD_UINT64_DATA;
    default:
        return field == QF_FIELD_INT32_DATA && qf_dtype_bits(data_type) <= 32;
    }
}

/* Data that does not fit its dims stays as it was: of an external file nobody would read it. */
static bool can_be_external(const layouter *l, const Onnx__TensorProto *tensor)
{
    const qf_payload *p = payload_of(l, tensor);
    uint64_t count;
    bool fits = qf_dims_count(tensor->dims, tensor->n_dims, &count) &&
                qf_raw_bytes(tensor->data_type, count) == p->raw_length;
    bool decodable = p->kind != QF_PAYLOAD_SPAN || !qf_field_is_varint(p->field) ||
                     field_holds(p->field, tensor->data_type);
    return tensor->name && *tensor->name && qf_dtype_bits(tensor->data_type) && p->raw_length &&
           fits && decodable;
}

static bool set_entry(qf_arena *arena, Onnx__StringStringEntryProto **slot, const char *key,
                      char *value)
{
    Onnx__StringStringEntryProto *e = qf_arena_alloc(arena, sizeof *e);
    if (!e || !value)
        return false;
    onnx__string_string_entry_proto__init(e);
    e->key = qf_arena_strdup(arena, key);
    e->value = value;
    *slot = e;
    return e->key != NULL;
}

/* Makes the TensorProto say where its data lies, in place of a payload. */
static bool refer_to(layouter *l, Onnx__TensorProto *tensor, int file, uint64_t offset,
                     uint64_t length)
{
    qf_arena *arena = l->out->arena;
    tensor->external_data = qf_arena_array(arena, 3, sizeof *tensor->external_data);
    if (!tensor->external_data ||
        !set_entry(arena, &tensor->external_data[0], "location",
                   qf_arena_strdup(arena, l->out->files[file].name)) ||
        !set_entry(arena, &tensor->external_data[1], "offset",
                   qf_arena_printf(arena, "%llu", (unsigned long long)offset)) ||
        !set_entry(arena, &tensor->external_data[2], "length",
                   qf_arena_printf(arena, "%llu", (unsigned long long)length)))
        return false;
    tensor->n_external_data = 3;
    tensor->has_data_location = 1;
    tensor->data_location = ONNX__TENSOR_PROTO__DATA_LOCATION__EXTERNAL;
    qf_tensor_clear_payload(tensor);
    return true;
}

/* ---- equal tensors ---- */

/* Where the scales of a job lie inside a model, the job must run for them, so it cannot lend; such
 * matrices are told apart before (weight_only.c). */
static bool can_lend(const qf_payload *p)
{
    return p->kind == QF_PAYLOAD_SPAN || (p->kind == QF_PAYLOAD_JOB && !p->job->found);
}

static bool is_equal(const layouter *l, const qf_payload *p, int32_t data_type, const lender *known)
{
    const qf_payload *other = &l->payloads->items[known->payload];
    return other->kind == p->kind && known->data_type == data_type &&
           other->raw_length == p->raw_length &&
           (p->kind == QF_PAYLOAD_SPAN || qf_same_work(p->job, other->job)) &&
           qf_same_bytes(&p->span, &other->span, l->request->sources);
}

/* The tensor names the place of an equal one if there is one; *key is for those to come. */
static qf_status borrow(layouter *l, Onnx__TensorProto *tensor, char **key, bool *borrowed)
{
    const qf_payload *p = payload_of(l, tensor);
    *borrowed = false;
    if (!l->request->dedup || !can_lend(p))
        return QF_OK;
    *key = qf_same_key(l->out->arena, &p->span, tensor->data_type, l->request->sources);
    if (!*key)
        return qf_fail_memory(l->err);
    const lender *known = qf_strmap_get(&l->lenders, *key);
    while (known && !is_equal(l, p, tensor->data_type, known))
        known = known->next;
    if (!known)
        return QF_OK;
    *borrowed = true;
    l->out->saved += p->raw_length;
    if (p->kind == QF_PAYLOAD_JOB) {
        qf_job_output *out = &p->job->out[l->request->target];
        out->file = known->file;
        out->offset = known->offset;
        out->lent = true;
    }
    return refer_to(l, tensor, known->file, known->offset, p->raw_length) ? QF_OK
                                                                          : qf_fail_memory(l->err);
}

static bool lend(layouter *l, const char *key, lender made)
{
    lender *entry = qf_arena_alloc(l->out->arena, sizeof *entry);
    if (!entry)
        return false;
    *entry = made;
    entry->next = qf_strmap_get(&l->lenders, key);
    return qf_strmap_set(&l->lenders, key, entry);
}

/* ---- into external files ---- */

/* Moves a tensor's data into an external file. */
static qf_status make_external(layouter *l, Onnx__TensorProto *tensor)
{
    char *key = NULL;
    bool borrowed;
    qf_status found = borrow(l, tensor, &key, &borrowed);
    if (found != QF_OK || borrowed)
        return found;
    size_t index = qf_tensor_payload(tensor);
    uint64_t length = l->payloads->items[index].raw_length, offset = 0;
    int file;
    if (l->request->layout == QF_LAYOUT_SINGLE) {
        if (l->single_file < 0) {
            qf_status status = add_file(l, model_file_name(l, "external"), &l->single_file);
            if (status != QF_OK)
                return status;
        }
        file = l->single_file;
        offset = (l->out->files[file].size + PAGE - 1) / PAGE * PAGE;
    } else {
        qf_status status = add_file(l, external_file_name(l, tensor->name), &file);
        if (status != QF_OK)
            return status;
    }
    l->out->files[file].size = offset + length;
    qf_status status = place(l, tensor, index, file, offset, true);
    if (status == QF_OK && (!refer_to(l, tensor, file, offset, length) ||
                            (key && !lend(l, key,
                                          (lender){.payload = index,
                                                   .data_type = tensor->data_type,
                                                   .file = file,
                                                   .offset = offset}))))
        status = qf_fail_memory(l->err);
    return status;
}

static bool is_shared(const layouter *l, const Onnx__TensorProto *tensor)
{
    const qf_payload *p = payload_of(l, tensor);
    return l->request->share_weights && p->kind == QF_PAYLOAD_JOB && p->raw_length >= SMALL &&
           p->job->out[QF_DEPLOY].format == p->job->out[QF_FAKE_QUANT].format &&
           (p->job->out[QF_DEPLOY].format == QF_FORMAT_INT8 ||
            p->job->out[QF_DEPLOY].format == QF_FORMAT_INT4_FLAT);
}

/* Takes a shared weight from where the deploy model has it. */
static qf_status take_from_deploy(layouter *l, Onnx__TensorProto *tensor)
{
    const qf_payload *p = payload_of(l, tensor);
    const qf_job_output *there = &p->job->out[QF_DEPLOY];
    if (!there->placed && !there->lent)
        return qf_fail(l->err, QF_ERR_SYSTEM,
                       "internal error: tensor '%s' is to be shared but has no place",
                       p->job->tensor);
    return refer_to(l, tensor, there->file, there->offset, p->raw_length) ? QF_OK
                                                                          : qf_fail_memory(l->err);
}

/* Size of the tensor's field in its graph. */
static uint64_t field_size(const layouter *l, const Onnx__TensorProto *tensor)
{
    uint64_t size = onnx__tensor_proto__get_packed_size(tensor);
    size_t index = qf_tensor_payload(tensor);
    if (index < l->payloads->count)
        size += qf_payload_field_size(&l->payloads->items[index]) - qf_payload_marker_size(index);
    return qf_len_field_size(5, size);
}

typedef struct candidate {
    Onnx__TensorProto *tensor;
    uint64_t size;
    size_t order;
} candidate;

static int larger_first(const void *a, const void *b)
{
    const candidate *x = a, *y = b;
    if (x->size != y->size)
        return x->size < y->size ? 1 : -1;
    return x->order > y->order ? 1 : -1;
}

/* The reference's rule (facts 8): while the model is at or over the limit, its largest tensor. */
static qf_status externalize_until(layouter *l, qf_spliced *total)
{
    candidate *list = qf_spill_alloc((l->tensor_count + 1) * sizeof *list);
    size_t n = 0;
    if (!list)
        return qf_fail_memory(l->err);
    for (size_t i = 0; i < l->tensor_count; i++) {
        Onnx__TensorProto *tensor = l->tensors[i];
        if (has_payload(l, tensor) && can_be_external(l, tensor))
            list[n++] = (candidate){tensor, field_size(l, tensor), i};
    }
    qsort(list, n, sizeof *list, larger_first);
    uint64_t rest = total->size - qf_len_field_size(7, total->graph_size);
    qf_status status = QF_OK;
    for (size_t i = 0; status == QF_OK && i < n; i++) {
        if (rest + qf_len_field_size(7, total->graph_size) < l->request->threshold)
            break;
        status = make_external(l, list[i].tensor);
        total->graph_size -= list[i].size - field_size(l, list[i].tensor);
    }
    qf_spill_free(list);
    return status;
}

/* Moves tensors out that go by themselves, then, if the model is too large, others. Leaves it
 * spliced. */
static qf_status choose_external(layouter *l, qf_spliced *spliced)
{
    const qf_layout_request *r = l->request;
    for (size_t i = 0; i < l->tensor_count && r->external != QF_EXTERNAL_NEVER; i++) {
        Onnx__TensorProto *tensor = l->tensors[i];
        const qf_payload *p = payload_of(l, tensor);
        bool shared = is_shared(l, tensor);
        bool chosen = shared || p->was_external ||
                      (r->external == QF_EXTERNAL_ALWAYS && p->raw_length >= SMALL);
        if (chosen && can_be_external(l, tensor)) {
            qf_status status = shared && r->target != QF_DEPLOY ? take_from_deploy(l, tensor)
                                                                : make_external(l, tensor);
            if (status != QF_OK)
                return status;
        }
    }
    qf_status status = qf_splice(l->model, l->payloads, spliced, l->err);
    if (status != QF_OK || r->external == QF_EXTERNAL_NEVER || spliced->size < r->threshold)
        return status;
    status = externalize_until(l, spliced);
    qf_spliced_release(spliced);
    return status == QF_OK ? qf_splice(l->model, l->payloads, spliced, l->err) : status;
}

/* ---- the .onnx ---- */

/* Takes the literal bytes over from `spliced`. */
static qf_status lay_out_graph(layouter *l, qf_spliced *spliced, int file)
{
    qf_arena *literals = &l->out->literal_bytes[l->request->target];
    *literals = spliced->arena;
    qf_arena_init(&spliced->arena);
    l->out->files[file].size = spliced->size;
    qf_status status = QF_OK;
    uint64_t offset = 0;
    for (size_t i = 0; status == QF_OK && i < spliced->count; i++) {
        const qf_piece *piece = &spliced->pieces[i];
        status = add_literal(l, file, offset, piece->literal, piece->literal_length);
        offset += piece->literal_length;
        if (status != QF_OK || piece->payload == SIZE_MAX)
            continue;
        status = place(
            l, &(Onnx__TensorProto){.name = (char *)"(inline)", .data_type = piece->data_type},
            piece->payload, file, offset, false);
        offset += piece->length;
    }
    return status;
}

qf_status qf_layout_add(qf_layout *layout, Onnx__ModelProto *model, const qf_payloads *payloads,
                        const qf_layout_request *request, qf_error *err)
{
    layouter l = {.out = layout,
                  .model = model,
                  .payloads = payloads,
                  .request = request,
                  .single_file = -1,
                  .err = err};
    int file;
    qf_spliced spliced = {0};
    qf_status status = collect(&l);
    if (status == QF_OK)
        status = choose_external(&l, &spliced);
    if (status == QF_OK)
        status = add_file(&l, model_file_name(&l, "onnx"), &file);
    if (status == QF_OK)
        status = lay_out_graph(&l, &spliced, file);
    qf_spliced_release(&spliced);
    qf_strmap_release(&l.lenders);
    qf_spill_free(l.tensors);
    return status;
}

qf_status qf_layout_add_verbatim(qf_layout *layout, const qf_file *source,
                                 const qf_layout_request *request, qf_error *err)
{
    layouter l = {.out = layout, .request = request, .single_file = -1, .err = err};
    int file;
    qf_status status = add_file(&l, model_file_name(&l, "onnx"), &file);
    if (status != QF_OK)
        return status;
    layout->files[file].size = source->size;
    if (!qf_table_grow((void **)&layout->copies, &layout->copy_cap, layout->copy_count + 1,
                       sizeof *layout->copies))
        return qf_fail_memory(err);
    qf_copy *copy = &layout->copies[layout->copy_count++];
    *copy = (qf_copy){.file = source->path,
                      .tensor = "(model)",
                      .source = {source->data, source->size, QF_FIELD_RAW_DATA, 0, 0},
                      .data_type = ONNX__TENSOR_PROTO__DATA_TYPE__UINT8,
                      .length = source->size};
    copy->out[request->target] = (qf_job_output){.file = file, .placed = true};
    return QF_OK;
}

void qf_layout_release(qf_layout *layout)
{
    for (int t = 0; t < QF_TARGETS; t++)
        qf_arena_release(&layout->literal_bytes[t]);
    qf_spill_free(layout->files);
    qf_spill_free(layout->literals);
    qf_spill_free(layout->copies);
    qf_spill_free(layout->copy_of);
    qf_strmap_release(&layout->names);
    qf_strmap_release(&layout->repeats);
}
