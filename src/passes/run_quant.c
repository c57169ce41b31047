/* SPDX-License-Identifier: Apache-2.0 */
/*
 * AscendQuant, AscendDequant and AscendAntiQuant as functions.
 *
 * AscendQuant gives the integers as the NPU holds them, int8 or int16 with the offset in them, and
 * the offset as a second output, the zero point that layers take them by: what is multiplied is
 * q - offset, and padding is offset, which stands for 0. INT4 activations are int8 from -8 to 7.
 *
 * AscendDequant takes its scales out of the deploy model's own uint64 parameter when the model
 * runs.
 */
#include <math.h>
#include <string.h>

#include "passes/run_function.h"
#include "quant/ascend.h"

#define DATA(type) ONNX__TENSOR_PROTO__DATA_TYPE__##type

/* ---- arithmetic ---- */

/* To the nearest integer, half to even. Before opset 11 there is no Round; adding and subtracting
 * 1.5 * 2^23 does the same, and where that sum is not exact the value is beyond every clip range.
 */
static void add_round(qf_body *b, const char *output, const char *x)
{
    if (b->opset >= 11) {
        qf_body_step(b, "Round", output, x);
        return;
    }
    const char *magic = qf_body_name(b, output, "magic"), *up = qf_body_name(b, output, "up");
    qf_body_number(b, magic, DATA(FLOAT), 0x1.8p23);
    qf_body_step(b, "Add", up, qf_body_join(b, x, magic));
    qf_body_step(b, "Sub", output, qf_body_join(b, up, magic));
}

/* Clip takes its bounds as inputs from opset 11 on. */
static void add_clip(qf_body *b, const char *output, const char *x, const char *low,
                     const char *high)
{
    if (b->opset >= 11) {
        qf_body_step(b, "Clip", output, qf_body_join(b, qf_body_join(b, x, low), high));
        return;
    }
    const char *above = qf_body_name(b, output, "above");
    qf_body_step(b, "Max", above, qf_body_join(b, x, low));
    qf_body_step(b, "Min", output, qf_body_join(b, above, high));
}

void qf_body_quantize(qf_body *b, const char *output, const char *x, const char *scale,
                      const char *offset, const char *low, const char *high)
{
    const char *scaled = qf_body_name(b, output, "scaled");
    const char *rounded = qf_body_name(b, output, "rounded");
    const char *moved = qf_body_name(b, output, "moved");
    qf_body_step(b, "Mul", scaled, qf_body_join(b, x, scale));
    add_round(b, rounded, scaled);
    qf_body_step(b, "Add", moved, qf_body_join(b, rounded, offset));
    add_clip(b, output, moved, low, high);
}

/* The 23 bits of the fraction times tables[0] plus tables[1], at sign and exponent: float64, in
 * which the product and the sum are exact, subnormal scales included. */
static void add_scale_tables(qf_body *b)
{
    enum { SIGN = 256, ENTRIES = 512, BIAS = 127, FRACTION_BITS = 23 };
    double fraction[ENTRIES], one[ENTRIES];
    for (int i = 0; i < ENTRIES; i++) {
        int exponent = i % SIGN;
        double sign = i < SIGN ? 1 : -1;
        fraction[i] = sign * ldexp(1, (exponent ? exponent : 1) - BIAS - FRACTION_BITS);
        one[i] = exponent ? sign * ldexp(1, exponent - BIAS) : 0;
    }
    qf_body_doubles(b, "fraction_table", fraction, ENTRIES);
    qf_body_doubles(b, "one_table", one, ENTRIES);
}

