/* SPDX-License-Identifier: Apache-2.0 */
/* A layer's weights as jobs, and its bias as numbers. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "exec/source.h"
#include "kernels.h"
#include "quant/plan.h"

typedef struct tensor_context {
    qf_plan *plan;
    const qf_node *node;
    const qf_probe *probe;
    qf_layer *layer;
    qf_error *err;
} tensor_context;

static void refuse(const tensor_context *t, const char *format, ...) QF_PRINTF(2, 3);
static void refuse(const tensor_context *t, const char *format, ...)
{
    char message[600];
    va_list args;
    va_start(args, format);
    vsnprintf(message, sizeof message, format, args);
    va_end(args);
    qf_diag_add(t->plan->diag, QF_ERROR,
                (qf_where){.file = t->plan->model->files[0].path, .item = t->layer->name}, "%s",
                message);
}

static const char *tensor_name(const Onnx__TensorProto *tensor)
{
    return tensor->name && *tensor->name ? tensor->name : "(unnamed)";
}

/* ---- reading ---- */

const char *qf_plan_check_data(const Onnx__TensorProto *tensor, const qf_payload *p,
                               uint64_t *count)
{
    if (!qf_dims_count(tensor->dims, tensor->n_dims, count))
        return "has impossible dims";
    int type = tensor->data_type;
    bool half = type == ONNX__TENSOR_PROTO__DATA_TYPE__FLOAT16 ||
                type == ONNX__TENSOR_PROTO__DATA_TYPE__BFLOAT16;
    bool fits =
        p->field == QF_FIELD_RAW_DATA ||
        (p->field == QF_FIELD_FLOAT_DATA && type == ONNX__TENSOR_PROTO__DATA_TYPE__FLOAT) ||
        (p->field == QF_FIELD_DOUBLE_DATA && type == ONNX__TENSOR_PROTO__DATA_TYPE__DOUBLE) ||
        (p->field == QF_FIELD_INT32_DATA && half);
    if (!fits)
        return "is stored in a field that does not belong to its dtype";
    bool short_varints = p->field == QF_FIELD_INT32_DATA && *count > p->span.length;
    if (short_varints || p->raw_length != qf_raw_bytes(type, *count))
        return "has a different number of elements than its dims say";
    return NULL;
}

static qf_status load(const qf_plan *plan, const qf_payload *p, int32_t type, uint64_t count,
                      float *out, const char *name, qf_error *err)
{
    if (p->kind == QF_PAYLOAD_BYTES) {
        if (count)
            memcpy(out, p->bytes, (size_t)count * sizeof *out);
        return QF_OK;
    }
    qf_varint_index index;
    qf_status status =
        qf_varint_index_build(&p->span, count, plan->model->files[0].path, name, &index, err);
    if (status == QF_OK)
        qf_source_floats(&p->span, &index, type, 0, (size_t)count, out);
    qf_varint_index_release(&index);
    return status;
}

qf_status qf_plan_read_floats(qf_plan *plan, const Onnx__TensorProto *tensor, const float **out,
                              const double **wide, uint64_t *count, const char **why, qf_error *err)
{
    *out = NULL;
    *why = NULL;
    if (wide)
        *wide = NULL;
    if (!qf_dtype_is_float(tensor->data_type)) {
        *why = "does not have a float dtype";
        return QF_OK;
    }
    size_t index = qf_tensor_payload(tensor);
    if (index >= plan->payloads.count) {
        *why = "is empty or stored in an unusual way (unpacked data)";
        return QF_OK;
    }
    const qf_payload *p = &plan->payloads.items[index];
    if ((*why = qf_plan_check_data(tensor, p, count)))
        return QF_OK;
    if (wide && tensor->data_type == ONNX__TENSOR_PROTO__DATA_TYPE__DOUBLE &&
        p->kind == QF_PAYLOAD_SPAN) {
        double *copy = qf_arena_array(&plan->arena, (size_t)*count, sizeof *copy);
        if (!copy)
            return qf_fail_memory(err);
        if (*count)
            memcpy(copy, p->span.data, (size_t)*count * sizeof *copy);
        *wide = copy;
        return QF_OK;
    }
    float *floats = qf_arena_array(&plan->arena, (size_t)*count, sizeof *floats);
    if (!floats)
        return qf_fail_memory(err);
    qf_status status = load(plan, p, tensor->data_type, *count, floats, tensor_name(tensor), err);
    if (status == QF_OK)
        *out = floats;
    return status;
}

