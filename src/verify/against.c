/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The planned .onnx files are put together in memory without their payloads, as sparse mappings,
 * and read like any other model. So graphs are compared node by node, and each tensor with the one
 * of its place, wherever either of them is stored.
 */
#include "verify/against.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/spill.h"
#include "verify/agree.h"
#include "verify/compare.h"
#include "verify/finding.h"
#include "verify/structure.h"

typedef enum source_kind { FROM_JOB, FROM_COPY, FROM_LITERAL } source_kind;

/* What the plan puts at a place of a file. */
typedef struct planned {
    int file;
    uint64_t offset;
    source_kind kind;
    size_t index;
} planned;

typedef struct comparison {
    qf_against *against;
    qf_plan *plan;
    qf_subject expected;
    qf_subject *found;
    qf_target target;
    int onnx; /* file of the layout */
    qf_strmap file_of;
    planned *places;
    size_t place_count, place_cap;
    qf_claims *claims; /* of both models */
    qf_arena *arena;
    bool open;  /* there is an expected model */
    bool moved; /* a tensor lies elsewhere than planned, as with other options */
    qf_error *err;
} comparison;

/* ---- the plan's places ---- */

static int by_place(const void *a, const void *b)
{
    const planned *x = a, *y = b;
    if (x->file != y->file)
        return x->file < y->file ? -1 : 1;
    return x->offset < y->offset ? -1 : x->offset > y->offset;
}

static bool add_place(comparison *c, const qf_job_output *out, source_kind kind, size_t index)
{
    if (!out->placed)
        return true;
    if (!qf_table_grow((void **)&c->places, &c->place_cap, c->place_count + 1, sizeof *c->places))
        return false;
    c->places[c->place_count++] = (planned){out->file, out->offset, kind, index};
    return true;
}

static bool list_places(comparison *c)
{
    const qf_layout *l = &c->plan->layout;
    bool good = true;
    for (int t = 0; t < QF_TARGETS; t++) {
        for (size_t i = 0; good && i < c->plan->job_count; i++) {
            const qf_job *job = c->plan->jobs[i];
            good = add_place(c, &job->out[t], FROM_JOB, i) &&
                   (!job->found || add_place(c, &job->found->out[t], FROM_JOB, i));
        }
        for (size_t i = 0; good && i < l->copy_count; i++)
            good = add_place(c, &l->copies[i].out[t], FROM_COPY, i);
    }
    for (size_t i = 0; good && i < l->literal_count; i++) {
        qf_job_output out = {
            .file = l->literals[i].file, .offset = l->literals[i].offset, .placed = true};
        good =
            qf_ends_with(l->files[out.file].name, ".onnx") || add_place(c, &out, FROM_LITERAL, i);
    }
    for (size_t i = 0; good && i < l->file_count; i++)
        good = qf_strmap_set(&c->file_of, l->files[i].name, (void *)(uintptr_t)(i + 1));
    if (c->place_count)
        qsort(c->places, c->place_count, sizeof *c->places, by_place);
    return good;
}

static const planned *find_place(const comparison *c, int file, uint64_t offset)
{
    planned key = {.file = file, .offset = offset};
    return c->place_count ? bsearch(&key, c->places, c->place_count, sizeof *c->places, by_place)
                          : NULL;
}

/* ---- a model as planned ---- */

/* Index of the .onnx of the target in the layout, -1 if it is not planned. */
static int onnx_file(const qf_against *a, const qf_plan *plan, qf_target target)
{
    static const char *const ends[] = {"deploy_model.onnx", "fake_quant_model.onnx"};
    const char *end = a->runnable ? "runnable_model.onnx" : ends[target];
    for (size_t i = 0; i < plan->layout.file_count; i++) {
        if (qf_ends_with(plan->layout.files[i].name, end))
            return (int)i;
    }
    return -1;
}

/* The literal bytes of the planned .onnx, at their offsets; what is between them takes no memory.
 * Not anonymous: readers let go of pages behind them, and those must not be lost. */
