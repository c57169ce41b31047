/* SPDX-License-Identifier: Apache-2.0 */
#include "verify/agree.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "verify/attributes.h"
#include "verify/compare.h"
#include "verify/structure.h"

/* ---- comparing ---- */

qf_status qf_pairing_constants(qf_pairing *p, qf_value *va, qf_value *vb, const char *user)
{
    const Onnx__TensorProto *ta = qf_subject_constant(va), *tb = qf_subject_constant(vb);
    bool skipped = !ta != !tb;
    p->skipped |= skipped;
    if (p->same || !ta || !tb)
        return QF_OK;
    bool main = !va->graph->parent;
    if (main && qf_strmap_get(&p->compared, va->name) == vb) {
        p->skipped |= qf_strmap_get(&p->unreadable, va->name) == vb;
        return QF_OK;
    }
    qf_status status =
        qf_compare_tensors((qf_side){p->a, ta}, (qf_side){p->b, tb}, user, &skipped, p->err);
    p->skipped |= skipped;
    bool kept = !main || (qf_strmap_set(&p->compared, va->name, vb) &&
                          (!skipped || qf_strmap_set(&p->unreadable, va->name, vb)));
    return status == QF_OK && !kept ? qf_fail_memory(p->err) : status;
}

/* int8 weights of a fake_quant model are behind a Cast of its own. */
static qf_value *before_weight_cast(const qf_pairing *p, qf_value *value)
{
    qf_node *cast = value ? value->producer : NULL;
    if (p->same || !cast || !qf_node_is(cast, "Cast") || !qf_stem(cast->name, ".weight.cast") ||
        cast->input_count != 1 || !cast->inputs[0] || !cast->inputs[0]->init)
        return value;
    qf_pairing_take(p, cast);
    return cast->inputs[0];
}

/* So is the int32 bias of a deploy model's layer with 4-bit activations. */
static qf_value *before_bias_cast(const qf_pairing *p, qf_value *value)
{
    const qf_node *cast = value ? value->producer : NULL;
    const qf_counterpart *c = cast ? cast->tag : NULL;
    bool bias = !p->same && c && c->silent && qf_is_bias_cast(cast) && cast->input_count == 1 &&
                cast->inputs[0];
    return bias ? cast->inputs[0] : value;
}

static const char *value_name(const qf_value *value)
{
    return value ? value->name : "(nothing)";
}

static qf_status compare_input(qf_pairing *p, const qf_node *node, const qf_node *other, size_t i)
{
    qf_value *va = i < node->input_count ? node->inputs[i] : NULL;
    qf_value *vb = i < other->input_count ? other->inputs[i] : NULL, *wanted;
    const char *name = qf_subject_node_name(node);
    vb = before_weight_cast(p, vb);
    wanted = qf_pairing_value(p, va);
    if (va && qf_is_bias_cast(node) && !wanted)
        return QF_OK;
    bool read = va == NULL ? vb == NULL : wanted == vb && vb != NULL;
    bool constants = va && vb && qf_subject_constant(va) && qf_subject_constant(vb) &&
                     strcmp(va->name, vb->name) == 0;
    if (read || constants)
        return va ? qf_pairing_constants(p, before_bias_cast(p, va), vb, name) : QF_OK;
    const qf_counterpart *c = va && va->producer ? va->producer->tag : NULL;
    p->skipped |= i > 0; /* weights and biases are never the first */
    if (c && !c->node && !c->silent)
        return QF_OK; /* that the producer is missing is told of there */
    if (wanted)
        qf_subject_note(p->b, name, "input %zu is '%s'; expected '%s', as the %s reads '%s'", i,
                        value_name(vb), wanted->name, p->a->role, value_name(va));
    else
        qf_subject_note(p->b, name, "input %zu is '%s', but '%s' in the %s", i, value_name(vb),
                        value_name(va), p->a->role);
    return QF_OK;
}

