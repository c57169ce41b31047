/* SPDX-License-Identifier: Apache-2.0 */
/* A recurrent layer in both models (facts 4.6, 5.5, 5.6). */
#include <string.h>

#include "verify/agree_rnn.h"
#include "verify/attributes.h"
#include "verify/compare.h"
#include "verify/structure.h"

#define FLOAT_TYPE ONNX__TENSOR_PROTO__DATA_TYPE__FLOAT

/* ---- x and initial_h ---- */

static const char *const parts[] = {"", "1"};

/* The fake_quant node's input goes through a quantization and a Mul by the scale. */
static qf_status compare_activation(qf_rnn_pair *r, int which, size_t deploy_input,
                                    size_t fake_input)
{
    static const char *const scale_names[] = {"quant_scale_x", "quant_scale_h"};
    static const char *const offset_names[] = {"quant_offset_x", "quant_offset_h"};
    qf_pairing *p = r->p;
    qf_value *in = fake_input < r->fake->input_count ? r->fake->inputs[fake_input] : NULL;
    qf_node *mul = in ? in->producer : NULL, *constant;
    const Onnx__TensorProto *factor;
    qf_value *integers =
        mul && qf_node_is(mul, "Mul") ? qf_mul_operand(mul, &factor, &constant) : NULL;
    if (!integers || !integers->producer || !qf_stem(mul->name, ".fake_antiquant.mul")) {
        qf_subject_note(p->b, r->fake->name,
                        "input %zu does not come through '%s.anti_quant%s.fake_antiquant.mul'",
                        fake_input, r->fake->name, parts[which]);
        p->skipped = true;
        return QF_OK;
    }
    qf_pairing_take(p, mul);
    qf_pairing_take(p, constant);
    qf_expanded e;
    const char *why;
    const float *scale;
    uint64_t count;
    qf_status status = qf_expanded_read(p->b, integers->producer, &e, &why, p->err);
    for (size_t i = 0; i < e.count; i++)
        qf_pairing_take(p, e.nodes[i]);
    if (status == QF_OK)
        status = qf_reading_floats(p->b, factor, 1, &scale, &count, p->err);
    if (status != QF_OK)
        return status;
    if (why || !scale || count != 1 || factor->n_dims) {
        qf_subject_note(p->b, r->fake->name, "what quantizes input %zu is not whole", fake_input);
        p->skipped = true;
        return QF_OK;
    }
    r->scales[which] = scale[0];
    float x = qf_node_float(r->deploy, scale_names[which], 0);
    float offset = qf_node_float(r->deploy, offset_names[which], 0);
    int bits = qf_node_int(r->deploy, "quant_dtype", 0) == 6 ? 16 : 8;
    if (memcmp(&x, &e.scale, sizeof x) != 0)
        qf_subject_note(p->b, integers->producer->name,
                        "its scale is %.9g, but %s of the %s is %.9g", (double)e.scale,
                        scale_names[which], p->a->role, (double)x);
    if (offset != e.offset || bits != e.bits)
        qf_subject_note(
            p->b, integers->producer->name,
            "its offset is %.9g and its width %d bits, but %s of the %s is %.9g and its "
            "quant_dtype means %d bits",
            (double)e.offset, e.bits, offset_names[which], p->a->role, (double)offset, bits);
    if (1.0f / scale[0] != x)
        qf_subject_note(p->b, mul->name,
                        "its scale is %.9g; expected the one whose reciprocal is %.9g, %s of the "
                        "%s",
                        (double)scale[0], (double)x, scale_names[which], p->a->role);
    if (qf_pairing_value(p, r->deploy->inputs[deploy_input]) != e.input)
        qf_subject_note(p->b, integers->producer->name,
                        "it reads '%s'; expected what stands for '%s' of the %s", e.input->name,
                        r->deploy->inputs[deploy_input]->name, p->a->role);
    return QF_OK;
}

/* ---- bias ---- */

