/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Layers of which the weight alone is quantized: MatMul and Gemm whose weight is a constant matrix.
 * The matrix becomes a job of its own, whatever number of nodes read it; the scales come from a
 * record, or the job finds them.
 */
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/half.h"
#include "base/spill.h"
#include "kernels.h"
#include "onnx/same.h"
#include "quant/constants.h"
#include "quant/plan.h"

typedef AMCTPytorchProto__SingleLayerRecord record_value;

enum {
    OPSET_PER_TENSOR = 10,
    OPSET_PER_CHANNEL = 13,
    OPSET_HALF_SCALES = 19, /* DequantizeLinear gives the dtype of its scale */
    OPSET_GROUPS = 21,
    OPSET_INT4 = 21,
};

enum { SMALL = 1024 }; /* bytes: smaller tensors stay inside, as in layout.c */

/* A layer that is looked at. */
typedef struct chooser {
    qf_plan *plan;
    const qf_ir *ir;
    const qf_node *node;
    size_t record; /* SIZE_MAX: scales are found */
    const char *key;
    const record_value *v;
    qf_probe probe;
    int bits;
    size_t axis;              /* of the output channels in the stored matrix */
    uint64_t channels, depth; /* output channels, and elements of one */
    uint64_t group;           /* 0: a whole channel */
    bool per_tensor;
    bool refused; /* a finding says why */
} chooser;

bool qf_plan_is_weight_only(const qf_plan *plan, const record_value *v)
{
    return plan->scheme.from_record && v->n_scale_w && !v->has_scale_d;
}

/* A finding: about the record, or, where there is none, about the node. */
static void QF_PRINTF(2, 3) refuse(chooser *c, const char *format, ...)
{
    char message[600];
    va_list args;
    va_start(args, format);
    vsnprintf(message, sizeof message, format, args);
    va_end(args);
    c->refused = true;
    if (c->record != SIZE_MAX)
        qf_plan_report(c->plan, QF_ERROR, c->record, c->key, "%s", message);
    else
        qf_diag_add(c->plan->diag, QF_ERROR,
                    (qf_where){.file = c->plan->model->files[0].path, .item = c->node->name}, "%s",
                    message);
}

/* ---- the matrix ---- */

/* Why the node's weight cannot be quantized by itself, or NULL. What keeps an activation from being
 * quantized is no reason here. */
static const char *find_matrix(chooser *c)
{
    qf_layer_probe(c->node, 0, &c->probe);
    const qf_probe *p = &c->probe;
    uint64_t count;
    if (p->op != QF_OP_MATMUL && p->op != QF_OP_GEMM)
        return "its weight is not that of a MatMul or Gemm";
    const Onnx__TensorProto *w = p->weight;
    size_t payload = w ? qf_tensor_payload(w) : SIZE_MAX;
    if (!w || !qf_dtype_is_float(w->data_type) || payload >= c->plan->payloads.count)
        return p->reason;
    const qf_payload *stored = &c->plan->payloads.items[payload];
    if (w->n_dims != 2)
        return "its weight does not have two dimensions";
    if (stored->kind != QF_PAYLOAD_SPAN)
        return "its weight was made of integers of the model";
    const char *why = qf_constant_check(w, stored, &count);
    if (why)
        return qf_arena_printf(&c->plan->arena, "its weight %s", why);
    return count ? NULL : "its weight is empty";
}

/* A Constant's tensor need not have a name, but its value does. */
static const char *tensor_name(const chooser *c)
{
    return qf_value_source(c->probe.weight_value)->name;
}

static void measure(chooser *c)
{
    const Onnx__TensorProto *w = c->probe.weight;
    bool trans_b = c->probe.op == QF_OP_GEMM && qf_node_int(c->node, "transB", 0) != 0;
    c->axis = c->probe.turned != trans_b ? 0 : 1;
    c->channels = (uint64_t)w->dims[c->axis];
    c->depth = (uint64_t)w->dims[1 - c->axis];
}

/* ---- what a record says ---- */

