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

/* What goes into an activation, between -clip and clip if the operator clips. */
static const char *clipped(qf_body *b, const char *value, bool clip)
{
    const char *above = qf_body_name(b, value, "above"), *within = qf_body_name(b, value, "within");
    if (!clip)
        return value;
    qf_body_step(b, "Max", above, qf_body_join(b, value, "clip_low"));
    qf_body_step(b, "Min", within, qf_body_join(b, above, "clip_high"));
    return within;
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
    qf_body_step(b, "Add", "made_c", "step_kept step_added");
    qf_body_step(b, "Tanh", "step_state", "made_c");
    qf_body_step(b, "Mul", "made_h", "step_output step_state");
}

static void gru_step(qf_body *b, bool clip)
{
    add_gates(b, "step_gates_x", "step_x");
    add_gates(b, "step_gates_h", "step_gh");
    static const char *const names[] = {"z", "r", "n"};
    for (int i = 0; i < 3; i++) {
        gate(b, qf_body_name(b, "step_x", names[i]), "step_gates_x", i);
        gate(b, qf_body_name(b, "step_h", names[i]), "step_gates_h", i);
    }
    qf_body_step(b, "Add", "step_z", "step_x_z step_h_z");
    qf_body_step(b, "Sigmoid", "step_update", clipped(b, "step_z", clip));
    qf_body_step(b, "Add", "step_r", "step_x_r step_h_r");
    qf_body_step(b, "Sigmoid", "step_reset", clipped(b, "step_r", clip));
    qf_body_step(b, "Mul", "step_past", "step_reset step_h_n"); /* linear_before_reset */
    qf_body_step(b, "Add", "step_n", "step_x_n step_past");
    qf_body_step(b, "Tanh", "step_new", clipped(b, "step_n", clip));
    qf_body_step(b, "Sub", "step_open", "unit step_update");
    qf_body_step(b, "Mul", "step_added", "step_open step_new");
    qf_body_step(b, "Mul", "step_kept", "step_update step_h");
    qf_body_step(b, "Add", "made_h", "step_added step_kept");
}

/* A batch that has ended keeps its states, and its output is 0. */
static void end_step(qf_body *b, bool lstm, bool lengths)
{
    if (!lengths) {
        qf_body_step(b, "Identity", "next_h", "made_h");
        if (lstm)
            qf_body_step(b, "Identity", "next_c", "made_c");
        qf_body_step(b, "Identity", "step_y", "made_h");
        return;
    }
    qf_body_step(b, "Add", "next_time", "step_time unit");
    qf_body_step(b, "Less", "step_goes_on", "step_time batch_ends");
    qf_body_step(b, "Where", "next_h", "step_goes_on made_h step_h");
    if (lstm)
        qf_body_step(b, "Where", "next_c", "step_goes_on made_c step_c");
    qf_body_step(b, "Where", "step_y", "step_goes_on made_h nothing");
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

/* `time`, then `names`. */
static bool add_infos(qf_arena *arena, Onnx__ValueInfoProto ***list, size_t *count,
                      const char *time, const char *const *names)
{
    enum { MOST = 4 };
    *list = qf_arena_array(arena, MOST, sizeof **list);
    if (!*list)
        return false;
    if (time && !((*list)[(*count)++] = float_info(arena, time)))
        return false;
    for (; *names; names++) {
        if (!((*list)[(*count)++] = float_info(arena, *names)))
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
    if (lstm)
        lstm_step(b);
    else
        gru_step(b, f->clip);
    end_step(b, lstm, f->lengths);
    onnx__graph_proto__init(graph);
    graph->name = qf_borrow("step");
    graph->node = b->nodes;
    graph->n_node = b->count;
    const char *now = f->lengths ? "step_time" : NULL, *then = f->lengths ? "next_time" : NULL;
    bool named =
        add_infos(arena, &graph->input, &graph->n_input, now, lstm ? lstm_in : gru_in) &&
        add_infos(arena, &graph->output, &graph->n_output, then, lstm ? lstm_out : gru_out);
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

/* The step at which each batch ends, as a column, and the number of the first step. A batch of no
 * steps has states of 0, as ONNX Runtime's LSTM and GRU have it; ONNX does not say. */
static void read_lengths(qf_body *b, bool lstm)
{
    qf_body_cast(b, "lengths_float", "lengths", DATA(FLOAT)); /* exact up to 2^24 steps */
    qf_body_step(b, "Reshape", "batch_ends", "lengths_float column_dims");
    qf_body_number(b, "nothing", DATA(FLOAT), 0);
    qf_body_number(b, "first_time", DATA(FLOAT), 0);
    qf_body_step(b, "Less", "any_step", "nothing batch_ends");
    qf_body_step(b, "Where", "begin_h", "any_step first_h nothing");
    if (lstm)
        qf_body_step(b, "Where", "begin_c", "any_step first_c nothing");
}

static void read_clip(qf_body *b)
{
    qf_body_float(b, "clip_high", "clip");
    qf_body_step(b, "Neg", "clip_low", "clip_high");
}

static void add_scan(qf_body *b, bool lstm, const qf_function *f)
{
    Onnx__GraphProto *step = make_step(b, lstm, f);
    const char *outputs = lstm ? "last_h last_c all_h" : "last_h all_h";
    const char *inputs = lstm ? "first_h first_c gx" : "first_h gx";
    b->failed |= !step;
    if (f->lengths) {
        outputs = qf_body_join(b, "last_time", outputs);
        inputs = lstm ? "first_time begin_h begin_c gx" : "first_time begin_h gx";
    }
    qf_body_step(b, "Scan", outputs, inputs);
    qf_body_int(b, "num_scan_inputs", 1);
    qf_body_graph(b, "body", step);
}

void qf_body_rnn(qf_body *b, const qf_function *f)
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
    if (f->lengths)
        read_lengths(b, lstm);
    if (f->clip)
        read_clip(b);
    add_scan(b, lstm, f);
    write_output(b, "y", "all_h", "y_dims");
    write_output(b, "y_h", "last_h", "state_dims");
    if (lstm)
        write_output(b, "y_c", "last_c", "state_dims");
}