static void compare_outputs(qf_pairing *p, const qf_node *node, const qf_node *other)
{
    const char *name = qf_subject_node_name(node);
    size_t most =
        node->output_count > other->output_count ? node->output_count : other->output_count;
    for (size_t i = 0; i < most; i++) {
        const char *x = i < node->proto->n_output ? node->proto->output[i] : "";
        const char *y = i < other->proto->n_output ? other->proto->output[i] : "";
        if (strcmp(x, y) != 0)
            qf_subject_note(p->b, name, "output %zu is called '%s', but '%s' in the %s", i, y, x,
                            p->a->role);
    }
}

static qf_status compare_itself(qf_pairing *p, const qf_node *node, const qf_node *other)
{
    const char *name = qf_subject_node_name(node);
    const Onnx__NodeProto *x = node->proto, *y = other->proto;
    if (!qf_same_text(x->name, y->name) && !qf_stem(y->name ? y->name : "", ".mul.cast"))
        qf_subject_note(p->b, qf_subject_node_name(other),
                        "the node that makes '%s' is called '%s' in the %s",
                        y->n_output ? y->output[0] : "", x->name ? x->name : "", p->a->role);
    if (!qf_same_text(x->op_type, y->op_type) &&
        !(p->runnable && qf_is_split_otherwise(node, other)))
        qf_subject_note(p->b, name, "the node is %s, but %s in the %s",
                        y->op_type ? y->op_type : "of no type",
                        x->op_type ? x->op_type : "of no type", p->a->role);
    if (!qf_same_text(x->domain, y->domain))
        qf_subject_note(p->b, name, "the node is of domain '%s', but of '%s' in the %s",
                        y->domain ? y->domain : "", x->domain ? x->domain : "", p->a->role);
    if (!qf_stem(y->name ? y->name : "", ".mul.cast"))
        compare_outputs(p, node, other);
    qf_status status = qf_compare_attributes(p, node, other);
    size_t most = node->input_count > other->input_count ? node->input_count : other->input_count;
    for (size_t i = 0; status == QF_OK && i < most; i++)
        status = compare_input(p, node, other, i);
    return status;
}

/* The operand of what stands for a node of the NPU. */
static void compare_operand(qf_pairing *p, const qf_node *node, const qf_value *operand,
                            const char *there)
{
    const qf_value *va = node->input_count ? node->inputs[0] : NULL;
    const qf_value *wanted = qf_pairing_value(p, va);
    const qf_counterpart *c = va && va->producer ? va->producer->tag : NULL;
    if (!va || wanted == operand || (c && !c->node && !c->silent))
        return;
    qf_subject_note(p->b, there, "it reads '%s'; expected '%s', as %s of the %s reads '%s'",
                    value_name(operand), value_name(wanted), node->name, p->a->role, va->name);
}

static void compare_quant(qf_pairing *p, const qf_node *node, const qf_counterpart *c)
{
    const qf_expanded *e = &c->expanded;
    if (c->wrong)
        return; /* told of in the structure of b */
    float scale = qf_node_float(node, "scale", 0), offset = qf_node_float(node, "offset", 0);
    int bits = qf_dst_bits(qf_node_attribute(node, "dst_type"));
    if (memcmp(&scale, &e->scale, sizeof scale) != 0)
        qf_subject_note(p->b, c->node->name, "its scale is %.9g, but %.9g in %s of the %s",
                        (double)e->scale, (double)scale, node->name, p->a->role);
    if (offset != e->offset)
        qf_subject_note(p->b, c->node->name, "its offset is %.9g, but %.9g in %s of the %s",
                        (double)e->offset, (double)offset, node->name, p->a->role);
    if (bits != e->bits)
        qf_subject_note(p->b, c->node->name,
                        "it clips to the range of %d bits, but %s of the %s has %d", e->bits,
                        node->name, p->a->role, bits);
    compare_operand(p, node, e->input, c->node->name);
}

