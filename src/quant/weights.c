/* SPDX-License-Identifier: Apache-2.0 */
/* A layer's weight as a job: how it is laid out, scaled and packed (facts 4.3). */
#include <stdio.h>
#include <string.h>
#include <xxhash.h>

#include "base/spill.h"
#include "exec/source.h"
#include "onnx/same.h"
#include "quant/constants.h"
#include "quant/tensors.h"

static uint64_t product(const int64_t *dims, size_t from, size_t to)
{
    uint64_t n = 1;
    for (size_t i = from; i < to; i++)
        n *= (uint64_t)dims[i];
    return n;
}

/* One scale per row of the matrix, `per` rows sharing one. */
static void scale_by_row(qf_job *job, uint64_t per)
{
    job->row_div = per;
    job->row_mul = 1;
    job->row_mod = 1;
    job->col_div = 0;
}

static void scale_by_column(qf_job *job, uint64_t per)
{
    job->row_div = 1;
    job->row_mul = 0;
    job->row_mod = 1;
    job->col_div = per;
}

/* Each of the following lays the weight out as a matrix whose scale index is as qf_job says, and
 * tells the axis that int4 packing halves. `pack`: two int4 along that axis share a byte, which is
 * pairs of rows unless the axis is the last. */

static size_t shape_conv(qf_job *job, const qf_weight *w, bool pack)
{
    uint64_t inner = product(w->dims, 2, w->rank), cin = (uint64_t)w->dims[1];
    if (pack && inner > 1) {
        job->rows = (uint64_t)w->dims[0] * cin;
        job->cols = inner;
        scale_by_row(job, cin);
        job->fold_div = cin;
    } else {
        job->rows = (uint64_t)w->dims[0];
        job->cols = cin * inner;
        scale_by_row(job, 1);
        job->fold_div = 1;
    }
    return 1;
}

static size_t shape_conv_transpose(qf_job *job, const qf_weight *w, uint64_t group, bool pack)
{
    uint64_t inner = product(w->dims, 2, w->rank), cout = (uint64_t)w->dims[1];
    uint64_t cin = (uint64_t)w->dims[0], group_cin = cin / group;
    if (pack) {
        job->rows = cin;
        job->cols = cout * inner;
        job->row_div = group_cin;
        job->row_mul = cout;
        job->row_mod = 1;
        job->col_div = inner;
    } else {
        job->rows = cin * cout;
        job->cols = inner;
        job->row_div = group_cin * cout;
        job->row_mul = cout;
        job->row_mod = cout;
        job->col_div = 0;
    }
    return 0;
}

/* `k_axis` is the axis of the stored output that is summed over. */
static size_t shape_matrix(qf_job *job, const qf_weight *w, size_t k_axis)
{
    job->rows = (uint64_t)w->dims[0];
    job->cols = (uint64_t)w->dims[1];
    if (k_axis == 0)
        scale_by_column(job, 1);
    else
        scale_by_row(job, 1);
    return k_axis;
}

static size_t shape_rnn(qf_job *job, const qf_weight *w, qf_op op)
{
    uint64_t rows = (uint64_t)w->dims[1];
    job->rows = rows;
    job->cols = (uint64_t)w->dims[2];
    scale_by_row(job, job->scale_count == qf_op_gates(op) ? rows / qf_op_gates(op) : 1);
    return 2;
}

static size_t shape_job(const qf_tensor_context *t, qf_job *job, qf_weight *w, bool pack)
{
    bool behind_transpose = t->probe->weight_user != t->node;
    bool trans_b = t->layer->op == QF_OP_GEMM && qf_node_int(t->node, "transB", 0) != 0;
    switch (t->layer->op) {
    case QF_OP_CONV:
        return shape_conv(job, w, pack);
    case QF_OP_CONV_TRANSPOSE:
        return shape_conv_transpose(job, w, (uint64_t)t->probe->group, pack);
    case QF_OP_LSTM:
    case QF_OP_GRU:
        return shape_rnn(job, w, t->layer->op);
    default:
        break;
    }
    if (trans_b && !behind_transpose) {
        /* the weight is turned to [K, N] and transB becomes 0 */
        int64_t n = w->dims[0];
        w->dims[0] = w->dims[1];
        w->dims[1] = n;
        job->transposed = true;
        return shape_matrix(job, w, 0);
    }
    return shape_matrix(job, w, t->probe->turned != trans_b ? 1 : 0);
}

