/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Operators of the runnable model: model-local functions of the domain quantfold.npu, whose bodies
 * are standard operators. A node of the deploy model thus stays one node, with its name and its
 * attributes, and what it calculates is written once for all of its kind.
 *
 * A function must use the model's own version of the default operators, so bodies are made of what
 * is the same from opset 10 on, which has MatMulInteger and ConvInteger. Numbers that differ from
 * node to node come in as attributes.
 */
#ifndef QF_PASSES_RUN_FUNCTION_H
#define QF_PASSES_RUN_FUNCTION_H

#include "passes/passes.h"

#define QF_NPU_DOMAIN "quantfold.npu"

enum { QF_BODY_NODES = 160, QF_RUN_FUNCTIONS = 64, QF_RUN_OPSET = 10 };

/* Nodes of a function, or of a graph in one. */
typedef struct qf_body {
    qf_arena *arena;
    Onnx__NodeProto *nodes[QF_BODY_NODES];
    size_t count;
    int64_t opset; /* of the default operators */
    bool failed;   /* memory is exhausted */
} qf_body;

/* Appends a node with one output. `inputs` are names with a space between. */
void qf_body_step(qf_body *b, const char *op, const char *output, const char *inputs);
/* Attributes of the last node; `type` of a reference is an AttributeType. */
void qf_body_int(qf_body *b, const char *name, int64_t value);
void qf_body_graph(qf_body *b, const char *name, Onnx__GraphProto *graph);
void qf_body_ref(qf_body *b, const char *name, const char *of, int type);
/* Casts to a TensorProto data type. */
void qf_body_cast(qf_body *b, const char *output, const char *input, int32_t data_type);
/* Constants: a scalar of FLOAT, DOUBLE, INT32, INT64, UINT64 or UINT8; vectors. */
void qf_body_number(qf_body *b, const char *output, int32_t data_type, double value);
void qf_body_int64s(qf_body *b, const char *output, const int64_t *values, size_t count);
void qf_body_doubles(qf_body *b, const char *output, const double *values, size_t count);
/* The node's attribute as a tensor: a TENSOR, or a FLOAT. */
void qf_body_tensor(qf_body *b, const char *output, const char *of);
void qf_body_float(qf_body *b, const char *output, const char *of);
/* "<stem>_<suffix>" in the arena; "" when memory is exhausted. */
const char *qf_body_name(qf_body *b, const char *stem, const char *suffix);
/* The two with a space between, likewise. */
const char *qf_body_join(qf_body *b, const char *first, const char *second);

/* ---- functions ---- */

typedef struct qf_function qf_function;
struct qf_function {
    const char *name; /* what makes two functions differ is part of it */
    void (*build)(qf_body *b, const qf_function *f);
    const char *inputs, *outputs, *attributes; /* names with a space between */
    bool wide;                                 /* activations are int16 */
    bool bias;
    int parts_x, parts_w; /* digits that operands are split into (run_transpose.c) */
    bool clip, lengths;   /* of an RNN: gates are clipped; batches end early */
};

typedef struct qf_runner {
    qf_pass *p;
    Onnx__FunctionProto *functions[QF_RUN_FUNCTIONS];
    size_t count;
    bool mixed; /* there are float types other than float32 */
    size_t wraps;
    const char *first_wrap; /* a layer whose sum may leave int32 */
} qf_runner;

/* The node becomes a call of the function, which is made if there is none of its name yet. */
bool qf_run_call(qf_runner *r, qf_node *node, const qf_function *f);
/* Whether the node is a call of a function whose name begins with `stem`. */
bool qf_run_is(const qf_node *node, const char *stem);
/* The node's inputs become these; NULL is an input that is left out. */
bool qf_run_set_inputs(qf_runner *r, qf_node *node, qf_value *const *inputs, size_t count);
/* A vector of int64 as an attribute. */
bool qf_run_set_int64s(qf_runner *r, qf_node *node, const char *name, const int64_t *values,
                       size_t count);
/* A node "<stem>.<suffix>" with one output before `before`, or at the end of `graph`. */
qf_node *qf_run_add_node(qf_runner *r, qf_graph *graph, const char *stem, const char *suffix,
                         qf_node *before);
/* Why a node cannot be run. */
qf_status qf_run_refuse(const qf_runner *r, const qf_node *node, const char *format, ...)
    QF_PRINTF(3, 4);

/* ---- arithmetic that functions share (run_quant.c) ---- */

/* clip(round(x * scale) + offset, low, high), all float32. */
void qf_body_quantize(qf_body *b, const char *output, const char *x, const char *scale,
                      const char *offset, const char *low, const char *high);
/* The float32 scales in the low halves of an AscendDequant parameter. */
void qf_body_unpack_scales(qf_body *b, const char *output, const char *param);
/* The constants that qf_body_multiply reads. */
void qf_body_integers(qf_body *b);
/* int32 sums of products of integers q - zero and int8 `w`. `op`: MatMulInteger or ConvInteger,
 * whose attributes, if it has any, are those of the node. */
void qf_body_multiply(qf_body *b, const char *output, const char *op, const char *q,
                      const char *zero, const char *w, bool wide);

/* ---- the parts of the pass ---- */

/* run_quant.c. `rank`: of the tensor that scales of channels go along axis 1 of. */
qf_status qf_run_quant(qf_runner *r, qf_node *quant);
qf_status qf_run_anti_quant(qf_runner *r, qf_node *node);
qf_status qf_run_dequant(qf_runner *r, qf_node *dequant, size_t rank);
/* run_layer.c: the layer before an AscendDequant, and the AscendDequant. */
qf_status qf_run_layer(qf_runner *r, qf_node *dequant);
/* run_transpose.c. ConvTranspose with input (q, zero, w, bias); `terms`: products in one sum at
 * most. */
qf_status qf_run_conv_transpose(qf_runner *r, qf_node *node, int64_t terms, bool wide, bool bias);
/* run_rnn.c, and what it makes functions of, run_rnn_body.c */
qf_status qf_run_rnn(qf_runner *r, qf_node *node);
void qf_body_rnn(qf_body *b, const qf_function *f);

/* run_weight.c. The int8 weight that input `index` of a layer is, unpacked; *dims and *rank are
 * those of the tensor that the layer reads, the larger ones if only running tells. */
typedef struct qf_weight_place {
    size_t index;
    size_t axis;    /* of input channels */
    int64_t extent; /* along it; 0: as that of `x` along `x_axis`, divided by `group` */
    qf_value *x;
    int64_t x_axis, group;
} qf_weight_place;
qf_status qf_run_read_weight(qf_runner *r, qf_node *node, const qf_weight_place *place,
                             qf_value **weight, int64_t dims[QF_MAX_RANK], size_t *rank);
/* run_shape.c: what the graph tells about a tensor, 0: nothing. */
int64_t qf_run_extent(const qf_value *value, int64_t axis);
int32_t qf_run_float_type(const qf_runner *r, const qf_value *value);
/* The AscendQuant whose integers these are, behind operators that only move them. */
qf_node *qf_run_quant_of(qf_value *value);
bool qf_run_is_wide(const qf_node *quant);

#endif
