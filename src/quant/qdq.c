/* SPDX-License-Identifier: Apache-2.0 */
#include "quant/qdq.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "exec/source.h"

/* ---- nodes ---- */

static bool is_op(const qf_node *node, const char *op_type)
{
    const Onnx__NodeProto *p = node->proto;
    bool contrib = p->domain && strcmp(p->domain, "com.microsoft") == 0;
    return contrib ? p->op_type && strcmp(p->op_type, op_type) == 0 : qf_node_is(node, op_type);
}

bool qf_is_quantize(const qf_node *node)
{
    return is_op(node, "QuantizeLinear") && node->input_count >= 2 && node->inputs[0] &&
           node->inputs[1] && node->output_count == 1 && node->outputs[0];
}

bool qf_is_dequantize(const qf_node *node)
{
    return is_op(node, "DequantizeLinear") && node->input_count >= 2 && node->inputs[0] &&
           node->inputs[1] && node->output_count == 1 && node->outputs[0];
}

bool qf_qdq_any(const qf_ir *ir)
{
    for (size_t i = 0; i < ir->node_count; i++) {
        const qf_node *node = ir->by_id[i];
        if (node && (qf_is_quantize(node) || qf_is_dequantize(node)))
            return true;
    }
    return false;
}

bool qf_keeps_grid(const qf_node *node, size_t index)
{
    /* Relu, MaxPool and Concat commute with rounding and clipping, because those are monotone and
     * keep 0; the others move values about. */
    static const char *const ops[] = {"Identity",     "Reshape",      "Flatten",  "Squeeze",
                                      "Unsqueeze",    "Transpose",    "Slice",    "Split",
                                      "Gather",       "Expand",       "Tile",     "Relu",
                                      "DepthToSpace", "SpaceToDepth", "GatherND", "Dropout"};
    if (qf_node_is(node, "Concat"))
        return true;
    if (qf_node_is(node, "MaxPool"))
        return node->output_count == 1;
    if (qf_node_is(node, "Pad"))
        return index == 0 && node->input_count < 3 && qf_node_float(node, "value", 0) == 0;
    if (qf_node_is(node, "Dropout") && (node->input_count > 2 || node->output_count != 1))
        return false; /* it may be training */
    for (size_t i = 0; index == 0 && i < sizeof ops / sizeof *ops; i++) {
        if (qf_node_is(node, ops[i]))
            return true;
    }
    return false;
}

qf_value *qf_qdq_source(qf_value *value)
{
    enum { MOST = 16 };
    for (int i = 0; value && i < MOST; i++) {
        qf_node *p = value->producer;
        bool through = p && (qf_is_quantize(p) || qf_is_dequantize(p) ||
                             ((qf_node_is(p, "Transpose") || qf_node_is(p, "Identity")) &&
                              p->input_count == 1 && p->inputs[0]));
        if (!through)
            break;
        value = p->inputs[0];
    }
    return value;
}

qf_value *qf_qdq_integers(qf_value *value, int32_t data_type)
{
    value = qf_value_source(value);
    for (int i = 0; i < 4 && value->producer && qf_node_is(value->producer, "Cast"); i++) {
        const qf_node *cast = value->producer;
        if (!cast->input_count || !cast->inputs[0] || qf_node_int(cast, "to", 0) != data_type)
            break;
        value = qf_value_source(cast->inputs[0]);
    }
    return value;
}

/* ---- quantizers ---- */

/* The integers' dtype: that of the zero point, else what the node says, else that of the data. */
static int32_t integer_type(const qf_node *node, const Onnx__TensorProto *zero)
{
    const qf_value *x = node->inputs[0];
    if (zero)
        return zero->data_type;
    if (qf_is_quantize(node))
        return (int32_t)qf_node_int(node, "output_dtype", ONNX__TENSOR_PROTO__DATA_TYPE__UINT8);
    const Onnx__TensorProto *constant = qf_value_constant(node->inputs[0]);
    if (constant)
        return constant->data_type;
    if (x->producer && qf_is_quantize(x->producer))
        return integer_type(x->producer, NULL);
    const Onnx__ValueInfoProto *info = x->input ? x->input : x->info;
    if (info && info->type && info->type->value_case == ONNX__TYPE_PROTO__VALUE_TENSOR_TYPE)
        return info->type->tensor_type->elem_type;
    return ONNX__TENSOR_PROTO__DATA_TYPE__UINT8;
}

