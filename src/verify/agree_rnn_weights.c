/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Weights of a recurrent layer. The fake_quant model has them as floats: integers times
 * a scale that the deploy model knows only as a product with the scale of the activations. So a
 * scale is looked for that makes all floats of a row of its integers, bit for bit, and whose
 * product is the deploy model's (facts 4.6, 5.6).
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "verify/agree_rnn.h"
#include "verify/compare.h"
#include "verify/structure.h"

#define FLOAT_TYPE ONNX__TENSOR_PROTO__DATA_TYPE__FLOAT

typedef struct weight_pair {
    qf_side a, b;
    qf_reading ra, rb;
    uint64_t cols; /* of b */
    bool packed;
    int8_t *q;
    float *f;
} weight_pair;

enum { CANDIDATES = 9, CHUNK = QF_READING_MOST / 8 };

/* Elements [from, from + n) of a row, n at most CHUNK, `from` even. */
static bool load(weight_pair *w, uint64_t row, uint64_t from, size_t n)
{
    uint64_t at = row * w->cols + from;
    uint64_t byte = w->packed ? at / 2 : at;
    size_t length = w->packed ? (n + 1) / 2 : n;
    const unsigned char *x = qf_reading_at(&w->ra, byte, length);
    const unsigned char *y = qf_reading_at(&w->rb, 4 * at, 4 * n);
    if (!x || !y)
        return false;
    memcpy(w->f, y, 4 * n);
    for (size_t i = 0; i < n; i++) {
        int half = w->packed ? ((x[i / 2] >> (i % 2 * 4) & 15) ^ 8) - 8 : 0;
        w->q[i] = w->packed ? (int8_t)half : (int8_t)x[i];
    }
    qf_reading_forget(&w->ra, byte, length);
    qf_reading_forget(&w->rb, 4 * at, 4 * n);
    return true;
}

/* Scales near the quotient of the row's largest element, which rounds least. */
static int candidates(weight_pair *w, uint64_t row, float out[CANDIDATES])
{
    int largest = 0;
    float value = 0;
    for (uint64_t from = 0; from < w->cols; from += CHUNK) {
        size_t n = (size_t)(w->cols - from < CHUNK ? w->cols - from : CHUNK);
        if (!load(w, row, from, n))
            return -1;
        for (size_t i = 0; i < n; i++) {
            if (abs(w->q[i]) > abs(largest)) {
                largest = w->q[i];
                value = w->f[i];
            }
        }
    }
    if (!largest)
        return 0;
    float middle = (float)((double)value / largest);
    for (int i = 0; i < CANDIDATES / 2; i++)
        middle = nextafterf(middle, 0);
    for (int i = 0; i < CANDIDATES; i++) {
        out[i] = middle;
        middle = nextafterf(middle, INFINITY);
    }
    return CANDIDATES;
}

/* Which candidates make all elements of a row; *odd is the element that the last one fails at. */
static bool sift(weight_pair *w, uint64_t row, float *scales, int *count, uint64_t *odd)
{
    for (uint64_t from = 0; from < w->cols && *count; from += CHUNK) {
        size_t n = (size_t)(w->cols - from < CHUNK ? w->cols - from : CHUNK);
        int kept = 0;
        if (!load(w, row, from, n))
            return false;
        *odd = from;
        for (int c = 0; c < *count; c++) {
            size_t i = 0;
            while (i < n) {
                float x = (float)w->q[i] * scales[c];
                if (memcmp(&x, &w->f[i], sizeof x) != 0)
                    break;
                i++;
            }
            if (i == n)
                scales[kept++] = scales[c];
            *odd = from + i > *odd ? from + i : *odd;
        }
        *count = kept;
    }
    return true;
}

/* Whether the deploy model's scale is this product, truncated or not (FORCE_FP16_QUANT). */
static bool is_product(uint64_t packed, float scale, float activation)
{
    float product = scale * activation;
    uint32_t bits, wanted = (uint32_t)packed;
    memcpy(&bits, &product, sizeof bits);
    return bits == wanted || (bits & 0xFFFFE000u) == wanted;
}

