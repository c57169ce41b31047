/* SPDX-License-Identifier: Apache-2.0 */
/* Which nodes of two models belong together. */
#include <stdio.h>
#include <string.h>

#include "passes/run_function.h"
#include "verify/agree.h"
#include "verify/structure.h"

qf_value *qf_pairing_value(const qf_pairing *p, const qf_value *value)
{
    if (!value)
        return NULL;
    if (value->producer) {
        const qf_counterpart *c = value->producer->tag;
        for (size_t i = 0; c && c->outputs && i < value->producer->output_count; i++) {
            if (value->producer->outputs[i] == value)
                return c->outputs[i];
        }
        return NULL;
    }
    const qf_graph *g = p->graphs[value->graph->index];
    return g ? qf_strmap_get(&g->values, value->name) : NULL;
}

void qf_pairing_take(const qf_pairing *p, qf_node *node)
{
    if (node)
        node->tag = (void *)(uintptr_t)p;
}

/* The node of b called `name` in the graph that belongs to that of `node`. */
static qf_node *find(const qf_pairing *p, const qf_node *node, const char *name)
{
    qf_node *found = qf_strmap_get(&p->b->ir.node_names, name);
    return found && found->graph == p->graphs[node->graph->index] ? found : NULL;
}

/* A node <start><end>; `stem` bytes of `start`. NULL when memory is exhausted as well. */
static qf_node *find_part(const qf_pairing *p, const qf_node *node, size_t stem, const char *end)
{
    char *name = qf_arena_printf(&p->b->arena, "%.*s%s", (int)stem, node->name, end);
    return name ? find(p, node, name) : NULL;
}

/* Where names had to be made unique, they may differ: what the first layer that reads it reads. */
static qf_node *find_by_reader(const qf_pairing *p, const qf_node *quant)
{
    const qf_value *out = qf_node_output(quant);
    for (size_t i = 0; out && i < out->use_count; i++) {
        const qf_use *use = &out->uses[i];
        const qf_node *reader = find(p, use->node, use->node->name);
        const qf_value *in =
            reader && use->input < reader->input_count ? reader->inputs[use->input] : NULL;
        if (in && in->producer && qf_stem(in->producer->name, ".fakequant.sub"))
            return in->producer;
    }
    return NULL;
}

/* The same for what dequantizes: the Mul that is all there is behind the layer. */
static qf_node *find_by_layer(const qf_pairing *p, const qf_node *dequant)
{
    const qf_node *layer =
        dequant->input_count && dequant->inputs[0] ? dequant->inputs[0]->producer : NULL;
    const qf_node *there = layer ? find(p, layer, layer->name) : NULL;
    const qf_value *out = there ? qf_node_output(there) : NULL;
    qf_node *reader = out && out->use_count == 1 ? out->uses[0].node : NULL;
    return reader && qf_node_is(reader, "Mul") && qf_stem(reader->name, ".fakedequant.mul") ? reader
                                                                                            : NULL;
}

/* The Cast `cast`, if it reads `node`; else the node. */
static qf_node *behind_cast(const qf_pairing *p, qf_node *node, qf_node *cast)
{
    bool reads = node && cast && qf_node_is(cast, "Cast") && cast->input_count == 1 &&
                 qf_node_output(node) && cast->inputs[0] == node->outputs[0];
    if (reads)
        qf_pairing_take(p, cast);
    return reads ? cast : node;
}

static qf_status pair_quant(qf_pairing *p, const qf_node *node, qf_counterpart *c)
{
    c->node = find_part(p, node, strlen(node->name), ".fakequant.sub");
    if (!c->node || !qf_node_is(c->node, "Sub"))
        c->node = find_by_reader(p, node);
    if (!c->node)
        return QF_OK;
    qf_status status = qf_expanded_read(p->b, c->node, &c->expanded, &c->wrong, p->err);
    for (size_t i = 0; i < c->expanded.count; i++)
        qf_pairing_take(p, c->expanded.nodes[i]);
    return status;
}

