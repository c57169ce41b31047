/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Two models, node by node.
 *
 * AGREE: a deploy model and the fake_quant model that was made with it. Each node of the one has
 * its counterpart in the other: AscendQuant, AscendDequant and AscendAntiQuant their arithmetic, an
 * LSTM or GRU of the NPU the ONNX operator with its inputs quantized, every other node itself.
 * SAME: a model as it should be and as it is, every node itself; tensors are looked at elsewhere.
 */
#ifndef QF_VERIFY_AGREE_H
#define QF_VERIFY_AGREE_H

#include "verify/expanded.h"

/* Takes a tensor as it should be and the one that is in its place. */
typedef qf_status (*qf_tensor_pair_fn)(const Onnx__TensorProto *expected,
                                       const Onnx__TensorProto *found, void *user);

typedef struct qf_pairing {
    qf_subject *a, *b;       /* deploy and fake_quant, or expected and found */
    bool same, runnable;     /* `runnable` goes with `same` */
    qf_tensor_pair_fn visit; /* with `same` */
    void *user;
    qf_graph **graphs;                /* of b, by index of a's */
    qf_strmap children_a, children_b; /* "%p" of a GraphProto -> qf_graph */
    qf_strmap compared, unreadable;   /* names of a's tensors that were, or could not be */
    bool skipped;                     /* some tensor of the node at hand could not be compared */
    qf_error *err;
} qf_pairing;

/* What stands for a node of a. */
typedef struct qf_counterpart {
    qf_node *node; /* NULL: none, or none is needed */
    qf_value **outputs;
    bool silent;          /* its absence was told of, or is right */
    bool skipped;         /* not all its tensors could be compared */
    const char *wrong;    /* what is wrong with an expansion */
    qf_expanded expanded; /* of an AscendQuant */
} qf_counterpart;

/* Quantized layers of the deploy model. */
typedef struct qf_agreement {
    uint64_t compared; /* in all that they have: weights, biases, scales */
    uint64_t skipped;  /* the others */
} qf_agreement;

/* Findings are those of `b`. The nodes' tags are used. */
qf_status qf_agree(qf_subject *deploy, qf_subject *fake_quant, qf_agreement *layers, qf_error *err);
/* Every tensor that has one in its place is handed to `visit`. `runnable`: they are runnable
 * models, of which one that was made of a float model may know more (pair.c, functions.c). */
qf_status qf_same_graph(qf_subject *expected, qf_subject *found, bool runnable,
                        qf_tensor_pair_fn visit, void *user, qf_error *err);

/* ---- pair.c ---- */

/* Looks for what stands for a node of a: its tag becomes a qf_counterpart. */
qf_status qf_pairing_node(qf_pairing *p, qf_node *node);
/* AscendQuant, AscendDequant, AscendAntiQuant. */
bool qf_is_npu_node(const qf_node *node);
/* The Cast behind the int32 bias of a layer with 4-bit activations, which fake_quant has not. */
bool qf_is_bias_cast(const qf_node *node);
/* Whether nodes of two runnable models are of one operator, though of functions of other names: a
 * ConvTranspose is split by the number of its channels, which only one of them knows. */
bool qf_is_split_otherwise(const qf_node *a, const qf_node *b);
/* The value of b that a value of a should be; NULL if there is none. */
qf_value *qf_pairing_value(const qf_pairing *p, const qf_value *value);
/* Notes that b's node has been accounted for. NULL is fine. */
void qf_pairing_take(const qf_pairing *p, qf_node *node);

/* ---- agree.c, agree_rnn.c, agreed.c ---- */

/* Compares two constants that nodes read, once. */
qf_status qf_pairing_constants(qf_pairing *p, qf_value *va, qf_value *vb, const char *user);
/* agreed.c: which layers were compared, when all nodes are. */
void qf_agree_count(const qf_pairing *p, qf_agreement *layers);
/* A recurrent layer. */
qf_status qf_pairing_rnn(qf_pairing *p, const qf_node *node, const qf_counterpart *c);

#endif