/* How many of the packed scales are W's. Each weight has one for each row, or one for each gate; if
 * there are as many as one of each needs, W is tried both ways. */
static uint64_t first_count(const qf_rnn_pair *r)
{
    uint64_t gates = r->lstm ? 4 : 3;
    bool mixed = r->param_count == gates + r->rows;
    return !mixed ? r->param_count / 2 : r->per_row ? r->rows : gates;
}

static uint64_t packed_of(const qf_rnn_pair *r, int which, uint64_t row)
{
    uint64_t n = r->param_count, first = first_count(r);
    uint64_t count = which ? n - first : first, begin = which ? first : 0;
    return count && r->rows ? r->param[begin + row * count / r->rows] : 0;
}

static bool check_row(qf_rnn_pair *r, weight_pair *w, int which, uint64_t row, bool *good)
{
    float scales[CANDIDATES];
    uint64_t odd = 0;
    int count = candidates(w, row, scales);
    if (count <= 0)
        return count == 0;
    if (!sift(w, row, scales, &count, &odd))
        return false;
    if (!count) {
        *good = false;
        qf_subject_note(w->b.subject, qf_label(w->b.subject, w->b.tensor),
                        "row %llu is not the integers of the %s times one scale; element %llu does "
                        "not fit the others (or it is they that are damaged)",
                        (unsigned long long)row, w->a.subject->role,
                        (unsigned long long)(row * w->cols + odd));
        return true;
    }
    for (int c = 0; c < count; c++) {
        bool known = is_product(packed_of(r, which, row), scales[c], r->scales[which]);
        if (!known && !which && !r->per_row) {
            r->per_row = true;
            known = is_product(packed_of(r, which, row), scales[c], r->scales[which]);
            r->per_row = known;
        }
        if (known) {
            r->found[which][row] = scales[c];
            return true;
        }
    }
    *good = false;
    qf_subject_note(w->b.subject, qf_label(w->b.subject, w->b.tensor),
                    "the scale of row %llu is %.9g, which times %.9g is not the scale that the "
                    "%s's parameter has for it (0x%08x)",
                    (unsigned long long)row, (double)scales[0], (double)r->scales[which],
                    w->a.subject->role, (unsigned)(uint32_t)packed_of(r, which, row));
    return true;
}

static qf_status compare_scaled(qf_rnn_pair *r, weight_pair *w, int which)
{
    bool good = true;
    w->q = malloc(CHUNK);
    w->f = malloc(CHUNK * sizeof *w->f);
    bool memory = w->q && w->f;
    for (uint64_t row = 0; memory && good && row < r->rows; row++)
        memory = check_row(r, w, which, row, &good);
    free(w->q);
    free(w->f);
    return memory ? QF_OK : qf_fail_memory(r->p->err);
}

static qf_status open_and_compare(qf_rnn_pair *r, weight_pair *w, int which)
{
    const char *why, *other;
    const Onnx__TensorProto *a = w->a.tensor, *b = w->b.tensor;
    qf_status status = qf_reading_open(w->a.subject, a, &w->ra, &why, r->p->err);
    r->p->skipped |= why != NULL;
    if (status != QF_OK || why)
        return status;
    status = qf_reading_open(w->b.subject, b, &w->rb, &other, r->p->err);
    r->p->skipped |= other != NULL;
    if (status == QF_OK && !other) {
        uint64_t outer, pairs, inner;
        w->packed = qf_is_packed(a, b, &outer, &pairs, &inner);
        bool plain =
            w->ra.count == w->rb.count && a->data_type == ONNX__TENSOR_PROTO__DATA_TYPE__INT8;
        w->packed |= a->data_type == QF_DTYPE_INT4 && w->ra.count == w->rb.count;
        bool fits = b->n_dims == 3 && b->data_type == FLOAT_TYPE && (w->packed || plain) &&
                    (uint64_t)b->dims[1] == r->rows && w->rb.count % 2 * w->packed == 0;
        w->cols = fits ? (uint64_t)b->dims[2] : 0;
        r->p->skipped |= !fits;
        if (!fits)
            qf_subject_note(w->b.subject, qf_label(w->b.subject, b),
                            "dtype or dims do not belong to the weight of %s in the %s",
                            r->deploy->name, w->a.subject->role);
        else
            status = compare_scaled(r, w, which);
        qf_reading_close(&w->rb);
    }
    qf_reading_close(&w->ra);
    return status;
}

