/* SPDX-License-Identifier: Apache-2.0 */
/* BasicLSTMInplaceFillWindowCache and BasicGRUInplaceFillWindowCache (facts 4.6) as calls of
 * functions, whose bodies are in run_rnn_body.c. */
#include <string.h>

#include "passes/run_function.h"

#define DATA(type) ONNX__TENSOR_PROTO__DATA_TYPE__##type

enum { ASCEND_INT8 = 2, ASCEND_INT16 = 6 };

/* Where inputs stand in the deploy node; -1: none. */
typedef struct rnn_form {
    const char *type;
    size_t gates, input_count;
    int h, c, bias, lengths, clean, param;
    bool clips; /* its clip is understood */
} rnn_form;

static const rnn_form forms[] = {
    {"BasicLSTMInplaceFillWindowCache", 4, 9, 3, 4, 5, 6, 7, 8, false},
    {"BasicGRUInplaceFillWindowCache", 3, 8, 3, -1, 4, 5, 6, 7, true},
};

static const rnn_form *form_of(const qf_node *node)
{
    for (size_t i = 0; i < sizeof forms / sizeof *forms; i++) {
        if (qf_node_is(node, forms[i].type))
            return &forms[i];
    }
    return NULL;
}

static qf_value *input_at(const qf_node *node, int index)
{
    return index >= 0 && (size_t)index < node->input_count ? node->inputs[index] : NULL;
}

static bool has_clip(const qf_node *node)
{
    return qf_node_float(node, "clip", -1) > 0;
}

static bool is_default_text(const qf_node *node, const char *name, const char *value)
{
    const Onnx__AttributeProto *a = qf_node_attribute(node, name);
    return !a || (a->s.len == strlen(value) && memcmp(a->s.data, value, a->s.len) == 0);
}

/* What makes a node something else than is written above; NULL: nothing. */
static const char *find_obstacle(const qf_node *node, const rnn_form *form)
{
    const Onnx__AttributeProto *activations = qf_node_attribute(node, "activations");
    int64_t dtype = qf_node_int(node, "quant_dtype", 0);
    if (!input_at(node, 0) || !input_at(node, form->h) || !input_at(node, form->param) ||
        (form->c >= 0 && !input_at(node, form->c)))
        return "X, initial_h, initial_c or the dequant parameter is missing";
    if (node->output_count > (form->c >= 0 ? 3 : 2))
        return "it has more outputs than its operator";
    if (input_at(node, form->clean))
        return "it has clean_cache";
    if (dtype != ASCEND_INT8 && dtype != ASCEND_INT16)
        return "its quant_dtype is neither int8 (2) nor int16 (6)";
    if (!is_default_text(node, "direction", "forward"))
        return "its direction is not forward";
    if (activations && activations->n_strings)
        return "it has activations of its own";
    if (!form->clips && has_clip(node))
        return "it clips its gates";
    if (qf_node_int(node, "input_forget", 0) || !qf_node_int(node, "linear_before_reset", 1))
        return "it has input_forget, or no linear_before_reset";
    if (qf_node_int(node, "quant_sqrt_mode_x", 0) || qf_node_int(node, "quant_sqrt_mode_h", 0))
        return "it has a quant_sqrt_mode";
    if (!(qf_node_float(node, "quant_scale_x", 0) > 0 &&
          qf_node_float(node, "quant_scale_h", 0) > 0))
        return "a quant_scale is no positive number";
    return NULL;
}

/* R tells by its last dimension whether the two weights are packed: they are alike in that. */
static qf_status read_weights(qf_runner *r, qf_node *node, qf_value *weights[2], int64_t hidden)
{
    const Onnx__TensorProto *w = input_at(node, 1) ? qf_value_constant(node->inputs[1]) : NULL;
    const Onnx__TensorProto *rec = input_at(node, 2) ? qf_value_constant(node->inputs[2]) : NULL;
    if (!w || !rec || w->n_dims != 3 || rec->n_dims != 3 || w->dims[0] != 1 || rec->dims[0] != 1)
        return qf_run_refuse(r, node, "W or R is no constant of one direction");
    uint64_t count;
    if (!qf_dims_count(w->dims, 3, &count) || !qf_dims_count(rec->dims, 3, &count))
        return qf_run_refuse(r, node, "W or R has no shape that a layer can have");
    int64_t pack = rec->data_type == DATA(INT8) && 2 * rec->dims[2] == hidden ? 2 : 1;
    const int64_t extents[] = {pack * w->dims[2], hidden};
    for (size_t i = 0; i < 2; i++) {
        qf_weight_place place = {.index = i + 1, .axis = 2, .extent = extents[i], .group = 1};
        int64_t dims[QF_MAX_RANK];
        size_t rank;
        qf_status status = qf_run_read_weight(r, node, &place, &weights[i], dims, &rank);
        if (status != QF_OK)
            return status;
    }
    return QF_OK;
}

