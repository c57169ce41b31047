/* SPDX-License-Identifier: Apache-2.0 */
/* The nodes of a deploy model that no ONNX checker knows: AscendQuant, AscendDequant,
 * AscendAntiQuant, each by itself and with what is around it (facts 4). */
#include <string.h>

#include "verify/structure.h"

#define FLOAT_ATTRIBUTE ONNX__ATTRIBUTE_PROTO__ATTRIBUTE_TYPE__FLOAT
#define INT_ATTRIBUTE ONNX__ATTRIBUTE_PROTO__ATTRIBUTE_TYPE__INT
#define STRING_ATTRIBUTE ONNX__ATTRIBUTE_PROTO__ATTRIBUTE_TYPE__STRING

static bool is_layer(const qf_node *node)
{
    return qf_node_is(node, "Conv") || qf_node_is(node, "ConvTranspose") ||
           qf_node_is(node, "Gemm") || qf_node_is(node, "MatMul") ||
           qf_node_is(node, "AveragePool");
}

/* Whether `quant` belongs to the owner of these `n` bytes: it is named <owner>.quant. */
static bool is_of(const qf_node *quant, const char *owner, size_t n)
{
    return strncmp(quant->name, owner, n) == 0 && qf_is_name(quant->name + n, "", ".quant");
}

/* The layer that reads a Pad of its own: average pooling pads in the quantized domain. */
static const qf_node *padded_layer(const qf_node *pad)
{
    const qf_value *out = qf_node_output(pad);
    const qf_node *user = out ? qf_value_only_user(out) : NULL;
    return qf_node_is(pad, "Pad") && user && qf_node_is(user, "AveragePool") ? user : NULL;
}

/* Whether a reader of an AscendQuant is one that takes integers; *owns: it gave it its name. */
static bool takes_integers(const qf_node *quant, const qf_use *use, bool *owns)
{
    const qf_node *user = use->node;
    const qf_node *layer = padded_layer(user);
    if (qf_node_is(user, "AscendAntiQuant")) {
        size_t n = qf_stem(user->name, ".anti_quant");
        *owns |= n && is_of(quant, user->name, n);
        return use->input == 0;
    }
    layer = layer ? layer : user;
    *owns |= is_of(quant, layer->name, strlen(layer->name));
    return use->input == 0 && is_layer(layer);
}

static void check_readers(qf_subject *s, const qf_node *quant)
{
    const qf_value *out = qf_node_output(quant);
    bool owns = false;
    if (out->result_count)
        qf_subject_note(s, quant->name, "the integers of the AscendQuant are a graph output");
    if (!out->use_count && !out->result_count)
        qf_subject_note(s, quant->name, "nothing reads the AscendQuant");
    for (size_t i = 0; i < out->use_count; i++) {
        const qf_use *use = &out->uses[i];
        if (!takes_integers(quant, use, &owns))
            qf_subject_note(s, quant->name,
                            "the integers of the AscendQuant are read by %s (%s) as input %zu, "
                            "which takes no integers",
                            qf_subject_node_name(use->node), use->node->proto->op_type, use->input);
    }
    if (out->use_count && !owns)
        qf_subject_note(s, quant->name,
                        "an AscendQuant is named <layer>.quant; none of the layers that read this "
                        "one (%s is the first) has that name",
                        qf_subject_node_name(out->uses[0].node));
}

/* Inputs, outputs and domain, which are alike for all; false: the node is not to be looked into. */
static bool check_form(qf_subject *s, const qf_node *node, size_t inputs)
{
    if (node->proto->domain && *node->proto->domain)
        qf_subject_note(s, node->name, "the node is of domain '%s'; expected none",
                        node->proto->domain);
    bool connected = node->input_count == inputs;
    for (size_t i = 0; i < node->input_count; i++)
        connected &= node->inputs[i] != NULL;
    if (!connected)
        qf_subject_note(s, node->name,
                        "%s has %zu inputs (or one that is not connected); expected %zu",
                        node->proto->op_type, node->input_count, inputs);
    bool one = node->output_count == 1 && node->outputs[0];
    if (!one)
        qf_subject_note(s, node->name, "%s has %zu outputs; expected one", node->proto->op_type,
                        node->output_count);
    return connected && one;
}

