/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ConvTranspose in integers. ONNX has no integer operator for it, so it runs in float32, in which
 * sums are exact, in any order, as long as the magnitudes of their terms add up to no more than
 * 2^24. The operands are split into digits until that holds:
 *
 *   x - offset, at most 255 (int8) or 65535 (int16):  one digit; two or four digits of 16 or 256
 *   w, at most 128:  one digit, or 16 * h + l with |h| <= 8 and 0 <= l <= 15
 *
 * K terms need K * max|digit of x| * max|digit of w| <= 2^24:
 *
 *   digits     int8: x, w, K up to              int16: x, w, K up to
 *   1 x 1      255, 128          514
 *   1 x 2      255,  15         4386            2 x 1 (of 256)  256, 128     512
 *   2 x 2       16,  15        69905            2 x 2 (of 256)  256,  15    4369
 *                                               4 x 2 (of 16)    16,  15   69905
 *
 * The sums of the digits' products are put together in int64 and cast to int32.
 */
#include <string.h>

#include "passes/run_function.h"

#define DATA(type) ONNX__TENSOR_PROTO__DATA_TYPE__##type
#define ATTRIBUTE(type) ONNX__ATTRIBUTE_PROTO__ATTRIBUTE_TYPE__##type

typedef struct split {
    bool wide;
    int parts_x, parts_w;
    int64_t base_x, base_w;
    int64_t most_x, most_w; /* of a digit */
} split;

static const split splits[] = {{false, 1, 1, 1, 1, 255, 128},  {false, 1, 2, 1, 16, 255, 15},
                               {false, 2, 2, 16, 16, 16, 15},  {true, 2, 1, 256, 1, 256, 128},
                               {true, 2, 2, 256, 16, 256, 15}, {true, 4, 2, 16, 16, 16, 15}};

static const split *find_split(bool wide, int64_t terms)
{
    for (size_t i = 0; i < sizeof splits / sizeof *splits; i++) {
        if (splits[i].wide == wide && terms <= (1 << 24) / (splits[i].most_x * splits[i].most_w))
            return &splits[i];
    }
    return NULL;
}

static const split *split_of(const qf_function *f)
{
    for (size_t i = 0; i < sizeof splits / sizeof *splits; i++) {
        if (splits[i].wide == f->wide && splits[i].parts_x == f->parts_x &&
            splits[i].parts_w == f->parts_w)
            return &splits[i];
    }
    return NULL;
}

static const char *numbered(qf_body *b, const char *stem, int number)
{
    const char *text = qf_arena_printf(b->arena, "%s%d", stem, number);
    b->failed |= !text;
    return text ? text : "";
}

/* <stem>0, <stem>1, ... of float integers `value`: value = <stem>0 + base * (<stem>1 + ...). */
static void add_digits(qf_body *b, const char *stem, const char *value, int count, int64_t base)
{
    if (count > 1) {
        qf_body_number(b, qf_body_name(b, stem, "base"), DATA(FLOAT), (double)base);
        qf_body_number(b, qf_body_name(b, stem, "part"), DATA(FLOAT), 1.0 / (double)base);
    }
    for (int i = 0; i + 1 < count; i++) {
        const char *digit = numbered(b, stem, i), *rest = qf_body_name(b, digit, "rest");
        const char *scaled = qf_body_name(b, digit, "scaled");
        const char *whole = qf_body_name(b, digit, "whole");
        qf_body_step(b, "Mul", scaled, qf_body_join(b, value, qf_body_name(b, stem, "part")));
        qf_body_step(b, "Floor", rest, scaled);
        qf_body_step(b, "Mul", whole, qf_body_join(b, rest, qf_body_name(b, stem, "base")));
        qf_body_step(b, "Sub", digit, qf_body_join(b, value, whole));
        value = rest;
    }
    qf_body_step(b, "Identity", numbered(b, stem, count - 1), value);
}

