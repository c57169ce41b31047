/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Matrices that are quantized by themselves: an int8 or int4 initializer <tensor>.quantized, its
 * scales <tensor>.scale, and a DequantizeLinear (with a Cast behind it where it cannot give the
 * tensor's dtype) that produces the tensor under its old name. Whatever read the tensor goes on
 * doing so, in subgraphs too. These are standard operators, so both models have the same.
 */
#include <string.h>

#include "base/spill.h"
#include "passes/passes.h"

enum { INT4_IR_VERSION = 10 };

/* The node that produces the matrix from now on: what was a Constant, or a new node at the graph's
 * beginning. It has no inputs yet. */
static qf_node *new_producer(qf_pass *p, qf_value *value, const char *op, const char *name)
{
    qf_node *node = value->producer;
    if (!node) {
        node = qf_ir_add_node(p->ir, value->graph, op, name, value->graph->first);
        return node && qf_node_take_initializer(p->ir, node, value) ? node : NULL;
    }
    node->proto->op_type = qf_arena_strdup(p->ir->arena, op);
    node->proto->n_attribute = 0;
    return node->proto->op_type ? node : NULL;
}

static qf_value *add_tensor(qf_pass *p, qf_graph *graph, const char *name, int32_t data_type,
                            const int64_t *dims, size_t rank, size_t payload)
{
    Onnx__TensorProto *tensor = qf_pass_payload_tensor(p, data_type, dims, rank, payload);
    return name && tensor ? qf_ir_add_initializer(p->ir, graph, name, tensor) : NULL;
}

/* The initializers of a matrix, in this target. */
typedef struct stored {
    qf_value *integers, *scales;
} stored;

static bool add_tensors(qf_pass *p, qf_graph *graph, const qf_matrix *m, const char *name,
                        stored *out)
{
    int32_t type = m->job->bits == 4 ? QF_DTYPE_INT4 : ONNX__TENSOR_PROTO__DATA_TYPE__INT8;
    out->integers =
        add_tensor(p, graph, qf_pass_name(p, name, "quantized"), type, m->dims, 2, m->payload);
    out->scales = add_tensor(p, graph, qf_pass_name(p, name, "scale"), m->scale_type, m->scale_dims,
                             m->scale_rank, m->scale_payload);
    return out->integers && out->scales;
}

/* Takes those of an equal matrix, which are not written a second time. */
static void share_tensors(qf_pass *p, const qf_matrix *m, const stored *of, stored *out)
{
    const qf_matrix *equal = &p->plan->matrices[m->equal - 1];
    const qf_payload *payloads = p->plan->payloads.items;
    *out = of[m->equal - 1];
    p->plan->layout.saved +=
        payloads[equal->payload].raw_length + payloads[equal->scale_payload].raw_length;
}

static bool connect(qf_pass *p, qf_node *dq, const qf_matrix *m, const stored *tensors)
{
    return qf_node_add_input(p->ir, dq, tensors->integers) &&
           qf_node_add_input(p->ir, dq, tensors->scales) &&
           (!m->scale_rank || qf_node_set_int(p->ir, dq, "axis", m->axis)) &&
           (!m->group || qf_node_set_int(p->ir, dq, "block_size", (int64_t)m->group));
}

/* A DequantizeLinear in front of `cast`, which reads it. */
static qf_node *add_before(qf_pass *p, qf_node *cast, const char *name, int32_t to)
{
    const char *output = name ? qf_pass_name(p, name, "output0") : NULL;
    qf_node *dq =
        output ? qf_ir_add_node(p->ir, cast->graph, "DequantizeLinear", name, cast) : NULL;
    qf_value *value = dq ? qf_node_add_output(p->ir, dq, output) : NULL;
    return value && qf_node_add_input(p->ir, cast, value) && qf_node_set_int(p->ir, cast, "to", to)
               ? dq
               : NULL;
}

/* Puts the nodes in that make the matrix of its initializers. */
static bool dequantize(qf_pass *p, const qf_matrix *m, qf_value *value, const stored *tensors)
{
    bool cast = m->scale_type != m->float_type;
    const char *name = qf_pass_name(p, value->name, "dequantize");
    const char *cast_name = name ? qf_pass_name(p, name, "cast") : NULL;
    if (!cast_name)
        return false;
    qf_node *last =
        new_producer(p, value, cast ? "Cast" : "DequantizeLinear", cast ? cast_name : name);
    qf_node *dq = last && cast ? add_before(p, last, name, m->float_type) : last;
    return dq && connect(p, dq, m, tensors);
}

static bool visit(qf_pass *p, size_t index, stored *made)
{
    const qf_matrix *m = &p->plan->matrices[index];
    qf_probe probe;
    qf_layer_probe(p->ir->by_id[m->node_id], 0, &probe);
    qf_value *value = qf_value_source(probe.weight_value);
    if (m->equal)
        share_tensors(p, m, made, &made[index]);
    else if (!add_tensors(p, value->graph, m, value->name, &made[index]))
        return false;
    if (m->job->bits == 4 && p->ir->model->ir_version < INT4_IR_VERSION)
        p->ir->model->ir_version = INT4_IR_VERSION;
    return dequantize(p, m, value, &made[index]);
}

qf_status qf_pass_dequantize_weights(qf_pass *p)
{
    size_t count = p->plan->matrix_count;
    stored *made = qf_spill_alloc((count + 1) * sizeof *made);
    bool memory = made != NULL;
    for (size_t i = 0; memory && i < count; i++)
        memory = visit(p, i, made);
    qf_spill_free(made);
    return memory ? QF_OK : qf_fail_memory(p->err);
}

/* ---- knowing them again ---- */

size_t qf_stem(const char *text, const char *end)
{
    size_t n = strlen(text), m = strlen(end);
    while (n && text[n - 1] >= '0' && text[n - 1] <= '9')
        n--;
    /* the ending may itself close in digits */
    for (; n <= strlen(text); n++) {
        if (n > m && memcmp(text + n - m, end, m) == 0)
            return n - m;
    }
    return 0;
}

static bool is_initializer(const qf_node *node, size_t input, const char *end)
{
    const qf_value *value = node->inputs[input];
    return value && value->init && qf_stem(value->name, end);
}

bool qf_is_weight_only(const qf_node *node)
{
    return qf_node_is(node, "DequantizeLinear") && node->input_count == 2 &&
           qf_stem(node->name, ".dequantize") && is_initializer(node, 0, ".quantized") &&
           is_initializer(node, 1, ".scale");
}