/* int8 weights, a Cast, and a Mul by the scale of each row. */
static qf_status compare_compact(qf_rnn_pair *r, const qf_value *va, qf_node *mul, int which)
{
    qf_pairing *p = r->p;
    const Onnx__TensorProto *factor;
    qf_node *constant;
    const float *scales;
    uint64_t count;
    qf_value *in = qf_mul_operand(mul, &factor, &constant);
    qf_node *cast = in ? in->producer : NULL;
    if (!cast || !qf_node_is(cast, "Cast") || cast->input_count != 1 || !cast->inputs[0] ||
        !cast->inputs[0]->init || qf_node_int(cast, "to", 0) != FLOAT_TYPE) {
        qf_subject_note(p->b, mul->name, "expected a Mul of int8 weights behind a Cast to float32");
        p->skipped = true;
        return QF_OK;
    }
    qf_pairing_take(p, mul);
    qf_pairing_take(p, cast);
    qf_pairing_take(p, constant);
    qf_status status =
        qf_compare_tensors((qf_side){p->a, va->init}, (qf_side){p->b, cast->inputs[0]->init},
                           r->deploy->name, &p->skipped, p->err);
    if (status == QF_OK)
        status = qf_reading_floats(p->b, factor, r->rows + 1, &scales, &count, p->err);
    if (status != QF_OK)
        return status;
    bool shaped = factor->n_dims == 3 && factor->dims[0] == 1 && factor->dims[2] == 1;
    if (!scales || count != r->rows || !shaped) {
        p->skipped = true;
        qf_subject_note(p->b, mul->name, "its scales do not have dims [1, %llu, 1]",
                        (unsigned long long)r->rows);
        return QF_OK;
    }
    for (uint64_t row = 0; row < r->rows; row++) {
        if (!is_product(packed_of(r, which, row), scales[row], r->scales[which])) {
            qf_subject_note(p->b, mul->name,
                            "scale %llu is %.9g, which times %.9g is not the scale that the %s's "
                            "parameter has for it (0x%08x)",
                            (unsigned long long)row, (double)scales[row], (double)r->scales[which],
                            p->a->role, (unsigned)(uint32_t)packed_of(r, which, row));
            break;
        }
        r->found[which][row] = scales[row];
    }
    return QF_OK;
}

qf_status qf_compare_rnn_weight(qf_rnn_pair *r, int which)
{
    size_t input = 1 + (size_t)which;
    const qf_value *va = r->deploy->inputs[input];
    qf_value *vb = input < r->fake->input_count ? r->fake->inputs[input] : NULL;
    if (!va->init || !vb) {
        r->p->skipped = true;
        return QF_OK; /* told of already */
    }
    if (vb->producer && qf_node_is(vb->producer, "Mul"))
        return compare_compact(r, va, vb->producer, which);
    if (!vb->init || strcmp(va->name, vb->name) != 0) {
        qf_subject_note(r->p->b, r->fake->name, "input %zu is '%s', but '%s' in the %s", input,
                        vb->name, va->name, r->p->a->role);
        r->p->skipped = true;
        return QF_OK;
    }
    weight_pair w = {.a = {r->p->a, va->init}, .b = {r->p->b, vb->init}};
    return open_and_compare(r, &w, which);
}