bool qf_dtype_is_unsigned(int32_t type)
{
    return type == ONNX__TENSOR_PROTO__DATA_TYPE__UINT8 ||
           type == ONNX__TENSOR_PROTO__DATA_TYPE__UINT16 || type == QF_DTYPE_UINT4;
}

static int integer_bits(int32_t type)
{
    switch (type) {
    case QF_DTYPE_INT4:
    case QF_DTYPE_UINT4:
        return 4;
    case ONNX__TENSOR_PROTO__DATA_TYPE__INT8:
    case ONNX__TENSOR_PROTO__DATA_TYPE__UINT8:
        return 8;
    case ONNX__TENSOR_PROTO__DATA_TYPE__INT16:
    case ONNX__TENSOR_PROTO__DATA_TYPE__UINT16:
        return 16;
    default:
        return 0;
    }
}

static const char *fill_scales(const qf_qdq *q, const qf_constant *scale, qf_quantizer *out)
{
    float *scales = qf_arena_array(q->arena, scale->count, sizeof *scales);
    out->scales = scales;
    out->count = scale->count;
    for (size_t i = 0; scales && i < scale->count; i++) {
        scales[i] = (float)scale->values[i];
        if (!isnormal(scales[i]) || scales[i] < 0)
            return "scale is not a positive, finite, normal number";
    }
    return NULL;
}

static const char *fill_zeros(const qf_qdq *q, const qf_constant *zero, qf_quantizer *out)
{
    int32_t *zeros = qf_arena_array(q->arena, out->count, sizeof *zeros);
    double middle = qf_dtype_is_unsigned(out->data_type) ? (double)(1 << (out->bits - 1)) : 0;
    out->zeros = zeros;
    if (zero->count != out->count && zero->count > 1)
        return "zero point and scale have different lengths";
    for (size_t i = 0; zeros && i < out->count; i++)
        zeros[i] = (int32_t)((zero->count ? zero->values[zero->count > 1 ? i : 0] : 0) - middle);
    return NULL;
}

static const char *check_kind(const qf_node *node, const qf_quantizer *out, size_t scale_rank)
{
    if (!out->bits)
        return "integers have a dtype other than int4, int8, int16 and their unsigned forms";
    if (qf_node_int(node, "block_size", 0) != 0 || scale_rank > 1)
        return "scales are blocked; one a tensor or one a channel can be expressed";
    return NULL;
}

/* Everything but the values of scale and zero point. */
static const char *read_form(const qf_node *node, qf_quantizer *out, Onnx__TensorProto **scale,
                             Onnx__TensorProto **zero)
{
    qf_value *zero_value = node->input_count > 2 ? node->inputs[2] : NULL;
    *scale = qf_value_constant(node->inputs[1]);
    *zero = zero_value ? qf_value_constant(zero_value) : NULL;
    if (!*scale || (zero_value && !*zero))
        return "scale or zero point is not a constant (it is calculated while the model runs)";
    out->scale_value = node->inputs[1];
    out->zero_value = zero_value;
    out->data_type = integer_type(node, *zero);
    out->bits = integer_bits(out->data_type);
    out->float_type = (*scale)->data_type;
    out->axis = qf_node_int(node, "axis", 1);
    return check_kind(node, out, (*scale)->n_dims);
}

qf_status qf_quantizer_read(const qf_qdq *q, const qf_node *node, qf_quantizer *out,
                            const char **why, qf_error *err)
{
    Onnx__TensorProto *scale, *zero;
    qf_constant scales = {0}, zeros = {0};
    *out = (qf_quantizer){0};
    *why = read_form(node, out, &scale, &zero);
    qf_status status = QF_OK;
    if (!*why)
        status = qf_constant_read(scale, q->payloads, q->path, q->arena, &scales, why, err);
    if (status == QF_OK && !*why && zero)
        status = qf_constant_read(zero, q->payloads, q->path, q->arena, &zeros, why, err);
    if (status != QF_OK)
        return status;
    if (*why || !scales.count || !qf_dtype_is_float(scale->data_type)) {
        *why = *why ? *why : "scale is not a float";
        return QF_OK;
    }
    *why = fill_scales(q, &scales, out);
    if (!*why)
        *why = fill_zeros(q, &zeros, out);
    return out->scales && (*why || out->zeros) ? QF_OK : qf_fail_memory(err);
}

