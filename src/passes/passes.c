/* SPDX-License-Identifier: Apache-2.0 */
/* The pass lists of the two targets, and what passes share. */
#include "passes/passes.h"

#include <string.h>

#include "base/spill.h"

typedef qf_status (*pass_fn)(qf_pass *p);

/* The order is the reference's (facts 3.5). */
static const pass_fn deploy_passes[] = {
    qf_pass_gemm_trans_b,     qf_pass_balance_activations, qf_pass_insert_quant,
    qf_pass_quantize_weights, qf_pass_insert_dequant,      qf_pass_quantize_bias,
    qf_pass_replace_qdq,      qf_pass_dequantize_weights,  qf_pass_fuse_quant,
    qf_pass_replace_rnn,      qf_pass_strip_attributes,    qf_pass_hoist_constants,
};
static const pass_fn fake_quant_passes[] = {
    qf_pass_gemm_trans_b,     qf_pass_balance_activations, qf_pass_insert_quant,
    qf_pass_quantize_weights, qf_pass_insert_dequant,      qf_pass_quantize_bias,
    qf_pass_replace_qdq,      qf_pass_dequantize_weights,  qf_pass_fuse_quant,
    qf_pass_fake_quant_rnn,   qf_pass_expand_quant,        qf_pass_expand_dequant,
    qf_pass_compact_weights,  qf_pass_strip_attributes,    qf_pass_hoist_constants,
};

/* An initializer that took the place of one with other uses gets its name if those went too. */
static bool grant_wishes(qf_pass *p)
{
    for (size_t i = 0; i < p->wish_count; i++) {
        if (!qf_strmap_get(&p->ir->value_names, p->wishes[i].name) &&
            !qf_value_rename(p->ir, p->wishes[i].value, p->wishes[i].name))
            return false;
    }
    return true;
}

qf_status qf_passes_run(qf_plan *plan, qf_ir *ir, qf_target target, qf_error *err)
{
    const pass_fn *list = target == QF_DEPLOY ? deploy_passes : fake_quant_passes;
    size_t count = target == QF_DEPLOY ? sizeof deploy_passes / sizeof *deploy_passes
                                       : sizeof fake_quant_passes / sizeof *fake_quant_passes;
    qf_pass p = {
        .plan = plan, .ir = ir, .target = target, .path = plan->model->files[0].path, .err = err};
    p.new_weights = qf_spill_alloc((2 * plan->layer_count + 1) * sizeof *p.new_weights);
    qf_status status = p.new_weights ? QF_OK : qf_fail_memory(err);
    qf_ir_forget_scopes(ir); /* passes go by links */
    for (size_t i = 0; status == QF_OK && i < count; i++)
        status = list[i](&p);
    if (status == QF_OK && plan->options.emit == QF_EMIT_RUNNABLE)
        status = qf_pass_make_runnable(&p);
    if (status == QF_OK && !grant_wishes(&p))
        status = qf_fail_memory(err);
    qf_spill_free(p.new_weights);
    qf_spill_free(p.wishes);
    return status;
}

qf_node *qf_pass_node(const qf_pass *p, const qf_layer *layer)
{
    return p->ir->by_id[layer->node_id];
}

qf_node *qf_pass_last_node(const qf_pass *p, const qf_layer *layer)
{
    qf_node *node = qf_pass_node(p, layer);
    if (layer->op == QF_OP_MATMUL && layer->has_bias)
        return node->outputs[0]->uses[0].node;
    return node;
}

const char *qf_pass_name(qf_pass *p, const char *layer, const char *suffix)
{
    size_t n = strlen(layer), m = strlen(suffix);
    char *name = qf_arena_alloc(p->ir->arena, n + m + 2); /* zeroed */
    if (!name)
        return NULL;
    memcpy(name, layer, n);
    name[n] = '.';
    memcpy(name + n + 1, suffix, m);
    return name;
}

Onnx__TensorProto *qf_pass_payload_tensor(qf_pass *p, int32_t data_type, const int64_t *dims,
                                          size_t rank, size_t payload)
{
    Onnx__TensorProto *tensor = qf_tensor_new(p->ir->arena, data_type, dims, rank);
    return tensor && qf_tensor_set_payload(p->ir->arena, tensor, payload) ? tensor : NULL;
}

bool qf_pass_share_constant(qf_pass *p, qf_node *node, size_t index, qf_value *value)
{
    qf_value *old = node->inputs[index];
    if (!qf_node_set_input(p->ir, node, index, value))
        return false;
    qf_ir_drop_unused(p->ir, old);
    return true;
}

qf_value *qf_pass_replace_constant(qf_pass *p, qf_node *node, size_t index,
                                   Onnx__TensorProto *tensor, const char *name)
{
    qf_value *old = node->inputs[index], *source = qf_value_source(old);
    if (old->init && !old->input && !old->result_count && old->use_count == 1 &&
        old->graph == node->graph) {
        old->init = tensor;
        old->retyped = true;
        return old;
    }
    if (!qf_table_grow((void **)&p->wishes, &p->wish_cap, p->wish_count + 1, sizeof *p->wishes))
        return NULL;
    const char *wish = qf_arena_strdup(p->ir->arena, source->name);
    qf_value *value = qf_ir_add_initializer(p->ir, node->graph, name, tensor);
    if (!wish || !value || !qf_pass_share_constant(p, node, index, value))
        return NULL;
    p->wishes[p->wish_count++] = (qf_wish){value, wish};
    return value;
}

qf_value *qf_pass_add_constant(qf_pass *p, const char *name, const float *values,
                               const int64_t *dims, size_t rank, const char *doc, qf_node *before)
{
    qf_arena *arena = p->ir->arena;
    Onnx__TensorProto *tensor =
        qf_tensor_new(arena, ONNX__TENSOR_PROTO__DATA_TYPE__FLOAT, dims, rank);
    qf_node *node = qf_ir_add_node(p->ir, before->graph, "Constant", name, before);
    if (!tensor || !node || !qf_node_set_tensor(p->ir, node, "value", tensor))
        return NULL;
    uint64_t count = 0;
    qf_dims_count(dims, rank, &count);
    tensor->float_data = qf_arena_array(arena, (size_t)count, sizeof(float));
    node->proto->doc_string = qf_arena_strdup(arena, doc);
    const char *output = qf_pass_name(p, name, "output0");
    if (!tensor->float_data || !node->proto->doc_string || !output)
        return NULL;
    memcpy(tensor->float_data, values, (size_t)count * sizeof(float));
    tensor->n_float_data = (size_t)count;
    return qf_node_add_output(p->ir, node, output);
}

bool qf_pass_cast_output(qf_pass *p, qf_node *node, size_t index, int32_t type, const char *prefix)
{
    qf_ir *ir = p->ir;
    qf_value *value = node->outputs[index];
    const char *name = qf_pass_name(p, prefix, "cast");
    const char *output = name ? qf_pass_name(p, name, "output0") : NULL;
    const char *renamed = qf_pass_name(p, node->name, "output0");
    qf_node *cast = output ? qf_ir_add_node(ir, node->graph, "Cast", name, node->next) : NULL;
    qf_value *out = cast ? qf_node_add_output(ir, cast, output) : NULL;
    value->retyped = true;
    return out && renamed && qf_value_move_uses(ir, value, out, NULL) &&
           qf_value_move_results(ir, value, out, renamed) && qf_node_add_input(ir, cast, value) &&
           qf_node_set_int(ir, cast, "to", type);
}
