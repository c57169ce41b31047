/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The last pass of the runnable model: a deploy graph, made by the passes before or read from a
 * file, becomes one of standard operators and calls of functions in quantfold.npu. AscendQuants
 * first, because layers read their zero points.
 */
#include <string.h>

#include "base/diag.h"
#include "passes/run_function.h"

#define DATA(type) ONNX__TENSOR_PROTO__DATA_TYPE__##type

enum { FUNCTIONS_IR_VERSION = 8 };

static bool is_rnn(const qf_node *node)
{
    return qf_node_is(node, "BasicLSTMInplaceFillWindowCache") ||
           qf_node_is(node, "BasicGRUInplaceFillWindowCache");
}

bool qf_is_deploy_node(const qf_node *node)
{
    return qf_node_is(node, "AscendQuant") || qf_node_is(node, "AscendDequant") ||
           qf_node_is(node, "AscendAntiQuant") || is_rnn(node);
}

/* ---- visiting ---- */

typedef qf_status (*visit_fn)(qf_runner *r, qf_node *node);

static qf_status visit_quant(qf_runner *r, qf_node *node)
{
    return qf_node_is(node, "AscendQuant") ? qf_run_quant(r, node) : QF_OK;
}

static qf_status visit_layer(qf_runner *r, qf_node *node)
{
    if (qf_node_is(node, "AscendDequant"))
        return qf_run_layer(r, node);
    if (qf_node_is(node, "AscendAntiQuant"))
        return qf_run_anti_quant(r, node);
    return is_rnn(node) ? qf_run_rnn(r, node) : QF_OK;
}

/* Whatever else reads integers would take them for numbers. */
static qf_status check_readers(qf_runner *r, qf_node *node)
{
    if (!qf_run_is(node, "AscendQuant"))
        return QF_OK;
    const qf_value *q = node->outputs[0];
    for (size_t i = 0; i < q->use_count; i++) {
        const qf_node *user = q->uses[i].node;
        bool mover =
            user->output_count && user->outputs[0] && qf_run_quant_of(user->outputs[0]) == node;
        if (!mover && !qf_run_is(user, ""))
            return qf_run_refuse(r, user,
                                 "it reads the integers of '%s', but no AscendDequant "
                                 "follows it",
                                 node->name);
    }
    return q->result_count ? qf_run_refuse(r, node, "its integers are an output of the graph")
                           : QF_OK;
}

static qf_status visit_all(qf_runner *r, visit_fn visit)
{
    qf_ir *ir = r->p->ir;
    qf_status status = QF_OK;
    for (size_t g = 0; g < ir->graph_count; g++) {
        for (qf_node *node = ir->graphs[g]->first, *next; status == QF_OK && node; node = next) {
            next = node->next;
            status = visit(r, node);
        }
    }
    return status;
}

/* ---- the model ---- */

static bool is_other_float(int32_t type)
{
    return type == DATA(FLOAT16) || type == DATA(BFLOAT16) || type == DATA(DOUBLE);
}

static bool has_other_floats(const qf_ir *ir)
{
    for (size_t g = 0; g < ir->graph_count; g++) {
        for (const qf_value *v = ir->graphs[g]->first_value; v; v = v->next) {
            const Onnx__ValueInfoProto *info = v->input ? v->input : v->info;
            bool tensor = info && info->type && info->type->tensor_type;
            if ((v->init && is_other_float(v->init->data_type)) ||
                (tensor && is_other_float(info->type->tensor_type->elem_type)) ||
                (v->producer && qf_node_is(v->producer, "Cast") &&
                 is_other_float((int32_t)qf_node_int(v->producer, "to", 0))))
                return true;
        }
    }
    return false;
}

static bool imports_domain(const Onnx__ModelProto *model)
{
    for (size_t i = 0; i < model->n_opset_import; i++) {
        const char *domain = model->opset_import[i]->domain;
        if (domain && strcmp(domain, QF_NPU_DOMAIN) == 0)
            return true;
    }
    return false;
}

/* Writes the functions into the model, which then needs their domain and IR version 8. */
static bool add_functions(qf_runner *r)
{
    qf_ir *ir = r->p->ir;
    Onnx__ModelProto *model = ir->model;
    size_t before = model->n_functions, imports = model->n_opset_import;
    Onnx__FunctionProto **all = qf_arena_array(ir->arena, before + r->count, sizeof *all);
    Onnx__OperatorSetIdProto **list = qf_arena_array(ir->arena, imports + 1, sizeof *list);
    Onnx__OperatorSetIdProto *import = qf_arena_alloc(ir->arena, sizeof *import);
    if (!all || !list || !import)
        return false;
    if (before)
        memcpy(all, model->functions, before * sizeof *all);
    memcpy(all + before, r->functions, r->count * sizeof *all);
    if (imports)
        memcpy(list, model->opset_import, imports * sizeof *list);
    onnx__operator_set_id_proto__init(import);
    import->domain = qf_arena_strdup(ir->arena, QF_NPU_DOMAIN);
    import->has_version = 1;
    import->version = 1;
    list[imports] = import;
    model->functions = all;
    model->n_functions = before + r->count;
    model->opset_import = list;
    model->n_opset_import = imports + 1;
    if (model->ir_version < FUNCTIONS_IR_VERSION)
        model->ir_version = FUNCTIONS_IR_VERSION;
    model->has_ir_version = 1;
    return import->domain != NULL;
}

static qf_status check_model(const qf_runner *r)
{
    const qf_ir *ir = r->p->ir;
    const qf_node *first = NULL, *ours = NULL;
    for (size_t g = 0; g < ir->graph_count; g++) {
        for (const qf_node *n = ir->graphs[g]->first; n; n = n->next) {
            first = !first && qf_is_deploy_node(n) ? n : first;
            ours = qf_run_is(n, "") ? n : ours;
        }
    }
    if (!first)
        return QF_OK;
    if (ours || imports_domain(ir->model))
        return qf_run_refuse(r, first, "the model has operators of the domain %s already",
                             QF_NPU_DOMAIN);
    if (qf_ir_opset(ir) < QF_RUN_OPSET)
        return qf_run_refuse(r, first,
                             "the model uses opset %lld of the default domain, and the runnable "
                             "model needs %d or newer (convert the float model with "
                             "onnx.version_converter)",
                             (long long)qf_ir_opset(ir), QF_RUN_OPSET);
    return QF_OK;
}

static void warn_of_wraps(const qf_runner *r)
{
    if (!r->wraps)
        return;
    qf_diag_add(
        r->p->plan->diag, QF_WARNING, (qf_where){.file = r->p->path, .item = r->first_wrap},
        "sums of %zu layer%s can leave the range of int32, this one's for one; the runnable "
        "model then wraps, and what the NPU does is not known",
        r->wraps, r->wraps == 1 ? "" : "s");
}

qf_status qf_pass_make_runnable(qf_pass *p)
{
    qf_runner r = {.p = p, .mixed = has_other_floats(p->ir)};
    qf_status status = check_model(&r);
    if (status == QF_OK)
        status = visit_all(&r, visit_quant);
    if (status == QF_OK)
        status = visit_all(&r, visit_layer);
    if (status == QF_OK)
        status = visit_all(&r, check_readers);
    if (status == QF_OK && r.count && !add_functions(&r))
        status = qf_fail_memory(p->err);
    if (status == QF_OK)
        warn_of_wraps(&r);
    return status;
}