void qf_body_unpack_scales(qf_body *b, const char *output, const char *param)
{
    add_scale_tables(b);
    qf_body_number(b, "n_2_23", DATA(INT64), 0x1p23);
    qf_body_number(b, "n_2_32", DATA(INT64), 0x1p32);
    qf_body_cast(b, "param_i64", param, DATA(INT64));
    qf_body_step(b, "Mod", "bits", "param_i64 n_2_32"); /* not negative, as its divisor */
    qf_body_step(b, "Div", "exponent", "bits n_2_23");  /* and sign */
    qf_body_step(b, "Mod", "bits_fraction", "bits n_2_23");
    qf_body_cast(b, "fraction", "bits_fraction", DATA(DOUBLE));
    qf_body_step(b, "Gather", "fraction_unit", "fraction_table exponent");
    qf_body_step(b, "Gather", "one", "one_table exponent");
    qf_body_step(b, "Mul", "fraction_value", "fraction fraction_unit");
    qf_body_step(b, "Add", "scale_value", "fraction_value one");
    qf_body_cast(b, output, "scale_value", DATA(FLOAT));
}

/* <stem>_u8 = input + 128. The sums of uint8 by uint8 are exact in ONNX Runtime on every machine,
 * where those of uint8 by int8 may saturate. */
static void move_to_uint8(qf_body *b, const char *stem, const char *input)
{
    const char *wide = qf_body_name(b, stem, "i32"), *moved = qf_body_name(b, stem, "moved");
    qf_body_cast(b, wide, input, DATA(INT32));
    qf_body_step(b, "Add", moved, qf_body_join(b, wide, "move_8"));
    qf_body_cast(b, qf_body_name(b, stem, "u8"), moved, DATA(UINT8));
}

/* input + 32768 = 256 * <stem>_high + <stem>_low, both uint8. */
static void split_to_uint8(qf_body *b, const char *stem, const char *input)
{
    const char *wide = qf_body_name(b, stem, "i32"), *moved = qf_body_name(b, stem, "moved");
    const char *quotient = qf_body_name(b, stem, "quotient");
    const char *rest = qf_body_name(b, stem, "rest");
    qf_body_cast(b, wide, input, DATA(INT32));
    qf_body_step(b, "Add", moved, qf_body_join(b, wide, "move_16"));
    qf_body_step(b, "Div", quotient, qf_body_join(b, moved, "byte"));
    qf_body_step(b, "Mod", rest, qf_body_join(b, moved, "byte"));
    qf_body_cast(b, qf_body_name(b, stem, "high"), quotient, DATA(UINT8));
    qf_body_cast(b, qf_body_name(b, stem, "low"), rest, DATA(UINT8));
}

/* One product of uint8 operands, each less its zero point. */
static void integer_product(qf_body *b, const char *op, const char *output, const char *inputs)
{
    static const struct {
        const char *name;
        int type;
    } of_conv[] = {{"auto_pad", ONNX__ATTRIBUTE_PROTO__ATTRIBUTE_TYPE__STRING},
                   {"dilations", ONNX__ATTRIBUTE_PROTO__ATTRIBUTE_TYPE__INTS},
                   {"group", ONNX__ATTRIBUTE_PROTO__ATTRIBUTE_TYPE__INT},
                   {"kernel_shape", ONNX__ATTRIBUTE_PROTO__ATTRIBUTE_TYPE__INTS},
                   {"pads", ONNX__ATTRIBUTE_PROTO__ATTRIBUTE_TYPE__INTS},
                   {"strides", ONNX__ATTRIBUTE_PROTO__ATTRIBUTE_TYPE__INTS}};
    qf_body_step(b, op, output, inputs);
    for (size_t i = 0; strcmp(op, "ConvInteger") == 0 && i < sizeof of_conv / sizeof *of_conv; i++)
        qf_body_ref(b, of_conv[i].name, of_conv[i].name, of_conv[i].type);
}

/* "x w x_zero w_zero" of a product in which `part` of x is multiplied. */
static const char *operands(qf_body *b, const char *output, const char *part)
{
    const char *x = qf_body_name(b, qf_body_name(b, output, "x"), part);
    const char *zero = qf_body_name(b, qf_body_name(b, output, "z"), part);
    const char *w = qf_body_name(b, output, "w_u8"), *w_zero = qf_body_name(b, output, "w_zero");
    return qf_body_join(b, qf_body_join(b, x, w), qf_body_join(b, zero, w_zero));
}

