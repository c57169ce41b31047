/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fake_quant: AscendQuant becomes y = clip(round(x * scale) + offset, min, max) - offset in ONNX
 * operators (facts 5.1). Round is new in opset 11 and Clip takes its bounds as inputs from there
 * on. In older models (the reference writes invalid ones for them) adding and subtracting 1.5 *
 * 2^23 rounds to even just as well: where that sum is not exact, the value is far outside the clip
 * range.
 */
#include <string.h>

#include "passes/passes.h"

typedef struct expansion {
    qf_pass *p;
    const char *prefix; /* <layer>.quant.fakequant */
    qf_node *before;    /* what the new nodes are put before */
    qf_value *value;    /* result so far */
    bool failed;
} expansion;

static int64_t default_opset(const qf_ir *ir)
{
    for (size_t i = 0; i < ir->model->n_opset_import; i++) {
        const Onnx__OperatorSetIdProto *o = ir->model->opset_import[i];
        if (!o->domain || !*o->domain || strcmp(o->domain, "ai.onnx") == 0)
            return o->version;
    }
    return 0;
}

static qf_value *constant(expansion *e, const char *suffix, float value, const char *doc)
{
    const char *name = qf_pass_name(e->p, e->prefix, suffix);
    qf_value *out = name ? qf_pass_add_constant(e->p, name, &value, NULL, 0, doc, e->before) : NULL;
    e->failed |= !out;
    return out;
}

/* Appends node <prefix>.<suffix>, reading the result so far and up to two more values. */
static qf_node *step(expansion *e, const char *op, const char *suffix, qf_value *second,
                     qf_value *third, const char *doc)
{
    qf_ir *ir = e->p->ir;
    if (e->failed)
        return NULL;
    const char *name = qf_pass_name(e->p, e->prefix, suffix);
    const char *output = name ? qf_pass_name(e->p, name, "output0") : NULL;
    qf_node *node = output ? qf_ir_add_node(ir, e->before->graph, op, name, e->before) : NULL;
    qf_value *out = node ? qf_node_add_output(ir, node, output) : NULL;
    e->failed = !out || !qf_node_add_input(ir, node, e->value) ||
                (second && !qf_node_add_input(ir, node, second)) ||
                (third && !qf_node_add_input(ir, node, third)) ||
                !(node->proto->doc_string = qf_arena_strdup(ir->arena, doc));
    if (e->failed)
        return NULL;
    e->value = out;
    return node;
}

static void round_step(expansion *e, bool has_round)
{
    if (has_round) {
        step(e, "Round", "round", NULL, NULL, "round of the Fakequant");
        return;
    }
    qf_value *magic = constant(e, "round_magic", 0x1.8p23f, "rounds to even when added");
    step(e, "Add", "round_up", magic, NULL, "round of the Fakequant");
    step(e, "Sub", "round", magic, NULL, "round of the Fakequant");
}

static void clip_step(expansion *e, int bits, bool has_inputs)
{
    float lo = -(float)(1 << (bits - 1)), hi = -lo - 1;
    if (has_inputs) {
        qf_value *min = constant(e, "min_val", lo, "clip min of the Fakequant");
        qf_value *max = constant(e, "max_val", hi, "clip max of the Fakequant");
        step(e, "Clip", "clip", min, max, "clip of the Fakequant");
        return;
    }
    qf_node *clip = step(e, "Clip", "clip", NULL, NULL, "clip of the Fakequant");
    e->failed |= !clip || !qf_node_set_float(e->p->ir, clip, "min", lo) ||
                 !qf_node_set_float(e->p->ir, clip, "max", hi);
}

static bool expand(qf_pass *p, qf_node *quant, bool modern)
{
    const qf_quant_tag *tag = quant->tag;
    expansion e = {.p = p,
                   .prefix = qf_pass_name(p, quant->name, "fakequant"),
                   .before = quant,
                   .value = quant->inputs[0]};
    if (!e.prefix)
        return false;
    if (tag->float_type != ONNX__TENSOR_PROTO__DATA_TYPE__FLOAT) {
        qf_node *cast = step(&e, "Cast", "cast", NULL, NULL, "cast of the Fakequant");
        e.failed |=
            !cast || !qf_node_set_int(p->ir, cast, "to", ONNX__TENSOR_PROTO__DATA_TYPE__FLOAT);
    }
    qf_value *scale = constant(&e, "scale", 1.0f / tag->scale_d, "scale of the Fakequant");
    qf_value *offset = constant(&e, "offset", (float)tag->offset, "offset of the Fakequant");
    step(&e, "Mul", "mul", scale, NULL, "mul of the Fakequant");
    round_step(&e, modern);
    step(&e, "Add", "add", offset, NULL, "add of the Fakequant");
    clip_step(&e, tag->bits, modern);
    step(&e, "Sub", "sub", offset, NULL, "sub of the Fakequant");
    if (e.failed || !qf_value_move_uses(p->ir, quant->outputs[0], e.value, NULL))
        return false;
    qf_ir_remove_node(p->ir, quant);
    return true;
}

qf_status qf_pass_expand_quant(qf_pass *p)
{
    int64_t opset = default_opset(p->ir);
    bool any = p->plan->layer_count > 0;
    if (any && opset < 7)
        return qf_fail_at(p->err, QF_ERR_INPUT, (qf_where){.file = p->path},
                          "the model uses opset %lld of the default domain; the fake_quant model "
                          "needs 7 or newer (convert it with onnx.version_converter, or use "
                          "--emit deploy)",
                          (long long)opset);
    for (size_t g = 0; g < p->ir->graph_count; g++) {
        for (qf_node *node = p->ir->graphs[g]->first, *next; node; node = next) {
            next = node->next;
            if (qf_node_is(node, "AscendQuant") && node->tag && !expand(p, node, opset >= 11))
                return qf_fail_memory(p->err);
        }
    }
    return QF_OK;
}
