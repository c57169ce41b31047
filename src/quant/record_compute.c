/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A record calculated from a float model. The export's own steps find the layers, fold batch norms
 * and lay out the weights: they are run on a provisional record of the config's layers, in which
 * every scale is 1; then the scales are filled in.
 */
#include <fenv.h>
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "exec/extent.h"
#include "quant/match.h"
#include "quant/plan.h"
#include "quant/ranges.h"
#include "quant/text_format.h"

typedef AMCTPytorchProto__SingleLayerRecord record_value;
typedef AMCTPytorchProto__MapFiledEntry record_entry;

typedef struct computer {
    qf_plan *plan;
    const qf_config *config;
    const qf_ranges *ranges;
    int threads;
    AMCTPytorchProto__ScaleOffsetRecord message;
    const qf_config_layer **layers; /* of the config, one for each entry of the message */
    qf_strmap range_of_node;        /* node name -> const qf_layer_range * */
    qf_error *err;
} computer;

/* ---- the provisional record ---- */

static bool set_ones(qf_arena *arena, size_t n, float **scales, size_t *n_scales, int32_t **offsets,
                     size_t *n_offsets)
{
    *scales = qf_arena_array(arena, n, sizeof **scales);
    *offsets = qf_arena_array(arena, n, sizeof **offsets); /* zeroed */
    for (size_t i = 0; *scales && i < n; i++)
        (*scales)[i] = 1;
    *n_scales = *n_offsets = n;
    return *scales && *offsets;
}

static bool set_weight_ones(qf_arena *arena, record_value *v, size_t n, bool recurrent)
{
    return set_ones(arena, n, &v->scale_w, &v->n_scale_w, &v->offset_w, &v->n_offset_w) &&
           (!recurrent ||
            set_ones(arena, n, &v->scale_r, &v->n_scale_r, &v->offset_r, &v->n_offset_r));
}

static record_entry *new_entry(computer *c, const qf_config_layer *layer)
{
    qf_arena *arena = &c->plan->arena;
    record_entry *entry = qf_arena_alloc(arena, sizeof *entry);
    record_value *v = qf_arena_alloc(arena, sizeof *v);
    if (!entry || !v)
        return NULL;
    amctpytorch_proto__map_filed_entry__init(entry);
    amctpytorch_proto__single_layer_record__init(v);
    entry->key = qf_borrow(layer->name);
    entry->value = v;
    v->has_scale_d = v->has_offset_d = true;
    v->scale_d = 1;
    v->act_type = qf_borrow(qf_type_name(layer->act_bits));
    v->wts_type = qf_borrow(qf_type_name(layer->wts_bits));
    if (qf_config_force_fp16(c->config))
        v->fakequant_precision_mode = qf_borrow("FORCE_FP16_QUANT");
    return set_weight_ones(arena, v, 1, false) ? entry : NULL;
}

static qf_status make_entries(computer *c)
{
    size_t n = qf_config_layer_count(c->config);
    amctpytorch_proto__scale_offset_record__init(&c->message);
    c->message.record = qf_arena_array(&c->plan->arena, n + 1, sizeof *c->message.record);
    c->layers = qf_arena_array(&c->plan->arena, n + 1, sizeof *c->layers);
    if (!c->message.record || !c->layers)
        return qf_fail_memory(c->err);
    for (size_t i = 0; i < n; i++) {
        const qf_config_layer *layer = qf_config_layer_at(c->config, i);
        if (!layer->enabled)
            continue;
        record_entry *entry = new_entry(c, layer);
        if (!entry)
            return qf_fail_memory(c->err);
        c->layers[c->message.n_record] = layer;
        c->message.record[c->message.n_record++] = entry;
    }
    return QF_OK;
}

/* ---- how many scales ---- */

static bool is_channel_wise(const qf_config_layer *layer, qf_op op)
{
    if (layer->channel_wise != QF_UNSET)
        return layer->channel_wise == QF_YES;
    return op == QF_OP_CONV || op == QF_OP_CONV_TRANSPOSE || qf_op_is_rnn(op);
}

static bool size_lists(computer *c, const qf_node *node, size_t index)
{
    record_value *v = c->message.record[index]->value;
    qf_probe probe;
    qf_layer_probe(node, qf_plan_flags(c->plan, node->name), &probe);
    bool recurrent = qf_op_is_rnn(probe.op);
    bool folded = qf_strmap_get(&c->plan->folded, node->name) != NULL;
    size_t n = recurrent ? qf_op_gates(probe.op) : 1;
    if (folded || is_channel_wise(c->layers[index], probe.op))
        n = probe.channels ? (size_t)probe.channels : n;
    if (recurrent) {
        v->has_scale_h = v->has_offset_h = true;
        v->scale_h = 1;
    }
    return set_weight_ones(&c->plan->arena, v, n, recurrent);
}

static qf_status size_all_lists(computer *c, const qf_ir *ir)
{
    for (size_t i = 0; i < ir->node_count; i++) {
        const qf_node *node = ir->by_id[i];
        const size_t *record = node ? qf_strmap_get(&c->plan->record_of_node, node->name) : NULL;
        if (record && !size_lists(c, node, *record))
            return qf_fail_memory(c->err);
    }
    return QF_OK;
}