static qf_status compare_bias(qf_rnn_pair *r, const qf_value *va, qf_value *vb)
{
    qf_pairing *p = r->p;
    const Onnx__TensorProto *ta = va ? va->init : NULL, *tb = vb ? vb->init : NULL;
    qf_reading ra, rb;
    const char *why, *other;
    if (!va && !vb)
        return QF_OK;
    if (!ta || !tb || tb->data_type != FLOAT_TYPE ||
        ta->data_type != ONNX__TENSOR_PROTO__DATA_TYPE__INT32) {
        qf_subject_note(p->b, r->fake->name, "its bias is not the float form of the %s's",
                        p->a->role);
        p->skipped = true;
        return QF_OK;
    }
    qf_status status = qf_reading_open(p->a, ta, &ra, &why, p->err);
    p->skipped |= why != NULL;
    if (status != QF_OK || why)
        return status;
    status = qf_reading_open(p->b, tb, &rb, &other, p->err);
    bool open = status == QF_OK && !other;
    bool fits = open && ra.count == 2 * r->rows && rb.count == ra.count && tb->n_dims == 2 &&
                tb->dims[0] == 1;
    p->skipped |= !fits;
    if (open && !fits)
        qf_subject_note(p->b, qf_label(p->b, tb), "its dims are not [1, %llu], those of the bias",
                        (unsigned long long)(2 * r->rows));
    for (uint64_t i = 0; fits && i < ra.count; i++) {
        const unsigned char *x = qf_reading_at(&ra, 4 * i, 4), *y = qf_reading_at(&rb, 4 * i, 4);
        int which = i >= r->rows;
        uint64_t row = i % r->rows; /* NOLINT(clang-analyzer-core.DivideZero): i < 2 * rows */
        int32_t q = 0;
        float f = 0, scale = r->found[which][row];
        if (!x || !y)
            break;
        memcpy(&q, x, sizeof q);
        memcpy(&f, y, sizeof f);
        float wanted = (float)q * (scale * r->scales[which]);
        if (scale == 0 || memcmp(&wanted, &f, sizeof f) == 0)
            continue; /* of a row of zeros, no scale is known */
        qf_subject_note(p->b, qf_label(p->b, tb),
                        "element %llu is %.9g; expected %.9g, %d of the %s times its scale",
                        (unsigned long long)i, (double)f, (double)wanted, q, p->a->role);
        break;
    }
    if (open)
        qf_reading_close(&rb);
    qf_reading_close(&ra);
    return status;
}

/* ---- the rest ---- */

/* Inputs that are passed on: initial_c, through a Cast for 16-bit floats, and sequence_lens. */
static void compare_passed(qf_rnn_pair *r, size_t deploy_input, size_t fake_input)
{
    qf_pairing *p = r->p;
    const qf_value *va = r->deploy->inputs[deploy_input];
    qf_value *vb = fake_input < r->fake->input_count ? r->fake->inputs[fake_input] : NULL;
    qf_node *cast = vb ? vb->producer : NULL;
    if (cast && qf_node_is(cast, "Cast") &&
        qf_is_name(cast->name, r->fake->name, ".initial_c.cast") && cast->input_count == 1) {
        qf_pairing_take(p, cast);
        vb = cast->inputs[0];
    }
    if (qf_pairing_value(p, va) != vb)
        qf_subject_note(p->b, r->fake->name, "input %zu is '%s', but '%s' in the %s", fake_input,
                        vb ? vb->name : "(nothing)", va ? va->name : "(nothing)", p->a->role);
}

/* Attributes that both have; the deploy model has defaults and its own beside them. */
static qf_status compare_attributes(qf_rnn_pair *r)
{
    static const char *const names[] = {
        "hidden_size", "activation_alpha", "activation_beta", "activations",
        "clip",        "direction",        "input_forget"};
    qf_status status = QF_OK;
    for (size_t i = 0; status == QF_OK && i < sizeof names / sizeof *names; i++) {
        const Onnx__AttributeProto *a = qf_node_attribute(r->deploy, names[i]);
        const Onnx__AttributeProto *b = qf_node_attribute(r->fake, names[i]);
        if (a && b)
            status = qf_compare_attribute(r->p, r->deploy, a, b);
    }
    return status;
}

