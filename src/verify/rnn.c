/* SPDX-License-Identifier: Apache-2.0 */
/* The NPU's recurrent operators, which carry their quantization as attributes (facts 4.6). */
#include <string.h>

#include "verify/structure.h"

typedef struct rnn_form {
    const char *op_type;
    int64_t gates;
    size_t inputs, bias, clean, param; /* number of inputs; places */
    const char *own;                   /* an attribute that the other has not */
} rnn_form;

static const rnn_form forms[] = {
    {"BasicLSTMInplaceFillWindowCache", 4, 9, 5, 7, 8, "input_forget"},
    {"BasicGRUInplaceFillWindowCache", 3, 8, 4, 6, 7, "linear_before_reset"},
};

static const rnn_form *form_of(const qf_node *node)
{
    for (size_t i = 0; i < sizeof forms / sizeof *forms; i++) {
        if (qf_node_is(node, forms[i].op_type))
            return &forms[i];
    }
    return NULL;
}

bool qf_is_window_cache(const qf_node *node)
{
    return form_of(node) != NULL;
}

static void check_values(qf_subject *s, const qf_node *node)
{
    static const char *const scales[] = {"quant_scale_x", "quant_scale_h"};
    static const char *const offsets[] = {"quant_offset_x", "quant_offset_h"};
    int64_t dtype = qf_node_int(node, "quant_dtype", 0);
    enum { ASCEND_INT8 = 2, ASCEND_INT16 = 6 };
    if (dtype != ASCEND_INT8 && dtype != ASCEND_INT16)
        qf_subject_note(s, node->name, "quant_dtype is %lld; expected 2 (INT8) or 6 (INT16)",
                        (long long)dtype);
    for (int i = 0; i < 2; i++) {
        float scale = qf_node_float(node, scales[i], 0);
        float offset = qf_node_float(node, offsets[i], 0);
        if (!qf_scale_fits(scale))
            qf_subject_note(s, node->name, "%s is %g; a scale must be finite and above 0",
                            scales[i], (double)scale);
        if (!qf_offset_fits(offset, dtype == ASCEND_INT16 ? 16 : 8))
            qf_subject_note(s, node->name,
                            "%s is %.9g; expected an integer in the range of "
                            "quant_dtype",
                            offsets[i], (double)offset);
    }
    if (qf_node_int(node, "quant_sqrt_mode_x", 0) || qf_node_int(node, "quant_sqrt_mode_h", 0))
        qf_subject_note(s, node->name, "quant_sqrt_mode_x and quant_sqrt_mode_h must be 0");
    const Onnx__AttributeProto *d = qf_node_attribute(node, "direction");
    if (!d || d->s.len != 7 || memcmp(d->s.data, "forward", 7) != 0)
        qf_subject_note(s, node->name,
                        "direction is not 'forward', the only one that the NPU's "
                        "operator has");
}

static bool check_attributes(qf_subject *s, const qf_node *node, const rnn_form *form)
{
    enum {
        F = ONNX__ATTRIBUTE_PROTO__ATTRIBUTE_TYPE__FLOAT,
        I = ONNX__ATTRIBUTE_PROTO__ATTRIBUTE_TYPE__INT
    };
    const qf_attribute_rule rules[] = {
        {"hidden_size", I},
        {"activation_alpha", ONNX__ATTRIBUTE_PROTO__ATTRIBUTE_TYPE__FLOATS},
        {"activation_beta", ONNX__ATTRIBUTE_PROTO__ATTRIBUTE_TYPE__FLOATS},
        {"activations", ONNX__ATTRIBUTE_PROTO__ATTRIBUTE_TYPE__STRINGS},
        {"clip", F},
        {"direction", ONNX__ATTRIBUTE_PROTO__ATTRIBUTE_TYPE__STRING},
        {"quant_sqrt_mode_x", I},
        {"quant_sqrt_mode_h", I},
        {"quant_scale_x", F},
        {"quant_offset_x", F},
        {"quant_scale_h", F},
        {"quant_offset_h", F},
        {"quant_dtype", I},
        {form->own, I},
    };
    return qf_check_attributes(s, node, rules, sizeof rules / sizeof *rules);
}

/* A constant of `type` with dims [1, rows, any]; `rank` 2 leaves the last out. */
static void check_tensor(qf_subject *s, const qf_node *node, size_t input, int32_t type,
                         int64_t rows, size_t rank)
{
    const Onnx__TensorProto *t = qf_subject_constant(node->inputs[input]);
    char dims[128];
    if (!t) {
        qf_subject_note(s, node->name, "input %zu is not a constant", input);
        return;
    }
    bool typed = t->data_type == type ||
                 (type == ONNX__TENSOR_PROTO__DATA_TYPE__INT8 && t->data_type == QF_DTYPE_INT4);
    if (!typed)
        qf_subject_note(s, node->name, "input %zu, '%s', is %s; expected %s", input, qf_label(s, t),
                        qf_dtype_name(t->data_type), qf_dtype_name(type));
    if (t->n_dims != rank || t->dims[0] != 1 || t->dims[1] != rows)
        qf_subject_note(s, node->name, "input %zu, '%s', has dims %s; expected [1, %lld%s]", input,
                        qf_label(s, t), qf_dims_text(t, dims), (long long)rows,
                        rank == 3 ? ", ...]" : "]");
}

qf_status qf_check_rnn(qf_subject *s, const qf_node *node, qf_error *err)
{
    const rnn_form *form = form_of(node);
    if (check_attributes(s, node, form))
        check_values(s, node);
    bool complete = node->input_count == form->inputs;
    for (size_t i = 0; complete && i < 4; i++)
        complete = node->inputs[i] != NULL;
    if (!complete) {
        qf_subject_note(s, node->name,
                        "%s has %zu inputs, or x, the weights or the initial state are missing; "
                        "expected %zu inputs",
                        form->op_type, node->input_count, form->inputs);
        return QF_OK;
    }
    if (node->inputs[form->clean])
        qf_subject_note(s, node->name, "input %zu (clean_cache) is connected; expected none",
                        form->clean);
    const qf_value *param = node->inputs[form->param];
    if (param && !qf_is_name(param->name, node->name, ".dequant.param"))
        qf_subject_note(s, node->name, "its parameter is '%s'; expected '%s.dequant.param'",
                        param->name, node->name);
    int64_t hidden = qf_node_int(node, "hidden_size", 0);
    if (hidden < 1 || hidden > INT32_MAX) {
        qf_subject_note(s, node->name, "hidden_size is %lld", (long long)hidden);
        return QF_OK;
    }
    int64_t rows = hidden * form->gates;
    check_tensor(s, node, 1, ONNX__TENSOR_PROTO__DATA_TYPE__INT8, rows, 3);
    check_tensor(s, node, 2, ONNX__TENSOR_PROTO__DATA_TYPE__INT8, rows, 3);
    if (node->inputs[form->bias])
        check_tensor(s, node, form->bias, ONNX__TENSOR_PROTO__DATA_TYPE__INT32, 2 * rows, 2);
    /* W's and R's scales one behind the other, each one a gate or one a row */
    uint64_t gates = (uint64_t)form->gates, each = (uint64_t)rows;
    uint64_t counts[3] = {2 * gates, 2 * each, gates + each};
    return qf_check_parameter(s, node, form->param, counts, err);
}