static int record_bits(chooser *c)
{
    const char *type = c->v->dst_type ? c->v->dst_type : c->v->wts_type;
    if (!type || strcmp(type, "INT8") == 0)
        return 8;
    if (strcmp(type, "INT4") != 0)
        refuse(c, "%s is '%s'; where the weight alone is quantized it must be INT4 or INT8",
               c->v->dst_type ? "dst_type" : "wts_type", type);
    return 4;
}

static void check_values(chooser *c)
{
    const record_value *v = c->v;
    for (size_t i = 0; i < v->n_scale_w; i++) {
        if (!(isnormal(v->scale_w[i]) && v->scale_w[i] > 0)) {
            refuse(c, "scale_w[%zu] is %.9g; a scale must be a positive, finite, normal float32", i,
                   (double)v->scale_w[i]);
            break;
        }
    }
    for (size_t i = 0; i < v->n_offset_w; i++) {
        if (v->offset_w[i]) {
            refuse(c, "offset_w[%zu] is %d; weight offsets must be 0", i, v->offset_w[i]);
            break;
        }
    }
    if (v->n_offset_w && v->n_offset_w != v->n_scale_w)
        refuse(c, "scale_w has %zu values and offset_w has %zu; they must have the same number",
               v->n_scale_w, v->n_offset_w);
    if (v->n_tensor_balance_factor || v->n_shift_bit)
        refuse(c, "%s means nothing where the weight alone is quantized; delete it",
               v->n_shift_bit ? "shift_bit" : "tensor_balance_factor");
}

static void read_record(chooser *c)
{
    uint64_t n = c->v->n_scale_w;
    c->bits = record_bits(c);
    check_values(c);
    c->per_tensor = n == 1;
    if (n == 1 || n == c->channels)
        return;
    uint64_t groups = n / c->channels; /* NOLINT(clang-analyzer-core.DivideZero): not empty */
    /* NOLINTNEXTLINE(clang-analyzer-core.DivideZero): n is not 0, so no groups means a remainder */
    if (n % c->channels || groups > c->depth || c->depth % groups) {
        refuse(c,
               "scale_w has %llu values; the layer takes 1, %llu (one for each output channel), or "
               "%llu times a number of groups that divides its %llu input channels",
               (unsigned long long)n, (unsigned long long)c->channels,
               (unsigned long long)c->channels, (unsigned long long)c->depth);
        return;
    }
    c->group = c->depth / groups;
}

/* ---- what the scheme says ---- */

static void read_scheme(chooser *c)
{
    c->bits = c->plan->scheme.bits;
    c->group = c->plan->scheme.group;
    if (c->group && c->depth % c->group)
        refuse(c,
               "its weight has %llu input channels, which groups of %llu do not divide; choose "
               "another group, or leave the layer out with --exclude",
               (unsigned long long)c->depth, (unsigned long long)c->group);
}

static void check_opset(chooser *c)
{
    int64_t opset = qf_ir_opset(c->ir), need = OPSET_PER_CHANNEL;
    const char *what = "a scale for each channel";
    if (c->per_tensor && c->bits == 8) {
        need = OPSET_PER_TENSOR;
        what = "int8 weights";
    } else if (c->bits == 4 || c->group) {
        need = c->bits == 4 ? OPSET_INT4 : OPSET_GROUPS;
        what = c->bits == 4 ? "int4 weights" : "a scale for each group";
    }
    if (opset >= need || c->plan->opset_refused)
        return;
    c->plan->opset_refused = true;
    refuse(c,
           "the model uses opset %lld, and DequantizeLinear has %s from opset %lld on; export it "
           "again with opset_version=%lld, or convert it with onnx.version_converter",
           (long long)opset, what, (long long)need, (long long)need);
}

/* ---- the job ---- */

static uint64_t groups_of(const chooser *c)
{
    return c->group ? c->depth / c->group : 1;
}

static uint64_t scales_of(const chooser *c)
{
    return c->per_tensor ? 1 : c->channels * groups_of(c);
}

/* Scales lie as DequantizeLinear has them: one for each channel, or in the matrix's own order of
 * channels and groups. */
static void index_scales(const chooser *c, qf_job *job)
{
    if (c->group)
        job->grouping = c->axis == 0 ? QF_GROUPED_ROWS : QF_GROUPED_COLUMNS;
    job->row_div = job->row_mul = job->row_mod = 1;
    if (c->axis == 0) {
        job->row_mul = groups_of(c);
        job->col_div = c->group;
        return;
    }
    job->row_div = c->group ? c->group : 1;
    job->row_mul = c->group ? c->channels : 0;
    job->col_div = 1;
}

