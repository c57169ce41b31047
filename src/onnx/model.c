/* SPDX-License-Identifier: Apache-2.0 */
#include "onnx/model.h"

#include <errno.h>
#include <libgen.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/spill.h"
#include "onnx/external.h"
#include "onnx/scan.h"
#include "quant/inspect.h"

qf_status qf_skeleton_unpack(const unsigned char *skeleton, size_t length, const char *path,
                             qf_arena *arena, Onnx__ModelProto **out, qf_error *err)
{
    arena->allocator.allocator_data = arena;
    *out = onnx__model_proto__unpack(&arena->allocator, length, skeleton);
    if (!*out && arena->exhausted)
        return qf_fail_memory(err);
    if (!*out)
        return qf_fail_at(err, QF_ERR_INPUT, (qf_where){.file = path},
                          "not a readable ONNX model: protobuf cannot unpack its graph");
    if (!(*out)->graph)
        return qf_fail_at(err, QF_ERR_INPUT, (qf_where){.file = path},
                          "not an ONNX model: it has no graph");
    return QF_OK;
}

qf_status qf_skeleton_pack(const Onnx__ModelProto *model, unsigned char **out, size_t *length,
                           qf_error *err)
{
    *length = onnx__model_proto__get_packed_size(model);
    *out = qf_spill_alloc(*length);
    if (!*out)
        return qf_fail_memory(err);
    onnx__model_proto__pack(model, *out);
    return QF_OK;
}

qf_status qf_linked_open(const unsigned char *skeleton, size_t length, const char *path,
                         qf_linked *out, qf_error *err)
{
    qf_arena_init(&out->arena);
    qf_status status = qf_skeleton_unpack(skeleton, length, path, &out->arena, &out->model, err);
    if (status == QF_OK)
        status = qf_ir_build(&out->arena, out->model, path, &out->ir, err);
    if (status != QF_OK)
        qf_arena_release(&out->arena);
    return status;
}

void qf_linked_close(qf_linked *linked)
{
    qf_ir_release(&linked->ir);
    qf_arena_release(&linked->arena);
}

/* ---- visiting tensors ---- */

typedef struct visitor {
    qf_tensor_visitor visit;
    void *user;
} visitor;

static qf_status visit_graph(const visitor *v, Onnx__GraphProto *graph);

static qf_status visit_sparse(const visitor *v, Onnx__SparseTensorProto *sparse)
{
    qf_status status = QF_OK;
    if (sparse->values)
        status = v->visit(sparse->values, v->user);
    if (status == QF_OK && sparse->indices)
        status = v->visit(sparse->indices, v->user);
    return status;
}

static qf_status visit_attribute(const visitor *v, Onnx__AttributeProto *a)
{
    qf_status status = QF_OK;
    if (a->t)
        status = v->visit(a->t, v->user);
    for (size_t i = 0; status == QF_OK && i < a->n_tensors; i++)
        status = v->visit(a->tensors[i], v->user);
    if (status == QF_OK && a->sparse_tensor)
        status = visit_sparse(v, a->sparse_tensor);
    for (size_t i = 0; status == QF_OK && i < a->n_sparse_tensors; i++)
        status = visit_sparse(v, a->sparse_tensors[i]);
    if (status == QF_OK && a->g)
        status = visit_graph(v, a->g);
    for (size_t i = 0; status == QF_OK && i < a->n_graphs; i++)
        status = visit_graph(v, a->graphs[i]);
    return status;
}

static qf_status visit_nodes(const visitor *v, Onnx__NodeProto **nodes, size_t count)
{
    qf_status status = QF_OK;
    for (size_t i = 0; status == QF_OK && i < count; i++) {
        for (size_t j = 0; status == QF_OK && j < nodes[i]->n_attribute; j++)
            status = visit_attribute(v, nodes[i]->attribute[j]);
    }
    return status;
}

static qf_status visit_graph(const visitor *v, Onnx__GraphProto *graph)
{
    qf_status status = visit_nodes(v, graph->node, graph->n_node);
    for (size_t i = 0; status == QF_OK && i < graph->n_initializer; i++)
        status = v->visit(graph->initializer[i], v->user);
    for (size_t i = 0; status == QF_OK && i < graph->n_sparse_initializer; i++)
        status = visit_sparse(v, graph->sparse_initializer[i]);
    return status;
}

qf_status qf_model_each_tensor(Onnx__ModelProto *model, qf_tensor_visitor visit, void *user)
{
    visitor v = {visit, user};
    qf_status status = visit_graph(&v, model->graph);
    for (size_t i = 0; status == QF_OK && i < model->n_functions; i++)
        status = visit_nodes(&v, model->functions[i]->node, model->functions[i]->n_node);
    for (size_t i = 0; status == QF_OK && i < model->n_training_info; i++) {
        Onnx__TrainingInfoProto *info = model->training_info[i];
        if (info->initialization)
            status = visit_graph(&v, info->initialization);
        if (status == QF_OK && info->algorithm)
            status = visit_graph(&v, info->algorithm);
    }
    return status;
}

/* ---- opening ---- */

typedef struct measurer {
    qf_model *model;
    qf_error *err;
} measurer;

/* Data that is not as long as dtype and dims need is refused, wherever it would be written: a model
 * with a copy of it is one that nothing loads. `span` is where it lies; NULL: in the graph. */
