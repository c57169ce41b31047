/* SPDX-License-Identifier: Apache-2.0 */
/*
 * BasicLSTMInplaceFillWindowCache and BasicGRUInplaceFillWindowCache (facts 4.6) as functions.
 *
 * W and R are int8, so what they are multiplied by must be integers at every step: X is quantized
 * with quant_scale_x and quant_offset_x, and the hidden state with quant_scale_h and quant_offset_h
 * before each step, not only the first. Both products get their half of the int32 bias and are
 * multiplied by their half of the scales; gates and states are float32:
 *
 *   gx = f32(xq W^T + bw) * scales[:n/2]      gh = f32(hq R^T + br) * scales[n/2:]
 *   LSTM: i, o, f, c~ = gx + gh;   c = sigmoid(f) c + sigmoid(i) tanh(c~);   h = sigmoid(o) tanh(c)
 *   GRU:  z, r = sigmoid(gx + gh); n = tanh(gx_n + r gh_n);                  h = (1 - z) n + z h
 *
 * The state itself, in z h, stays float32. Its first value is the quantized initial_h, as in the
 * fake_quant model; that one quantizes nothing more from step to step, so it and this are alike in
 * the first step and part in those that follow (docs/runnable.md).
 */
#include <string.h>

#include "passes/run_function.h"

#define DATA(type) ONNX__TENSOR_PROTO__DATA_TYPE__##type

enum { ASCEND_INT8 = 2, ASCEND_INT16 = 6 };

/* Where inputs stand in the deploy node; -1: none. */
typedef struct rnn_form {
    const char *type;
    size_t gates, input_count;
    int h, c, bias, lengths, clean, param;
} rnn_form;

static const rnn_form forms[] = {
    {"BasicLSTMInplaceFillWindowCache", 4, 9, 3, 4, 5, 6, 7, 8},
    {"BasicGRUInplaceFillWindowCache", 3, 8, 3, -1, 4, 5, 6, 7},
};

/* ---- bodies ---- */

static const char *const indices[] = {"index_0", "index_1", "index_2", "index_3"};

/* Float `x` as integers <stem>_q and <stem>_zero. */
static void quantize(qf_body *b, const char *stem, const char *x, const char *factor,
                     const char *offset, bool wide)
{
    const char *clipped = qf_body_name(b, stem, "clipped");
    int32_t type = wide ? DATA(INT16) : DATA(INT8);
    qf_body_quantize(b, clipped, x, factor, offset, "lowest", "highest");
    qf_body_cast(b, qf_body_name(b, stem, "q"), clipped, type);
    qf_body_cast(b, qf_body_name(b, stem, "zero"), offset, type);
}

/* The two halves of `value` along its only axis. */
static void halve(qf_body *b, const char *first, const char *second, const char *value)
{
    const char *rows = qf_body_name(b, value, "rows");
    qf_body_step(b, "Reshape", rows, qf_body_join(b, value, "halves"));
    qf_body_step(b, "Gather", first, qf_body_join(b, rows, "index_0"));
    qf_body_step(b, "Gather", second, qf_body_join(b, rows, "index_1"));
}

/* A scale a gate, or a channel, as a scale a channel. */
static void spread(qf_body *b, const char *output, const char *scales)
{
    const char *column = qf_body_name(b, scales, "column"), *wide = qf_body_name(b, scales, "wide");
    qf_body_step(b, "Reshape", column, qf_body_join(b, scales, "column_dims"));
    qf_body_step(b, "Expand", wide, qf_body_join(b, column, "scale_dims"));
    qf_body_step(b, "Reshape", output, qf_body_join(b, wide, "flat_dims"));
}

/* Number `which` of the gates in [batch, gates, hidden]. */
static void gate(qf_body *b, const char *output, const char *gates, int which)
{
    qf_body_step(b, "Gather", output, qf_body_join(b, gates, indices[which]));
    qf_body_int(b, "axis", 1);
}

static void add_gates(qf_body *b, const char *output, const char *flat)
{
    qf_body_step(b, "Reshape", output, qf_body_join(b, flat, "gate_dims"));
}