static int32_t scale_type(const chooser *c)
{
    int32_t type = c->probe.weight->data_type;
    bool half = type == ONNX__TENSOR_PROTO__DATA_TYPE__FLOAT16 ||
                type == ONNX__TENSOR_PROTO__DATA_TYPE__BFLOAT16;
    return half && qf_ir_opset(c->ir) >= OPSET_HALF_SCALES ? type
                                                           : ONNX__TENSOR_PROTO__DATA_TYPE__FLOAT;
}

/* Position in the record's order, channel by channel, of what lies at `i` in DequantizeLinear's. */
static uint64_t record_index(const chooser *c, uint64_t i)
{
    if (c->axis == 0 || !c->group)
        return i;
    return i % c->channels * groups_of(c) + i / c->channels;
}

/* The record's scales as elements of `type`, and in *values as the floats that those are. NULL
 * where memory is exhausted. */
static void *store_scales(chooser *c, int32_t type, float **values)
{
    qf_arena *arena = &c->plan->arena;
    size_t n = (size_t)scales_of(c);
    float *floats = qf_arena_array(arena, n, sizeof *floats);
    uint16_t *halves = qf_arena_array(arena, n, sizeof *halves);
    *values = floats;
    if (!floats || !halves)
        return NULL;
    for (size_t i = 0; i < n; i++)
        floats[i] = c->v->scale_w[record_index(c, i)];
    if (type == ONNX__TENSOR_PROTO__DATA_TYPE__FLOAT)
        return floats;
    bool brain = type == ONNX__TENSOR_PROTO__DATA_TYPE__BFLOAT16;
    for (size_t i = 0; i < n; i++)
        halves[i] = brain ? qf_float_to_bfloat(floats[i]) : qf_float_to_half(floats[i]);
    const qf_kernels *k = qf_kernels_get();
    (brain ? k->load_bf16 : k->load_f16)((const unsigned char *)halves, n, floats);
    for (size_t i = 0; i < n && !c->refused; i++) {
        if (!(isfinite(floats[i]) && floats[i] > 0))
            refuse(c, "scale_w[%llu] is %.9g, which is %g in %s, the dtype of the weight",
                   (unsigned long long)record_index(c, i),
                   (double)c->v->scale_w[record_index(c, i)], (double)floats[i],
                   qf_dtype_name(type));
    }
    return halves;
}

/* The job finds its scales when it runs. */
static bool find_scales(const chooser *c, const qf_matrix *m)
{
    qf_found *found = qf_arena_alloc(&c->plan->arena, sizeof *found);
    if (!found)
        return false;
    *found = (qf_found){.steps = c->bits == 4 ? 7.5f : 127.5f,
                        .scale_type = m->scale_type,
                        .by_column = c->axis == 1,
                        .group = c->group ? c->group : c->depth};
    m->job->found = found;
    return true;
}

static bool new_job(const chooser *c, qf_matrix *m)
{
    qf_plan *plan = c->plan;
    const Onnx__TensorProto *w = c->probe.weight;
    qf_job *job = qf_arena_alloc(&plan->arena, sizeof *job);
    const char *tensor = qf_arena_strdup(&plan->arena, tensor_name(c));
    const char *layer = qf_arena_strdup(&plan->arena, c->node->name);
    if (!job || !tensor || !layer)
        return false;
    qf_format format = c->bits == 4 ? QF_FORMAT_INT4_FLAT : QF_FORMAT_INT8;
    *job = (qf_job){.file = plan->model->files[0].path,
                    .layer = layer,
                    .tensor = tensor,
                    .source = plan->payloads.items[qf_tensor_payload(w)].span,
                    .data_type = w->data_type,
                    .rows = (uint64_t)w->dims[0],
                    .cols = (uint64_t)w->dims[1],
                    .scale_count = m->scale_count,
                    .fold_div = 1,
                    .bits = c->bits,
                    .out = {{.format = format}, {.format = format}}};
    index_scales(c, job);
    m->job = job;
    return true;
}