/* A Mul by a constant; the constant's node is taken as well. */
static void take_mul(const qf_pairing *p, qf_node *mul)
{
    const Onnx__TensorProto *factor;
    qf_node *constant;
    qf_pairing_take(p, mul);
    if (mul && qf_mul_operand(mul, &factor, &constant))
        qf_pairing_take(p, constant);
}

bool qf_is_bias_cast(const qf_node *node)
{
    return qf_node_is(node, "Cast") && qf_stem(node->name, ".bias_quant");
}

/* The Cast behind an AscendAntiQuant has its name from another node in each model. */
static qf_node *find_anti_cast(const qf_pairing *p, const qf_node *node)
{
    const qf_node *before = node->input_count && node->inputs[0] ? node->inputs[0]->producer : NULL;
    if (!before || !qf_node_is(before, "AscendAntiQuant") || !qf_node_is(node, "Cast"))
        return NULL;
    return find_part(p, before, strlen(before->name), ".fake_antiquant.mul.cast");
}

/* A node that is the same in both: by its name, or, where it has none, by what it makes. */
static qf_node *find_itself(const qf_pairing *p, const qf_node *node)
{
    const char *given = node->proto->name;
    const qf_graph *g = p->graphs[node->graph->index];
    qf_node *found = given && *given && !node->graph->parent ? find(p, node, node->name) : NULL;
    for (size_t i = 0; !found && i < node->output_count; i++) {
        const qf_value *out =
            node->outputs[i] ? qf_strmap_get(&g->values, node->outputs[i]->name) : NULL;
        bool alike = out && out->producer && out->producer->proto->op_type &&
                     node->proto->op_type &&
                     strcmp(out->producer->proto->op_type, node->proto->op_type) == 0;
        found = alike && !out->producer->tag ? out->producer : NULL;
    }
    return found;
}

/* A runnable model that was made of the float model knows which int8 weights are packed, where the
 * deploy model leaves it to a ChooseChannels to tell; what reads that then reads one of the two
 * that it chooses from. NULL: that is not so. */
static qf_value *find_chosen(const qf_pairing *p, const qf_node *choose)
{
    const qf_value *out = qf_node_output(choose);
    const qf_use *use = out && out->use_count ? &out->uses[0] : NULL;
    const qf_node *reader = use ? find(p, use->node, use->node->name) : NULL;
    qf_value *read = reader && use->input < reader->input_count ? reader->inputs[use->input] : NULL;
    for (size_t i = 0; read && i < 2 && i < choose->input_count; i++) {
        if (choose->inputs[i] && strcmp(choose->inputs[i]->name, read->name) == 0)
            return read;
    }
    return NULL;
}

/* Nodes of a runnable model that another one rightly has not. */
static void pair_choice(const qf_pairing *p, const qf_node *node, qf_counterpart *c)
{
    const qf_value *out = qf_node_output(node);
    const qf_node *reader = out && out->use_count ? out->uses[0].node : NULL;
    qf_value *chosen = NULL;
    if (qf_run_is(node, "ChooseChannels"))
        chosen = c->outputs[0] = find_chosen(p, node);
    else if (qf_run_is(node, "UnpackInt4") && reader && qf_run_is(reader, "ChooseChannels"))
        chosen = find_chosen(p, reader);
    c->silent = chosen != NULL;
}

bool qf_is_split_otherwise(const qf_node *a, const qf_node *b)
{
    static const char op[] = "ConvTranspose";
    const size_t weight = 2; /* behind x and its zero point */
    const qf_value *value = a->input_count > weight ? a->inputs[weight] : NULL;
    const qf_node *choose = value ? value->producer : NULL;
    const qf_counterpart *c = choose && qf_run_is(choose, "ChooseChannels") ? choose->tag : NULL;
    return c && c->silent && qf_run_is(a, op) && qf_run_is(b, op);
}

