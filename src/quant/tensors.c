/* SPDX-License-Identifier: Apache-2.0 */
/* Reading a layer's constants. */
#include "quant/tensors.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "exec/source.h"
#include "quant/constants.h"

void qf_tensor_refuse(const qf_tensor_context *t, const char *format, ...)
{
    char message[600];
    va_list args;
    va_start(args, format);
    vsnprintf(message, sizeof message, format, args);
    va_end(args);
    qf_diag_add(t->plan->diag, QF_ERROR,
                (qf_where){.file = t->plan->model->files[0].path, .item = t->layer->name}, "%s",
                message);
}

const char *qf_tensor_label(const Onnx__TensorProto *tensor)
{
    return tensor->name && *tensor->name ? tensor->name : "(unnamed)";
}

static qf_status load(const qf_plan *plan, const qf_payload *p, int32_t type, uint64_t count,
                      float *out, const char *name, qf_error *err)
{
    if (p->kind == QF_PAYLOAD_BYTES) {
        if (count)
            memcpy(out, p->bytes, (size_t)count * sizeof *out);
        return QF_OK;
    }
    qf_varint_index index;
    qf_status status =
        qf_varint_index_build(&p->span, count, plan->model->files[0].path, name, &index, err);
    if (status == QF_OK)
        qf_source_floats(&p->span, &index, type, 0, (size_t)count, out);
    qf_varint_index_release(&index);
    return status;
}

qf_status qf_plan_read_floats(qf_plan *plan, const Onnx__TensorProto *tensor, const float **out,
                              const double **wide, uint64_t *count, const char **why, qf_error *err)
{
    *out = NULL;
    *why = NULL;
    if (wide)
        *wide = NULL;
    if (!qf_dtype_is_float(tensor->data_type)) {
        *why = "does not have a float dtype";
        return QF_OK;
    }
    size_t index = qf_tensor_payload(tensor);
    if (index >= plan->payloads.count) {
        *why = "is empty or stored in an unusual way (unpacked data)";
        return QF_OK;
    }
    const qf_payload *p = &plan->payloads.items[index];
    if ((*why = qf_constant_check(tensor, p, count)))
        return QF_OK;
    if (wide && tensor->data_type == ONNX__TENSOR_PROTO__DATA_TYPE__DOUBLE) {
        double *copy = qf_arena_array(&plan->arena, (size_t)*count, sizeof *copy);
        if (!copy)
            return qf_fail_memory(err);
        if (*count)
            memcpy(copy, p->kind == QF_PAYLOAD_BYTES ? p->bytes : p->span.data,
                   (size_t)*count * sizeof *copy);
        *wide = copy;
        return QF_OK;
    }
    float *floats = qf_arena_array(&plan->arena, (size_t)*count, sizeof *floats);
    if (!floats)
        return qf_fail_memory(err);
    qf_status status =
        load(plan, p, tensor->data_type, *count, floats, qf_tensor_label(tensor), err);
    if (status == QF_OK)
        *out = floats;
    return status;
}

qf_status qf_plan_tensors(qf_plan *plan, const qf_node *node, const qf_probe *probe,
                          qf_layer *layer, qf_error *err)
{
    qf_tensor_context t = {plan, node, probe, layer, err};
    const AMCTPytorchProto__SingleLayerRecord *v = layer->record;
    qf_status status = QF_OK;
    size_t errors = qf_diagnostics_errors(plan->diag);
    if (probe->weight)
        status = qf_layer_add_weight(&t, probe->weight, v->scale_w, v->n_scale_w);
    if (status == QF_OK && probe->recurrence && qf_diagnostics_errors(plan->diag) == errors)
        status = qf_layer_add_weight(&t, probe->recurrence, v->scale_r, v->n_scale_r);
    /* a bias says nothing new about a layer whose weights are wrong */
    if (status != QF_OK || qf_diagnostics_errors(plan->diag) > errors)
        return status;
    return qf_layer_add_bias(&t);
}