/* ---- entering it ---- */

static void shape_matrix(const chooser *c, qf_matrix *m)
{
    const Onnx__TensorProto *w = c->probe.weight;
    memcpy(m->dims, w->dims, sizeof m->dims);
    m->scale_count = (size_t)scales_of(c);
    m->group = c->group;
    m->axis = (int64_t)(c->group ? 1 - c->axis : c->axis);
    m->scale_rank = c->per_tensor ? 0 : c->group ? 2 : 1;
    m->scale_dims[0] = (int64_t)c->channels;
    if (c->group) {
        m->scale_dims[c->axis] = (int64_t)c->channels;
        m->scale_dims[1 - c->axis] = (int64_t)groups_of(c);
    }
}

static bool enter_payloads(const chooser *c, qf_matrix *m, const void *scales)
{
    qf_plan *plan = c->plan;
    const qf_payload source = plan->payloads.items[qf_tensor_payload(c->probe.weight)];
    qf_payload weight = {.kind = QF_PAYLOAD_JOB,
                         .field = QF_FIELD_RAW_DATA,
                         .span = source.span,
                         .raw_length = qf_job_bytes(m->job, m->job->out[QF_DEPLOY].format),
                         .job = m->job,
                         .was_external = source.was_external};
    qf_payload scale = {.kind = scales ? QF_PAYLOAD_BYTES : QF_PAYLOAD_SCALES,
                        .field = QF_FIELD_RAW_DATA,
                        .bytes = scales,
                        .raw_length = qf_raw_bytes(m->scale_type, m->scale_count),
                        .job = m->job};
    /* those of groups can be a large part of a model whose weights were kept outside */
    scale.was_external = source.was_external && scale.raw_length >= SMALL;
    m->payload = qf_payloads_add(&plan->payloads, weight);
    m->scale_payload = qf_payloads_add(&plan->payloads, scale);
    return m->payload != SIZE_MAX && m->scale_payload != SIZE_MAX;
}

static bool enter_job(qf_plan *plan, qf_job *job)
{
    if (!qf_table_grow((void **)&plan->jobs, &plan->job_cap, plan->job_count + 1,
                       sizeof *plan->jobs))
        return false;
    plan->jobs[plan->job_count++] = job;
    return true;
}

/* With dedup: a matrix of the same bytes that comes to the same integers and scales, in a graph
 * whose tensors this one's nodes can read. */
static bool find_equal(const chooser *c, qf_matrix *m)
{
    qf_plan *plan = c->plan;
    const qf_file *sources = plan->model->files;
    if (!plan->options.dedup)
        return true;
    char *key = qf_same_key(&plan->arena, &m->job->source, m->job->data_type, sources);
    if (!key)
        return false;
    m->previous = (size_t)(uintptr_t)qf_strmap_get(&plan->matrix_of_bytes, key);
    for (size_t at = m->previous; at && !m->equal; at = plan->matrices[at - 1].previous) {
        const qf_matrix *other = &plan->matrices[at - 1];
        bool visible = other->graph == m->graph || other->graph == 0;
        if (visible && !other->equal && qf_same_work(m->job, other->job) &&
            qf_same_bytes(&m->job->source, &other->job->source, sources))
            m->equal = at;
    }
    return qf_strmap_set(&plan->matrix_of_bytes, key, (void *)(plan->matrix_count + 1));
}

/* Adds the matrix to the plan's tables, and its job to the list of work. */
static bool enter_matrix(const chooser *c, qf_matrix *m, const void *scales,
                         const char *payload_key)
{
    qf_plan *plan = c->plan;
    const char *key = qf_arena_strdup(&plan->arena, payload_key);
    if (!key || !find_equal(c, m) ||
        (!m->equal && (!enter_payloads(c, m, scales) || !enter_job(plan, m->job))) ||
        !qf_table_grow((void **)&plan->matrices, &plan->matrix_cap, plan->matrix_count + 1,
                       sizeof *plan->matrices))
        return false;
    plan->matrices[plan->matrix_count++] = *m;
    return qf_strmap_set(&plan->matrix_of_payload, key, (void *)plan->matrix_count);
}

