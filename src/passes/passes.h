/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Graph passes. Those of preparation run once, on the graph that both models start from; the others
 * run on a target's own copy, in the order of the lists in passes.c. A pass edits nodes, names and
 * recipes and never touches payload bytes of the source.
 */
#ifndef QF_PASSES_PASSES_H
#define QF_PASSES_PASSES_H

#include "quant/plan.h"

/* ---- preparation ---- */

/* Removes custom_op_domain::QuantIdentity markers; the layers behind them get the marked module's
 * name (facts 3.2). Unused opset imports that the markers needed go as well. */
qf_status qf_pass_remove_quant_identity(qf_plan *plan, qf_ir *ir, qf_error *err);
/* Renames graph inputs and outputs and makes dimensions symbolic. */
qf_status qf_pass_name_io(qf_plan *plan, const qf_io_spec *io, qf_ir *ir, qf_error *err);
/* QuantizeLinear and DequantizeLinear around layers that have a record go into the layers; pairs
 * that make no difference then go too. */
qf_status qf_pass_absorb_qdq(qf_plan *plan, qf_ir *ir, qf_error *err);
/* Conv + BatchNormalization -> Conv (facts 3.4), unless nothing is quantized. */
qf_status qf_pass_fold_batch_norm(qf_plan *plan, qf_ir *ir, qf_error *err);

/* ---- per target ---- */

typedef struct qf_pass {
    qf_plan *plan;
    qf_ir *ir;
    qf_target target;
    const char *path; /* of the model, for messages */
    qf_error *err;
    qf_value **new_weights; /* layer * 2 + weight -> its quantized initializer */
    struct qf_wish *wishes; /* names to take when they become free */
    size_t wish_count, wish_cap;
    bool macros; /* qf_macros_allowed, from qf_pass_expand_quant on */
} qf_pass;

typedef struct qf_wish {
    qf_value *value;
    const char *name;
} qf_wish;

/* Runs a target's passes. */
qf_status qf_passes_run(qf_plan *plan, qf_ir *ir, qf_target target, qf_error *err);

qf_status qf_pass_gemm_trans_b(qf_pass *p);        /* transB = 1 -> 0; the job transposes */
qf_status qf_pass_balance_activations(qf_pass *p); /* Mul by 1 / tensor_balance_factor */
qf_status qf_pass_insert_quant(qf_pass *p);        /* AscendQuant before each layer */
qf_status qf_pass_quantize_weights(qf_pass *p);    /* weights become the jobs' outputs */
qf_status qf_pass_insert_dequant(qf_pass *p);      /* AscendDequant behind each layer */
qf_status qf_pass_quantize_bias(qf_pass *p);       /* bias becomes int32, or its float form */
qf_status qf_pass_replace_qdq(qf_pass *p); /* QuantizeLinear + DequantizeLinear of no layer */
/* Matrices that are quantized alone: integers, and a DequantizeLinear for all that reads them. */
qf_status qf_pass_dequantize_weights(qf_pass *p);
qf_status qf_pass_fuse_quant(qf_pass *p);       /* equal AscendQuants of one tensor -> one */
qf_status qf_pass_replace_rnn(qf_pass *p);      /* deploy: LSTM, GRU -> Basic*WindowCache */
qf_status qf_pass_strip_attributes(qf_pass *p); /* op_data_type */
qf_status qf_pass_fake_quant_rnn(qf_pass *p);   /* fake_quant: quantize X and initial_h */
qf_status qf_pass_expand_quant(qf_pass *p);     /* fake_quant: AscendQuant -> ONNX operators */
qf_status qf_pass_expand_dequant(qf_pass *p);   /* fake_quant: AscendDequant -> Mul */
qf_status qf_pass_compact_weights(qf_pass *p);  /* fake_quant: floats of int8 weights */
qf_status qf_pass_hoist_constants(qf_pass *p);  /* large Constant nodes -> initializers */
qf_status qf_pass_make_runnable(qf_pass *p);    /* runnable: what the deploy operators calculate */

/* Whether a node is one of the operators that only deploy models have. */
bool qf_is_deploy_node(const qf_node *node);
/* The DequantizeLinear of a weight that was quantized alone: named <tensor>.dequantize, of the
 * initializers <tensor>.quantized and <tensor>.scale. A source's own may have the first name. */
bool qf_is_weight_only(const qf_node *node);
/* Bytes of `text` before `end`, as qf_pass_name makes such names, which closes it but for digits; 0
 * if it does not. */
size_t qf_stem(const char *text, const char *end);

/* ---- what passes share ---- */

/* The layer's node in this graph. */
qf_node *qf_pass_node(const qf_pass *p, const qf_layer *layer);
/* The node whose output the dequant follows: the layer, or the Add behind a MatMul with bias. */
qf_node *qf_pass_last_node(const qf_pass *p, const qf_layer *layer);
/* Makes input `index` of `node` a new initializer `tensor`. It takes the place and the name of the
 * constant there if that has no other use, else `name`. NULL when memory is exhausted. */
qf_value *qf_pass_replace_constant(qf_pass *p, qf_node *node, size_t index,
                                   Onnx__TensorProto *tensor, const char *name);
/* Makes input `index` of `node` the existing `value`, dropping the constant there if unused. */
bool qf_pass_share_constant(qf_pass *p, qf_node *node, size_t index, qf_value *value);
/* A Constant node `name` before `before`, output <name>.output0, of `count` float32 in float_data.
 */
qf_value *qf_pass_add_constant(qf_pass *p, const char *name, const float *values,
                               const int64_t *dims, size_t rank, const char *doc, qf_node *before);
/* Casts output `index` of `node` to `type`: all that read it read <prefix>.cast.output0 instead,
 * and a graph output keeps its name. */
bool qf_pass_cast_output(qf_pass *p, qf_node *node, size_t index, int32_t type, const char *prefix);
/* A tensor whose data is a payload. NULL when memory is exhausted. */
Onnx__TensorProto *qf_pass_payload_tensor(qf_pass *p, int32_t data_type, const int64_t *dims,
                                          size_t rank, size_t payload);
/* Name of a part of a layer, "<layer>.<suffix>", in the arena. */
const char *qf_pass_name(qf_pass *p, const char *layer, const char *suffix);

/* Makes initializer <layer>.dequant.param. NULL when memory is exhausted. */
qf_value *qf_pass_add_dequant_param(qf_pass *p, const qf_layer *layer, qf_graph *graph);

/* An AscendQuant node's facts, hung on qf_node.tag by whoever makes one. */
typedef struct qf_quant_tag {
    const char *layer;
    float scale_d;
    int32_t offset;
    int bits;
    const char *act_type;
    int32_t float_type;
} qf_quant_tag;
/* AscendQuant `name` between `value` and input `index` of `node`. NULL when memory is exhausted. */
qf_node *qf_pass_add_quant(qf_pass *p, const char *name, qf_quant_tag tag, qf_node *node,
                           size_t index);

#endif