/* <layer><end>.output0; either name may have a number behind it that made it unique. */
static void check_output_name(qf_subject *s, const qf_node *node, const char *end)
{
    const qf_value *out = qf_node_output(node);
    size_t n = qf_stem(node->name, end), m = qf_stem(out->name, ".output0");
    if (!n || out->result_count)
        return;
    n += strlen(end);
    if (m < n || strncmp(node->name, out->name, n) != 0 ||
        strspn(out->name + n, "0123456789") != m - n)
        qf_subject_note(s, node->name, "its output is called '%s'; expected '%s.output0'",
                        out->name, node->name);
}

static bool check_quantization(qf_subject *s, const qf_node *node)
{
    static const qf_attribute_rule rules[] = {
        {"scale", FLOAT_ATTRIBUTE}, {"offset", FLOAT_ATTRIBUTE}, {"dst_type", STRING_ATTRIBUTE}};
    if (!qf_check_attributes(s, node, rules, 3))
        return false;
    float scale = qf_node_float(node, "scale", 0), offset = qf_node_float(node, "offset", 0);
    int bits = qf_dst_bits(qf_node_attribute(node, "dst_type"));
    if (!qf_scale_fits(scale))
        qf_subject_note(s, node->name, "its scale is %g; a scale must be finite and above 0",
                        (double)scale);
    if (!bits)
        qf_subject_note(s, node->name, "its dst_type is none of INT4, INT8, INT16");
    else if (!qf_offset_fits(offset, bits))
        qf_subject_note(s, node->name, "its offset is %.9g; expected an integer from %d to %d",
                        (double)offset, bits == 16 ? -32768 : -128, bits == 16 ? 32767 : 127);
    return true;
}

static void check_quant(qf_subject *s, const qf_node *node)
{
    if (!check_form(s, node, 1))
        return;
    check_output_name(s, node, ".quant");
    check_quantization(s, node);
    qf_check_declared(s, node);
    check_readers(s, node);
}

static void check_anti_quant(qf_subject *s, const qf_node *node)
{
    if (!check_form(s, node, 1))
        return;
    check_quantization(s, node);
    const qf_node *quant = node->inputs[0]->producer;
    if (!quant || !qf_node_is(quant, "AscendQuant")) {
        qf_subject_note(s, node->name, "AscendAntiQuant must read an AscendQuant");
        return;
    }
    const Onnx__AttributeProto *a = qf_node_attribute(quant, "dst_type");
    if (qf_node_float(quant, "offset", 0) != qf_node_float(node, "offset", 0) ||
        qf_dst_bits(a) != qf_dst_bits(qf_node_attribute(node, "dst_type")))
        qf_subject_note(s, node->name, "its offset or dst_type is not that of %s, which it reads",
                        quant->name);
    float there = qf_node_float(quant, "scale", 0), here = qf_node_float(node, "scale", 0);
    if (qf_scale_fits(here) && 1.0f / here != there)
        qf_subject_note(s, node->name, "its scale is %.9g, but %s has %.9g, which is not 1 / scale",
                        (double)here, quant->name, (double)there);
}

/* ---- AscendDequant ---- */

/* The layer whose output a dequant takes, itself or through the Add that is its bias. */
static const qf_node *layer_before(const qf_node *dequant)
{
    const qf_node *node = dequant->inputs[0]->producer;
    if (node && qf_node_is(node, "Add") && node->input_count == 2 && node->inputs[0]) {
        const qf_node *before = node->inputs[0]->producer;
        return before && qf_node_is(before, "MatMul") ? before : NULL;
    }
    return node && is_layer(node) ? node : NULL;
}

