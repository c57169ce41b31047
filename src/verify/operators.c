/* SPDX-License-Identifier: Apache-2.0 */
/* What else a model says of quantized layers: attributes that the operator has, the operator set
 * that its arithmetic needs, declared types. What an export takes over from its source as it was
 * gets a warning alone. */
#include <string.h>

#include "verify/structure.h"

static void warn(const qf_subject *s, const qf_node *node, const char *attribute, const char *what)
{
    qf_diag_add(s->findings, QF_WARNING, (qf_where){.file = s->path, .item = node->name},
                "attribute '%s' %s", attribute, what);
}

/* ---- attributes ---- */

enum { ATTRIBUTES_MOST = 9 };
static const struct {
    const char *op;
    const char *attributes[ATTRIBUTES_MOST]; /* ends with NULL */
} operators[] = {
    {"Conv", {"auto_pad", "dilations", "group", "kernel_shape", "pads", "strides"}},
    {"ConvTranspose",
     {"auto_pad", "dilations", "group", "kernel_shape", "output_padding", "output_shape", "pads",
      "strides"}},
    {"Gemm", {"alpha", "beta", "transA", "transB"}},
    {"MatMul", {NULL}},
    {"AveragePool",
     {"auto_pad", "ceil_mode", "count_include_pad", "dilations", "kernel_shape", "pads",
      "strides"}},
};

static bool has_attribute(const char *const *known, const char *name)
{
    for (; *known; known++) {
        if (strcmp(*known, name) == 0)
            return true;
    }
    return false;
}

static void check_names(const qf_subject *s, const qf_node *layer)
{
    size_t i = 0, count = sizeof operators / sizeof *operators;
    while (i < count && !qf_node_is(layer, operators[i].op))
        i++;
    for (size_t j = 0; i < count && j < layer->proto->n_attribute; j++) {
        const char *name = layer->proto->attribute[j]->name;
        if (!name || !has_attribute(operators[i].attributes, name))
            warn(s, layer, name ? name : "", "is none that the operator has; nothing reads it");
    }
}

void qf_check_operator(const qf_subject *s, const qf_node *layer)
{
    check_names(s, layer);
    if (!qf_node_is(layer, "Gemm"))
        return;
    if (qf_node_int(layer, "transA", 0))
        qf_subject_note(s, layer->name,
                        "transA is %lld; a layer that turns its input is not quantized",
                        (long long)qf_node_int(layer, "transA", 0));
    if (qf_node_float(layer, "alpha", 1) != 1)
        warn(s, layer, "alpha", "is not 1, so that the sums are no integers");
    if (layer->input_count > 2 && qf_node_float(layer, "beta", 1) != 1)
        warn(s, layer, "beta", "is not 1, so that the bias is no integer");
}

/* ---- operator set ---- */

void qf_check_opset(const qf_subject *s, const qf_node *node)
{
    enum { MODERN = 11 };
    int64_t opset = qf_ir_opset(&s->ir);
    bool round = qf_node_is(node, "Round"), clip = qf_node_is(node, "Clip");
    bool inputs = node->input_count > 1;
    if ((round || (clip && inputs)) && opset < MODERN)
        qf_subject_note(
            s, node->name, "the model imports operator set %lld, but %s needs %d or newer",
            (long long)opset, round ? "Round" : "a Clip whose bounds are inputs", MODERN);
    if (clip && !inputs && opset >= MODERN)
        qf_subject_note(s, node->name,
                        "the model imports operator set %lld, in which a Clip has its bounds as "
                        "inputs, not attributes",
                        (long long)opset);
}

/* ---- declared types ---- */

static const Onnx__TypeProto__Tensor *declared(const qf_value *value)
{
    const Onnx__ValueInfoProto *info = value->info ? value->info : value->input;
    return info && info->type ? info->type->tensor_type : NULL;
}

void qf_check_declared(const qf_subject *s, const qf_node *quant)
{
    const Onnx__TypeProto__Tensor *made = declared(quant->outputs[0]);
    const Onnx__TypeProto__Tensor *read = declared(quant->inputs[0]);
    bool wide = qf_dst_bits(qf_node_attribute(quant, "dst_type")) == 16;
    if (!made)
        return;
    bool integer = made->elem_type == QF_DTYPE_INT4 ||
                   made->elem_type == (wide ? (int32_t)ONNX__TENSOR_PROTO__DATA_TYPE__INT16
                                            : (int32_t)ONNX__TENSOR_PROTO__DATA_TYPE__INT8);
    if (made->has_elem_type && made->elem_type && !integer)
        qf_subject_note(s, quant->outputs[0]->name,
                        "value_info declares %s, but the AscendQuant makes integers",
                        qf_dtype_name(made->elem_type));
    if (made->shape && read && read->shape && made->shape->n_dim != read->shape->n_dim)
        qf_subject_note(s, quant->outputs[0]->name,
                        "value_info declares %zu dimensions; what the AscendQuant reads has %zu",
                        made->shape->n_dim, read->shape->n_dim);
}

void qf_check_sums(const qf_subject *s, const qf_node *dequant)
{
    const Onnx__TypeProto__Tensor *made = declared(dequant->inputs[0]);
    if (made && made->has_elem_type && made->elem_type &&
        made->elem_type != ONNX__TENSOR_PROTO__DATA_TYPE__INT32)
        qf_diag_add(s->findings, QF_WARNING,
                    (qf_where){.file = s->path, .item = dequant->inputs[0]->name},
                    "value_info declares %s, but these are the int32 sums of a quantized layer",
                    qf_dtype_name(made->elem_type));
}