/* ---- activations: facts part 7 ---- */

static void set_activation(float min, float max, int bits, float *scale, int32_t *offset)
{
    float steps = (float)((1 << bits) - 1), least = -(float)(1 << (bits - 1));
    max = max > 0 ? max : 0;
    min = min < 0 ? min : 0;
    *scale = (max - min) / steps;
    if (*scale < FLT_EPSILON) {
        *scale = 1;
        *offset = (int32_t)least;
        return;
    }
    *offset = (int32_t)rintf(least - min / *scale);
}

/* False if there is no range. */
static bool fill_activation(const qf_range_values *range, const qf_config_layer *layer, bool input,
                            float *scale, int32_t *offset)
{
    if (range && range->given && range->is_scale) {
        *scale = range->scale;
        *offset = range->offset;
        return true;
    }
    bool given = range && range->given;
    if (!given && !(input && layer->has_clip))
        return false;
    float min = given ? range->min : layer->clip_min, max = given ? range->max : layer->clip_max;
    set_activation(layer->fixed_min ? 0 : min, max, layer->act_bits, scale, offset);
    return true;
}

static void report(computer *c, const char *file, const char *item, const char *message)
{
    qf_diag_add(c->plan->diag, QF_ERROR, (qf_where){.file = file, .item = item}, "%s", message);
}

static void check_offset(computer *c, const qf_layer *layer, const char *field, int32_t offset)
{
    int32_t most = layer->act_bits == 16 ? 32767 : 127;
    char message[120];
    if (offset >= -most - 1 && offset <= most)
        return;
    snprintf(message, sizeof message, "%s is %d; for %d-bit activations it must be in [%d, %d]",
             field, offset, layer->act_bits, -most - 1, most);
    report(c, qf_ranges_path(c->ranges), layer->key, message);
}

static void fill_layer_activation(computer *c, const qf_layer *layer, size_t index)
{
    record_value *v = c->message.record[index]->value;
    const qf_layer_range *range = qf_strmap_get(&c->range_of_node, layer->name);
    const qf_config_layer *config = c->layers[index];
    const char *file = c->ranges ? qf_ranges_path(c->ranges) : qf_config_path(c->config);
    if (!fill_activation(range ? &range->input : NULL, config, true, &v->scale_d, &v->offset_d))
        report(c, file, layer->key,
               "the range of its input is not known: give it in the ranges (--activations), or as "
               "clip_max and clip_min in the config");
    if (qf_op_is_rnn(layer->op) &&
        !fill_activation(range ? &range->hidden : NULL, config, false, &v->scale_h, &v->offset_h))
        report(c, file, layer->key,
               "the range of its initial_h is not known: give h_min and h_max in the ranges "
               "(--activations)");
    check_offset(c, layer, "offset_d", v->offset_d);
    check_offset(c, layer, "offset_h", v->offset_h);
}

static qf_status match_ranges(computer *c, const qf_ir *ir)
{
    qf_matcher matcher;
    qf_status status = qf_matcher_init(&matcher, ir, c->err);
    for (size_t i = 0; status == QF_OK && i < qf_ranges_count(c->ranges); i++) {
        const qf_layer_range *range = qf_ranges_at(c->ranges, i);
        qf_match match;
        qf_matcher_find(&matcher, range->layer, &match);
        const char *name = match.node ? qf_arena_strdup(&c->plan->arena, match.node->name) : NULL;
        if (!match.node)
            report(c, qf_ranges_path(c->ranges), range->layer, match.problem);
        else if (!name || !qf_strmap_set(&c->range_of_node, name, (void *)(uintptr_t)range))
            status = qf_fail_memory(c->err);
    }
    qf_matcher_release(&matcher);
    return status;
}

/* ---- weights: facts part 7 ---- */

static float arq_scale(float min, float max, int bits)
{
    float low = fabsf(min), high = fabsf(max);
    float steps = (float)((1 << (bits - 1)) - (high < low ? 0 : 1));
    return (high > low ? high : low) / steps;
}

/* Per tensor there may still be several: one for each gate of an RNN, or for each channel of a
 * batch norm that is folded. */
static void fill_scales(const qf_extent *e, int bits, bool per_tensor, float *out)
{
    size_t n = e->job->scale_count;
    float min = INFINITY, max = -INFINITY;
    for (size_t i = 0; i < n; i++) {
        min = e->min[i] < min ? e->min[i] : min;
        max = e->max[i] > max ? e->max[i] : max;
    }
    for (size_t i = 0; i < n; i++) {
        float scale = arq_scale(per_tensor ? min : e->min[i], per_tensor ? max : e->max[i], bits);
        scale = scale < FLT_EPSILON ? 1 : scale;
        if (e->job->fold) /* the scale of the weight times that of the batch norm: facts 1.5 */
            scale *= fabsf(e->job->fold[i]);
        out[i] = scale < FLT_EPSILON ? 1 : scale;
    }
}