static void lstm_step(qf_body *b)
{
    qf_body_step(b, "Add", "step_sum", "step_x step_gh");
    add_gates(b, "step_gates", "step_sum");
    gate(b, "step_i", "step_gates", 0);
    gate(b, "step_o", "step_gates", 1);
    gate(b, "step_f", "step_gates", 2);
    gate(b, "step_n", "step_gates", 3);
    qf_body_step(b, "Sigmoid", "step_input", "step_i");
    qf_body_step(b, "Sigmoid", "step_output", "step_o");
    qf_body_step(b, "Sigmoid", "step_forget", "step_f");
    qf_body_step(b, "Tanh", "step_new", "step_n");
    qf_body_step(b, "Mul", "step_kept", "step_forget step_c");
    qf_body_step(b, "Mul", "step_added", "step_input step_new");
    qf_body_step(b, "Add", "next_c", "step_kept step_added");
    qf_body_step(b, "Tanh", "step_state", "next_c");
    qf_body_step(b, "Mul", "next_h", "step_output step_state");
}

static void gru_step(qf_body *b)
{
    add_gates(b, "step_gates_x", "step_x");
    add_gates(b, "step_gates_h", "step_gh");
    static const char *const names[] = {"z", "r", "n"};
    for (int i = 0; i < 3; i++) {
        gate(b, qf_body_name(b, "step_x", names[i]), "step_gates_x", i);
        gate(b, qf_body_name(b, "step_h", names[i]), "step_gates_h", i);
    }
    qf_body_step(b, "Add", "step_z", "step_x_z step_h_z");
    qf_body_step(b, "Sigmoid", "step_update", "step_z");
    qf_body_step(b, "Add", "step_r", "step_x_r step_h_r");
    qf_body_step(b, "Sigmoid", "step_reset", "step_r");
    qf_body_step(b, "Mul", "step_past", "step_reset step_h_n"); /* linear_before_reset */
    qf_body_step(b, "Add", "step_n", "step_x_n step_past");
    qf_body_step(b, "Tanh", "step_new", "step_n");
    qf_body_step(b, "Sub", "step_open", "unit step_update");
    qf_body_step(b, "Mul", "step_added", "step_open step_new");
    qf_body_step(b, "Mul", "step_kept", "step_update step_h");
    qf_body_step(b, "Add", "next_h", "step_added step_kept");
}

static Onnx__ValueInfoProto *float_info(qf_arena *arena, const char *name)
{
    Onnx__ValueInfoProto *info = qf_arena_alloc(arena, sizeof *info);
    Onnx__TypeProto *type = qf_arena_alloc(arena, sizeof *type);
    Onnx__TypeProto__Tensor *tensor = qf_arena_alloc(arena, sizeof *tensor);
    if (!info || !type || !tensor)
        return NULL;
    onnx__value_info_proto__init(info);
    onnx__type_proto__init(type);
    onnx__type_proto__tensor__init(tensor);
    info->name = qf_borrow(name);
    info->type = type;
    type->value_case = ONNX__TYPE_PROTO__VALUE_TENSOR_TYPE;
    type->tensor_type = tensor;
    tensor->has_elem_type = 1;
    tensor->elem_type = DATA(FLOAT);
    return info;
}

static bool add_infos(qf_arena *arena, Onnx__ValueInfoProto ***list, size_t *count,
                      const char *const *names)
{
    enum { MOST = 3 };
    *list = qf_arena_array(arena, MOST, sizeof **list);
    if (!*list)
        return false;
    for (; *names; names++) {
        (*list)[*count] = float_info(arena, *names);
        if (!(*list)[(*count)++])
            return false;
    }
    return true;
}