static qf_status check_length(const measurer *m, const Onnx__TensorProto *tensor, uint64_t length,
                              const qf_span *span)
{
    uint64_t count = 0;
    bool counted = qf_dims_count(tensor->dims, tensor->n_dims, &count);
    uint64_t want = counted ? qf_raw_bytes(tensor->data_type, count) : 0;
    if (!length || !qf_dtype_bits(tensor->data_type) || (counted && want == length))
        return QF_OK;
    qf_where where = {.file = m->model->files[span ? span->file : 0].path,
                      .item = tensor->name && *tensor->name ? tensor->name : "(unnamed tensor)",
                      .byte = span ? &span->offset : NULL};
    return qf_fail_at(m->err, QF_ERR_INPUT, where,
                      "the tensor has %llu bytes of data, but dtype %s and its dims need %llu",
                      (unsigned long long)length, qf_dtype_name(tensor->data_type),
                      (unsigned long long)want);
}

/* Data that stayed in the graph: what is written is one field of it. */
static qf_status check_kept(const measurer *m, const Onnx__TensorProto *tensor)
{
    qf_status status = check_length(m, tensor, tensor->raw_data.len, NULL);
    if (status == QF_OK)
        status = check_length(m, tensor, (uint64_t)tensor->n_float_data * 4, NULL);
    if (status == QF_OK)
        status = check_length(m, tensor, (uint64_t)tensor->n_double_data * 8, NULL);
    return status;
}

/* The number of raw bytes of a span, for varints from the tensor's dims; 0 if those are impossible,
 * which keeps the tensor as it is. */
static qf_status measure_raw(Onnx__TensorProto *tensor, void *user)
{
    const measurer *m = user;
    size_t index = qf_tensor_payload(tensor);
    if (index >= m->model->payloads.count)
        return check_kept(m, tensor);
    qf_payload *p = &m->model->payloads.items[index];
    uint64_t count;
    if (!qf_field_is_varint(p->field)) {
        p->raw_length = p->span.length;
        return check_length(m, tensor, p->span.length, &p->span);
    }
    if (qf_dims_count(tensor->dims, tensor->n_dims, &count) && count / 2 <= p->span.length)
        p->raw_length = qf_raw_bytes(tensor->data_type, count); /* a varint has a byte at least */
    return QF_OK;
}

static qf_status find_folder(qf_model *model, const char *path, qf_error *err)
{
    char real[PATH_MAX];
    if (!realpath(path, real))
        return qf_fail_errno(err, path, errno, "cannot resolve the model's path");
    model->folder = strdup(dirname(real));
    return model->folder ? QF_OK : qf_fail_memory(err);
}

/* Unpacks the skeleton, completes it and looks at what it holds. */
static qf_status read_graph(qf_model *model, const char *path, qf_arena *arena, qf_error *err)
{
    Onnx__ModelProto *proto;
    qf_status status =
        qf_skeleton_unpack(model->skeleton, model->skeleton_length, path, arena, &proto, err);
    if (status == QF_OK)
        status = qf_external_resolve(model, arena, proto, err);
    measurer m = {model, err};
    if (status == QF_OK)
        status = qf_model_each_tensor(proto, measure_raw, &m);
    if (status == QF_OK) {
        /* from here on the skeleton also carries the payloads of external tensors */
        qf_spill_free(model->skeleton);
        model->skeleton = NULL;
        status = qf_skeleton_pack(proto, &model->skeleton, &model->skeleton_length, err);
    }
    if (status == QF_OK)
        status = qf_layer_scan_create(model, arena, proto, &model->layers, err);
    return status;
}

qf_status qf_model_open(const char *path, qf_model **out, qf_error *err)
{
    if (!path || !out)
        return qf_fail(err, QF_ERR_USAGE, "qf_model_open: path and out must not be NULL");
    qf_model *model = calloc(1, sizeof *model);
    if (!model)
        return qf_fail_memory(err);
    qf_arena arena;
    qf_arena_init(&arena);
    qf_status status = QF_OK;
    if (!qf_grow((void **)&model->files, &model->file_cap, 1, sizeof *model->files))
        status = qf_fail_memory(err);
    if (status == QF_OK)
        status = qf_file_open(path, "model", &model->files[0], err);
    if (status == QF_OK) {
        model->file_count = 1;
        status = find_folder(model, path, err);
    }
    if (status == QF_OK)
        status = qf_scan(&model->files[0], &model->payloads, &model->skeleton,
                         &model->skeleton_length, err);
    if (status == QF_OK)
        status = read_graph(model, path, &arena, err);
    status = qf_files_check(model->files, model->file_count, status, err);
    qf_arena_release(&arena);
    if (status != QF_OK) {
        qf_model_close(model);
        return status;
    }
    *out = model;
    return QF_OK;
}

bool qf_model_is_file(const qf_model *model, const struct stat *st)
{
    for (size_t i = 0; i < model->file_count; i++) {
        if (model->files[i].device == st->st_dev && model->files[i].inode == st->st_ino)
            return true;
    }
    return false;
}

bool qf_model_has_file(const qf_model *model, const char *path)
{
    struct stat st;
    return model && path && stat(path, &st) == 0 && qf_model_is_file(model, &st);
}

void qf_model_close(qf_model *model)
{
    if (!model)
        return;
    for (size_t i = 0; i < model->file_count; i++)
        qf_file_close(&model->files[i]);
    free(model->files);
    free(model->folder);
    qf_spill_free(model->skeleton);
    qf_payloads_release(&model->payloads);
    qf_layer_scan_free(model->layers);
    free(model);
}