static bool set_outputs(qf_pairing *p, const qf_node *node, qf_counterpart *c, const qf_node *last)
{
    c->outputs = qf_arena_array(&p->b->arena, node->output_count + 1, sizeof *c->outputs);
    for (size_t i = 0; c->outputs && last && i < node->output_count; i++)
        c->outputs[i] = i < last->output_count ? last->outputs[i] : NULL;
    return c->outputs != NULL;
}

/* Outputs of a recurrent layer that a Cast makes 16-bit floats of again. */
static void set_rnn_outputs(const qf_pairing *p, const qf_node *node, qf_counterpart *c)
{
    for (size_t i = 0; c->node && i < node->output_count && i < c->node->output_count; i++) {
        char end[48];
        snprintf(end, sizeof end, ".output%zu.cast", i);
        qf_node *cast = find_part(p, node, strlen(node->name), end);
        if (!cast || cast->input_count != 1 || cast->inputs[0] != c->node->outputs[i] ||
            cast->output_count != 1)
            continue;
        qf_pairing_take(p, cast);
        c->outputs[i] = cast->outputs[0];
    }
}

static qf_status pair_special(qf_pairing *p, const qf_node *node, qf_counterpart *c, qf_node **last)
{
    size_t n = strlen(node->name);
    if (qf_node_is(node, "AscendQuant")) {
        qf_status status = pair_quant(p, node, c);
        *last = c->node;
        return status;
    }
    if (qf_node_is(node, "AscendDequant")) {
        size_t stem = qf_stem(node->name, ".dequant");
        c->node = find_part(p, node, stem, ".fakedequant.mul");
        if (c->node && !qf_node_is(c->node, "Mul")) { /* it may be the source's */
            qf_node *renamed = find_by_layer(p, node);
            c->node = renamed ? renamed : c->node;
        }
        *last = behind_cast(p, c->node, find_part(p, node, stem, ".fakedequant.cast"));
    } else {
        c->node = find_part(p, node, n, ".fake_antiquant.mul");
        *last = c->node;
    }
    take_mul(p, c->node);
    return QF_OK;
}

bool qf_is_npu_node(const qf_node *node)
{
    return qf_node_is(node, "AscendQuant") || qf_node_is(node, "AscendDequant") ||
           qf_node_is(node, "AscendAntiQuant");
}

qf_status qf_pairing_node(qf_pairing *p, qf_node *node)
{
    qf_counterpart *c = qf_arena_alloc(&p->b->arena, sizeof *c);
    qf_node *last = NULL;
    qf_status status = QF_OK;
    if (!c)
        return qf_fail_memory(p->err);
    node->tag = c;
    if (!p->same && qf_is_npu_node(node)) {
        status = pair_special(p, node, c, &last);
    } else if (!p->same && qf_is_bias_cast(node)) {
        c->silent = true;
    } else {
        c->node = find_itself(p, node);
        if (!c->node && !p->same)
            c->node = find_anti_cast(p, node);
        qf_pairing_take(p, c->node);
        last = c->node;
    }
    if (status != QF_OK)
        return status;
    if (!set_outputs(p, node, c, last))
        return qf_fail_memory(p->err);
    if (!p->same && qf_is_window_cache(node))
        set_rnn_outputs(p, node, c);
    if (!c->node && p->runnable && node->output_count)
        pair_choice(p, node, c);
    const qf_value *out = qf_node_output(node);
    if (c->silent && !p->same && out && node->input_count == 1)
        c->outputs[0] = qf_pairing_value(p, node->inputs[0]);
    /* a Constant may have become an initializer of the same name, in one model alone */
    if (!c->node && out && qf_node_is(node, "Constant")) {
        qf_value *there =
            qf_strmap_get(&p->graphs[node->graph->index]->values, node->outputs[0]->name);
        c->silent = there != NULL;
        c->outputs[0] = there;
    }
    return QF_OK;
}