static bool set_shapes(qf_runner *r, qf_node *node, const rnn_form *form, int64_t hidden,
                       int64_t scales)
{
    int64_t gates = (int64_t)form->gates;
    const int64_t gate_shape[] = {-1, gates, hidden}, scale_shape[] = {1, gates * hidden / scales};
    const int64_t y_shape[] = {0, 1, -1, hidden}, state_shape[] = {1, -1, hidden};
    return qf_run_set_int64s(r, node, "gate_shape", gate_shape, 3) &&
           qf_run_set_int64s(r, node, "scale_shape", scale_shape, 2) &&
           qf_run_set_int64s(r, node, "y_shape", y_shape, 4) &&
           qf_run_set_int64s(r, node, "state_shape", state_shape, 3) &&
           qf_node_set_int(r->p->ir, node, "to", qf_run_float_type(r, input_at(node, 0)));
}

/* Half of the parameter's scales: one a gate, or one a channel. 0 if it is neither. */
static int64_t count_scales(const qf_node *node, const rnn_form *form, int64_t hidden)
{
    const Onnx__TensorProto *param = qf_value_constant(input_at(node, form->param));
    int64_t gates = (int64_t)form->gates;
    bool known = param && param->data_type == DATA(UINT64) && param->n_dims == 1;
    int64_t half = known && param->dims[0] % 2 == 0 ? param->dims[0] / 2 : 0;
    return half == gates || half == gates * hidden ? half : 0;
}

static qf_status become_call(qf_runner *r, qf_node *node, const rnn_form *form,
                             qf_value *const weights[2], bool wide)
{
    bool lstm = form->c >= 0;
    qf_value *bias = input_at(node, form->bias), *lengths = input_at(node, form->lengths);
    qf_value *all[] = {input_at(node, 0),
                       weights[0],
                       weights[1],
                       input_at(node, form->param),
                       input_at(node, form->h),
                       input_at(node, form->c),
                       bias,
                       lengths};
    static const char *const names[] = {"x", "w", "r", "param", "h", "c", "bias", "lengths"};
    qf_value *inputs[sizeof all / sizeof *all];
    bool clip = form->clips && has_clip(node);
    const char *text = "";
    size_t n = 0;
    for (size_t i = 0; text && i < sizeof all / sizeof *all; i++) {
        if (!all[i])
            continue;
        inputs[n++] = all[i];
        text = qf_arena_printf(r->p->ir->arena, "%s %s", text, names[i]);
    }
    const char *name =
        qf_arena_printf(r->p->ir->arena, "%s%s%s%s%s", form->type, wide ? "Int16" : "",
                        bias ? "" : "NoBias", lengths ? "Lengths" : "", clip ? "Clip" : "");
    const qf_function function = {
        .name = name,
        .build = qf_body_rnn,
        .inputs = text,
        .outputs = lstm ? "y y_h y_c" : "y y_h",
        .attributes = "hidden_size clip quant_scale_x quant_offset_x quant_scale_h quant_offset_h "
                      "quant_dtype gate_shape scale_shape y_shape state_shape to",
        .wide = wide,
        .bias = bias != NULL,
        .clip = clip,
        .lengths = lengths != NULL};
    return name && text && qf_run_set_inputs(r, node, inputs, n) && qf_run_call(r, node, &function)
               ? QF_OK
               : qf_fail_memory(r->p->err);
}

/* What the function has no use for. */
static void drop_attributes(qf_node *node)
{
    static const char *const names[] = {
        "activation_alpha", "activation_beta",     "activations",       "direction",
        "input_forget",     "linear_before_reset", "quant_sqrt_mode_x", "quant_sqrt_mode_h"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        qf_node_remove_attribute(node, names[i]);
}

qf_status qf_run_rnn(qf_runner *r, qf_node *node)
{
    const rnn_form *form = form_of(node);
    const char *why = find_obstacle(node, form);
    int64_t hidden = qf_node_int(node, "hidden_size", 0);
    if (why)
        return qf_run_refuse(r, node, "%s", why);
    int64_t scales = hidden > 0 && hidden <= INT32_MAX ? count_scales(node, form, hidden) : 0;
    if (!scales)
        return qf_run_refuse(r, node, "its dequant parameter does not fit its hidden_size");
    qf_value *weights[2] = {0};
    qf_status status = read_weights(r, node, weights, hidden);
    if (status != QF_OK)
        return status;
    if (!set_shapes(r, node, form, hidden, scales))
        return qf_fail_memory(r->p->err);
    drop_attributes(node);
    return become_call(r, node, form, weights, qf_node_int(node, "quant_dtype", 0) == ASCEND_INT16);
}