bool qf_quantizer_same(const qf_quantizer *a, const qf_quantizer *b)
{
    return a->bits == b->bits && a->count == b->count && (a->count == 1 || a->axis == b->axis) &&
           memcmp(a->scales, b->scales, a->count * sizeof *a->scales) == 0 &&
           memcmp(a->zeros, b->zeros, a->count * sizeof *a->zeros) == 0;
}

/* ---- layers ---- */

typedef struct reader {
    const qf_qdq *q;
    const qf_node *node;
    qf_op op;
    qf_qdq_layer *out;
    qf_error *err;
    unsigned steps; /* how many nodes may still be walked over */
} reader;

static void refuse(reader *r, const char *format, ...) QF_PRINTF(2, 3);
static void refuse(reader *r, const char *format, ...)
{
    if (r->out->problem[0])
        return; /* the first is the one to mend */
    va_list args;
    va_start(args, format);
    vsnprintf(r->out->problem, sizeof r->out->problem, format, args);
    va_end(args);
}

static bool refused(const reader *r)
{
    return r->out->problem[0] != '\0';
}

static qf_status find_grid(reader *r, const qf_value *value, qf_quantizer *out, bool *found);

/* The grid that all inputs of a Concat share. */
static qf_status find_shared_grid(reader *r, const qf_node *concat, qf_quantizer *out, bool *found)
{
    qf_status status = find_grid(r, concat->inputs[0], out, found);
    for (size_t i = 1; status == QF_OK && *found && i < concat->input_count; i++) {
        qf_quantizer other;
        status = find_grid(r, concat->inputs[i], &other, found);
        *found = *found && qf_quantizer_same(out, &other);
    }
    return status;
}

/* Finds the DQ whose grid the value is on. */
static qf_status find_grid(reader *r, const qf_value *value, qf_quantizer *out, bool *found)
{
    *found = false;
    while (value && value->producer && r->steps) {
        const qf_node *node = value->producer;
        const char *why;
        r->steps--;
        if (qf_is_dequantize(node)) {
            qf_status status = qf_quantizer_read(r->q, node, out, &why, r->err);
            if (why)
                refuse(r, "the quantization of its input cannot be expressed: its %s", why);
            *found = status == QF_OK && !why;
            return status;
        }
        if (!qf_keeps_grid(node, 0) || !node->input_count)
            return QF_OK;
        if (qf_node_is(node, "Concat"))
            return find_shared_grid(r, node, out, found);
        value = node->inputs[0];
    }
    return QF_OK;
}

static qf_status read_activation(reader *r, size_t input, const char *what, qf_quantizer *out)
{
    bool found = false;
    qf_value *value = input < r->node->input_count ? r->node->inputs[input] : NULL;
    r->steps = 1000;
    qf_status status = value ? find_grid(r, value, out, &found) : QF_OK;
    if (status != QF_OK || refused(r))
        return status;
    if (!found)
        refuse(r,
               "its weight is quantized but its %s is not, which the deploy format cannot express",
               what);
    else if (out->count > 1)
        refuse(r, "its %s is quantized per channel; per tensor can be expressed", what);
    return QF_OK;
}

/* Follows a weight's input to its constant; false if there is no DQ on the way. *clip: a Clip of
 * the integers, as Brevitas writes for its narrow range; NULL if there is none. */