/* One step, as the body of Scan; what does not change comes from around it. */
static Onnx__GraphProto *make_step(const qf_body *around, bool lstm, const qf_function *f)
{
    qf_arena *arena = around->arena;
    static const char *const lstm_in[] = {"step_h", "step_c", "step_x", NULL};
    static const char *const lstm_out[] = {"next_h", "next_c", "step_y", NULL};
    static const char *const gru_in[] = {"step_h", "step_x", NULL};
    static const char *const gru_out[] = {"next_h", "step_y", NULL};
    Onnx__GraphProto *graph = qf_arena_alloc(arena, sizeof *graph);
    qf_body *b = qf_arena_alloc(arena, sizeof *b);
    if (!graph || !b)
        return NULL;
    b->arena = arena;
    b->opset = around->opset;
    quantize(b, "step_h", "step_h", "factor_h", "offset_h", f->wide);
    qf_body_multiply(b, "step_product", "MatMulInteger", "step_h_q", "step_h_zero", "r_matrix",
                     f->wide);
    if (f->bias)
        qf_body_step(b, "Add", "step_biased", "step_product bias_h");
    qf_body_cast(b, "step_value", f->bias ? "step_biased" : "step_product", DATA(FLOAT));
    qf_body_step(b, "Mul", "step_gh", "step_value scale_h");
    (lstm ? lstm_step : gru_step)(b);
    qf_body_step(b, "Identity", "step_y", "next_h");
    onnx__graph_proto__init(graph);
    graph->name = qf_borrow("step");
    graph->node = b->nodes;
    graph->n_node = b->count;
    bool named = add_infos(arena, &graph->input, &graph->n_input, lstm ? lstm_in : gru_in) &&
                 add_infos(arena, &graph->output, &graph->n_output, lstm ? lstm_out : gru_out);
    return named && !b->failed ? graph : NULL;
}

static void add_numbers(qf_body *b, bool wide)
{
    static const int64_t flat[] = {-1}, halves[] = {2, -1}, column[] = {-1, 1};
    double high = wide ? INT16_MAX : INT8_MAX;
    for (int i = 0; i < 4; i++) {
        qf_body_number(b, indices[i], DATA(INT64), i);
    }
    qf_body_int64s(b, "flat_dims", flat, 1);
    qf_body_int64s(b, "halves", halves, 2);
    qf_body_int64s(b, "column_dims", column, 2);
    qf_body_number(b, "unit", DATA(FLOAT), 1);
    qf_body_number(b, "lowest", DATA(FLOAT), -high - 1);
    qf_body_number(b, "highest", DATA(FLOAT), high);
    qf_body_integers(b);
    qf_body_float(b, "factor_x", "quant_scale_x");
    qf_body_float(b, "offset_x", "quant_offset_x");
    qf_body_float(b, "factor_h", "quant_scale_h");
    qf_body_float(b, "offset_h", "quant_offset_h");
    qf_body_tensor(b, "gate_dims", "gate_shape");
    qf_body_tensor(b, "scale_dims", "scale_shape");
    qf_body_tensor(b, "y_dims", "y_shape");
    qf_body_tensor(b, "state_dims", "state_shape");
}

/* [1, rows, columns] -> [columns, rows] */
static void turn(qf_body *b, const char *output, const char *weight)
{
    const char *matrix = qf_body_name(b, weight, "flat");
    qf_body_step(b, "Gather", matrix, qf_body_join(b, weight, "index_0"));
    qf_body_step(b, "Transpose", output, matrix);
}

/* [1, batch, hidden] of any float type -> float32 [batch, hidden] */
static void read_state(qf_body *b, const char *output, const char *state)
{
    const char *flat = qf_body_name(b, state, "flat");
    qf_body_step(b, "Gather", flat, qf_body_join(b, state, "index_0"));
    qf_body_cast(b, output, flat, DATA(FLOAT));
}

/* first_h = the value that float_h has when it is quantized. */
static void round_state(qf_body *b, bool wide)
{
    quantize(b, "start", "float_h", "factor_h", "offset_h", wide);
    qf_body_cast(b, "start_float", "start_q", DATA(FLOAT));
    qf_body_step(b, "Sub", "start_integer", "start_float offset_h");
    qf_body_step(b, "Div", "first_h", "start_integer factor_h");
}

static void write_output(qf_body *b, const char *output, const char *value, const char *dims)
{
    const char *shaped = qf_body_name(b, output, "shaped");
    qf_body_step(b, "Reshape", shaped, qf_body_join(b, value, dims));
    qf_body_step(b, "Cast", output, shaped);
    qf_body_ref(b, "to", "to", ONNX__ATTRIBUTE_PROTO__ATTRIBUTE_TYPE__INT);
}

