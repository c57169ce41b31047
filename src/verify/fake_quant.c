/* SPDX-License-Identifier: Apache-2.0 */
/* A fake_quant model by itself: its arithmetic is that of facts 5, its weights are integers. */
#include <math.h>
#include <string.h>

#include "passes/expansion.h"
#include "verify/expanded.h"
#include "verify/structure.h"

typedef struct fake_check {
    qf_subject *s;
    qf_strmap seen; /* weights, by name */
    uint64_t *layers;
    qf_error *err;
} fake_check;

/* ---- quantization ---- */

static qf_status check_quant(fake_check *c, qf_node *sub)
{
    qf_expanded e;
    const char *why;
    qf_status status = qf_expanded_read(c->s, sub, &e, &why, c->err);
    if (status != QF_OK)
        return status;
    for (size_t i = 0; i < e.count; i++) {
        e.nodes[i]->tag = c;
        qf_check_opset(c->s, e.nodes[i]);
    }
    if (why) {
        qf_subject_note(c->s, sub->name, "the quantization that ends here %s", why);
        return QF_OK;
    }
    if (!qf_scale_fits(e.scale))
        qf_subject_note(c->s, sub->name, "its scale is %g; a scale must be finite and above 0",
                        (double)e.scale);
    if (!e.bits)
        qf_subject_note(c->s, sub->name,
                        "it clips to [%.9g, %.9g], which is the range of no integer of 4, 8 or 16 "
                        "bits",
                        (double)e.min, (double)e.max);
    if (!qf_offset_fits(e.offset, e.bits ? e.bits : 16))
        qf_subject_note(c->s, sub->name, "its offset is %.9g, which is no integer in its range",
                        (double)e.offset);
    return QF_OK;
}

static void check_strays(fake_check *c)
{
    for (size_t i = 0; i < c->s->ir.node_count; i++) {
        const qf_node *node = c->s->ir.by_id[i];
        size_t n = qf_node_is(node, "Mul") ? qf_stem(node->name, ".fakequant.mul") : 0;
        if (n && node->tag != c)
            qf_subject_note(c->s, node->name,
                            "the node belongs to no whole quantization; expected a node "
                            "'%.*s.fakequant.sub' that ends it",
                            (int)n, node->name);
    }
}

/* ---- weights ---- */

/* Index of the first value that is no integer in [low, high]; `count` if all are. */
static size_t first_odd(const float *x, size_t count, float low, float high)
{
    for (size_t i = 0; i < count;) {
        size_t m = count - i < 1024 ? count - i : 1024;
        int odd = 0;
        for (size_t j = 0; j < m; j++)
            odd |= !(x[i + j] >= low) | !(x[i + j] <= high) | (rintf(x[i + j]) != x[i + j]);
        for (size_t j = 0; odd && j < m; j++) {
            float v = x[i + j];
            if (!(v >= low) || !(v <= high) || rintf(v) != v)
                return i + j;
        }
        i += m;
    }
    return count;
}

static qf_status check_integers(fake_check *c, const Onnx__TensorProto *t, float low, float high)
{
    enum { STEP = QF_READING_MOST / 4 };
    qf_reading r;
    const char *why;
    if (t->data_type != ONNX__TENSOR_PROTO__DATA_TYPE__FLOAT)
        return QF_OK;
    qf_status status = qf_reading_open(c->s, t, &r, &why, c->err);
    if (status != QF_OK || why)
        return status;
    for (uint64_t i = 0; i < r.count; i += STEP) {
        float values[1024];
        size_t n = (size_t)(r.count - i < STEP ? r.count - i : STEP), at = n;
        const unsigned char *bytes = qf_reading_at(&r, 4 * i, 4 * n);
        for (size_t j = 0; bytes && j < n && at == n; j += 1024) {
            size_t m = n - j < 1024 ? n - j : 1024; /* the bytes may not be aligned */
            memcpy(values, bytes + 4 * j, 4 * m);
            size_t odd = first_odd(values, m, low, high);
            if (odd < m) {
                at = j + odd;
                qf_subject_note(c->s, qf_label(c->s, t),
                                "element %llu is %.9g; expected an integer from %.0f to %.0f",
                                (unsigned long long)(i + at), (double)values[odd], (double)low,
                                (double)high);
            }
        }
        qf_reading_forget(&r, 4 * i, 4 * n);
        if (at < n)
            break;
    }
    qf_reading_close(&r);
    return QF_OK;
}