static bool find_weight(qf_value *value, qf_qdq_weight *w, const qf_node **dq, const qf_node **clip,
                        bool *turned_behind)
{
    *dq = NULL;
    *clip = NULL;
    *turned_behind = false;
    for (int i = 0; value && value->producer && i < 16; i++) {
        qf_node *node = value->producer;
        bool turns = qf_node_is(node, "Transpose");
        if (turns && w->transpose)
            break;
        if (turns) {
            w->transpose = node;
            *turned_behind = *dq == NULL;
        } else if (qf_is_dequantize(node) && !*dq) {
            *dq = node;
        } else if (qf_node_is(node, "Clip") && *dq && !*clip) {
            *clip = node;
        } else if (!qf_node_is(node, "Identity") && !(qf_is_quantize(node) && *dq)) {
            break;
        }
        if (!node->input_count)
            break;
        value = node->inputs[0];
    }
    w->source = value;
    w->tensor = value ? qf_value_constant(value) : NULL;
    return *dq != NULL;
}

/* The Q between DQ and constant, NULL if the constant is dequantized as it is. */
static const qf_node *quantize_before(const qf_node *dq)
{
    const qf_value *value = dq->inputs[0];
    for (int i = 0; value->producer && i < 16; i++) {
        const qf_node *node = value->producer;
        if (qf_is_quantize(node))
            return node;
        if (!node->input_count || !node->inputs[0])
            break;
        value = node->inputs[0];
    }
    return NULL;
}

/* The axis of the output channels as the layer sees its weight. */
static int64_t channel_axis(const reader *r)
{
    switch (r->op) {
    case QF_OP_CONV:
        return 0;
    case QF_OP_GEMM:
        return qf_node_int(r->node, "transB", 0) != 0 ? 0 : 1;
    default: /* ConvTranspose, MatMul, LSTM, GRU */
        return 1;
    }
}

static bool all_equal(const qf_quantizer *z)
{
    for (size_t i = 1; i < z->count; i++) {
        if (memcmp(&z->scales[i], z->scales, sizeof *z->scales) != 0)
            return false;
    }
    return true;
}

static void check_axis(reader *r, qf_qdq_weight *w, bool turned_behind)
{
    qf_quantizer *z = &w->quantizer;
    int64_t rank = (int64_t)w->tensor->n_dims, want = channel_axis(r);
    int64_t axis = z->axis < 0 ? z->axis + rank : z->axis;
    if (turned_behind)
        want = 1 - want;
    if (z->count == 1)
        return;
    if (axis != want && all_equal(z)) {
        z->count = 1;
        return;
    }
    if (axis != want)
        refuse(r,
               "its weight has scales along axis %lld; along the output channels, axis %lld, they "
               "can be expressed",
               (long long)axis, (long long)want);
}

static void check_integers(reader *r, const qf_qdq_weight *w)
{
    const qf_quantizer *z = &w->quantizer;
    if (z->bits > 8)
        refuse(r, "its weight has %d bits; 4 and 8 can be expressed", z->bits);
    for (size_t i = 0; i < z->count && !refused(r); i++) {
        if (z->zeros[i])
            refuse(r,
                   "its weight has zero point %d (as a signed integer), and the deploy format has "
                   "none for weights; quantize weights symmetrically",
                   z->zeros[i]);
    }
}

static void check_transpose(reader *r, const qf_qdq_weight *w)
{
    if (w->transpose && (w->tensor->n_dims != 2 || w->transpose->input_count != 1))
        refuse(r, "its weight is behind a Transpose of other than two dimensions");
}

static qf_status read_bound(reader *r, const qf_node *clip, size_t input, double *bound)
{
    qf_value *value = input < clip->input_count ? clip->inputs[input] : NULL;
    const Onnx__TensorProto *tensor = value ? qf_value_constant(value) : NULL;
    qf_constant constant = {0};
    const char *why = NULL;
    if (!value)
        return QF_OK; /* there is no bound on this side */
    qf_status status = tensor ? qf_constant_read(tensor, r->q->payloads, r->q->path, r->q->arena,
                                                 &constant, &why, r->err)
                              : QF_OK;
    if (constant.count == 1)
        *bound = constant.values[0];
    else
        refuse(r, "its weight is clipped to bounds that are not constant");
    return status;
}

