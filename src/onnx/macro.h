/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A node of the linked graph that is several nodes in the file. What a target puts around each
 * layer would be many times the size of the layer itself; a macro holds what it depends on, and its
 * nodes exist only one at a time, while they are written.
 *
 * Names of the inner nodes and tensors are not in the graph's maps: who makes a macro sees to it
 * that nothing else can have them. Macros stand in the main graph alone.
 */
#ifndef QF_ONNX_MACRO_H
#define QF_ONNX_MACRO_H

#include <stdbool.h>

#include "onnx.pb-c.h"

typedef bool (*qf_node_sink)(void *user, const Onnx__NodeProto *node);

typedef struct qf_macro qf_macro;
struct qf_macro {
    Onnx__NodeProto node; /* what the graph's node points to; its op_type is qf_macro_type */
    /* Hands the nodes to `sink` in order. They must hold no payloads and need not outlive the call.
     * False, at once, if the sink returns false or memory is exhausted. */
    bool (*write)(const qf_macro *macro, qf_node_sink sink, void *user);
};

/* Known by its address. */
extern char qf_macro_type[];

/* NULL if the node is an ordinary one. */
static inline const qf_macro *qf_macro_of(const Onnx__NodeProto *node)
{
    return node->op_type == qf_macro_type ? (const qf_macro *)(const void *)node : NULL;
}

#endif
