/* SPDX-License-Identifier: Apache-2.0 */
/* A quantized layer of a deploy model: integer weights of a shape that the operator can have, as
 * many scales as it has output channels or one, a bias of int32 (facts 4.3, 4.4). */
#include <string.h>

#include "verify/structure.h"

typedef struct layer_check {
    qf_subject *s;
    const qf_node *node, *dequant;
    const Onnx__TensorProto *weight; /* NULL: none, or it is no constant */
    bool behind, turned;             /* a Transpose; that swaps its dims */
    int64_t channels;                /* 0: not known */
    qf_error *err;
} layer_check;

/* What is behind a Transpose in front of the weight. */
static void find_weight(layer_check *c)
{
    qf_value *value = c->node->input_count > 1 ? c->node->inputs[1] : NULL;
    value = value ? qf_value_source(value) : NULL;
    const qf_node *above = value ? value->producer : NULL;
    c->behind = above && qf_node_is(above, "Transpose") && above->input_count == 1;
    const Onnx__AttributeProto *perm = c->behind ? qf_node_attribute(above, "perm") : NULL;
    c->turned = c->behind && !(perm && perm->n_ints == 2 && perm->ints[0] == 0);
    c->weight = qf_subject_constant(c->behind ? above->inputs[0] : value);
    if (!c->weight)
        qf_subject_note(c->s, c->node->name, "input 1, the weight, is not a constant");
}

/* ---- shape ---- */

static void check_kernel(const layer_check *c)
{
    const Onnx__AttributeProto *a = qf_node_attribute(c->node, "kernel_shape");
    const Onnx__TensorProto *w = c->weight;
    char dims[128];
    bool fits = a && w->n_dims == a->n_ints + 2;
    for (size_t i = 0; fits && i < a->n_ints; i++)
        fits = w->dims[i + 2] == a->ints[i];
    if (a && !fits)
        qf_subject_note(c->s, c->node->name,
                        "its weight '%s' has dims %s, which do not end in the layer's kernel_shape",
                        qf_label(c->s, w), qf_dims_text(w, dims));
}

static void check_conv(layer_check *c)
{
    const Onnx__TensorProto *w = c->weight;
    int64_t group = qf_node_int(c->node, "group", 1);
    bool transposed = qf_node_is(c->node, "ConvTranspose");
    char dims[128];
    if (w->n_dims < 3 || w->n_dims > 5 || group < 1) {
        qf_subject_note(
            c->s, c->node->name,
            "its weight '%s' has dims %s and group is %lld; that is no convolution of 1 "
            "to 3 dimensions",
            qf_label(c->s, w), qf_dims_text(w, dims), (long long)group);
        return;
    }
    check_kernel(c);
    /* dims[0] of a ConvTranspose may be packed, two in one */
    bool whole = (w->dims[0] % group == 0 ||
                  (transposed && w->dims[0] < INT64_MAX / 2 && 2 * w->dims[0] % group == 0)) &&
                 w->dims[1] < INT64_MAX / group;
    c->channels = transposed && whole ? w->dims[1] * group : w->dims[0];
    if (!whole)
        qf_subject_note(c->s, c->node->name,
                        "its weight '%s' has dims %s; the first must be a multiple of group, %lld",
                        qf_label(c->s, w), qf_dims_text(w, dims), (long long)group);
}

static void check_matrix(layer_check *c)
{
    const Onnx__TensorProto *w = c->weight;
    char dims[128];
    if (w->n_dims != 2) {
        qf_subject_note(c->s, c->node->name, "its weight '%s' has dims %s; expected a matrix",
                        qf_label(c->s, w), qf_dims_text(w, dims));
        return;
    }
    bool swapped = qf_node_is(c->node, "Gemm") && qf_node_int(c->node, "transB", 0);
    c->channels = w->dims[c->turned != swapped ? 0 : 1];
    if (swapped && !c->behind)
        qf_subject_note(c->s, c->node->name,
                        "transB is %lld; an export turns the weight and sets it to 0",
                        (long long)qf_node_int(c->node, "transB", 0));
}