/* Whether every integer of a constant is within bounds, which are in the signed domain. */
static qf_status find_outside(reader *r, const Onnx__TensorProto *tensor, double lo, double hi,
                              bool *outside)
{
    enum { CHUNK = 4096 };
    size_t at = qf_tensor_payload(tensor);
    const qf_payload *p = at < r->q->payloads->count ? &r->q->payloads->items[at] : NULL;
    uint64_t count;
    *outside = !p || p->kind != QF_PAYLOAD_SPAN || qf_constant_check(tensor, p, &count) != NULL;
    if (*outside)
        return QF_OK;
    qf_varint_index index;
    qf_status status =
        qf_varint_index_build(&p->span, qf_varint_count(tensor->data_type, count), r->q->path,
                              tensor->name ? tensor->name : "", &index, r->err);
    for (uint64_t i = 0; status == QF_OK && i < count && !*outside; i += CHUNK) {
        int8_t q[CHUNK];
        size_t n = count - i < CHUNK ? (size_t)(count - i) : CHUNK;
        qf_source_ints(&p->span, &index, tensor->data_type, i, n, q);
        for (size_t k = 0; k < n; k++)
            *outside |= q[k] < lo || q[k] > hi;
    }
    qf_varint_index_release(&index);
    return status;
}

/* A Clip of integers that are within its bounds already does nothing. */
static qf_status check_clip(reader *r, const qf_qdq_weight *w, const qf_node *clip)
{
    const qf_quantizer *z = &w->quantizer;
    double middle = qf_dtype_is_unsigned(z->data_type) ? (double)(1 << (z->bits - 1)) : 0;
    double lo = -HUGE_VAL, hi = HUGE_VAL;
    bool outside = true;
    qf_status status = read_bound(r, clip, 1, &lo);
    if (status == QF_OK)
        status = read_bound(r, clip, 2, &hi);
    if (status == QF_OK && w->integers && !refused(r))
        status = find_outside(r, w->tensor, lo - middle, hi - middle, &outside);
    if (status == QF_OK && outside)
        refuse(r, "its weight is clipped to a narrower range of integers than it has");
    return status;
}

static qf_status read_weight(reader *r, size_t input, qf_qdq_weight *w, bool *found)
{
    const qf_node *dq, *clip;
    bool turned_behind;
    const char *why;
    *found = input < r->node->input_count && r->node->inputs[input] &&
             find_weight(r->node->inputs[input], w, &dq, &clip, &turned_behind) && w->tensor;
    if (!*found)
        return QF_OK;
    const qf_node *quantize = quantize_before(dq);
    w->integers = !quantize;
    qf_quantizer before;
    qf_status status = qf_quantizer_read(r->q, dq, &w->quantizer, &why, r->err);
    if (status == QF_OK && !why && quantize) {
        status = qf_quantizer_read(r->q, quantize, &before, &why, r->err);
        if (status == QF_OK && !why &&
            (before.data_type != w->quantizer.data_type || before.count != w->quantizer.count ||
             memcmp(before.scales, w->quantizer.scales, before.count * sizeof(float)) != 0))
            why = "scales in QuantizeLinear and DequantizeLinear differ";
    }
    if (status != QF_OK)
        return status;
    if (why)
        refuse(r, "the quantization of its weight cannot be expressed: its %s", why);
    else if (w->integers ? !qf_source_is_integer(w->tensor->data_type)
                         : !qf_dtype_is_float(w->tensor->data_type))
        refuse(r, "its weight has dtype %s", qf_dtype_name(w->tensor->data_type));
    if (refused(r))
        return QF_OK;
    check_transpose(r, w);
    check_axis(r, w, turned_behind);
    check_integers(r, w);
    return clip && !refused(r) ? check_clip(r, w, clip) : QF_OK;
}

/* ---- a record's scales ---- */

/* ConvTranspose: ONNX has one scale for each channel of a group, a record one for each of all. RNN:
 * one for each gate at least. */
