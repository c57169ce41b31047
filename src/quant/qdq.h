/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reading QuantizeLinear (Q) and DequantizeLinear (DQ): which layers they quantize, and how.
 *
 * A layer is quantized if its weight is dequantized: DQ of an integer constant, or of Q of a float
 * constant. Its activation must come from a DQ too, directly or through operators that keep values
 * on the grid of the integers, as Relu, MaxPool and Reshape do. Unsigned integers are told in the
 * signed domain: uint8 with zero point 128 is int8 with zero point 0.
 */
#ifndef QF_QUANT_QDQ_H
#define QF_QUANT_QDQ_H

#include "quant/constants.h"
#include "quant/layer.h"

/* Where constants are read from and what is made goes to. */
typedef struct qf_qdq {
    const qf_payloads *payloads;
    qf_arena *arena;
    const char *path; /* of the model, for messages */
} qf_qdq;

enum { QF_QDQ_PROBLEM = 300 };

/* What a Q or DQ node says. */
typedef struct qf_quantizer {
    int32_t data_type; /* of the integers as stored */
    int32_t float_type;
    int bits;                                 /* 4, 8 or 16 */
    const float *scales;                      /* positive, finite, normal */
    const int32_t *zeros;                     /* zero points in the signed domain */
    size_t count;                             /* of scales and of zeros; 1: per tensor */
    int64_t axis;                             /* as written */
    const qf_value *scale_value, *zero_value; /* zero_value may be NULL */
} qf_quantizer;

/* A quantized weight. The constant lies behind Q and DQ and at most one Transpose. */
typedef struct qf_qdq_weight {
    qf_value *source; /* the constant */
    Onnx__TensorProto *tensor;
    qf_quantizer quantizer;
    qf_node *transpose; /* NULL: there is none */
    bool integers;      /* the constant is quantized already */
} qf_qdq_weight;

typedef struct qf_qdq_layer {
    bool quantized;                  /* Q and DQ surround it; if there is no problem, all is set */
    char problem[QF_QDQ_PROBLEM];    /* why the deploy format cannot express it, "" if it can */
    qf_quantizer activation, hidden; /* hidden: initial_h of an RNN */
    qf_qdq_weight weight, recurrence;
    float *scale_w, *scale_r; /* as a record has them */
    size_t scale_w_count, scale_r_count;
    int wts_bits;
} qf_qdq_layer;

/* In the default domain or in that of ONNX Runtime's copies. */
bool qf_is_quantize(const qf_node *node);
bool qf_is_dequantize(const qf_node *node);
/* Whether the graph has any of the two. */
bool qf_qdq_any(const qf_ir *ir);

/* Reads a Q or DQ node. *why is NULL, or says why it cannot be expressed, to follow "its <what>".
 */
qf_status qf_quantizer_read(const qf_qdq *q, const qf_node *node, qf_quantizer *out,
                            const char **why, qf_error *err);
/* Same integers for the same floats. */
bool qf_quantizer_same(const qf_quantizer *a, const qf_quantizer *b);

/* Reads what is around a layer; a node of another type is not quantized. `flags`: QF_NODE_*. */
qf_status qf_qdq_layer_read(const qf_qdq *q, const qf_node *node, qf_qdq_layer *out, qf_error *err);

/* UINT4, UINT8, UINT16. */
bool qf_dtype_is_unsigned(int32_t data_type);

/* The value behind Identity nodes and Casts to the dtype that the integers have already, which
 * PyTorch puts between Q and DQ. */
qf_value *qf_qdq_integers(qf_value *value, int32_t data_type);

/* If input `index` of `node` is data that its outputs consist of, rearranged, chosen or rectified,
 * so that quantizing its inputs or its outputs is the same. */
bool qf_keeps_grid(const qf_node *node, size_t index);

/* The value behind DQ, Q, Transpose and Identity nodes: what a quantized weight is called. */
qf_value *qf_qdq_source(qf_value *value);

#endif