/* One product of digits in int64, times `weight`. */
static void add_product(qf_body *b, const char *output, const char *x, const char *w,
                        int64_t weight)
{
    static const struct {
        const char *name;
        int type;
    } attributes[] = {{"auto_pad", ATTRIBUTE(STRING)},     {"dilations", ATTRIBUTE(INTS)},
                      {"group", ATTRIBUTE(INT)},           {"kernel_shape", ATTRIBUTE(INTS)},
                      {"output_padding", ATTRIBUTE(INTS)}, {"output_shape", ATTRIBUTE(INTS)},
                      {"pads", ATTRIBUTE(INTS)},           {"strides", ATTRIBUTE(INTS)}};
    const char *sum = qf_body_name(b, output, "sum"), *integer = qf_body_name(b, output, "i64");
    const char *factor = qf_body_name(b, output, "factor");
    qf_body_step(b, "ConvTranspose", sum, qf_body_join(b, x, w));
    for (size_t i = 0; i < sizeof attributes / sizeof *attributes; i++)
        qf_body_ref(b, attributes[i].name, attributes[i].name, attributes[i].type);
    qf_body_cast(b, integer, sum, DATA(INT64));
    qf_body_number(b, factor, DATA(INT64), (double)weight);
    qf_body_step(b, "Mul", output, qf_body_join(b, integer, factor));
}

static void build(qf_body *b, const qf_function *f)
{
    const split *s = split_of(f);
    const char *total = NULL;
    qf_body_cast(b, "q_float", "q", DATA(FLOAT));
    qf_body_cast(b, "zero_float", "zero", DATA(FLOAT));
    qf_body_step(b, "Sub", "x_value", "q_float zero_float");
    qf_body_cast(b, "w_value", "w", DATA(FLOAT));
    add_digits(b, "x", "x_value", s->parts_x, s->base_x);
    add_digits(b, "w", "w_value", s->parts_w, s->base_w);
    int64_t of_x = 1;
    for (int i = 0; i < s->parts_x; i++, of_x *= s->base_x) {
        int64_t weight = of_x;
        for (int j = 0; j < s->parts_w; j++, weight *= s->base_w) {
            const char *product = numbered(b, numbered(b, "product", i), j);
            add_product(b, product, numbered(b, "x", i), numbered(b, "w", j), weight);
            const char *sum = qf_body_name(b, product, "total");
            if (total)
                qf_body_step(b, "Add", sum, qf_body_join(b, total, product));
            total = total ? sum : product;
        }
    }
    if (f->bias) {
        qf_body_cast(b, "bias_i64", "bias", DATA(INT64));
        qf_body_tensor(b, "bias_dims", "bias_shape");
        qf_body_step(b, "Reshape", "bias_shaped", "bias_i64 bias_dims");
        qf_body_step(b, "Add", "with_bias", qf_body_join(b, total, "bias_shaped"));
        total = "with_bias";
    }
    qf_body_cast(b, "y", total, DATA(INT32));
}

qf_status qf_run_conv_transpose(qf_runner *r, qf_node *node, int64_t terms, bool wide, bool bias)
{
    const split *s = find_split(wide, terms);
    if (!s)
        return qf_run_refuse(r, node,
                             "its sums have up to %lld terms; float32, which has to stand in for "
                             "integers here, is exact for 69905",
                             (long long)terms);
    const char *name =
        qf_arena_printf(r->p->ir->arena, "ConvTranspose%s%s%dx%d", wide ? "Int16" : "",
                        bias ? "" : "NoBias", s->parts_x, s->parts_w);
    qf_function function = {.name = name,
                            .build = build,
                            .inputs = bias ? "q zero w bias" : "q zero w",
                            .outputs = "y",
                            .attributes = "auto_pad dilations group kernel_shape output_padding "
                                          "output_shape pads strides bias_shape",
                            .wide = wide,
                            .bias = bias,
                            .parts_x = s->parts_x,
                            .parts_w = s->parts_w};
    return name && qf_run_call(r, node, &function) ? QF_OK : qf_fail_memory(r->p->err);
}
