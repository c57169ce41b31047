/* SPDX-License-Identifier: Apache-2.0 */
/* What the checks of operators share: attributes, scales, offsets, the packed parameter. */
#include <stdio.h>
#include <string.h>

#include "verify/structure.h"

static const char *const type_names[] = {"undefined", "FLOAT",  "INT",  "STRING", "TENSOR",
                                         "GRAPH",     "FLOATS", "INTS", "STRINGS"};

static const char *type_name(int type)
{
    bool known = type >= 0 && (size_t)type < sizeof type_names / sizeof *type_names;
    return known ? type_names[type] : "unknown";
}

bool qf_check_attributes(qf_subject *s, const qf_node *node, const qf_attribute_rule *rules,
                         size_t count)
{
    const char *name = qf_subject_node_name(node);
    bool good = true;
    for (size_t i = 0; i < count; i++) {
        const Onnx__AttributeProto *a = qf_node_attribute(node, rules[i].name);
        if (a && (int)a->type == rules[i].type)
            continue;
        good = false;
        if (!a)
            qf_subject_note(s, name, "%s needs an attribute '%s', which is missing",
                            node->proto->op_type, rules[i].name);
        else
            qf_subject_note(s, name, "attribute '%s' of %s is of type %s; expected %s",
                            rules[i].name, node->proto->op_type, type_name((int)a->type),
                            type_name(rules[i].type));
    }
    for (size_t i = 0; i < node->proto->n_attribute; i++) {
        const char *given = node->proto->attribute[i]->name;
        bool known = false;
        for (size_t j = 0; j < count; j++)
            known |= given && strcmp(given, rules[j].name) == 0;
        if (!known)
            qf_subject_note(s, name, "attribute '%s' is none of %s's", given ? given : "",
                            node->proto->op_type);
        good &= known;
    }
    if (good && node->proto->n_attribute != count) {
        qf_subject_note(s, name, "an attribute of %s is there twice", node->proto->op_type);
        good = false;
    }
    return good;
}

const char *qf_dims_text(const Onnx__TensorProto *tensor, char buffer[128])
{
    size_t at = 0, room = 128;
    at += (size_t)snprintf(buffer, room, "[");
    for (size_t i = 0; i < tensor->n_dims && at + 24 < room; i++)
        at += (size_t)snprintf(buffer + at, room - at, "%s%lld", i ? ", " : "",
                               (long long)tensor->dims[i]);
    snprintf(buffer + at, room - at, "]");
    return buffer;
}

/* ---- the packed parameter ---- */

static float low_half(uint64_t packed)
{
    uint32_t bits = (uint32_t)packed;
    float scale;
    memcpy(&scale, &bits, sizeof scale);
    return scale;
}

static void check_values(qf_subject *s, const char *name, const unsigned char *at, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++) {
        uint64_t packed;
        memcpy(&packed, at + 8 * i, sizeof packed);
        if (packed >> 32) {
            qf_subject_note(s, name,
                            "element %llu is 0x%016llx: the high 32 bits (offset_w, shift) must "
                            "be 0",
                            (unsigned long long)i, (unsigned long long)packed);
            return;
        }
        if (!qf_scale_fits(low_half(packed))) {
            qf_subject_note(s, name,
                            "element %llu holds the scale %g; a scale must be finite and above 0",
                            (unsigned long long)i, (double)low_half(packed));
            return;
        }
    }
}

qf_status qf_check_parameter(qf_subject *s, const qf_node *node, size_t input,
                             const uint64_t counts[3], qf_error *err)
{
    const qf_value *value = input < node->input_count ? node->inputs[input] : NULL;
    const Onnx__TensorProto *t = value ? value->init : NULL;
    const char *name = qf_subject_node_name(node);
    char dims[128];
    qf_reading r;
    const char *why;
    if (!t) {
        qf_subject_note(s, name, "input %zu must be the packed dequant scales, an initializer",
                        input);
        return QF_OK;
    }
    if (t->data_type != ONNX__TENSOR_PROTO__DATA_TYPE__UINT64 || t->n_dims != 1) {
        qf_subject_note(s, qf_label(s, t),
                        "the dequant parameter is %s %s; expected uint64 with one dimension",
                        qf_dtype_name(t->data_type), qf_dims_text(t, dims));
        return QF_OK;
    }
    qf_status status = qf_reading_open(s, t, &r, &why, err);
    if (status != QF_OK || why)
        return status; /* told of already */
    bool fits = !counts[0] || r.count == counts[0] || r.count == counts[1] || r.count == counts[2];
    if (!fits)
        qf_subject_note(s, qf_label(s, t),
                        "the dequant parameter has %llu values; %s has %llu or %llu",
                        (unsigned long long)r.count, name, (unsigned long long)counts[0],
                        (unsigned long long)counts[1]);
    enum { MOST = QF_READING_MOST / 8 };
    for (uint64_t at = 0; at < r.count; at += MOST) {
        uint64_t n = r.count - at < MOST ? r.count - at : MOST;
        const unsigned char *bytes = qf_reading_at(&r, 8 * at, (size_t)(8 * n));
        if (!bytes) {
            status = qf_fail_memory(err);
            break;
        }
        check_values(s, qf_label(s, t), bytes, n);
    }
    qf_reading_close(&r);
    return status;
}
