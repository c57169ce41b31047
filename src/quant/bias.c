/* SPDX-License-Identifier: Apache-2.0 */
/* A layer's bias, quantized to int32 (facts 4.4). */
#include <string.h>

#include "kernels.h"
#include "quant/tensors.h"

/* The constant 1-D second input of the only consumer, an Add, of a MatMul, as long as the weight's
 * last dimension: facts 4.2. */
static Onnx__TensorProto *matmul_bias(const qf_tensor_context *t)
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

static bool find_bias(const qf_tensor_context *t, Onnx__TensorProto **bias)
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
        qf_tensor_refuse(t, "its bias '%s' is not a constant, so it cannot be quantized",
                         t->node->inputs[input]->name);
    return *bias != NULL;
}

/* The dequant scale of each bias element, for an RNN: first half W's, second half R's, a scale per
 * gate repeated over its rows. */
static const float *bias_scales(const qf_tensor_context *t, uint64_t count, size_t *n)
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
static bool is_spread(const qf_tensor_context *t, const Onnx__TensorProto *bias)
{
    bool column = bias->n_dims == 0 || bias->dims[bias->n_dims - 1] == 1;
    return t->layer->op == QF_OP_GEMM && t->layer->dequant_count > 1 && column;
}

static bool bias_fits(const qf_tensor_context *t, const Onnx__TensorProto *bias, uint64_t count)
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
        qf_tensor_refuse(
            t, "bias tensor '%s' has %llu values, which does not fit %llu output channels",
            qf_tensor_label(bias), (unsigned long long)count, (unsigned long long)channels);
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
    if (repeat == 1) {
        size_t round = scale_count == 1 ? n : scale_count;
        for (size_t i = 0; i < n; i += round) {
            size_t m = n - i < round ? n - i : round, each = scale_count == 1 ? 1 : m;
            size_t done = b->wide ? k->bias_f64(b->wide + i, m, scales, each, q + i)
                                  : k->bias_f32(b->narrow + i, m, scales, each, q + i);
            if (done < m)
                return i + done;
        }
        return n;
    }
    for (size_t i = 0; i < n * repeat; i++) {
        const float *scale = scales + i % scale_count;
        size_t done = b->wide ? k->bias_f64(b->wide + i / repeat, 1, scale, 1, q + i)
                              : k->bias_f32(b->narrow + i / repeat, 1, scale, 1, q + i);
        if (!done)
            return i;
    }
    return n * repeat;
}

static void refuse_range(const qf_tensor_context *t, const Onnx__TensorProto *bias,
                         const bias_values *b, size_t at, double scale)
{
    double value = b->wide ? b->wide[at] : (double)b->narrow[at];
    qf_tensor_refuse(
        t,
        "bias '%s'[%zu] = %.9g divided by its scale %.9g is %.9g, which is outside int32 "
        "[-2147483648, 2147483647]; the scale is too small for this bias",
        qf_tensor_label(bias), at, value, scale, value / scale);
}

/* The bias's dims in the output. */
static bool set_bias_dims(const qf_tensor_context *t, const Onnx__TensorProto *bias, size_t repeat)
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

static qf_status store_bias(const qf_tensor_context *t, const Onnx__TensorProto *bias, int32_t *q,
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

qf_status qf_layer_add_bias(const qf_tensor_context *t)
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
        qf_tensor_refuse(t, "bias tensor '%s' %s", qf_tensor_label(bias), why);
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