static void check_weight(layer_check *c)
{
    const Onnx__TensorProto *w = c->weight;
    if (w->data_type != ONNX__TENSOR_PROTO__DATA_TYPE__INT8 && w->data_type != QF_DTYPE_INT4)
        qf_subject_note(c->s, c->node->name, "its weight '%s' is %s; expected int8 or int4",
                        qf_label(c->s, w), qf_dtype_name(w->data_type));
    if (qf_node_is(c->node, "Gemm") || qf_node_is(c->node, "MatMul"))
        check_matrix(c);
    else
        check_conv(c);
}

/* ---- input and bias ---- */

/* dst_type of the AscendQuant in front, 0 if there is none. */
static int activation_bits(const layer_check *c)
{
    const qf_node *node = c->node;
    for (int i = 0; i < 2 && node; i++) {
        const qf_value *in = node->input_count ? node->inputs[0] : NULL;
        node = in ? in->producer : NULL;
        if (node && qf_node_is(node, "AscendQuant"))
            return qf_dst_bits(qf_node_attribute(node, "dst_type"));
        if (!node || !qf_node_is(node, "Pad") || !qf_node_is(c->node, "AveragePool"))
            return 0;
    }
    return 0;
}

static const qf_node *cast_before(const layer_check *c, qf_value **bias)
{
    const qf_node *cast = (*bias)->producer;
    if (!cast || !qf_node_is(cast, "Cast") || !qf_is_name(cast->name, c->node->name, ".bias_quant"))
        return NULL;
    *bias = cast->input_count ? cast->inputs[0] : NULL;
    return cast;
}

static void check_bias(const layer_check *c, qf_value *bias, int bits)
{
    const qf_node *cast = cast_before(c, &bias);
    const Onnx__TensorProto *t = qf_subject_constant(bias);
    char dims[128];
    if (bits == 4 && !cast)
        qf_subject_note(c->s, c->node->name,
                        "activations have 4 bits, but there is no Cast '%s.bias_quant' in front of "
                        "the bias",
                        c->node->name);
    if (cast && qf_node_int(cast, "to", 0) != ONNX__TENSOR_PROTO__DATA_TYPE__FLOAT)
        qf_subject_note(c->s, cast->name, "the bias is cast to type %lld; expected 1, float32",
                        (long long)qf_node_int(cast, "to", 0));
    if (!t) {
        qf_subject_note(c->s, c->node->name, "its bias is not a constant");
        return;
    }
    if (t->data_type != ONNX__TENSOR_PROTO__DATA_TYPE__INT32)
        qf_subject_note(c->s, c->node->name, "its bias '%s' is %s; expected int32",
                        qf_label(c->s, t), qf_dtype_name(t->data_type));
    uint64_t count;
    bool broadcast = qf_node_is(c->node, "Gemm");
    bool counted = qf_dims_count(t->dims, t->n_dims, &count);
    int64_t last = t->n_dims ? t->dims[t->n_dims - 1] : 1;
    bool fits =
        counted && (broadcast ? last == 1 || last == c->channels : (int64_t)count == c->channels);
    if (c->channels && !fits)
        qf_subject_note(c->s, c->node->name,
                        "its bias '%s' has dims %s, which do not fit %lld output channels",
                        qf_label(c->s, t), qf_dims_text(t, dims), (long long)c->channels);
}

static qf_value *find_bias(const layer_check *c)
{
    const qf_node *add = c->dequant->inputs[0]->producer;
    if (add != c->node)
        return add->inputs[1];
    bool three = c->node->input_count > 2 && !qf_node_is(c->node, "MatMul");
    return three ? c->node->inputs[2] : NULL;
}

qf_status qf_check_layer(qf_subject *s, const qf_node *layer, const qf_node *dequant, qf_error *err)
{
    layer_check c = {.s = s, .node = layer, .dequant = dequant, .err = err};
    int bits = activation_bits(&c);
    bool pool = qf_node_is(layer, "AveragePool");
    qf_check_operator(s, layer);
    if (!bits)
        qf_subject_note(s, layer->name,
                        "input 0 of the quantized layer does not come from an "
                        "AscendQuant with a dst_type");
    if (!pool)
        find_weight(&c);
    if (c.weight)
        check_weight(&c);
    qf_value *bias = pool ? NULL : find_bias(&c);
    if (bias)
        check_bias(&c, bias, bits);
    uint64_t channels = c.channels > 0 ? (uint64_t)c.channels : 1;
    uint64_t counts[3] = {pool || c.channels > 0, channels, channels};
    return qf_check_parameter(s, dequant, 1, counts, err);
}
