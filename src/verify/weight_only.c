/* SPDX-License-Identifier: Apache-2.0 */
/* Weights that are quantized alone: integers behind a DequantizeLinear, in both models alike
 * (docs/weight_only.md). */
#include <string.h>

#include "base/half.h"
#include "verify/structure.h"

/* Scales as they lie in memory, whatever float they are. */
static float scale_at(int32_t type, const unsigned char *bytes, uint64_t i)
{
    float value = 0;
    uint16_t half;
    if (type == ONNX__TENSOR_PROTO__DATA_TYPE__FLOAT) {
        memcpy(&value, bytes + 4 * i, 4);
        return value;
    }
    memcpy(&half, bytes + 2 * i, 2);
    return type == ONNX__TENSOR_PROTO__DATA_TYPE__FLOAT16 ? qf_half_value(half)
                                                          : qf_bfloat_value(half);
}

static qf_status check_scales(qf_subject *s, const qf_node *node, const Onnx__TensorProto *t,
                              qf_error *err)
{
    bool known = t->data_type == ONNX__TENSOR_PROTO__DATA_TYPE__FLOAT ||
                 t->data_type == ONNX__TENSOR_PROTO__DATA_TYPE__FLOAT16 ||
                 t->data_type == ONNX__TENSOR_PROTO__DATA_TYPE__BFLOAT16;
    enum { STEP = QF_READING_MOST / 4 };
    qf_reading r;
    const char *why;
    if (!known) {
        qf_subject_note(s, node->name, "its scales '%s' are %s; expected a float", qf_label(s, t),
                        qf_dtype_name(t->data_type));
        return QF_OK;
    }
    qf_status status = qf_reading_open(s, t, &r, &why, err);
    if (status != QF_OK || why)
        return status;
    bool good = true;
    for (uint64_t i = 0; good && i < r.count; i += STEP) {
        size_t n = (size_t)(r.count - i < STEP ? r.count - i : STEP);
        const unsigned char *bytes = qf_reading_at(&r, i * r.width, n * r.width);
        for (size_t j = 0; bytes && good && j < n; j++) {
            float scale = scale_at(t->data_type, bytes, j);
            good = qf_scale_fits(scale);
            if (!good)
                qf_subject_note(s, qf_label(s, t),
                                "element %llu is %g; a scale must be finite and above 0",
                                (unsigned long long)(i + j), (double)scale);
        }
        qf_reading_forget(&r, i * r.width, n * r.width);
    }
    qf_reading_close(&r);
    return QF_OK;
}

/* Whether scales of these dims belong to such a matrix. */
static bool scales_fit(const qf_node *node, const Onnx__TensorProto *w, const Onnx__TensorProto *t)
{
    int64_t block = qf_node_int(node, "block_size", 0), axis = qf_node_int(node, "axis", 1);
    if (t->n_dims == 0)
        return true;
    if (axis < 0 || axis > 1 || w->n_dims != 2)
        return false;
    if (t->n_dims == 1)
        return t->dims[0] == w->dims[axis];
    return t->n_dims == 2 && block > 0 && w->dims[axis] % block == 0 &&
           t->dims[axis] == w->dims[axis] / block && t->dims[1 - axis] == w->dims[1 - axis];
}

static qf_status check_node(qf_subject *s, const qf_node *node, uint64_t *layers, qf_error *err)
{
    const Onnx__TensorProto *w = node->inputs[0]->init, *t = node->inputs[1]->init;
    char dims[128], scales[128];
    *layers += 1;
    if (w->data_type != ONNX__TENSOR_PROTO__DATA_TYPE__INT8 && w->data_type != QF_DTYPE_INT4)
        qf_subject_note(s, node->name, "its weight '%s' is %s; expected int8 or int4",
                        qf_label(s, w), qf_dtype_name(w->data_type));
    if (!scales_fit(node, w, t))
        qf_subject_note(s, node->name,
                        "its weight has dims %s and its scales %s, which do not fit axis %lld and "
                        "block_size %lld",
                        qf_dims_text(w, dims), qf_dims_text(t, scales),
                        (long long)qf_node_int(node, "axis", 1),
                        (long long)qf_node_int(node, "block_size", 0));
    return check_scales(s, node, t, err);
}

qf_status qf_check_weight_only(qf_subject *s, uint64_t *layers, qf_error *err)
{
    qf_status status = QF_OK;
    for (size_t i = 0; status == QF_OK && i < s->ir.node_count; i++) {
        if (qf_is_weight_only(s->ir.by_id[i]))
            status = check_node(s, s->ir.by_id[i], layers, err);
    }
    return status;
}