static bool make_matrix(chooser *c, const char *payload_key)
{
    qf_matrix m = {.node_id = c->node->id,
                   .record = c->record,
                   .float_type = c->probe.weight->data_type,
                   .scale_type = scale_type(c),
                   .graph = qf_value_source(c->probe.weight_value)->graph->index};
    shape_matrix(c, &m);
    if (!new_job(c, &m))
        return false;
    if (c->record == SIZE_MAX)
        return find_scales(c, &m) && enter_matrix(c, &m, NULL, payload_key);
    float *values;
    const void *scales = store_scales(c, m.scale_type, &values);
    m.job->scales = values;
    return scales && (c->refused || enter_matrix(c, &m, scales, payload_key));
}

/* A matrix that two layers read is quantized once, so their records must agree. */
static void check_agreement(chooser *c, const qf_matrix *m)
{
    const record_value *v = c->v;
    if (c->record == SIZE_MAX || m->record == c->record)
        return;
    const record_value *first = qf_record_message(c->plan->record)->record[m->record]->value;
    if (first->n_scale_w != v->n_scale_w || m->job->bits != c->bits ||
        memcmp(first->scale_w, v->scale_w, v->n_scale_w * sizeof *v->scale_w) != 0)
        refuse(c,
               "its weight '%s' is that of layer '%s' too, and their records differ; a matrix that "
               "is quantized by itself has one set of scales",
               m->job->tensor, m->job->layer);
}

static bool enter_layer(const chooser *c, size_t matrix)
{
    qf_plan *plan = c->plan;
    const char *name = qf_arena_strdup(&plan->arena, c->node->name);
    if (!name || !qf_table_grow((void **)&plan->float_layers, &plan->float_layer_cap,
                                plan->float_layer_count + 1, sizeof *plan->float_layers))
        return false;
    plan->float_layers[plan->float_layer_count++] =
        (qf_float_layer){name, c->key ? c->key : name, c->probe.op, matrix};
    return true;
}

static bool take(chooser *c)
{
    qf_plan *plan = c->plan;
    char key[32];
    snprintf(key, sizeof key, "%zu", qf_tensor_payload(c->probe.weight));
    measure(c);
    if (c->record != SIZE_MAX)
        read_record(c);
    else
        read_scheme(c);
    check_opset(c);
    if (c->refused || plan->opset_refused)
        return true;
    size_t known = (size_t)(uintptr_t)qf_strmap_get(&plan->matrix_of_payload, key);
    if (known)
        check_agreement(c, &plan->matrices[known - 1]);
    else if (!make_matrix(c, key))
        return false;
    return c->refused || enter_layer(c, known ? known - 1 : plan->matrix_count - 1);
}

/* Reads the node's record, if it has one that means its weight alone. */
static void find_record(chooser *c)
{
    const size_t *record = qf_strmap_get(&c->plan->matrix_record_of_node, c->node->name);
    c->record = record ? *record : SIZE_MAX;
    if (!record)
        return;
    const AMCTPytorchProto__MapFiledEntry *entry =
        qf_record_message(c->plan->record)->record[*record];
    c->key = entry->key;
    c->v = entry->value;
}

qf_status qf_plan_weight_only(qf_plan *plan, const qf_ir *ir, const qf_node *node, bool *taken,
                              const char **why, qf_error *err)
{
    chooser c = {.plan = plan, .ir = ir, .node = node};
    find_record(&c);
    *taken = false;
    *why = NULL;
    if (!plan->scheme.on || (plan->scheme.from_record && !c.v))
        return QF_OK;
    *why = find_matrix(&c);
    if (*why && c.v) {
        refuse(
            &c,
            "the record has scale_w and no scale_d, so that the weight alone is to be quantized; "
            "that can be a MatMul or Gemm with a constant matrix, but %s",
            *why);
    } else if (!*why && !qf_scheme_chooses(&plan->scheme, tensor_name(&c), node->name)) {
        *why = "--include and --exclude do not choose it";
    }
    if (*why) {
        *why = qf_arena_strdup(&plan->arena, *why); /* it may lie in the probe */
        return *why ? QF_OK : qf_fail_memory(err);
    }
    *taken = true;
    return take(&c) ? QF_OK : qf_fail_memory(err);
}