/* The weight of a layer, behind a Cast and a Transpose. `s` NULL: without a finding. */
static const Onnx__TensorProto *weight_of(const qf_subject *s, const qf_node *layer)
{
    qf_value *value = layer->input_count > 1 ? layer->inputs[1] : NULL;
    for (int i = 0; i < 2 && value && value->producer; i++) {
        const qf_node *above = value->producer;
        bool cast = qf_node_is(above, "Cast");
        if ((!cast && !qf_node_is(above, "Transpose")) || !above->input_count)
            break;
        if (s && cast && qf_node_int(above, "to", 0) != ONNX__TENSOR_PROTO__DATA_TYPE__FLOAT)
            qf_subject_note(s, above->name, "the weight is cast to type %lld; expected 1, float32",
                            (long long)qf_node_int(above, "to", 0));
        value = above->inputs[0];
    }
    return qf_subject_constant(value);
}

static qf_status check_weight(fake_check *c, const qf_node *layer)
{
    const Onnx__TensorProto *t = weight_of(c->s, layer);
    if (!t) {
        qf_subject_note(c->s, layer->name, "the weight of the quantized layer is not a constant");
        return QF_OK;
    }
    bool kind = t->data_type == ONNX__TENSOR_PROTO__DATA_TYPE__FLOAT ||
                t->data_type == ONNX__TENSOR_PROTO__DATA_TYPE__INT8;
    if (!kind)
        qf_subject_note(c->s, layer->name,
                        "its weight '%s' is %s; expected float32, or int8 behind "
                        "a Cast",
                        qf_label(c->s, t), qf_dtype_name(t->data_type));
    if (!t->name || !*t->name || qf_strmap_get(&c->seen, t->name) == t)
        return QF_OK;
    if (!qf_strmap_set(&c->seen, t->name, (void *)(uintptr_t)t))
        return qf_fail_memory(c->err);
    return check_integers(c, t, -128, 127);
}

/* ---- dequantization ---- */

static const qf_node *layer_before(const qf_value *in, const Onnx__TensorProto **bias)
{
    const qf_node *node = in->producer;
    *bias = NULL;
    if (node && qf_node_is(node, "Add") && node->input_count == 2 && node->inputs[0]) {
        *bias = qf_subject_constant(node->inputs[1]);
        return node->inputs[0]->producer;
    }
    if (node && node->input_count > 2)
        *bias = qf_subject_constant(node->inputs[2]);
    return node;
}

static qf_status check_scales(fake_check *c, const qf_node *mul, const Onnx__TensorProto *t)
{
    const float *values;
    uint64_t count;
    qf_status status = qf_reading_floats(c->s, t, UINT32_MAX, &values, &count, c->err);
    if (status != QF_OK)
        return status;
    if (!values)
        qf_subject_note(c->s, mul->name, "its scale is %s; expected float32",
                        qf_dtype_name(t->data_type));
    for (uint64_t i = 0; values && i < count; i++) {
        if (qf_scale_fits(values[i]))
            continue;
        qf_subject_note(c->s, mul->name, "scale %llu is %g; a scale must be finite and above 0",
                        (unsigned long long)i, (double)values[i]);
        break;
    }
    return QF_OK;
}

/* The scales lie along dimension 1 of what the layer makes. */
static void check_scale_dims(const fake_check *c, const qf_node *mul, const qf_node *layer,
                             const Onnx__TensorProto *t)
{
    const Onnx__TensorProto *weight = weight_of(NULL, layer);
    bool conv = qf_node_is(layer, "Conv") || qf_node_is(layer, "ConvTranspose");
    size_t rank = qf_dequant_rank(conv && weight ? weight->n_dims : 0);
    char dims[128];
    bool fits = t->n_dims == rank;
    for (size_t i = 0; fits && i < t->n_dims; i++)
        fits = i == 1 || t->dims[i] == 1;
    if (!fits)
        qf_subject_note(c->s, mul->name,
                        "its scales have dims %s; expected %zu dimensions of 1, but for the second",
                        qf_dims_text(t, dims), rank);
}

/* A node of the source that has such a name is no Mul behind the layer. */
static bool is_dequant(const qf_node *node)
{
    size_t n = qf_stem(node->name, ".fakedequant.mul");
    if (!n || qf_node_is(node, "Mul"))
        return n > 0;
    const qf_node *layer = node->input_count && node->inputs[0] ? node->inputs[0]->producer : NULL;
    return layer && strncmp(layer->name, node->name, n) == 0 && layer->name[n] == '\0';
}