void qf_body_multiply(qf_body *b, const char *output, const char *op, const char *q,
                      const char *zero, const char *w, bool wide)
{
    const char *x_stem = qf_body_name(b, output, "x"), *z_stem = qf_body_name(b, output, "z");
    const char *high = qf_body_name(b, output, "high"), *low = qf_body_name(b, output, "low");
    const char *shifted = qf_body_name(b, output, "shifted");
    qf_body_number(b, qf_body_name(b, output, "w_zero"), DATA(UINT8), 128);
    move_to_uint8(b, qf_body_name(b, output, "w"), w);
    if (!wide) {
        move_to_uint8(b, x_stem, q);
        move_to_uint8(b, z_stem, zero);
        integer_product(b, op, output, operands(b, output, "u8"));
        return;
    }
    /* x - zero = 256 * (x_high - z_high) + (x_low - z_low) */
    split_to_uint8(b, x_stem, q);
    split_to_uint8(b, z_stem, zero);
    integer_product(b, op, high, operands(b, output, "high"));
    integer_product(b, op, low, operands(b, output, "low"));
    qf_body_step(b, "Mul", shifted, qf_body_join(b, high, "byte"));
    qf_body_step(b, "Add", output, qf_body_join(b, shifted, low));
}

void qf_body_integers(qf_body *b)
{
    qf_body_number(b, "move_8", DATA(INT32), 128);
    qf_body_number(b, "move_16", DATA(INT32), 32768);
    qf_body_number(b, "byte", DATA(INT32), 256);
}

/* ---- AscendQuant ---- */

static void build_quant(qf_body *b, const qf_function *f)
{
    (void)f;
    qf_body_float(b, "factor", "scale");
    qf_body_float(b, "zero_value", "offset");
    qf_body_float(b, "lowest", "low");
    qf_body_float(b, "highest", "high");
    qf_body_cast(b, "x_float", "x", DATA(FLOAT));
    qf_body_quantize(b, "clipped", "x_float", "factor", "zero_value", "lowest", "highest");
    qf_body_step(b, "Cast", "q", "clipped");
    qf_body_ref(b, "to", "to", ONNX__ATTRIBUTE_PROTO__ATTRIBUTE_TYPE__INT);
    qf_body_step(b, "Cast", "zero", "zero_value");
    qf_body_ref(b, "to", "to", ONNX__ATTRIBUTE_PROTO__ATTRIBUTE_TYPE__INT);
}

bool qf_run_is_wide(const qf_node *quant)
{
    return qf_dst_bits(qf_node_attribute(quant, "dst_type")) == 16;
}

/* Its numbers as the deploy format has them; *why is NULL if they can be used. */
static int read_quant(const qf_node *node, const char **why)
{
    int bits = qf_dst_bits(qf_node_attribute(node, "dst_type"));
    float scale = qf_node_float(node, "scale", 0), offset = qf_node_float(node, "offset", 0);
    *why = NULL;
    if (!bits)
        *why = "its dst_type is none of INT8, INT4 and INT16";
    else if (!qf_scale_fits(scale))
        *why = "its scale is no positive number";
    else if (!qf_offset_fits(offset, bits))
        *why = "its offset is no integer in the range of its dst_type";
    else if (node->input_count < 1 || !node->inputs[0] || node->output_count < 1 ||
             !node->outputs[0])
        *why = "it has no input or no output";
    return bits;
}

qf_status qf_run_quant(qf_runner *r, qf_node *quant)
{
    static const qf_function function = {.name = "AscendQuant",
                                         .build = build_quant,
                                         .inputs = "x",
                                         .outputs = "q zero",
                                         .attributes = "scale offset dst_type low high to"};
    qf_ir *ir = r->p->ir;
    const char *why;
    int bits = read_quant(quant, &why);
    if (why)
        return qf_run_refuse(r, quant, "%s", why);
    float low = -(float)(1 << (bits - 1));
    const char *zero = qf_pass_name(r->p, quant->name, "zero");
    quant->outputs[0]->retyped = true;
    quant->output_count = 1;
    if (!zero || !qf_node_add_output(ir, quant, zero) ||
        !qf_node_set_float(ir, quant, "low", low) ||
        !qf_node_set_float(ir, quant, "high", -low - 1) ||
        !qf_node_set_int(ir, quant, "to", bits == 16 ? DATA(INT16) : DATA(INT8)) ||
        !qf_run_call(r, quant, &function))
        return qf_fail_memory(r->p->err);
    return QF_OK;
}

