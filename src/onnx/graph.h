/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The graph that passes edit: nodes and values with links both ways, over the protobuf messages.
 *
 * A value is a tensor name in a scope: a graph input, an initializer or an output of a node. Uses
 * in subgraphs are uses like any other, so moving or renaming a value is right for If and Loop
 * bodies too. Names are written back into the messages by qf_ir_finish; until then the strings in
 * NodeProto.input/output are stale. Everything lives in the arena given to qf_ir_build.
 */
#ifndef QF_ONNX_GRAPH_H
#define QF_ONNX_GRAPH_H

#include "base/arena.h"
#include "base/error.h"
#include "base/strmap.h"
#include "onnx.pb-c.h"

typedef struct qf_graph qf_graph;
typedef struct qf_node qf_node;
typedef struct qf_value qf_value;

typedef struct qf_use {
    qf_node *node;
    size_t input;
} qf_use;

struct qf_value {
    const char *name;
    qf_graph *graph;
    qf_node *producer; /* NULL for graph inputs and initializers */
    Onnx__TensorProto *init;
    Onnx__SparseTensorProto *sparse;
    Onnx__ValueInfoProto *input;      /* its entry in graph.input, if it is a graph input */
    Onnx__ValueInfoProto *dead_input; /* an entry in graph.input that is not written */
    Onnx__ValueInfoProto *info;       /* its entry in graph.value_info, if any */
    Onnx__ValueInfoProto **results;   /* entries in graph.output that it feeds */
    size_t result_count, result_cap;
    qf_use *uses; /* in node order, later ones appended */
    size_t use_count, use_cap;
    qf_use only_use; /* `uses` points here while it has room for one */
    bool retyped;    /* dtype or shape changed: its value_info no longer holds */
    bool dropped;    /* an initializer that is not written */
    qf_value *next;  /* in order of creation */
};

struct qf_node {
    Onnx__NodeProto *proto;
    qf_graph *graph;
    const char *name;
    size_t id; /* position in the model as read: the same for each build from one skeleton */
    qf_value **inputs; /* NULL: not connected */
    size_t input_count;
    qf_value **outputs; /* NULL: output not named */
    size_t output_count;
    qf_node *prev, *next;
    bool name_shared; /* later nodes of its graph had the same name in the file */
    bool renamed;     /* `name` is to be written; other names in subgraphs stay as they are */
    void *tag;        /* for passes: what made this node */
    size_t order;     /* scratch of qf_graph_sort */
};

struct qf_graph {
    Onnx__GraphProto *proto;
    qf_graph *parent; /* NULL for the main graph */
    qf_node *owner;   /* node of `parent` that holds this graph */
    size_t index;     /* in qf_ir.graphs, the same for each build from one skeleton */
    qf_node *first, *last;
    qf_value *first_value, *last_value;
    qf_strmap values;
};

typedef struct qf_ir {
    qf_arena *arena;
    Onnx__ModelProto *model;
    qf_graph **graphs; /* [0] is the main graph; a graph comes before its subgraphs */
    size_t graph_count, graph_cap;
    qf_node **by_id;
    size_t node_count, node_cap;
    qf_strmap node_names, value_names; /* every name in use, of any scope */
    qf_strmap suffixes;                /* name -> last number that was tried behind it */
    bool no_scopes;                    /* the graphs' maps of values are gone */
} qf_ir;

/* Links a model. Nodes are sorted; a cycle is an error. In the main graph unnamed nodes get the
 * reference's names node_<index>, second nodes of a name get a number behind it, and inputs that
 * are initializers stop being inputs. Nodes of subgraphs are told apart in the same way, but such
 * names are not written unless a pass asks for it. QF_ERR_INPUT, naming node and tensor, if a
 * tensor has no producer or two. `path` is for messages. */
qf_status qf_ir_build(qf_arena *arena, Onnx__ModelProto *model, const char *path, qf_ir *out,
                      qf_error *err);
/* The same for a model that may be wrong in many ways: what is wrong becomes a finding, and links
 * without anything at their other end are not made. Nodes keep the order of the file. */
qf_status qf_ir_build_noting(qf_arena *arena, Onnx__ModelProto *model, const char *path,
                             qf_diagnostics *findings, qf_ir *out, qf_error *err);
/* Frees the hash maps; the rest belongs to the arena. */
void qf_ir_release(qf_ir *ir);
/* Drops what only qf_graph_find needs, which must not be called any more. */
void qf_ir_forget_scopes(qf_ir *ir);
/* Writes nodes, names, initializers and value_info back into the messages. Nodes are put into an
 * order in which producers come first, if they are not in one already. */
qf_status qf_ir_finish(qf_ir *ir, const char *path, qf_error *err);