/* A tensor that two layers quantize alike is quantized once. */
static bool share(const qf_tensor_context *t, qf_weight *w, size_t payload)
{
    qf_plan *plan = t->plan;
    size_t self = (size_t)(t->layer - plan->layers);
    char key[48];
    /* with the scales: thousands of layers of one tensor and scales of their own stay apart */
    snprintf(key, sizeof key, "%zu:%016llx", payload,
             (unsigned long long)XXH3_64bits(w->job->scales,
                                             w->job->scale_count * sizeof *w->job->scales));
    w->owner = self;
    w->previous = (size_t)(uintptr_t)qf_strmap_get(&plan->weight_of_payload, key);
    for (size_t at = w->previous; at;) {
        const qf_layer *layer = &plan->layers[at - 1];
        const qf_weight *other = &layer->weights[0];
        if (layer->graph == t->layer->graph && w->deploy_type == other->deploy_type &&
            memcmp(w->packed_dims, other->packed_dims, sizeof w->packed_dims) == 0 &&
            w->job->source.data == other->job->source.data && qf_same_work(w->job, other->job)) {
            size_t owner = other->owner;
            *w = *other;
            w->owner = owner;
            return true;
        }
        at = other->previous;
    }
    char *copy = qf_arena_strdup(&plan->arena, key);
    return copy && qf_strmap_set(&plan->weight_of_payload, copy, (void *)(uintptr_t)(self + 1));
}

/* How the weight lies in the deploy model: its dtype, its dims, and the job's format. */
static bool choose_deploy_form(const qf_tensor_context *t, const Onnx__TensorProto *tensor,
                               qf_weight *w, qf_job *job)
{
    bool native = job->bits == 4 && t->layer->dst_type_set;
    bool pack = job->bits == 4 && !native;
    size_t axis = shape_job(t, job, w, pack);
    memcpy(w->packed_dims, w->dims, sizeof w->dims);
    w->deploy_type = native ? QF_DTYPE_INT4 : ONNX__TENSOR_PROTO__DATA_TYPE__INT8;
    job->out[QF_DEPLOY].format = native ? QF_FORMAT_INT4_FLAT : QF_FORMAT_INT8;
    if (!pack)
        return true;
    if (w->dims[axis] % 2) {
        qf_tensor_refuse(
            t,
            "INT4 weights are packed in pairs along the input channels, but '%s' has %lld of "
            "them, an odd number; use INT8 weights for this layer",
            qf_tensor_label(tensor), (long long)w->dims[axis]);
        return false;
    }
    w->packed_dims[axis] /= 2;
    bool last = product(w->dims, axis + 1, w->rank) == 1;
    job->out[QF_DEPLOY].format = last ? QF_FORMAT_INT4_FLAT : QF_FORMAT_INT4_ROWS;
    return true;
}

/* Of the forms that layers use, integers go where the reference puts them, and so do floats. */
static int field_for(qf_format format)
{
    bool floats = format == QF_FORMAT_FLOAT || format == QF_FORMAT_FLOAT_SCALED;
    return floats ? QF_FIELD_FLOAT_DATA : QF_FIELD_RAW_DATA;
}

static qf_format fake_quant_format(const qf_tensor_context *t)
{
    if (t->plan->options.fake_quant_weights != QF_FAKE_QUANT_FLOAT)
        return QF_FORMAT_INT8;
    return qf_op_is_rnn(t->layer->op) ? QF_FORMAT_FLOAT_SCALED : QF_FORMAT_FLOAT;
}