/* ---- AscendAntiQuant ---- */

static void build_anti_quant(qf_body *b, const qf_function *f)
{
    (void)f;
    qf_body_float(b, "factor", "scale");
    qf_body_cast(b, "q_float", "q", DATA(FLOAT));
    qf_body_cast(b, "zero_float", "zero", DATA(FLOAT));
    qf_body_step(b, "Sub", "integers", "q_float zero_float");
    qf_body_step(b, "Mul", "y", "integers factor");
}

qf_status qf_run_anti_quant(qf_runner *r, qf_node *node)
{
    static const qf_function function = {.name = "AscendAntiQuant",
                                         .build = build_anti_quant,
                                         .inputs = "q zero",
                                         .outputs = "y",
                                         .attributes = "scale offset dst_type"};
    const char *why;
    read_quant(node, &why);
    qf_node *quant = why ? NULL : qf_run_quant_of(node->inputs[0]);
    if (why || !quant)
        return qf_run_refuse(r, node, "%s", why ? why : "its input is no output of an AscendQuant");
    qf_value *inputs[] = {node->inputs[0], quant->outputs[1]};
    if (!qf_run_set_inputs(r, node, inputs, 2) || !qf_run_call(r, node, &function))
        return qf_fail_memory(r->p->err);
    return QF_OK;
}

/* ---- AscendDequant ---- */

static void build_dequant(qf_body *b, const qf_function *f)
{
    (void)f;
    qf_body_unpack_scales(b, "scales", "param");
    qf_body_tensor(b, "scale_shape", "shape");
    qf_body_step(b, "Reshape", "scales_shaped", "scales scale_shape");
    qf_body_cast(b, "x_float", "x", DATA(FLOAT));
    qf_body_step(b, "Mul", "y_float", "x_float scales_shaped");
    qf_body_step(b, "Cast", "y", "y_float");
    qf_body_ref(b, "to", "to", ONNX__ATTRIBUTE_PROTO__ATTRIBUTE_TYPE__INT);
}

/* The dtype of the result: that of the tensor the layer's AscendQuant reads, unless the node says
 * float16. */
static int32_t result_type(const qf_runner *r, const qf_node *dequant)
{
    int32_t type = qf_run_float_type(r, dequant->outputs[0]);
    return qf_node_int(dequant, "dtype", 0) == 1 ? DATA(FLOAT16) : type;
}

qf_status qf_run_dequant(qf_runner *r, qf_node *dequant, size_t rank)
{
    static const qf_function function = {.name = "AscendDequant",
                                         .build = build_dequant,
                                         .inputs = "x param",
                                         .outputs = "y",
                                         .attributes = "dtype shape to"};
    const Onnx__TensorProto *param = qf_value_constant(dequant->inputs[1]);
    int64_t shape[QF_MAX_RANK] = {1, 1, 1, 1, 1, 1, 1, 1};
    if (!param || param->data_type != DATA(UINT64) || param->n_dims != 1 || param->dims[0] < 1)
        return qf_run_refuse(r, dequant, "its parameter is no constant vector of uint64");
    shape[1] = param->dims[0];
    if (!qf_node_set_int(r->p->ir, dequant, "to", result_type(r, dequant)) ||
        !qf_run_set_int64s(r, dequant, "shape", shape, rank < 2 ? 2 : rank) ||
        !qf_run_call(r, dequant, &function))
        return qf_fail_memory(r->p->err);
    return QF_OK;
}