/* A job that stands for the weights of several layers is read once for each: each fills in its own
 * scales. */
static qf_status fill_weight(computer *c, const qf_layer *layer, size_t which, bool per_tensor,
                             float *out)
{
    const qf_job *job = layer->weights[which].job;
    qf_extent e = {.job = job,
                   .min = malloc(job->scale_count * sizeof(float)),
                   .max = malloc(job->scale_count * sizeof(float))};
    qf_status status = e.min && e.max
                           ? qf_extents_find(&e, 1, c->plan->model->files, c->threads, c->err)
                           : qf_fail_memory(c->err);
    if (status == QF_OK)
        fill_scales(&e, layer->wts_bits, per_tensor, out);
    free(e.min);
    free(e.max);
    return status;
}

static qf_status fill_layer_weights(computer *c, const qf_layer *layer, size_t index)
{
    record_value *v = c->message.record[index]->value;
    bool per_tensor = !is_channel_wise(c->layers[index], layer->op);
    qf_status status = QF_OK;
    if (layer->weight_count > 0)
        status = fill_weight(c, layer, 0, per_tensor, v->scale_w);
    if (status == QF_OK && layer->weight_count > 1)
        status = fill_weight(c, layer, 1, per_tensor, v->scale_r);
    return status;
}

static size_t entry_of(const computer *c, const qf_layer *layer)
{
    return *(const size_t *)qf_strmap_get(&c->plan->record_of_node, layer->name);
}

/* ---- the whole ---- */

static qf_status fill_in(computer *c, qf_ir *ir)
{
    qf_plan *plan = c->plan;
    qf_diag_mark before = qf_diag_now(plan->diag);
    qf_status status = size_all_lists(c, ir);
    if (status == QF_OK)
        status = qf_plan_layers(plan, ir, c->err);
    if (status == QF_OK)
        status = qf_plan_consistency(plan, c->config, ir, c->err);
    if (status == QF_OK)
        status = match_ranges(c, ir);
    for (size_t i = 0; status == QF_OK && i < plan->layer_count; i++)
        fill_layer_activation(c, &plan->layers[i], entry_of(c, &plan->layers[i]));
    if (status == QF_OK)
        status = qf_diag_status(plan->diag, before, c->err);
    for (size_t i = 0; status == QF_OK && i < plan->layer_count; i++)
        status = fill_layer_weights(c, &plan->layers[i], entry_of(c, &plan->layers[i]));
    return status;
}

static qf_status compute(computer *c)
{
    qf_plan *plan = c->plan;
    qf_record *provisional = NULL;
    qf_diag_mark before = qf_diag_now(plan->diag);
    qf_status status = make_entries(c);
    if (status == QF_OK)
        status = qf_record_wrap(qf_config_path(c->config), &c->message, &provisional, c->err);
    if (status != QF_OK)
        return status;
    plan->own_record = provisional;
    plan->record = provisional;
    status = qf_plan_prepare(plan, NULL, c->err);
    if (status == QF_OK)
        status = qf_diag_status(plan->diag, before, c->err);
    qf_linked linked;
    if (status == QF_OK)
        status = qf_linked_open(plan->skeleton, plan->skeleton_length, plan->model->files[0].path,
                                &linked, c->err);
    if (status != QF_OK)
        return status;
    status = fill_in(c, &linked.ir);
    qf_linked_close(&linked);
    return status;
}

/* Through the text, so that the caller's record owns all that it holds. */
static qf_status copy_record(computer *c, qf_record **out)
{
    char *text;
    size_t length;
    qf_status status = qf_text_format(&c->message.base, &text, &length, c->err);
    if (status == QF_OK) {
        status = qf_record_parse("computed record", text, length, out, c->err);
        free(text);
    }
    return status;
}

qf_status qf_record_compute(qf_model *model, const qf_config *config, const qf_ranges *ranges,
                            int threads, qf_diagnostics *diagnostics, qf_record **out,
                            qf_error *err)
{
    if (!model || !config || !out || threads < 0 || threads > 1024)
        return qf_fail(err, QF_ERR_USAGE,
                       "qf_record_compute needs a model, a config, a place for the record, and at "
                       "most 1024 threads");
    qf_export_options options;
    qf_export_options_init(&options);
    options.source = QF_SOURCE_FLOAT;
    qf_diagnostics *own = diagnostics ? NULL : qf_diagnostics_create();
    computer c = {.config = config, .ranges = ranges, .threads = threads, .err = err};
    if (!diagnostics && !own)
        return qf_fail_memory(err);
    qf_status status =
        qf_plan_start(model, NULL, &options, diagnostics ? diagnostics : own, &c.plan, err);
    if (status == QF_OK) {
        fenv_t host; /* which may flush subnormals or round otherwise */
        fegetenv(&host);
        fesetenv(FE_DFL_ENV);
        status = qf_plan_check_sources(c.plan, compute(&c), err);
        if (status == QF_OK)
            status = copy_record(&c, out);
        fesetenv(&host);
        qf_plan_free(c.plan);
    }
    qf_strmap_release(&c.range_of_node);
    qf_diagnostics_free(own);
    return status;
}
