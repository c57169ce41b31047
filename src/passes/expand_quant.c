/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fake_quant: AscendQuant becomes y = clip(round(x * scale) + offset, min, max) - offset in ONNX
 * operators (facts 5.1). Round is new in opset 11 and Clip takes its bounds as inputs from there
 * on. In older models (the reference writes invalid ones for them) adding and subtracting 1.5 *
 * 2^23 rounds to even just as well: where that sum is not exact, the value is far outside the clip
 * range.
 *
 * The nodes are written from a macro (onnx/macro.h), because there are ten for each layer. Where
 * that cannot be, they are put into the graph one by one.
 */
#include "passes/expansion.h"

typedef struct quant_macro {
    qf_macro macro;
    const char *prefix; /* <layer>.quant.fakequant */
    float scale_d;
    int32_t offset;
    int bits;
    bool cast;   /* the input is not float32 */
    bool modern; /* opset 11 or newer */
} quant_macro;

/* One input more for the step that follows. */
static void constant(qf_expansion *e, const char *suffix, float value, const char *doc)
{
    qf_expand_constant(e, suffix, &value, NULL, 0, doc);
}

static void round_step(qf_expansion *e, bool has_round)
{
    const char *doc = "round of the Fakequant";
    if (has_round) {
        qf_expand_step(e, "Round", "round", NULL, NULL, doc);
        return;
    }
    constant(e, "round_magic", 0x1.8p23f, "rounds to even when added");
    qf_expand_step(e, "Add", "round_up", "round_magic", NULL, doc);
    qf_expand_step(e, "Sub", "round", "round_magic", NULL, doc);
}

static void clip_step(qf_expansion *e, int bits, bool has_inputs)
{
    const char *doc = "clip of the Fakequant";
    float lo = -(float)(1 << (bits - 1)), hi = -lo - 1;
    if (has_inputs) {
        constant(e, "min_val", lo, "clip min of the Fakequant");
        constant(e, "max_val", hi, "clip max of the Fakequant");
        qf_expand_step(e, "Clip", "clip", "min_val", "max_val", doc);
        return;
    }
    qf_expand_float(e, "min", lo);
    qf_expand_float(e, "max", hi);
    qf_expand_step(e, "Clip", "clip", NULL, NULL, doc);
}

static bool write_quant(const qf_macro *macro, qf_node_sink sink, void *user)
{
    const quant_macro *q = (const quant_macro *)(const void *)macro;
    qf_expansion e;
    qf_expand_begin(&e, q->prefix, macro->node.input[0], sink, user);
    if (q->cast) {
        qf_expand_int(&e, "to", ONNX__TENSOR_PROTO__DATA_TYPE__FLOAT);
        qf_expand_step(&e, "Cast", "cast", NULL, NULL, "cast of the Fakequant");
    }
    constant(&e, "scale", 1.0f / q->scale_d, "scale of the Fakequant");
    constant(&e, "offset", (float)q->offset, "offset of the Fakequant");
    qf_expand_step(&e, "Mul", "mul", "scale", NULL, "mul of the Fakequant");
    round_step(&e, q->modern);
    qf_expand_step(&e, "Add", "add", "offset", NULL, "add of the Fakequant");
    clip_step(&e, q->bits, q->modern);
    if (macro->node.n_output)
        e.output = macro->node.output[0];
    qf_expand_step(&e, "Sub", "sub", "offset", NULL, "sub of the Fakequant");
    return qf_expand_end(&e);
}

static bool expand(qf_pass *p, qf_node *quant, bool modern)
{
    const qf_quant_tag *tag = quant->tag;
    quant_macro *q = qf_arena_alloc(p->ir->arena, sizeof *q);
    const char *prefix = qf_pass_name(p, quant->name, "fakequant");
    if (!q || !prefix)
        return false;
    *q = (quant_macro){.macro = {.write = write_quant},
                       .prefix = prefix,
                       .scale_d = tag->scale_d,
                       .offset = tag->offset,
                       .bits = tag->bits,
                       .cast = tag->float_type != ONNX__TENSOR_PROTO__DATA_TYPE__FLOAT,
                       .modern = modern};
    if (p->macros && !quant->graph->parent) {
        const char *result = qf_pass_name(p, prefix, "sub.output0");
        qf_node_become_macro(quant, &q->macro);
        return result && qf_value_rename(p->ir, quant->outputs[0], result);
    }
    qf_value *result = qf_macro_insert(p, &q->macro, quant);
    if (!result || !qf_value_move_uses(p->ir, quant->outputs[0], result, NULL))
        return false;
    qf_ir_remove_node(p->ir, quant);
    return true;
}

qf_status qf_pass_expand_quant(qf_pass *p)
{
    int64_t opset = qf_ir_opset(p->ir);
    bool any = p->plan->layer_count > 0;
    if (any && opset < 7)
        return qf_fail_at(p->err, QF_ERR_INPUT, (qf_where){.file = p->path},
                          "the model uses opset %lld of the default domain; the fake_quant model "
                          "needs 7 or newer (convert it with onnx.version_converter, or use "
                          "--emit deploy)",
                          (long long)opset);
    p->macros = qf_macros_allowed(p);
    for (size_t g = 0; g < p->ir->graph_count; g++) {
        for (qf_node *node = p->ir->graphs[g]->first, *next; node; node = next) {
            next = node->next;
            if (qf_node_is(node, "AscendQuant") && node->tag && !expand(p, node, opset >= 11))
                return qf_fail_memory(p->err);
        }
    }
    return QF_OK;
}