static bool spread_scales(const reader *r, const qf_quantizer *z, float **out, size_t *count)
{
    size_t times = 1;
    if (r->op == QF_OP_CONV_TRANSPOSE && z->count > 1) {
        const Onnx__TensorProto *weight = r->out->weight.tensor;
        int64_t group = qf_node_int(r->node, "group", 1);
        if (group > 0 && weight->n_dims > 0 && group <= weight->dims[0])
            times = (size_t)group; /* else the layer is refused when it is probed */
    }
    if (qf_op_is_rnn(r->op) && z->count == 1)
        times = qf_op_gates(r->op);
    *count = z->count * times;
    *out = qf_arena_array(r->q->arena, *count, sizeof **out);
    for (size_t i = 0; *out && i < *count; i++)
        (*out)[i] = z->scales[i % z->count];
    return *out != NULL;
}

/* Pairs of 4-bit weights are packed along the input channels; where those are odd, integers can be
 * stored as int8 instead. */
static void choose_bits(reader *r)
{
    const qf_qdq_weight *w = &r->out->weight;
    int64_t input_channels = 0;
    r->out->wts_bits = w->quantizer.bits;
    if (w->quantizer.bits != 4)
        return;
    size_t rank = w->tensor->n_dims;
    bool turned = w->transpose || (r->op == QF_OP_GEMM && channel_axis(r) == 0);
    if (qf_op_is_rnn(r->op))
        input_channels = rank == 3 ? w->tensor->dims[2] : 0;
    else if (rank >= 2)
        input_channels = w->tensor->dims[r->op == QF_OP_CONV || turned];
    if (input_channels % 2 == 0)
        return;
    if (w->integers)
        r->out->wts_bits = 8;
    else
        refuse(r,
               "its 4-bit weight has %lld input channels; pairs of them are packed, so the number "
               "must be even",
               (long long)input_channels);
}

static qf_status read_quantized(reader *r)
{
    qf_qdq_layer *out = r->out;
    bool found = false, recurrent = qf_op_is_rnn(r->op);
    qf_status status = read_activation(r, 0, "input", &out->activation);
    if (status == QF_OK && recurrent)
        status = read_activation(r, 5, "initial_h", &out->hidden);
    if (status == QF_OK && recurrent) {
        status = read_weight(r, 2, &out->recurrence, &found);
        if (status == QF_OK && !found)
            refuse(r, "its recurrence weight is not quantized, but its weight is");
    }
    if (status != QF_OK || refused(r))
        return status;
    if (recurrent && out->hidden.bits != out->activation.bits)
        refuse(r, "its input and its initial_h have different numbers of bits");
    if (recurrent && (out->recurrence.quantizer.bits != out->weight.quantizer.bits ||
                      out->recurrence.integers != out->weight.integers))
        refuse(r, "its weight and its recurrence weight are quantized in different ways");
    choose_bits(r);
    if (!spread_scales(r, &out->weight.quantizer, &out->scale_w, &out->scale_w_count) ||
        (recurrent &&
         !spread_scales(r, &out->recurrence.quantizer, &out->scale_r, &out->scale_r_count)))
        return qf_fail_memory(r->err);
    return QF_OK;
}

/* Average pooling has no weight: it is quantized if its input is, and simply not if that cannot be
 * expressed. */
static qf_status read_pool(reader *r)
{
    qf_qdq_layer *out = r->out;
    qf_status status = read_activation(r, 0, "input", &out->activation);
    out->quantized = !refused(r) && out->activation.bits == 8;
    out->problem[0] = '\0';
    out->wts_bits = 8;
    out->scale_w_count = 1;
    out->scale_w = qf_arena_alloc(r->q->arena, sizeof *out->scale_w);
    if (!out->scale_w)
        return qf_fail_memory(r->err);
    *out->scale_w = 1;
    return status;
}

qf_status qf_qdq_layer_read(const qf_qdq *q, const qf_node *node, qf_qdq_layer *out, qf_error *err)
{
    reader r = {.q = q, .node = node, .op = qf_op_of(node), .out = out, .err = err};
    *out = (qf_qdq_layer){0};
    if (r.op == QF_OP_NONE || !node->input_count || !node->inputs[0])
        return QF_OK;
    if (r.op == QF_OP_AVERAGE_POOL)
        return read_pool(&r);
    qf_status status = read_weight(&r, 1, &out->weight, &out->quantized);
    if (status == QF_OK && out->quantized)
        status = read_quantized(&r);
    return status;
}
