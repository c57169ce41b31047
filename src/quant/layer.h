/* SPDX-License-Identifier: Apache-2.0 */
/* The layer table: which operators can be quantized, where their tensors sit, and what the
 * reference asks of a node before it accepts a record for it (facts part 6). */
#ifndef QF_QUANT_LAYER_H
#define QF_QUANT_LAYER_H

#include "onnx/graph.h"

typedef enum qf_op {
    QF_OP_NONE = 0,
    QF_OP_CONV,
    QF_OP_CONV_TRANSPOSE,
    QF_OP_GEMM,
    QF_OP_MATMUL,
    QF_OP_AVERAGE_POOL,
    QF_OP_LSTM,
    QF_OP_GRU,
} qf_op;

/* Facts about a node that are not in it: markers of the exporter carry them (facts 3.2), or they
 * are left by a pass. */
enum {
    QF_NODE_REUSED = 1,    /* the module appears twice in the graph */
    QF_NODE_UNBATCHED = 2, /* its input was given a batch axis by Unsqueeze */
    QF_NODE_PADDED = 4,    /* its padding is a node of its own: circular, reflect, ... */
    QF_NODE_INTEGERS = 8,  /* its weight is quantized already (absorb_qdq.c) */
};

enum { QF_MAX_RANK = 8 };

qf_op qf_op_of(const qf_node *node);
bool qf_op_is_rnn(qf_op op);
/* "Conv", ... */
const char *qf_op_name(qf_op op);
/* Number of gates of an RNN: 4 or 3. */
size_t qf_op_gates(qf_op op);

/* What a record for this node would be checked against. */
typedef struct qf_probe {
    qf_op op;
    bool quantizable;
    char reason[200]; /* why not */
    bool integers;    /* QF_NODE_INTEGERS */
    /* Weight (W of an RNN), NULL for AveragePool. `weight_user` reads the tensor: the node itself,
     * or the Transpose before its input. */
    Onnx__TensorProto *weight;
    qf_value *weight_value;
    qf_node *weight_user;
    Onnx__TensorProto *recurrence; /* R of an RNN */
    int64_t group;
    uint64_t channels;       /* channel-wise scales expected; 1 where only per tensor is possible */
    uint64_t input_channels; /* Cin, for tensor_balance_factor */
    bool turned;             /* a Transpose node swaps the stored weight's two dimensions */
} qf_probe;

/* `flags`: QF_NODE_*. */
void qf_layer_probe(const qf_node *node, unsigned flags, qf_probe *out);

/* Float dtypes that weights may have. */
bool qf_dtype_is_float(int32_t data_type);

#endif