static qf_status compare_mul(qf_pairing *p, const qf_node *node, const qf_counterpart *c)
{
    const Onnx__TensorProto *factor;
    qf_node *constant;
    qf_value *operand =
        qf_node_is(c->node, "Mul") ? qf_mul_operand(c->node, &factor, &constant) : NULL;
    if (!operand) {
        p->skipped = true;
        qf_subject_note(p->b, c->node->name,
                        "it stands for %s of the %s; expected a Mul by a "
                        "constant",
                        node->name, p->a->role);
        return QF_OK;
    }
    compare_operand(p, node, operand, c->node->name);
    if (qf_node_is(node, "AscendDequant")) {
        const Onnx__TensorProto *param =
            node->input_count > 1 ? qf_subject_constant(node->inputs[1]) : NULL;
        p->skipped |= !param;
        return param ? qf_compare_scales((qf_side){p->a, param}, (qf_side){p->b, factor},
                                         c->node->name, &p->skipped, p->err)
                     : QF_OK;
    }
    const float *found;
    uint64_t count;
    float scale = qf_node_float(node, "scale", 0);
    qf_status status = qf_reading_floats(p->b, factor, 1, &found, &count, p->err);
    if (status == QF_OK &&
        (!found || factor->n_dims || count != 1 || memcmp(found, &scale, sizeof scale) != 0))
        qf_subject_note(p->b, c->node->name, "its scale is %.9g, but %.9g in %s of the %s",
                        found && count ? (double)found[0] : 0.0, (double)scale, node->name,
                        p->a->role);
    return status;
}

static qf_status compare_with(qf_pairing *p, const qf_node *node, const qf_counterpart *c)
{
    if (!c->node) {
        if (!c->silent)
            qf_subject_note(p->b, qf_subject_node_name(node),
                            "nothing stands for this node (%s) of the %s; it is missing or has "
                            "another name",
                            node->proto->op_type ? node->proto->op_type : "", p->a->role);
        return QF_OK;
    }
    if (!p->same && qf_node_is(node, "AscendQuant")) {
        compare_quant(p, node, c);
        return QF_OK;
    }
    if (!p->same && qf_is_npu_node(node))
        return compare_mul(p, node, c);
    if (!p->same && qf_is_window_cache(node))
        return qf_pairing_rnn(p, node, c);
    return compare_itself(p, node, c->node);
}

static qf_status compare_node(qf_pairing *p, const qf_node *node)
{
    qf_counterpart *c = node->tag;
    bool outer = p->skipped; /* of the node whose graph this is */
    p->skipped = false;
    qf_status status = compare_with(p, node, c);
    c->skipped = p->skipped;
    p->skipped = outer;
    return status;
}

/* ---- graphs ---- */

/* Constants that no node reads. */
static qf_status compare_idle(qf_pairing *p, const qf_graph *a, const qf_graph *b)
{
    qf_status status = QF_OK;
    for (qf_value *v = a->first_value; status == QF_OK && v; v = v->next) {
        qf_value *other = v->init || v->sparse ? qf_strmap_get(&b->values, v->name) : NULL;
        if (v->sparse && other && other->sparse)
            status = qf_compare_sparse(p, "no node", v->sparse, other->sparse);
        if (v->sparse && (!other || !other->sparse))
            qf_subject_note(p->b, v->name, "the sparse initializer is missing");
        if (!v->init || (v->use_count && !p->same))
            continue;
        if (!other || !other->init)
            qf_subject_note(p->b, v->name, "the initializer of the %s is missing", p->a->role);
        else if (p->same)
            status = p->visit(v->init, other->init, p->user);
        else
            status = qf_pairing_constants(p, v, other, "no node");
    }
    return status;
}

static void note_rest(qf_pairing *p, const qf_graph *a, const qf_graph *b)
{
    for (const qf_node *n = b->first; n; n = n->next) {
        if (n->tag != p && (p->same || !qf_node_is(n, "Constant")))
            qf_subject_note(p->b, qf_subject_node_name(n),
                            "the node (%s) has no counterpart in the %s",
                            n->proto->op_type ? n->proto->op_type : "", p->a->role);
    }
    for (const qf_value *v = b->first_value; v; v = v->next) {
        if ((v->init || v->sparse) && (p->same || !v->use_count) &&
            !qf_strmap_get(&a->values, v->name))
            qf_subject_note(p->b, v->name, "the initializer is not in the %s", p->a->role);
    }
}

