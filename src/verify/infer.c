/* SPDX-License-Identifier: Apache-2.0 */
/* The options of an export, from what it wrote: which models, what is external and how, the form of
 * fake_quant's weights. Where several are possible, plans are made and their files compared with
 * those that are there. */
#include <string.h>
#include <sys/stat.h>

#include "verify/against.h"
#include "verify/finding.h"

typedef struct traits {
    qf_strmap places; /* location and offset of external tensors, per model */
    qf_strmap locations[QF_TARGETS];
    qf_arena arena;
    size_t external;
    bool repeated; /* two tensors of a model are at one place */
    bool single;   /* one file for all */
    bool shared;   /* a file of both models */
    bool compact;  /* fake_quant has int8 weights */
    const qf_against *against;
    qf_target target;
    bool memory;
} traits;

static qf_status look_at_tensor(Onnx__TensorProto *tensor, void *user)
{
    traits *t = user;
    const char *location = qf_external_entry(tensor, "location");
    const char *offset = qf_external_entry(tensor, "offset");
    if (!tensor->has_data_location || tensor->data_location != 1 || !location)
        return QF_OK;
    char *place =
        qf_arena_printf(&t->arena, "%d %s %s", (int)t->target, location, offset ? offset : "0");
    t->external++;
    t->repeated |= place && qf_strmap_get(&t->places, place);
    t->single |= qf_ends_with(location, "deploy_model.external") ||
                 qf_ends_with(location, "fake_quant_model.external") ||
                 qf_ends_with(location, "runnable_model.external");
    t->shared |=
        t->target == QF_FAKE_QUANT && qf_strmap_get(&t->locations[QF_DEPLOY], location) != NULL;
    t->memory = place && qf_strmap_set(&t->places, place, t) &&
                qf_strmap_set(&t->locations[t->target], location, t);
    return t->memory ? QF_OK : QF_ERR_MEMORY;
}

static bool is_weight_cast(const qf_node *node)
{
    const qf_value *in = node->input_count == 1 ? node->inputs[0] : NULL;
    return qf_node_is(node, "Cast") && in && in->init &&
           in->init->data_type == ONNX__TENSOR_PROTO__DATA_TYPE__INT8 &&
           qf_stem(node->name, "weight.cast");
}

/* Equal matrices that are quantized alone are one with --dedup, inside the .onnx as well. */
static bool shares_matrix(const qf_node *node)
{
    const qf_value *in = node->input_count > 1 ? node->inputs[0] : NULL;
    bool matrix =
        qf_node_is(node, "DequantizeLinear") && in && in->init && qf_stem(in->name, ".quantized");
    for (size_t i = 0; matrix && i < in->use_count; i++) {
        if (in->uses[i].node != node && qf_node_is(in->uses[i].node, "DequantizeLinear"))
            return true;
    }
    return false;
}

static bool look(traits *t)
{
    for (int i = 0; i < QF_TARGETS && t->memory; i++) {
        qf_subject *s = t->against->found[i];
        t->target = (qf_target)i;
        if (s)
            qf_model_each_tensor(s->proto, look_at_tensor, t);
        for (size_t n = 0; s && n < s->ir.node_count; n++) {
            const qf_node *node = s->ir.by_id[n];
            t->compact |= i == QF_FAKE_QUANT && is_weight_cast(node);
            t->repeated |= shares_matrix(node);
        }
    }
    return t->memory;
}

/* ---- trying ---- */

/* Planned files that are there in their length, less those that are not; *all: no external file
 * differs. */
static int64_t score(const traits *t, const qf_plan *plan, bool *all)
{
    int64_t sum = 0;
    size_t external = 0;
    *all = true;
    for (size_t i = 0; i < plan->layout.file_count; i++) {
        struct stat st;
        const qf_output_file *file = &plan->outputs[i];
        const char *name = plan->layout.files[i].name;
        bool there = stat(file->path, &st) == 0 && (uint64_t)st.st_size == file->bytes;
        bool model = qf_ends_with(name, ".onnx");
        if (!model) {
            bool named = qf_strmap_get(&t->locations[QF_DEPLOY], name) ||
                         qf_strmap_get(&t->locations[QF_FAKE_QUANT], name);
            external++;
            sum += named ? 2 : -2;
            *all &= named;
        }
        sum += there ? 1 : -1;
        *all &= there || model; /* a graph of another length is one of the things to find */
    }
    if ((external == 0) != (t->external == 0)) {
        sum -= 4;
        *all = false;
    }
    return sum;
}