/* ---- weights ---- */

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

static size_t shape_job(const tensor_context *t, qf_job *job, qf_weight *w, bool pack)
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

static bool same_job(const qf_job *a, const qf_job *b)
{
    return a->source.data == b->source.data && a->rows == b->rows && a->cols == b->cols &&
           a->transposed == b->transposed && a->bits == b->bits && a->fold == b->fold &&
           a->scale_count == b->scale_count && a->row_div == b->row_div &&
           a->row_mul == b->row_mul && a->row_mod == b->row_mod && a->col_div == b->col_div &&
           a->out[0].format == b->out[0].format && a->out[1].format == b->out[1].format &&
           memcmp(a->scales, b->scales, a->scale_count * sizeof *a->scales) == 0;
}

/* A tensor that two layers quantize alike is quantized once. */
static bool share(const tensor_context *t, qf_weight *w, size_t payload)
{
    qf_plan *plan = t->plan;
    size_t self = (size_t)(t->layer - plan->layers);
    char key[32];
    snprintf(key, sizeof key, "%zu", payload);
    w->owner = self;
    w->previous = (size_t)(uintptr_t)qf_strmap_get(&plan->weight_of_payload, key);
    for (size_t at = w->previous; at;) {
        const qf_layer *layer = &plan->layers[at - 1];
        const qf_weight *other = &layer->weights[0];
        if (layer->graph == t->layer->graph && w->deploy_type == other->deploy_type &&
            memcmp(w->packed_dims, other->packed_dims, sizeof w->packed_dims) == 0 &&
            same_job(w->job, other->job)) {
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

static qf_status add_weight(const tensor_context *t, const Onnx__TensorProto *tensor,
                            const float *scales, size_t scale_count)
{
    qf_plan *plan = t->plan;
    qf_layer *layer = t->layer;
    size_t index = qf_tensor_payload(tensor);
    const qf_payload *source = &plan->payloads.items[index];
    bool folded = source->kind == QF_PAYLOAD_JOB;
    uint64_t count;
    const char *why = qf_plan_check_data(tensor, source, &count);
    if (why) {
        refuse(t, "weight tensor '%s' %s", tensor_name(tensor), why);
        return QF_OK;
    }
    qf_weight *w = &layer->weights[layer->weight_count];
    qf_job *job = qf_arena_alloc(&plan->arena, sizeof *job);
    if (!job)
        return qf_fail_memory(t->err);
    w->rank = tensor->n_dims;
    memcpy(w->dims, tensor->dims, w->rank * sizeof *w->dims);
    w->scales = scales;
    w->scale_count = scale_count;
    w->job = job;
    *job = (qf_job){.file = plan->model->files[0].path,
                    .layer = layer->name,
                    .tensor = qf_arena_strdup(&plan->arena, tensor_name(tensor)),
                    .source = folded ? source->job->source : source->span,
                    .data_type = folded ? source->job->data_type : tensor->data_type,
                    .scales = scales,
                    .scale_count = scale_count,
                    .fold = folded ? source->job->fold : NULL,
                    .fold_div = 1,
                    .bits = layer->wts_bits};
    bool native = layer->wts_bits == 4 && layer->dst_type_set;
    bool pack = layer->wts_bits == 4 && !native;
    size_t axis = shape_job(t, job, w, pack);
    memcpy(w->packed_dims, w->dims, sizeof w->dims);
    w->deploy_type = native ? QF_DTYPE_INT4 : ONNX__TENSOR_PROTO__DATA_TYPE__INT8;
    qf_format deploy = QF_FORMAT_INT8;
    if (native) {
        deploy = QF_FORMAT_INT4_FLAT;
    } else if (pack) {
        if (w->dims[axis] % 2) {
            refuse(t,
                   "INT4 weights are packed in pairs along the input channels, but '%s' has %lld "
                   "of them, an odd number; use INT8 weights for this layer",
                   tensor_name(tensor), (long long)w->dims[axis]);
            return QF_OK;
        }
        w->packed_dims[axis] /= 2;
        bool last = product(w->dims, axis + 1, w->rank) == 1;
        deploy = last ? QF_FORMAT_INT4_FLAT : QF_FORMAT_INT4_ROWS;
    }
    job->out[QF_DEPLOY].format = deploy;
    job->out[QF_FAKE_QUANT].format =
        qf_op_is_rnn(layer->op) ? QF_FORMAT_FLOAT_SCALED : QF_FORMAT_FLOAT;
    layer->weight_count++;
    if (!qf_op_is_rnn(layer->op) && !share(t, w, index))
        return qf_fail_memory(t->err);
    if (w->job != job)
        return QF_OK; /* an earlier layer's */
    for (int target = 0; target < QF_TARGETS; target++) {
        qf_payload p = {.kind = QF_PAYLOAD_JOB,
                        .field = target == QF_DEPLOY ? QF_FIELD_RAW_DATA : QF_FIELD_FLOAT_DATA,
                        .span = job->source,
                        .raw_length = qf_job_bytes(job, job->out[target].format),
                        .job = job,
                        .output = target,
                        .was_external = plan->payloads.items[index].was_external};
        w->payload[target] = qf_payloads_add(&plan->payloads, p);
        if (w->payload[target] == SIZE_MAX)
            return qf_fail_memory(t->err);
    }
    w->owner = (size_t)(layer - plan->layers);
    if (!qf_grow((void **)&plan->jobs, &plan->job_cap, plan->job_count + 1, sizeof *plan->jobs))
        return qf_fail_memory(t->err);
    plan->jobs[plan->job_count++] = job;
    return job->tensor ? QF_OK : qf_fail_memory(t->err);
}

/* ---- bias ---- */

/* The constant 1-D second input of the only consumer, an Add, of a MatMul, as long as the weight's
 * last dimension: facts 4.2. */
static Onnx__TensorProto *matmul_bias(const tensor_context *t)
{
    const qf_value *out = qf_node_output(t->node);
    const qf_node *add = out ? qf_value_only_user(out) : NULL;
    if (!add || !qf_node_is(add, "Add") || add->graph != t->node->graph || add->input_count != 2 ||
        !qf_node_output(add) || add->inputs[0] != out || !add->inputs[1])
        return NULL;
    Onnx__TensorProto *bias = qf_value_constant(add->inputs[1]);
    const Onnx__TensorProto *weight = t->probe->weight;
    if (!bias || bias->n_dims != 1 || bias->dims[0] != weight->dims[weight->n_dims - 1] ||
        (uint64_t)bias->dims[0] != t->probe->channels)
        return NULL;
    return bias;
}

static bool find_bias(const tensor_context *t, Onnx__TensorProto **bias)
{
    size_t input = qf_op_is_rnn(t->layer->op) ? 3 : 2;
    *bias = NULL;
    if (t->layer->op == QF_OP_AVERAGE_POOL)
        return true;
    if (t->layer->op == QF_OP_MATMUL) {
        *bias = matmul_bias(t);
        return true;
    }
    if (input >= t->node->input_count || !t->node->inputs[input])
        return true;
    *bias = qf_value_constant(t->node->inputs[input]);
    if (!*bias)
        refuse(t, "its bias '%s' is not a constant, so it cannot be quantized",
               t->node->inputs[input]->name);
    return *bias != NULL;
}

/* The dequant scale of each bias element, for an RNN: first half W's, second half R's, a scale per
 * gate repeated over its rows. */
static const float *bias_scales(const tensor_context *t, uint64_t count, size_t *n)
{
    const qf_layer *layer = t->layer;
    *n = layer->dequant_count;
    if (!qf_op_is_rnn(layer->op))
        return layer->dequant;
    size_t half = (size_t)(count / 2), first = layer->weights[0].scale_count;
    float *scales = qf_arena_array(&t->plan->arena, (size_t)count, sizeof *scales);
    if (!scales)
        return NULL;
    for (size_t i = 0; i < half; i++) {
        scales[i] = layer->dequant[i / (half / first)];
        scales[half + i] = layer->dequant[first + i / (half / (layer->dequant_count - first))];
    }
    *n = (size_t)count;
    return scales;
}

/* A Gemm bias of one column stands for all columns; with a scale for each, the quantized values
 * differ and the column has to be written out. */
static bool is_spread(const tensor_context *t, const Onnx__TensorProto *bias)
{
    bool column = bias->n_dims == 0 || bias->dims[bias->n_dims - 1] == 1;
    return t->layer->op == QF_OP_GEMM && t->layer->dequant_count > 1 && column;
}

static bool bias_fits(const tensor_context *t, const Onnx__TensorProto *bias, uint64_t count)
{
    const qf_layer *layer = t->layer;
    uint64_t channels = t->probe->channels;
    bool fits;
    if (qf_op_is_rnn(layer->op))
        fits = count == 2 * channels;
    else if (layer->op == QF_OP_GEMM) /* broadcast to [M, N] */
        fits = count && (layer->dequant_count == 1 || is_spread(t, bias) ||
                         (uint64_t)bias->dims[bias->n_dims - 1] == channels);
    else
        fits = count == channels;
    if (!fits)
        refuse(t, "bias tensor '%s' has %llu values, which does not fit %llu output channels",
               tensor_name(bias), (unsigned long long)count, (unsigned long long)channels);
    return fits;
}

/* A bias as read: one of the two is set. */
typedef struct bias_values {
    const float *narrow;
    const double *wide;
    uint64_t count;
} bias_values;

/* Quantizes element by element, each value `repeat` times with the next scales. Returns the index
 * of the first result that is outside int32, or the number of results. */
static size_t quantize_bias(const bias_values *b, size_t repeat, const float *scales,
                            size_t scale_count, int32_t *q)
{
    const qf_kernels *k = qf_kernels_get();
    size_t n = (size_t)b->count;
    if (repeat == 1)
        return b->wide ? k->bias_f64(b->wide, n, scales, scale_count, q)
                       : k->bias_f32(b->narrow, n, scales, scale_count, q);
    for (size_t i = 0; i < n * repeat; i++) {
        const float *scale = scales + i % scale_count;
        size_t done = b->wide ? k->bias_f64(b->wide + i / repeat, 1, scale, 1, q + i)
                              : k->bias_f32(b->narrow + i / repeat, 1, scale, 1, q + i);
        if (!done)
            return i;
    }
    return n * repeat;
}

static void refuse_range(const tensor_context *t, const Onnx__TensorProto *bias,
                         const bias_values *b, size_t at, double scale)
{
    double value = b->wide ? b->wide[at] : (double)b->narrow[at];
    refuse(t,
           "bias '%s'[%zu] = %.9g divided by its scale %.9g is %.9g, which is outside int32 "
           "[-2147483648, 2147483647]; the scale is too small for this bias",
           tensor_name(bias), at, value, scale, value / scale);
}

/* The bias's dims in the output. */
static bool set_bias_dims(const tensor_context *t, const Onnx__TensorProto *bias, size_t repeat)
{
    qf_layer *layer = t->layer;
    layer->bias_rank = bias->n_dims ? bias->n_dims : repeat > 1;
    layer->bias_dims = qf_arena_array(&t->plan->arena, bias->n_dims + 1, sizeof(int64_t));
    if (!layer->bias_dims)
        return false;
    if (bias->n_dims)
        memcpy(layer->bias_dims, bias->dims, bias->n_dims * sizeof(int64_t));
    if (repeat > 1)
        layer->bias_dims[layer->bias_rank - 1] = (int64_t)repeat;
    return true;
}

static qf_status store_bias(const tensor_context *t, const Onnx__TensorProto *bias, int32_t *q,
                            size_t count, const float *scales, size_t scale_count)
{
    qf_plan *plan = t->plan;
    qf_layer *layer = t->layer;
    float *floats = qf_arena_array(&plan->arena, count, sizeof *floats);
    if (!floats)
        return qf_fail_memory(t->err);
    for (size_t i = 0; i < count; i++) {
        floats[i] = (float)q[i];
        if (qf_op_is_rnn(layer->op))
            floats[i] *= scales[i % scale_count];
    }
    size_t source = qf_tensor_payload(bias);
    bool external = source < plan->payloads.count && plan->payloads.items[source].was_external;
    layer->bias_payload[QF_DEPLOY] =
        qf_plan_add_bytes(plan, QF_FIELD_INT32_DATA, q, count * sizeof *q, external);
    layer->bias_payload[QF_FAKE_QUANT] =
        qf_plan_add_bytes(plan, QF_FIELD_FLOAT_DATA, floats, count * sizeof *floats, external);
    if (layer->bias_payload[QF_DEPLOY] == SIZE_MAX ||
        layer->bias_payload[QF_FAKE_QUANT] == SIZE_MAX)
        return qf_fail_memory(t->err);
    layer->has_bias = true;
    return QF_OK;
}

static qf_status add_bias(const tensor_context *t)
{
    Onnx__TensorProto *bias;
    if (!find_bias(t, &bias) || !bias)
        return QF_OK;
    bias_values b;
    const char *why;
    qf_status status =
        qf_plan_read_floats(t->plan, bias, &b.narrow, &b.wide, &b.count, &why, t->err);
    if (status != QF_OK)
        return status;
    if (why)
        refuse(t, "bias tensor '%s' %s", tensor_name(bias), why);
    if (why || !bias_fits(t, bias, b.count))
        return QF_OK;

    size_t scale_count, repeat = is_spread(t, bias) ? t->layer->dequant_count : 1;
    size_t n = (size_t)b.count * repeat;
    const float *scales = bias_scales(t, b.count, &scale_count);
    int32_t *q = qf_arena_array(&t->plan->arena, (size_t)b.count, repeat * sizeof *q);
    if (!scales || !q || !set_bias_dims(t, bias, repeat))
        return qf_fail_memory(t->err);
    size_t done = quantize_bias(&b, repeat, scales, scale_count, q);
    if (done < n) {
        refuse_range(t, bias, &b, done / repeat, (double)scales[done % scale_count]);
        return QF_OK;
    }
    return store_bias(t, bias, q, n, scales, scale_count);
}

qf_status qf_plan_tensors(qf_plan *plan, const qf_node *node, const qf_probe *probe,
                          qf_layer *layer, qf_error *err)
{
    tensor_context t = {plan, node, probe, layer, err};
    const AMCTPytorchProto__SingleLayerRecord *v = layer->record;
    qf_status status = QF_OK;
    size_t errors = qf_diagnostics_errors(plan->diag);
    if (probe->weight)
        status = add_weight(&t, probe->weight, v->scale_w, v->n_scale_w);
    if (status == QF_OK && probe->recurrence && qf_diagnostics_errors(plan->diag) == errors)
        status = add_weight(&t, probe->recurrence, v->scale_r, v->n_scale_r);
    /* a bias says nothing new about a layer whose weights are wrong */
    if (status != QF_OK || qf_diagnostics_errors(plan->diag) > errors)
        return status;
    return add_bias(&t);
}