static void build(qf_body *b, const qf_function *f)
{
    bool lstm = strncmp(f->name, "BasicLSTM", strlen("BasicLSTM")) == 0;
    add_numbers(b, f->wide);
    qf_body_unpack_scales(b, "scales", "param");
    halve(b, "gate_scales_x", "gate_scales_h", "scales");
    spread(b, "scale_x", "gate_scales_x");
    spread(b, "scale_h", "gate_scales_h");
    if (f->bias) {
        qf_body_step(b, "Reshape", "bias_flat", "bias flat_dims");
        halve(b, "bias_x", "bias_h", "bias_flat");
    }
    turn(b, "w_matrix", "w");
    turn(b, "r_matrix", "r");
    qf_body_cast(b, "x_float", "x", DATA(FLOAT));
    quantize(b, "x", "x_float", "factor_x", "offset_x", f->wide);
    qf_body_multiply(b, "x_product", "MatMulInteger", "x_q", "x_zero", "w_matrix", f->wide);
    if (f->bias)
        qf_body_step(b, "Add", "x_biased", "x_product bias_x");
    qf_body_cast(b, "x_value", f->bias ? "x_biased" : "x_product", DATA(FLOAT));
    qf_body_step(b, "Mul", "gx", "x_value scale_x");
    read_state(b, lstm ? "first_h" : "float_h", "h");
    if (lstm)
        read_state(b, "first_c", "c");
    else
        round_state(b, f->wide);
    Onnx__GraphProto *step = make_step(b, lstm, f);
    b->failed |= !step;
    qf_body_step(b, "Scan", lstm ? "last_h last_c all_h" : "last_h all_h",
                 lstm ? "first_h first_c gx" : "first_h gx");
    qf_body_int(b, "num_scan_inputs", 1);
    qf_body_graph(b, "body", step);
    write_output(b, "y", "all_h", "y_dims");
    write_output(b, "y_h", "last_h", "state_dims");
    if (lstm)
        write_output(b, "y_c", "last_c", "state_dims");
}

/* ---- the node ---- */

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
    if (input_at(node, form->lengths) || input_at(node, form->clean))
        return "it has sequence_lens or clean_cache";
    if (dtype != ASCEND_INT8 && dtype != ASCEND_INT16)
        return "its quant_dtype is neither int8 (2) nor int16 (6)";
    if (!is_default_text(node, "direction", "forward"))
        return "its direction is not forward";
    if (activations && activations->n_strings)
        return "it has activations of its own";
    if (qf_node_float(node, "clip", -1) > 0)
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
    qf_value *bias = input_at(node, form->bias), *inputs[7];
    size_t n = 0;
    inputs[n++] = input_at(node, 0);
    inputs[n++] = weights[0];
    inputs[n++] = weights[1];
    inputs[n++] = input_at(node, form->param);
    inputs[n++] = input_at(node, form->h);
    if (lstm)
        inputs[n++] = input_at(node, form->c);
    if (bias)
        inputs[n++] = bias;
    const char *name = qf_arena_printf(r->p->ir->arena, "%s%s%s", form->type, wide ? "Int16" : "",
                                       bias ? "" : "NoBias");
    const qf_function function = {
        .name = name,
        .build = build,
        .inputs = lstm ? (bias ? "x w r param h c bias" : "x w r param h c")
                       : (bias ? "x w r param h bias" : "x w r param h"),
        .outputs = lstm ? "y y_h y_c" : "y y_h",
        .attributes = "hidden_size quant_scale_x quant_offset_x quant_scale_h quant_offset_h "
                      "quant_dtype gate_shape scale_shape y_shape state_shape to",
        .wide = wide,
        .bias = bias != NULL};
    return name && qf_run_set_inputs(r, node, inputs, n) && qf_run_call(r, node, &function)
               ? QF_OK
               : qf_fail_memory(r->p->err);
}

/* What the function has no use for. */
static void drop_attributes(qf_node *node)
{
    static const char *const names[] = {
        "activation_alpha", "activation_beta", "activations",         "clip",
        "direction",        "input_forget",    "linear_before_reset", "quant_sqrt_mode_x",
        "quant_sqrt_mode_h"};
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
    qf_value *weights[2];
    qf_status status = read_weights(r, node, weights, hidden);
    if (status != QF_OK)
        return status;
    if (!set_shapes(r, node, form, hidden, scales))
        return qf_fail_memory(r->p->err);
    drop_attributes(node);
    return become_call(r, node, form, weights, qf_node_int(node, "quant_dtype", 0) == ASCEND_INT16);
}