static bool same_info(const Onnx__ValueInfoProto *x, const Onnx__ValueInfoProto *y, qf_arena *arena,
                      bool *memory)
{
    size_t n = onnx__value_info_proto__get_packed_size(x);
    if (n != onnx__value_info_proto__get_packed_size(y))
        return false;
    unsigned char *bytes = qf_arena_array(arena, n + 1, 2);
    if (!bytes) {
        *memory = false;
        return true;
    }
    onnx__value_info_proto__pack(x, bytes);
    onnx__value_info_proto__pack(y, bytes + n);
    return memcmp(bytes, bytes + n, n) == 0;
}

/* Inputs or outputs of a graph. */
static bool compare_ends(qf_pairing *p, const char *what, Onnx__ValueInfoProto **x, size_t nx,
                         Onnx__ValueInfoProto **y, size_t ny)
{
    bool memory = true;
    if (nx != ny)
        qf_subject_note(p->b, what, "the graph has %zu %ss, but %zu in the %s", ny, what, nx,
                        p->a->role);
    for (size_t i = 0; i < nx && i < ny; i++) {
        if (!qf_same_text(x[i]->name, y[i]->name))
            qf_subject_note(p->b, y[i]->name, "%s %zu of the graph is '%s', but '%s' in the %s",
                            what, i, y[i]->name ? y[i]->name : "", x[i]->name ? x[i]->name : "",
                            p->a->role);
        else if (!same_info(x[i], y[i], &p->b->arena, &memory))
            qf_subject_note(p->b, y[i]->name,
                            "type or shape of the graph's %s is not that of the "
                            "%s",
                            what, p->a->role);
    }
    return memory;
}

/* What is behind the outputs of the graph. */
static void compare_results(qf_pairing *p, const qf_graph *a, const qf_graph *b)
{
    for (size_t i = 0; i < a->proto->n_output && i < b->proto->n_output; i++) {
        const char *name = a->proto->output[i]->name;
        if (!name || !qf_same_text(name, b->proto->output[i]->name))
            continue;
        const qf_value *va = qf_graph_find(a, name), *vb = qf_graph_find(b, name);
        const qf_counterpart *c = va && va->producer ? va->producer->tag : NULL;
        if (va && vb && qf_pairing_value(p, va) != vb && (!c || c->node))
            qf_subject_note(p->b, name,
                            "the graph's output does not come from what makes it in the %s",
                            p->a->role);
    }
}

static qf_status pair_graphs(qf_pairing *p, const qf_graph *a, qf_graph *b)
{
    p->graphs[a->index] = b;
    bool memory = compare_ends(p, "input", a->proto->input, a->proto->n_input, b->proto->input,
                               b->proto->n_input) &&
                  compare_ends(p, "output", a->proto->output, a->proto->n_output, b->proto->output,
                               b->proto->n_output);
    qf_status status = memory ? QF_OK : qf_fail_memory(p->err);
    for (qf_node *n = a->first; status == QF_OK && n; n = n->next)
        status = qf_pairing_node(p, n);
    for (qf_node *n = a->first; status == QF_OK && n; n = n->next)
        status = compare_node(p, n);
    if (status == QF_OK)
        status = compare_idle(p, a, b);
    if (status != QF_OK)
        return status;
    compare_results(p, a, b);
    note_rest(p, a, b);
    return QF_OK;
}

static char *pointer_key(qf_arena *arena, const void *pointer)
{
    return qf_arena_printf(arena, "%" PRIxPTR, (uintptr_t)pointer);
}

static bool index_children(qf_subject *s, qf_strmap *map)
{
    for (size_t i = 1; i < s->ir.graph_count; i++) {
        char *key = pointer_key(&s->arena, s->ir.graphs[i]->proto);
        if (!key || !qf_strmap_set(map, key, s->ir.graphs[i]))
            return false;
    }
    return true;
}

qf_status qf_pairing_child(qf_pairing *p, const char *user, const Onnx__GraphProto *x,
                           const Onnx__GraphProto *y)
{
    char a[24], b[24];
    snprintf(a, sizeof a, "%" PRIxPTR, (uintptr_t)x);
    snprintf(b, sizeof b, "%" PRIxPTR, (uintptr_t)y);
    const qf_graph *ga = qf_strmap_get(&p->children_a, a);
    qf_graph *gb = qf_strmap_get(&p->children_b, b);
    return ga && gb ? pair_graphs(p, ga, gb) : qf_compare_body(p, user, x, y);
}