static qf_status check_dequant(qf_subject *s, const qf_node *node, qf_error *err)
{
    static const qf_attribute_rule rules[] = {{"dtype", INT_ATTRIBUTE}};
    bool formed = check_form(s, node, 2);
    if (qf_check_attributes(s, node, rules, 1) && qf_node_int(node, "dtype", -1) != 0)
        qf_subject_note(s, node->name, "attribute dtype is %lld; expected 0",
                        (long long)qf_node_int(node, "dtype", -1));
    if (!formed)
        return QF_OK;
    check_output_name(s, node, ".dequant");
    const qf_value *in = node->inputs[0];
    const qf_node *layer = layer_before(node);
    if (!layer) {
        qf_subject_note(s, node->name,
                        "AscendDequant does not come behind a quantized layer; it "
                        "reads '%s'",
                        in->name);
        return QF_OK;
    }
    if (in->use_count != 1 || in->result_count)
        qf_subject_note(s, node->name,
                        "'%s', which it reads, is also read by others; what they "
                        "get is not dequantized",
                        in->name);
    if (!qf_is_name(node->name, layer->name, ".dequant"))
        qf_subject_note(s, node->name, "it stands behind layer %s; expected the name '%s.dequant'",
                        layer->name, layer->name);
    if (!qf_is_name(node->inputs[1]->name, layer->name, ".dequant.param"))
        qf_subject_note(s, node->name, "its parameter is '%s'; expected '%s.dequant.param'",
                        node->inputs[1]->name, layer->name);
    qf_check_sums(s, node);
    return qf_check_layer(s, layer, node, err);
}

/* ---- a layer that was left without its dequant ---- */

static bool is_dequantized(const qf_node *layer)
{
    const qf_value *out = qf_node_output(layer);
    const qf_node *user = out ? qf_value_only_user(out) : NULL;
    if (user && qf_node_is(user, "Add") && qf_node_is(layer, "MatMul") && qf_node_output(user))
        user = qf_value_only_user(user->outputs[0]);
    return user && qf_node_is(user, "AscendDequant");
}

static void check_pairing(qf_subject *s, const qf_node *node)
{
    const qf_node *before = node->input_count && node->inputs[0] ? node->inputs[0]->producer : NULL;
    if (before && qf_node_is(before, "Pad") && padded_layer(before) == node &&
        before->input_count && before->inputs[0])
        before = before->inputs[0]->producer;
    const Onnx__TensorProto *weight =
        node->input_count > 1 ? qf_subject_constant(node->inputs[1]) : NULL;
    bool quantized = before && qf_node_is(before, "AscendQuant");
    bool integers = weight && weight->data_type == ONNX__TENSOR_PROTO__DATA_TYPE__INT8;
    if ((quantized || integers) && !is_dequantized(node))
        qf_subject_note(s, node->name,
                        "the layer %s, but its output does not go into an AscendDequant alone",
                        quantized ? "reads an AscendQuant" : "has int8 weights");
}

qf_status qf_check_deploy(qf_subject *s, uint64_t *layers, qf_error *err)
{
    qf_status status = QF_OK;
    for (size_t i = 0; status == QF_OK && i < s->ir.node_count; i++) {
        const qf_node *node = s->ir.by_id[i];
        if (qf_node_is(node, "AscendQuant")) {
            check_quant(s, node);
        } else if (qf_node_is(node, "AscendAntiQuant")) {
            check_anti_quant(s, node);
        } else if (qf_node_is(node, "AscendDequant")) {
            *layers += 1;
            status = check_dequant(s, node, err);
        } else if (qf_is_window_cache(node)) {
            *layers += 1;
            status = qf_check_rnn(s, node, err);
        } else if (is_layer(node)) {
            check_pairing(s, node);
        }
    }
    return status;
}