/* Enters the job's results into the payload table and the job into the list of work. */
static bool enter_job(const qf_tensor_context *t, qf_weight *w, bool was_external)
{
    qf_plan *plan = t->plan;
    for (int target = 0; target < QF_TARGETS; target++) {
        qf_payload p = {.kind = QF_PAYLOAD_JOB,
                        .field = field_for(w->job->out[target].format),
                        .span = w->job->source,
                        .raw_length = qf_job_bytes(w->job, w->job->out[target].format),
                        .job = w->job,
                        .was_external = was_external};
        w->payload[target] = qf_payloads_add(&plan->payloads, p);
        if (w->payload[target] == SIZE_MAX)
            return false;
    }
    if (!qf_table_grow((void **)&plan->jobs, &plan->job_cap, plan->job_count + 1,
                       sizeof *plan->jobs))
        return false;
    plan->jobs[plan->job_count++] = w->job;
    return true;
}

static qf_job *new_job(const qf_tensor_context *t, const Onnx__TensorProto *tensor,
                       const qf_payload *source, const float *scales, size_t scale_count)
{
    qf_plan *plan = t->plan;
    bool folded = source->kind == QF_PAYLOAD_JOB;
    qf_job *job = qf_arena_alloc(&plan->arena, sizeof *job);
    const char *name = qf_arena_strdup(&plan->arena, qf_tensor_label(tensor));
    if (!job || !name)
        return NULL;
    *job = (qf_job){.file = plan->model->files[0].path,
                    .layer = t->layer->name,
                    .tensor = name,
                    .source = folded ? source->job->source : source->span,
                    .data_type = folded ? source->job->data_type : tensor->data_type,
                    .scales = scales,
                    .scale_count = scale_count,
                    .fold = folded ? source->job->fold : NULL,
                    .fold_div = 1,
                    .bits = t->layer->wts_bits};
    job->out[QF_FAKE_QUANT].format = fake_quant_format(t);
    return job;
}

qf_status qf_layer_add_weight(const qf_tensor_context *t, const Onnx__TensorProto *tensor,
                              const float *scales, size_t scale_count)
{
    qf_layer *layer = t->layer;
    size_t index = qf_tensor_payload(tensor);
    const qf_payload source = t->plan->payloads.items[index];
    uint64_t count;
    const char *why = qf_constant_check(tensor, &source, &count);
    if (why) {
        qf_tensor_refuse(t, "weight tensor '%s' %s", qf_tensor_label(tensor), why);
        return QF_OK;
    }
    if (qf_source_is_integer(tensor->data_type) &&
        qf_dtype_bits(tensor->data_type) > (unsigned)layer->wts_bits) {
        qf_tensor_refuse(t, "weight tensor '%s' holds %s; the record asks for %d bits",
                         qf_tensor_label(tensor), qf_dtype_name(tensor->data_type),
                         layer->wts_bits);
        return QF_OK;
    }
    qf_weight *w = &layer->weights[layer->weight_count];
    qf_job *job = new_job(t, tensor, &source, scales, scale_count);
    if (!job)
        return qf_fail_memory(t->err);
    w->rank = tensor->n_dims;
    memcpy(w->dims, tensor->dims, w->rank * sizeof *w->dims);
    w->scale_count = scale_count;
    w->job = job;
    w->owner = (size_t)(layer - t->plan->layers);
    if (!choose_deploy_form(t, tensor, w, job))
        return QF_OK;
    layer->weight_count++;
    if (!qf_op_is_rnn(layer->op) && !share(t, w, index))
        return qf_fail_memory(t->err);
    bool shared = w->job != job; /* an earlier layer's */
    return shared || enter_job(t, w, source.was_external) ? QF_OK : qf_fail_memory(t->err);
}