/* ---- the whole ---- */

static bool same_import(const Onnx__OperatorSetIdProto *x, const Onnx__OperatorSetIdProto *y)
{
    return qf_same_text(x->domain, y->domain) && x->version == y->version;
}

/* Whether y imports all that x does, in this order. More may come of the float model: a domain that
 * its quantized layers had. */
static bool imports_all(const Onnx__ModelProto *x, const Onnx__ModelProto *y)
{
    size_t i = 0;
    for (size_t j = 0; i < x->n_opset_import && j < y->n_opset_import; j++)
        i += same_import(x->opset_import[i], y->opset_import[j]);
    return i == x->n_opset_import;
}

static void compare_opsets(qf_pairing *p)
{
    const Onnx__ModelProto *x = p->a->proto, *y = p->b->proto;
    bool same = p->runnable || x->n_opset_import == y->n_opset_import;
    same = same && imports_all(x, y);
    if (!same)
        qf_subject_note(p->b, NULL,
                        "the operator sets that the model imports are not those of the %s (default "
                        "one: %lld, there %lld)",
                        p->a->role, (long long)qf_ir_opset(&p->b->ir),
                        (long long)qf_ir_opset(&p->a->ir));
}

static void compare_headers(qf_pairing *p)
{
    const Onnx__ModelProto *x = p->a->proto, *y = p->b->proto;
    compare_opsets(p);
    if (x->ir_version != y->ir_version)
        qf_subject_note(p->b, NULL, "ir_version is %lld, but %lld in the %s",
                        (long long)y->ir_version, (long long)x->ir_version, p->a->role);
    if (!qf_same_text(x->producer_name, y->producer_name) ||
        !qf_same_text(x->producer_version, y->producer_version) ||
        !qf_same_text(x->graph->name, y->graph->name))
        qf_subject_note(p->b, NULL, "producer or graph name are not those of the %s", p->a->role);
    if (x->n_training_info != y->n_training_info)
        qf_subject_note(p->b, NULL, "it has %zu training graphs, the %s %zu", y->n_training_info,
                        p->a->role, x->n_training_info);
}

static void clear_tags(qf_subject *s)
{
    for (size_t i = 0; i < s->ir.node_count; i++)
        s->ir.by_id[i]->tag = NULL;
}

static qf_status run(qf_pairing *p)
{
    clear_tags(p->a);
    clear_tags(p->b);
    p->graphs = qf_arena_array(&p->b->arena, p->a->ir.graph_count + 1, sizeof *p->graphs);
    qf_status status =
        p->graphs && index_children(p->a, &p->children_a) && index_children(p->b, &p->children_b)
            ? QF_OK
            : qf_fail_memory(p->err);
    if (status == QF_OK) {
        compare_headers(p);
        status = qf_compare_functions(p);
    }
    if (status == QF_OK)
        status = pair_graphs(p, p->a->ir.graphs[0], p->b->ir.graphs[0]);
    qf_strmap_release(&p->children_a);
    qf_strmap_release(&p->children_b);
    qf_strmap_release(&p->compared);
    qf_strmap_release(&p->unreadable);
    return status;
}

qf_status qf_agree(qf_subject *deploy, qf_subject *fake_quant, qf_agreement *layers, qf_error *err)
{
    qf_pairing p = {.a = deploy, .b = fake_quant, .err = err};
    qf_status status = run(&p);
    *layers = (qf_agreement){0};
    if (status == QF_OK)
        qf_agree_count(&p, layers);
    return status;
}

qf_status qf_same_graph(qf_subject *expected, qf_subject *found, bool runnable,
                        qf_tensor_pair_fn visit, void *user, qf_error *err)
{
    qf_pairing p = {.a = expected,
                    .b = found,
                    .same = true,
                    .runnable = runnable,
                    .visit = visit,
                    .user = user,
                    .err = err};
    return run(&p);
}