static qf_status assemble(const comparison *c, qf_file *out)
{
    const qf_layout *l = &c->plan->layout;
    uint64_t size = l->files[c->onnx].size;
    int fd = memfd_create("quantfold-verify", MFD_CLOEXEC);
    void *map = MAP_FAILED;
    if (fd >= 0 && ftruncate(fd, (off_t)size) == 0)
        map = mmap(NULL, (size_t)size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    int e = errno;
    if (fd >= 0)
        close(fd);
    if (map == MAP_FAILED)
        return qf_fail_errno(c->err, c->found->path, e, "cannot put the expected model together");
    for (size_t i = 0; i < l->literal_count; i++) {
        const qf_literal *lit = &l->literals[i];
        if (lit->file == c->onnx)
            memcpy((unsigned char *)map + lit->offset, lit->data, lit->length);
    }
    *out = (qf_file){.path = strdup("(the model as planned)"), .data = map, .size = size};
    if (out->path)
        return QF_OK;
    munmap(map, (size_t)size);
    return qf_fail_memory(c->err);
}

/* ---- one tensor ---- */

/* Where the plan puts an expected tensor; false if it has no data. */
static bool place_of(const comparison *c, const Onnx__TensorProto *t, int *file, uint64_t *offset)
{
    size_t index = qf_tensor_payload(t);
    if (index < c->expected.model.payloads.count) {
        *file = c->onnx;
        *offset = c->expected.model.payloads.items[index].span.offset;
        return true;
    }
    const char *location = qf_external_entry(t, "location");
    const char *at = qf_external_entry(t, "offset");
    *file = location ? (int)(uintptr_t)qf_strmap_get(&c->file_of, location) - 1 : -1;
    *offset = at ? strtoull(at, NULL, 10) : 0;
    return *file >= 0;
}

/* Whether both lie inside, or at one place of one file. */
static bool same_place(const Onnx__TensorProto *a, const Onnx__TensorProto *b)
{
    return qf_same_text(qf_external_entry(a, "location"), qf_external_entry(b, "location")) &&
           qf_same_text(qf_external_entry(a, "offset"), qf_external_entry(b, "offset"));
}

static bool same_form(const Onnx__TensorProto *a, const Onnx__TensorProto *b)
{
    return a->data_type == b->data_type && a->n_dims == b->n_dims &&
           (!a->n_dims || memcmp(a->dims, b->dims, a->n_dims * sizeof *a->dims) == 0);
}

/* The result of a job is compared when all jobs are run. */
static qf_status add_claim(comparison *c, const Onnx__TensorProto *expected,
                           const Onnx__TensorProto *found, int file, uint64_t offset)
{
    qf_reading *reading = qf_arena_alloc(c->arena, sizeof *reading);
    const char *why;
    qf_claims *list = c->claims;
    if (!reading ||
        !qf_table_grow((void **)&list->items, &list->cap, list->count + 1, sizeof *list->items))
        return qf_fail_memory(c->err);
    if (!same_form(expected, found)) {
        char x[128], y[128];
        qf_subject_note(c->found, qf_label(c->found, found), "the tensor is %s %s; expected %s %s",
                        qf_dtype_name(found->data_type), qf_dims_text(found, x),
                        qf_dtype_name(expected->data_type), qf_dims_text(expected, y));
        return QF_OK;
    }
    qf_status status = qf_reading_open(c->found, found, reading, &why, c->err);
    if (status == QF_OK && !why && reading->bytes)
        list->items[list->count++] = (qf_claim){.file = file,
                                                .offset = offset,
                                                .length = reading->bytes,
                                                .target = c->target,
                                                .tensor = found,
                                                .reading = reading,
                                                .differs = UINT64_MAX};
    return status;
}

/* Compares with a span that is known already: of the source, or made by the plan. */
static qf_status compare_span(comparison *c, const qf_span *span, const qf_file *file,
                              const Onnx__TensorProto *expected, const Onnx__TensorProto *found)
{
    qf_reading ra, rb;
    const char *why, *other;
    uint64_t count;
    if (!qf_dims_count(expected->dims, expected->n_dims, &count))
        return QF_OK;
    qf_status status =
        qf_reading_of_span(span, file, expected->data_type, count, &ra, &why, c->err);
    if (status != QF_OK || why)
        return status;
    status = qf_reading_open(c->found, found, &rb, &other, c->err);
    if (status == QF_OK && !other) {
        c->against->bytes += rb.bytes;
        status = qf_compare_readings((qf_side){&c->expected, expected}, (qf_side){c->found, found},
                                     NULL, &ra, &rb, NULL, c->err);
        qf_reading_close(&rb);
    }
    qf_reading_close(&ra);
    return status;
}

static qf_status compare_tensor(const Onnx__TensorProto *expected, const Onnx__TensorProto *found,
                                void *user)
{
    comparison *c = user;
    int file;
    uint64_t offset;
    const qf_side a = {&c->expected, expected}, b = {c->found, found};
    c->moved |= !same_place(expected, found);
    if (!place_of(c, expected, &file, &offset))
        return qf_compare_tensors(a, b, NULL, NULL, c->err);
    const planned *p = find_place(c, file, offset);
    if (!p)
        return qf_compare_tensors(a, b, NULL, NULL, c->err);
    if (p->kind == FROM_JOB)
        return add_claim(c, expected, found, file, offset);
    const qf_layout *l = &c->plan->layout;
    if (p->kind == FROM_COPY) {
        const qf_span *span = &l->copies[p->index].source;
        return compare_span(c, span, &c->plan->model->files[span->file], expected, found);
    }
    const qf_literal *lit = &l->literals[p->index];
    const qf_span span = {lit->data, lit->length, QF_FIELD_RAW_DATA, 0, 0};
    return compare_span(c, &span, NULL, expected, found);
}

/* ---- one model ---- */

static void note_claims(const qf_against *a, const qf_claims *claims)
{
    for (size_t i = 0; i < claims->count; i++) {
        const qf_claim *claim = &claims->items[i];
        char wanted[64], got[64], place[400];
        int32_t type = claim->tensor->data_type;
        unsigned bits = qf_dtype_bits(type), half = 0;
        if (claim->differs == UINT64_MAX)
            continue;
        if (bits == 4)
            half = (claim->wanted[0] & 15) == (claim->got[0] & 15);
        uint64_t element = bits == 4 ? 2 * claim->differs + half : claim->differs / (bits / 8);
        qf_subject_note(a->found[claim->target], qf_label(a->found[claim->target], claim->tensor),
                        "element %llu%s is %s; expected %s, as recomputed from the source",
                        (unsigned long long)element,
                        qf_element_place(claim->reading, claim->differs, place),
                        qf_element_text(type, claim->got, half, got),
                        qf_element_text(type, claim->wanted, half, wanted));
    }
}

/* Byte by byte what is not payload, when the layout is the same and nothing else was found. */
static void compare_literals(const comparison *c)
{
    const qf_layout *l = &c->plan->layout;
    const qf_file *file = &c->found->model.files[0];
    if (file->size != l->files[c->onnx].size) {
        qf_subject_note(c->found, NULL, "the file has %llu bytes; expected %llu",
                        (unsigned long long)file->size, (unsigned long long)l->files[c->onnx].size);
        return;
    }
    for (size_t i = 0; i < l->literal_count; i++) {
        const qf_literal *lit = &l->literals[i];
        if (lit->file != c->onnx || memcmp(file->data + lit->offset, lit->data, lit->length) == 0)
            continue;
        size_t at = 0;
        while (file->data[lit->offset + at] == lit->data[at])
            at++;
        qf_subject_note(c->found, NULL,
                        "byte %llu is 0x%02x; expected 0x%02x. The nodes are the same; names of "
                        "files, texts, shapes of inner tensors or the order of nodes may not be",
                        (unsigned long long)(lit->offset + at), file->data[lit->offset + at],
                        lit->data[at]);
        return;
    }
}

/* A model that is the source as it is. */
static void compare_verbatim(const comparison *c)
{
    const qf_file *source = &c->plan->model->files[0], *file = &c->found->model.files[0];
    enum { STEP = 1024 * 1024 };
    uint64_t n = source->size < file->size ? source->size : file->size, at = 0;
    for (; at < n; at += STEP) {
        size_t m = (size_t)(n - at < STEP ? n - at : STEP);
        if (memcmp(source->data + at, file->data + at, m) != 0)
            break;
        qf_file_advise(source, source->data + at, source->data + at + m, MADV_DONTNEED);
        qf_file_advise(file, file->data + at, file->data + at + m, MADV_DONTNEED);
    }
    while (at < n && source->data[at] == file->data[at])
        at++;
    if (at < n || source->size != file->size)
        qf_subject_note(c->found, NULL,
                        "nothing is quantized, so the model should be the source as it is; they "
                        "differ from byte %llu on",
                        (unsigned long long)at);
    c->against->bytes += n;
}

static bool is_verbatim(const comparison *c)
{
    for (size_t i = 0; i < c->plan->layout.literal_count; i++) {
        if (c->plan->layout.literals[i].file == c->onnx)
            return false;
    }
    return true;
}

/* Said first where most nodes are missing: what is wrong then is not in the model. */
static void note_another(const comparison *c)
{
    const qf_ir *ir = &c->expected.ir;
    size_t missing = 0;
    for (size_t i = 0; i < ir->node_count; i++) {
        const qf_node *node = ir->by_id[i];
        const qf_node *other = qf_strmap_get(&c->found->ir.node_names, node->name);
        missing += !other || !qf_same_text(other->proto->op_type, node->proto->op_type);
    }
    if (missing > ir->node_count / 2)
        qf_subject_note(c->found, NULL,
                        "this looks like another model: of the %zu nodes of the %s, %zu are not in "
                        "it",
                        ir->node_count, c->expected.role, missing);
}

/* Graph and small tensors of one model; what jobs make becomes claims. */
static qf_status compare_graph(comparison *c)
{
    qf_file file = {0};
    if (is_verbatim(c)) {
        compare_verbatim(c);
        return QF_OK;
    }
    if (!list_places(c))
        return qf_fail_memory(c->err);
    qf_status status = assemble(c, &file);
    const char *role = c->against->runnable ? "model made of the deploy model" : "model as planned";
    if (status == QF_OK)
        status = qf_subject_read(&file, role, c->found->findings, &c->expected, &c->open, c->err);
    c->expected.origin = c->against->runnable ? "the deploy model" : "the source";
    if (status != QF_OK || !c->open)
        return status;
    note_another(c);
    return qf_same_graph(&c->expected, c->found, c->against->runnable, compare_tensor, c, c->err);
}

static void release(comparison *c)
{
    if (c->open)
        qf_subject_close(&c->expected);
    qf_spill_free(c->places);
    qf_strmap_release(&c->file_of);
}

static void release_claims(qf_claims *claims, qf_arena *arena)
{
    for (size_t i = 0; i < claims->count; i++)
        qf_reading_close(claims->items[i].reading);
    qf_spill_free(claims->items);
    qf_arena_release(arena);
}

qf_status qf_compare_with_plan(qf_against *a, qf_plan *plan, bool exact)
{
    comparison models[QF_TARGETS] = {0};
    qf_claims claims = {0};
    qf_arena arena;
    qf_diag_mark before = qf_diag_now(a->findings);
    qf_status status = QF_OK;
    qf_arena_init(&arena);
    for (int t = 0; status == QF_OK && t < QF_TARGETS; t++) {
        models[t] = (comparison){.against = a,
                                 .plan = plan,
                                 .found = a->found[t],
                                 .target = (qf_target)t,
                                 .onnx = onnx_file(a, plan, (qf_target)t),
                                 .claims = &claims,
                                 .arena = &arena,
                                 .err = a->err};
        if (a->found[t] && models[t].onnx >= 0)
            status = compare_graph(&models[t]);
    }
    if (status == QF_OK)
        status = qf_recompute(a, plan, &claims);
    if (status == QF_OK)
        note_claims(a, &claims);
    for (int t = 0; status == QF_OK && t < QF_TARGETS; t++) {
        if (exact && models[t].open && !models[t].moved &&
            qf_diag_now(a->findings).errors == before.errors)
            compare_literals(&models[t]);
    }
    release_claims(&claims, &arena);
    for (int t = 0; t < QF_TARGETS; t++)
        release(&models[t]);
    return status;
}

/* ---- the inputs ---- */

static qf_status note(qf_against *a, qf_status status, const qf_error *err, bool *complete)
{
    if (status == QF_OK)
        return QF_OK;
    *complete = false;
    if (status == QF_ERR_INPUT) {
        qf_note_error(a->findings, NULL, err);
        return QF_OK;
    }
    if (a->err)
        *a->err = *err;
    return status;
}

/* Whether a text is the one that the manifest names, if it names any; else all that is found may
 * come of that. */
static void check_input(qf_against *a, const char *path, const char *what, const char *hash,
                        const char *named)
{
    if (*named && !hash)
        qf_diag_add(a->findings, QF_WARNING, (qf_where){0},
                    "the manifest names a %s, and none is given; what differs may come of that",
                    what);
    else if (*named && strcmp(hash, named) != 0)
        qf_diag_add(a->findings, QF_WARNING, (qf_where){.file = path},
                    "the %s is not the one that the manifest names: its hash is %s, not %s; what "
                    "differs may come of that",
                    what, hash, named);
}

qf_status qf_check_against(qf_against *a)
{
    const qf_verify_options *o = a->options;
    qf_inputs inputs = {0};
    qf_plan *plan = NULL;
    qf_error err;
    bool complete = true, exact = false;
    qf_status status = note(a, qf_model_open(o->model, &inputs.model, &err), &err, &complete);
    if (status == QF_OK && o->record)
        status = note(a, qf_record_open(o->record, &inputs.record, &err), &err, &complete);
    if (status == QF_OK && o->config)
        status =
            note(a, qf_config_open(o->config, &inputs.config, a->findings, &err), &err, &complete);
    if (status == QF_OK && complete) {
        const qf_file_id *record = inputs.record ? qf_record_id(inputs.record) : NULL;
        const qf_file_id *config = inputs.config ? qf_config_id(inputs.config) : NULL;
        check_input(a, o->record, "record", record ? record->hash : NULL, a->inputs->record);
        check_input(a, o->config, "configuration", config ? config->hash : NULL, a->inputs->config);
    }
    if (status == QF_OK && complete)
        status = qf_infer_plan(a, &inputs, &plan, &exact);
    if (status == QF_OK && plan)
        status = qf_compare_with_plan(a, plan, exact);
    if (inputs.model)
        status = qf_files_check(inputs.model->files, inputs.model->file_count, status, a->err);
    qf_plan_free(plan);
    qf_config_close(inputs.config);
    qf_record_close(inputs.record);
    qf_model_close(inputs.model);
    return status;
}