/* The score of a plan whose files are all there. */
static int64_t perfect(const qf_plan *plan)
{
    int64_t sum = 0;
    for (size_t i = 0; i < plan->layout.file_count; i++)
        sum += qf_ends_with(plan->layout.files[i].name, ".onnx") ? 1 : 3;
    return sum;
}

/* A plan, or NULL after findings. */
static qf_status make_plan(qf_against *a, const qf_inputs *inputs, const qf_export_options *options,
                           qf_diagnostics *list, qf_plan **out)
{
    qf_error err;
    *out = NULL;
    qf_status status = qf_plan_create(inputs->model, inputs->config, inputs->record, a->options->io,
                                      options, list, out, &err);
    if (status == QF_OK)
        return QF_OK;
    *out = NULL;
    if (status != QF_ERR_INPUT) {
        if (a->err)
            *a->err = err;
        return status;
    }
    if (!qf_diagnostics_errors(list))
        qf_note_error(list, NULL, &err);
    return QF_OK;
}

static qf_export_options first_options(const qf_against *a, const traits *t)
{
    qf_export_options o;
    qf_export_options_init(&o);
    const qf_export_options *given = a->options->export_options;
    if (given) {
        o.external_threshold = given->external_threshold;
        o.source = given->source;
        o.on_unsupported = given->on_unsupported;
        o.free_qdq = given->free_qdq;
        o.weight_only = given->weight_only;
        o.include = given->include;
        o.exclude = given->exclude;
    }
    o.threads = a->options->threads;
    o.save_path = a->prefix;
    o.ignore_target = true;
    o.emit = a->runnable                ? QF_EMIT_RUNNABLE
             : !a->found[QF_FAKE_QUANT] ? QF_EMIT_DEPLOY
             : !a->found[QF_DEPLOY]     ? QF_EMIT_FAKE_QUANT
                                        : QF_EMIT_BOTH;
    o.external_layout = t->single ? QF_LAYOUT_SINGLE : QF_LAYOUT_PER_TENSOR;
    o.dedup = t->repeated;
    o.fake_quant_weights = t->shared && o.emit == QF_EMIT_BOTH ? QF_FAKE_QUANT_SHARED
                           : t->compact                        ? QF_FAKE_QUANT_INT8
                                                               : QF_FAKE_QUANT_FLOAT;
    return o;
}

static qf_status try_all(qf_against *a, const qf_inputs *inputs, const traits *t, qf_plan **out,
                         bool *exact)
{
    static const qf_external inside[] = {QF_EXTERNAL_AUTO, QF_EXTERNAL_NEVER},
                             outside[] = {QF_EXTERNAL_AUTO, QF_EXTERNAL_ALWAYS};
    qf_export_options options = first_options(a, t);
    int64_t best = 0;
    for (int i = 0; i < 2; i++) {
        qf_diagnostics *list = qf_diagnostics_create();
        qf_plan *plan = NULL;
        options.external = (t->external ? outside : inside)[i];
        qf_status status =
            list ? make_plan(a, inputs, &options, list, &plan) : qf_fail_memory(a->err);
        if (status == QF_OK && !plan)
            qf_note_errors(a->findings, list);
        qf_diagnostics_free(list);
        if (status != QF_OK || !plan)
            return status; /* the other one would say the same */
        bool all;
        int64_t points = score(t, plan, &all);
        bool better = !*out || points > best;
        if (better) {
            qf_plan_free(*out);
            *out = plan;
            best = points;
            *exact = all;
        } else {
            qf_plan_free(plan);
        }
        if (points == perfect(*out))
            break;
    }
    return QF_OK;
}

qf_status qf_infer_plan(qf_against *against, const qf_inputs *inputs, qf_plan **out, bool *exact)
{
    traits t = {.against = against, .memory = true};
    *out = NULL;
    *exact = false;
    qf_arena_init(&t.arena);
    qf_status status =
        look(&t) ? try_all(against, inputs, &t, out, exact) : qf_fail_memory(against->err);
    qf_strmap_release(&t.places);
    qf_strmap_release(&t.locations[QF_DEPLOY]);
    qf_strmap_release(&t.locations[QF_FAKE_QUANT]);
    qf_arena_release(&t.arena);
    return status;
}