/* Room for what is found out, and the packed scales. */
static qf_status prepare(qf_rnn_pair *r)
{
    qf_pairing *p = r->p;
    const qf_value *param = r->deploy->inputs[r->deploy->input_count - 1];
    qf_reading reading;
    const char *why;
    qf_arena *arena = &p->b->arena;
    r->found[0] = qf_arena_array(arena, (size_t)r->rows, sizeof(float));
    r->found[1] = qf_arena_array(arena, (size_t)r->rows, sizeof(float));
    if (!r->found[0] || !r->found[1])
        return qf_fail_memory(p->err);
    if (!param || !param->init || param->init->data_type != ONNX__TENSOR_PROTO__DATA_TYPE__UINT64)
        return QF_OK;
    qf_status status = qf_reading_open(p->a, param->init, &reading, &why, p->err);
    if (status != QF_OK || why)
        return status;
    uint64_t *values = qf_arena_array(arena, (size_t)reading.count + 1, sizeof *values);
    enum { MOST = QF_READING_MOST / 8 };
    for (uint64_t i = 0; values && i < reading.count; i += MOST) {
        size_t n = (size_t)(reading.count - i < MOST ? reading.count - i : MOST);
        const unsigned char *bytes = qf_reading_at(&reading, 8 * i, 8 * n);
        if (bytes)
            memcpy(values + i, bytes, 8 * n);
    }
    r->param = values;
    r->param_count = values ? reading.count : 0;
    qf_reading_close(&reading);
    return values ? QF_OK : qf_fail_memory(p->err);
}

static bool can_compare(qf_rnn_pair *r)
{
    const char *op = r->lstm ? "LSTM" : "GRU";
    int64_t hidden = qf_node_int(r->deploy, "hidden_size", 0);
    const qf_node *d = r->deploy;
    bool sound = d->input_count == (r->lstm ? 9u : 8u) && d->inputs[0] && d->inputs[1] &&
                 d->inputs[2] && d->inputs[3] && hidden > 0 && hidden < INT32_MAX;
    const Onnx__TensorProto *w = sound ? qf_subject_constant(d->inputs[1]) : NULL;
    r->rows = sound ? (uint64_t)hidden * (r->lstm ? 4 : 3) : 0;
    /* what hidden_size says is not to be believed without a weight of that size */
    const qf_payloads *payloads = &r->p->a->model.payloads;
    size_t index = w ? qf_tensor_payload(w) : SIZE_MAX;
    sound = sound && w && w->n_dims == 3 && (uint64_t)w->dims[1] == r->rows &&
            index < payloads->count && payloads->items[index].span.length >= r->rows / 2;
    if (!qf_node_is(r->fake, op))
        qf_subject_note(r->p->b, r->fake->name, "the node is %s; expected %s",
                        r->fake->proto->op_type ? r->fake->proto->op_type : "", op);
    return sound && qf_node_is(r->fake, op) && r->fake->input_count >= 6;
}

qf_status qf_pairing_rnn(qf_pairing *p, const qf_node *node, const qf_counterpart *c)
{
    qf_rnn_pair r = {.p = p,
                     .deploy = node,
                     .fake = c->node,
                     .lstm = qf_node_is(node, "BasicLSTMInplaceFillWindowCache")};
    if (!can_compare(&r)) {
        p->skipped = true;
        return QF_OK;
    }
    enum { X = 0, LENGTHS = 4, H = 5, C = 6 };
    qf_status status = prepare(&r);
    if (status == QF_OK)
        status = compare_activation(&r, 0, 0, X);
    if (status == QF_OK)
        status = compare_activation(&r, 1, 3, H);
    p->skipped |= !r.param_count;
    for (int i = 0; status == QF_OK && r.param_count && i < 2; i++)
        status = qf_compare_rnn_weight(&r, i);
    size_t bias = r.lstm ? 5 : 4;
    if (status == QF_OK)
        status = compare_bias(&r, node->inputs[bias], r.fake->inputs[3]);
    if (status != QF_OK)
        return status;
    if (r.lstm)
        compare_passed(&r, 4, C);
    compare_passed(&r, bias + 1, LENGTHS);
    return compare_attributes(&r);
}