static qf_status check_dequant(fake_check *c, const qf_node *mul)
{
    const Onnx__TensorProto *factor, *bias;
    qf_node *constant;
    *c->layers += 1;
    qf_value *in = qf_node_is(mul, "Mul") ? qf_mul_operand(mul, &factor, &constant) : NULL;
    if (!in) {
        qf_subject_note(c->s, mul->name, "expected a Mul of a layer's output by constant scales");
        return QF_OK;
    }
    qf_status status = check_scales(c, mul, factor);
    size_t n = qf_stem(mul->name, ".fakedequant.mul");
    const qf_node *layer = layer_before(in, &bias);
    if (!layer || strncmp(layer->name, mul->name, n) != 0 || layer->name[n] != '\0') {
        qf_subject_note(c->s, mul->name, "it does not come behind layer '%.*s', but reads '%s'",
                        (int)n, mul->name, in->name);
        return status;
    }
    qf_check_operator(c->s, layer);
    check_scale_dims(c, mul, layer, factor);
    if (status == QF_OK && !qf_node_is(layer, "AveragePool"))
        status = check_weight(c, layer);
    if (status == QF_OK && bias && !qf_node_is(layer, "AveragePool"))
        status = check_integers(c, bias, -2147483648.0f, 2147483648.0f);
    return status;
}

static bool is_quantized_rnn(const qf_node *node)
{
    const qf_node *mul = node->input_count && node->inputs[0] ? node->inputs[0]->producer : NULL;
    return (qf_node_is(node, "LSTM") || qf_node_is(node, "GRU")) && mul &&
           qf_stem(mul->name, ".anti_quant.fake_antiquant.mul");
}

/* ---- layers of other floats than float32 ---- */

/* The dtype that the model says a value has, 0 if it says none. */
static int32_t declared_type(const qf_value *value)
{
    const Onnx__ValueInfoProto *info = value->result_count ? value->results[0] : value->info;
    bool typed =
        info && info->type && info->type->value_case == ONNX__TYPE_PROTO__VALUE_TENSOR_TYPE;
    return typed ? info->type->tensor_type->elem_type : 0;
}

/* Whether a Cast makes the layer's dtype again of what its arithmetic makes. */
static bool is_result_cast(const qf_node *cast)
{
    const qf_node *from = cast->inputs[0]->producer;
    if (!from)
        return false;
    if (qf_stem(from->name, ".fakedequant.mul"))
        return qf_stem(cast->name, ".fakedequant.cast") > 0;
    size_t n = strlen(from->name), stem = qf_stem(cast->name, ".cast");
    return is_quantized_rnn(from) && stem > n && strncmp(cast->name, from->name, n) == 0 &&
           strncmp(cast->name + n, ".output", strlen(".output")) == 0;
}

/* Whether a Cast makes float32 of the state that an LSTM takes as it is. */
static bool is_state_cast(const qf_node *cast)
{
    const qf_node *user = qf_value_only_user(cast->outputs[0]);
    return user && is_quantized_rnn(user) && qf_is_name(cast->name, user->name, ".initial_c.cast");
}

static void check_cast(const fake_check *c, const qf_node *cast)
{
    int64_t to = qf_node_int(cast, "to", 0);
    int32_t declared = declared_type(cast->outputs[0]);
    bool narrow = to == ONNX__TENSOR_PROTO__DATA_TYPE__FLOAT16 ||
                  to == ONNX__TENSOR_PROTO__DATA_TYPE__BFLOAT16 ||
                  to == ONNX__TENSOR_PROTO__DATA_TYPE__DOUBLE;
    if (is_result_cast(cast) && (!narrow || (declared && to != declared)))
        qf_subject_note(c->s, cast->name,
                        "the layer's output is cast to type %lld; expected the layer's own dtype, "
                        "another float than float32",
                        (long long)to);
    if (is_state_cast(cast) && to != ONNX__TENSOR_PROTO__DATA_TYPE__FLOAT)
        qf_subject_note(c->s, cast->name, "the state is cast to type %lld; expected 1, float32",
                        (long long)to);
}

qf_status qf_check_fake_quant(qf_subject *s, uint64_t *layers, qf_error *err)
{
    fake_check c = {.s = s, .layers = layers, .err = err};
    qf_status status = QF_OK;
    for (size_t i = 0; status == QF_OK && i < s->ir.node_count; i++) {
        qf_node *node = s->ir.by_id[i];
        /* a node of the source may have such a name */
        if (qf_stem(node->name, ".fakequant.sub") && qf_node_is(node, "Sub"))
            status = check_quant(&c, node);
        else if (is_dequant(node))
            status = check_dequant(&c, node);
        else if (is_quantized_rnn(node))
            *layers += 1;
        else if (qf_node_is(node, "Cast") && node->input_count == 1 && node->inputs[0] &&
                 qf_node_output(node))
            check_cast(&c, node);
    }
    if (status == QF_OK)
        check_strays(&c);
    for (size_t i = 0; i < s->ir.node_count; i++)
        s->ir.by_id[i]->tag = NULL;
    qf_strmap_release(&c.seen);
    return status;
}