/* Sorts the nodes so that producers come first; nodes that are in such an order stay as they are.
 * QF_ERR_INPUT if there is a cycle. */
qf_status qf_graph_sort(qf_graph *graph, const char *path, qf_error *err);

/* Whether producers come first now. */
bool qf_graph_is_sorted(const qf_graph *graph);

/* Puts a value at the end of its graph's list; for the code that builds and edits graphs. */
void qf_value_append(qf_value *value);

/* ---- looking ---- */

/* Version of the default operator set; 0 if it is not imported. */
int64_t qf_ir_opset(const qf_ir *ir);
/* The value `name` as seen from `graph`: its own scope, then the scopes around it. */
qf_value *qf_graph_find(const qf_graph *graph, const char *name);
Onnx__AttributeProto *qf_node_attribute(const qf_node *node, const char *name);
int64_t qf_node_int(const qf_node *node, const char *name, int64_t missing);
float qf_node_float(const qf_node *node, const char *name, float missing);
bool qf_node_is(const qf_node *node, const char *op_type);
/* The first output, NULL if there is none or it has no name. */
qf_value *qf_node_output(const qf_node *node);
/* The value behind any Identity nodes. */
qf_value *qf_value_source(qf_value *value);
/* The constant tensor that a value is: its initializer, or the tensor of the Constant node that
 * produces it; looks through Identity. NULL if it is not constant. */
Onnx__TensorProto *qf_value_constant(qf_value *value);
/* The only node that uses the value, NULL if there are more, none, or it is a graph output. */
qf_node *qf_value_only_user(const qf_value *value);

/* ---- editing; functions returning a pointer give NULL when memory is exhausted ---- */

/* A new node before `before` (NULL: at the end of the graph). The name is made unique. */
qf_node *qf_ir_add_node(qf_ir *ir, qf_graph *graph, const char *op_type, const char *name,
                        qf_node *before);
bool qf_node_add_input(qf_ir *ir, qf_node *node, qf_value *value);
bool qf_node_set_input(qf_ir *ir, qf_node *node, size_t index, qf_value *value);
/* A new output; the name is made unique. */
qf_value *qf_node_add_output(qf_ir *ir, qf_node *node, const char *name);
/* An initializer becomes the only output of `node`, which has none, and keeps name and uses. */
bool qf_node_take_initializer(qf_ir *ir, qf_node *node, qf_value *value);
/* Unlinks a node whose outputs have no uses and feed no graph output. */
void qf_ir_remove_node(qf_ir *ir, qf_node *node);
bool qf_node_rename(qf_ir *ir, qf_node *node, const char *name);
/* The name is made unique unless it is the value's own. */
bool qf_value_rename(qf_ir *ir, qf_value *value, const char *name);
/* Makes every use of `from`, but those by `except`, a use of `to`. */
bool qf_value_move_uses(qf_ir *ir, qf_value *from, qf_value *to, const qf_node *except);
/* If `from` feeds graph outputs, `to` takes them over together with the name, and `from` is renamed
 * to `from_name`. */
bool qf_value_move_results(qf_ir *ir, qf_value *from, qf_value *to, const char *from_name);
/* A new initializer in `graph`; the tensor's name is made unique. */
qf_value *qf_ir_add_initializer(qf_ir *ir, qf_graph *graph, const char *name,
                                Onnx__TensorProto *tensor);
/* Drops the initializer or Constant node behind `value` if nothing uses it any more. */
void qf_ir_drop_unused(qf_ir *ir, qf_value *value);

bool qf_node_set_int(qf_ir *ir, qf_node *node, const char *name, int64_t value);
bool qf_node_set_float(qf_ir *ir, qf_node *node, const char *name, float value);
bool qf_node_set_string(qf_ir *ir, qf_node *node, const char *name, const char *value);
bool qf_node_set_tensor(qf_ir *ir, qf_node *node, const char *name, Onnx__TensorProto *tensor);
/* Empty FLOATS or STRINGS attribute. */
bool qf_node_set_empty(qf_ir *ir, qf_node *node, const char *name, int attribute_type);
void qf_node_remove_attribute(qf_node *node, const char *name);

/* A tensor of `data_type` with `rank` dims and no data. */
Onnx__TensorProto *qf_tensor_new(qf_arena *arena, int32_t data_type, const int64_t *dims,
                                 size_t rank);
/* `wanted`, or `wanted` with the first number behind it that makes it new to `names`. */
const char *qf_ir_unique(qf_ir *ir, const qf_strmap *names, const char *wanted);

/* A string for a message that is only packed: protobuf-c has no const, but packing writes to
 * nothing. The messages borrow it; it must live as long as they do. */
static inline char *qf_borrow(const char *text)
{
    return (char *)(uintptr_t)text;
}

#endif
