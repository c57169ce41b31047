/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Matrices that are quantized by themselves: an int8 or int4 initializer <tensor>.quantized, its
 * scales <tensor>.scale, and a DequantizeLinear (with a Cast behind it where it cannot give the
 * tensor's dtype) that produces the tensor under its old name. Whatever read the tensor goes on
 * doing so, in subgraphs too. These are standard operators, so both models have the same.
 */
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

static bool fill_in(qf_pass *p, qf_node *dq, const qf_matrix *m, const char *name)
{
    int32_t type = m->job->bits == 4 ? QF_DTYPE_INT4 : ONNX__TENSOR_PROTO__DATA_TYPE__INT8;
    qf_value *weight =
        add_tensor(p, dq->graph, qf_pass_name(p, name, "quantized"), type, m->dims, 2, m->payload);
    qf_value *scale = add_tensor(p, dq->graph, qf_pass_name(p, name, "scale"), m->scale_type,
                                 m->scale_dims, m->scale_rank, m->scale_payload);
    return weight && scale && qf_node_add_input(p->ir, dq, weight) &&
           qf_node_add_input(p->ir, dq, scale) &&
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

static bool dequantize(qf_pass *p, const qf_matrix *m)
{
    qf_probe probe;
    qf_layer_probe(p->ir->by_id[m->node_id], 0, &probe);
    qf_value *value = qf_value_source(probe.weight_value);
    bool cast = m->scale_type != m->float_type;
    const char *name = qf_pass_name(p, value->name, "dequantize");
    const char *cast_name = name ? qf_pass_name(p, name, "cast") : NULL;
    qf_node *last = cast_name ? new_producer(p, value, cast ? "Cast" : "DequantizeLinear",
                                             cast ? cast_name : name)
                              : NULL;
    qf_node *dq = last && cast ? add_before(p, last, name, m->float_type) : last;
    return dq && fill_in(p, dq, m, value->name);
}

qf_status qf_pass_dequantize_weights(qf_pass *p)
{
    for (size_t i = 0; i < p->plan->matrix_count; i++) {
        const qf_matrix *m = &p->plan->matrices[i];
        if (!dequantize(p, m))
            return qf_fail_memory(p->err);
        if (m->job->bits == 4 && p->ir->model->ir_version < INT4_IR_VERSION)
            p->ir->model->ir_version = INT4_IR_VERSION;
    }
    return QF_OK;
}
