/* SPDX-License-Identifier: Apache-2.0 */
/* The record that a QDQ model has in its Q and DQ nodes. */
#include <stdio.h>
#include <stdlib.h>

#include "onnx/model.h"
#include "quant/qdq.h"
#include "quant/record.h"
#include "quant/text_format.h"

typedef AMCTPytorchProto__SingleLayerRecord record_value;
typedef AMCTPytorchProto__MapFiledEntry record_entry;

typedef struct builder {
    const qf_qdq *q;
    qf_on_unsupported on_unsupported;
    qf_diagnostics *diag;
    record_entry **entries;
    size_t count;
} builder;

static bool set_weight_scales(qf_arena *arena, const qf_qdq_layer *layer, record_value *v)
{
    v->scale_w = layer->scale_w;
    v->n_scale_w = v->n_offset_w = layer->scale_w_count;
    v->offset_w = qf_arena_array(arena, layer->scale_w_count, sizeof *v->offset_w); /* zeroed */
    v->scale_r = layer->scale_r;
    v->n_scale_r = v->n_offset_r = layer->scale_r_count;
    v->offset_r = qf_arena_array(arena, layer->scale_r_count, sizeof *v->offset_r);
    return v->offset_w && v->offset_r;
}

/* The scales are those of the weight before a batch norm behind the layer; folded, it would have
 * others. */
static bool has_batch_norm(const qf_node *node)
{
    const qf_value *out = qf_node_output(node);
    const qf_node *user = out ? qf_value_only_user(out) : NULL;
    return user && qf_node_is(user, "BatchNormalization");
}

static bool add_entry(builder *b, const qf_node *node, const qf_qdq_layer *layer)
{
    qf_arena *arena = b->q->arena;
    record_entry *entry = qf_arena_alloc(arena, sizeof *entry);
    record_value *v = qf_arena_alloc(arena, sizeof *v);
    if (!entry || !v)
        return false;
    amctpytorch_proto__map_filed_entry__init(entry);
    amctpytorch_proto__single_layer_record__init(v);
    entry->key = qf_borrow(node->name);
    entry->value = v;
    v->has_scale_d = v->has_offset_d = true;
    v->scale_d = layer->activation.scales[0];
    v->offset_d = layer->activation.zeros[0];
    v->act_type = qf_borrow(qf_type_name(layer->activation.bits));
    v->wts_type = qf_borrow(qf_type_name(layer->wts_bits));
    if (qf_op_of(node) == QF_OP_CONV && has_batch_norm(node))
        v->has_skip_fusion = v->skip_fusion = true;
    if (qf_op_is_rnn(qf_op_of(node))) {
        v->has_scale_h = v->has_offset_h = true;
        v->scale_h = layer->hidden.scales[0];
        v->offset_h = layer->hidden.zeros[0];
    }
    b->entries[b->count++] = entry;
    return set_weight_scales(arena, layer, v);
}

static qf_status add_node(builder *b, const qf_node *node, qf_error *err)
{
    qf_qdq_layer layer;
    qf_status status = qf_qdq_layer_read(b->q, node, &layer, err);
    if (status != QF_OK || !layer.quantized)
        return status;
    if (!layer.problem[0])
        return add_entry(b, node, &layer) ? QF_OK : qf_fail_memory(err);
    bool float_allowed = b->on_unsupported == QF_UNSUPPORTED_FLOAT;
    qf_diag_add(b->diag, float_allowed ? QF_WARNING : QF_ERROR,
                (qf_where){.file = b->q->path, .item = node->name}, "%s%s", layer.problem,
                float_allowed ? "; the layer stays float"
                              : "; --on-unsupported float leaves such layers in float");
    return QF_OK;
}

static qf_status write_record(const builder *b, qf_record **out, qf_error *err)
{
    AMCTPytorchProto__ScaleOffsetRecord message;
    amctpytorch_proto__scale_offset_record__init(&message);
    message.record = b->entries;
    message.n_record = b->count;
    char *text, name[300];
    size_t length;
    qf_status status = qf_text_format(&message.base, &text, &length, err);
    if (status != QF_OK)
        return status;
    snprintf(name, sizeof name, "record of %.280s", b->q->path);
    status = qf_record_parse(name, text, length, out, err);
    free(text);
    return status;
}

static qf_status refuse_empty(const builder *b, const qf_ir *ir, qf_error *err)
{
    return qf_fail_at(err, QF_ERR_INPUT, (qf_where){.file = b->q->path},
                      qf_qdq_any(ir)
                          ? "QuantizeLinear and DequantizeLinear surround no layer that can be "
                            "quantized: a layer needs both its input and its weight quantized; "
                            "give a record to quantize others"
                          : "the model has no QuantizeLinear and DequantizeLinear nodes to take "
                            "scales from, so a record is needed (--record); `quantfold record "
                            "--help` tells how to make one");
}

static qf_status build(builder *b, const qf_ir *ir, qf_record **out, qf_error *err)
{
    qf_diag_mark before = qf_diag_now(b->diag);
    qf_status status = QF_OK;
    b->entries = qf_arena_array(b->q->arena, ir->node_count + 1, sizeof(record_entry *));
    if (!b->entries)
        return qf_fail_memory(err);
    for (size_t i = 0; status == QF_OK && i < ir->node_count; i++)
        status = ir->by_id[i] ? add_node(b, ir->by_id[i], err) : QF_OK;
    if (status == QF_OK)
        status = qf_diag_status(b->diag, before, err);
    if (status == QF_OK && !b->count)
        status = refuse_empty(b, ir, err);
    return status == QF_OK ? write_record(b, out, err) : status;
}

qf_status qf_record_from_qdq(qf_model *model, qf_on_unsupported on_unsupported,
                             qf_diagnostics *diagnostics, qf_record **out, qf_error *err)
{
    if (!model || !out || (unsigned)on_unsupported > QF_UNSUPPORTED_FLOAT)
        return qf_fail(err, QF_ERR_USAGE,
                       "qf_record_from_qdq needs a model, a place for the record and a known way "
                       "of taking what is unsupported");
    const char *path = model->files[0].path;
    qf_linked linked;
    qf_status status = qf_linked_open(model->skeleton, model->skeleton_length, path, &linked, err);
    if (status != QF_OK)
        return status;
    qf_diagnostics *own = diagnostics ? NULL : qf_diagnostics_create();
    qf_qdq q = {&model->payloads, &linked.arena, path};
    builder b = {
        .q = &q, .on_unsupported = on_unsupported, .diag = diagnostics ? diagnostics : own};
    qf_record *record = NULL;
    status = b.diag ? build(&b, &linked.ir, &record, err) : qf_fail_memory(err);
    status = qf_files_check(model->files, model->file_count, status, err);
    if (status == QF_OK)
        *out = record;
    else
        qf_record_close(record);
    qf_diagnostics_free(own);
    qf_linked_close(&linked);
    return status;
}
