/* SPDX-License-Identifier: Apache-2.0 */
/* Renaming graph inputs and outputs, and dynamic axes. Every violation names its entry. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "passes/passes.h"

typedef struct namer {
    qf_plan *plan;
    qf_ir *ir;
    qf_error *err;
    Onnx__ValueInfoProto **infos[2]; /* inputs that are not initializers; outputs */
    qf_value **values[2];
    size_t counts[2];
} namer;

static const char *const side[2] = {"input", "output"};
static const char *const option[2] = {"input_names", "output_names"};

static void refuse(namer *n, const char *item, const char *format, ...) QF_PRINTF(3, 4);
static void refuse(namer *n, const char *item, const char *format, ...)
{
    char message[400];
    va_list args;
    va_start(args, format);
    vsnprintf(message, sizeof message, format, args);
    va_end(args);
    qf_diag_add(n->plan->diag, QF_ERROR, (qf_where){.item = item}, "%s", message);
}

static qf_status collect(namer *n)
{
    const qf_graph *g = n->ir->graphs[0];
    size_t most = g->proto->n_input + g->proto->n_output + 1;
    for (int s = 0; s < 2; s++) {
        n->infos[s] = qf_arena_array(n->ir->arena, most, sizeof *n->infos[s]);
        n->values[s] = qf_arena_array(n->ir->arena, most, sizeof *n->values[s]);
        if (!n->infos[s] || !n->values[s])
            return qf_fail_memory(n->err);
    }
    for (size_t i = 0; i < g->proto->n_input; i++) {
        qf_value *value = qf_strmap_get(&g->values, g->proto->input[i]->name);
        if (value && value->input) {
            n->infos[0][n->counts[0]] = value->input;
            n->values[0][n->counts[0]++] = value;
        }
    }
    for (size_t i = 0; i < g->proto->n_output; i++) {
        n->infos[1][n->counts[1]] = g->proto->output[i];
        n->values[1][n->counts[1]++] = qf_graph_find(g, g->proto->output[i]->name);
    }
    return QF_OK;
}

static bool check_names(namer *n, int s, const char *const *names, size_t count)
{
    bool good = true;
    if (count > n->counts[s]) {
        refuse(n, option[s], "%zu names are given, but the model has %zu %ss", count, n->counts[s],
               side[s]);
        return false;
    }
    for (size_t i = 0; i < count; i++) {
        if (!names[i] || !*names[i]) {
            refuse(n, option[s], "name %zu is empty", i + 1);
            good = false;
        }
        for (size_t j = 0; good && j < i; j++) {
            if (strcmp(names[i], names[j]) == 0) {
                refuse(n, option[s], "'%s' is given twice", names[i]);
                good = false;
            }
        }
    }
    return good;
}

/* An output that is also an input, or stands twice in the list, gets a tensor of its own. */
static bool split_output(namer *n, size_t index)
{
    qf_value *value = n->values[1][index];
    qf_graph *g = n->ir->graphs[0];
    if (!value->input && value->result_count < 2)
        return true;
    qf_node *identity = qf_ir_add_node(n->ir, g, "Identity", "output_identity", NULL);
    qf_value *own = identity ? qf_node_add_output(n->ir, identity, "output_identity") : NULL;
    if (!own || !qf_node_add_input(n->ir, identity, value))
        return false;
    own->results = qf_arena_array(n->ir->arena, 1, sizeof *own->results);
    if (!own->results)
        return false;
    own->results[0] = n->infos[1][index];
    own->result_count = own->result_cap = 1;
    size_t kept = 0;
    for (size_t i = 0; i < value->result_count; i++) {
        if (value->results[i] != n->infos[1][index])
            value->results[kept++] = value->results[i];
    }
    value->result_count = kept;
    n->values[1][index] = own;
    return true;
}

static bool is_io(const namer *n, const qf_value *value)
{
    for (int s = 0; s < 2; s++) {
        for (size_t i = 0; i < n->counts[s]; i++) {
            if (n->values[s][i] == value)
                return true;
        }
    }
    return false;
}

/* Tensors inside, of any graph, that have the name give way. */
static bool free_name(namer *n, const char *name)
{
    for (size_t g = 0; g < n->ir->graph_count; g++) {
        for (qf_value *v = n->ir->graphs[g]->first_value; v; v = v->next) {
            if (strcmp(v->name, name) != 0 || v->dropped || is_io(n, v))
                continue;
            const char *other = qf_arena_printf(n->ir->arena, "%s_inner", name);
            if (!other || !qf_value_rename(n->ir, v, other))
                return false;
        }
    }
    return true;
}

static bool rename_one(namer *n, int s, size_t index, const char *name)
{
    if (!free_name(n, name))
        return false;
    qf_value *holder = qf_strmap_get(&n->ir->graphs[0]->values, name);
    if (holder && holder != n->values[s][index]) {
        refuse(n, option[s], "'%s' is already the name of another graph input or output", name);
        return true;
    }
    return qf_value_rename(n->ir, n->values[s][index], name);
}

/* The wanted name of input or output `index`: the new one if there is one, else its present one. */
static const char *wanted(const namer *n, int s, size_t index, const qf_io_spec *io)
{
    const char *const *names = s ? io->output_names : io->input_names;
    size_t count = s ? io->output_name_count : io->input_name_count;
    return index < count ? names[index] : n->infos[s][index]->name;
}

/* All take a name that cannot clash first, so that names can be exchanged. */
static bool rename_all(namer *n, const qf_io_spec *io)
{
    for (size_t i = 0; i < n->counts[1]; i++) {
        if (!split_output(n, i))
            return false;
    }
    for (int s = 0; s < 2; s++) {
        for (size_t i = 0; i < n->counts[s]; i++) {
            const char *name = qf_arena_printf(n->ir->arena, "quantfold.%s.%zu", side[s], i);
            if (!name || !qf_value_rename(n->ir, n->values[s][i], name))
                return false;
        }
    }
    for (int s = 0; s < 2; s++) {
        for (size_t i = 0; i < n->counts[s]; i++) {
            if (!rename_one(n, s, i, wanted(n, s, i, io)))
                return false;
        }
    }
    return true;
}

/* ---- dynamic axes ---- */

static Onnx__TensorShapeProto *shape_of(const Onnx__ValueInfoProto *info)
{
    if (!info->type || info->type->value_case != ONNX__TYPE_PROTO__VALUE_TENSOR_TYPE)
        return NULL;
    return info->type->tensor_type->shape;
}

static bool set_symbolic(namer *n, Onnx__TensorShapeProto__Dimension *dim, const char *label)
{
    dim->value_case = ONNX__TENSOR_SHAPE_PROTO__DIMENSION__VALUE_DIM_PARAM;
    dim->dim_param = qf_arena_strdup(n->ir->arena, label);
    return dim->dim_param != NULL;
}

/* Position of entry `index` among those of its tensor, from 1: what the PyTorch exporter counts. */
static size_t position(const qf_io_spec *io, size_t index)
{
    size_t p = 1;
    for (size_t i = 0; i < index; i++)
        p += strcmp(io->dynamic_axes[i].tensor, io->dynamic_axes[index].tensor) == 0;
    return p;
}

static qf_status apply_axis(namer *n, const qf_io_spec *io, size_t index)
{
    const qf_dynamic_axis *axis = &io->dynamic_axes[index];
    bool found = false;
    if (axis->axis < 0) {
        refuse(n, "dynamic_axes", "'%s': axis %lld is negative", axis->tensor,
               (long long)axis->axis);
        return QF_OK;
    }
    const char *label = axis->label;
    if (label && !*label) {
        refuse(n, "dynamic_axes", "'%s': the name of axis %lld is empty", axis->tensor,
               (long long)axis->axis);
        return QF_OK;
    }
    if (!label)
        label =
            qf_arena_printf(n->ir->arena, "%s_dynamic_axes_%zu", axis->tensor, position(io, index));
    if (!label)
        return qf_fail_memory(n->err);
    for (int s = 0; s < 2; s++) {
        for (size_t i = 0; i < n->counts[s]; i++) {
            if (strcmp(n->values[s][i]->name, axis->tensor) != 0)
                continue;
            Onnx__TensorShapeProto *shape = shape_of(n->infos[s][i]);
            found = true;
            if (!shape)
                refuse(n, "dynamic_axes",
                       "'%s' has no shape in the model, so axis %lld means "
                       "nothing",
                       axis->tensor, (long long)axis->axis);
            else if ((uint64_t)axis->axis >= shape->n_dim)
                refuse(n, "dynamic_axes",
                       "'%s': axis %lld is out of range; the tensor has %zu "
                       "dimensions",
                       axis->tensor, (long long)axis->axis, shape->n_dim);
            else if (!set_symbolic(n, shape->dim[axis->axis], label))
                return qf_fail_memory(n->err);
        }
    }
    if (!found)
        refuse(n, "dynamic_axes", "'%s' is not a graph input or output", axis->tensor);
    return QF_OK;
}

qf_status qf_pass_name_io(qf_plan *plan, const qf_io_spec *io, qf_ir *ir, qf_error *err)
{
    namer n = {.plan = plan, .ir = ir, .err = err};
    qf_status status = collect(&n);
    if (status != QF_OK)
        return status;
    bool good = check_names(&n, 0, io->input_names, io->input_name_count);
    good &= check_names(&n, 1, io->output_names, io->output_name_count);
    if (good && (io->input_name_count || io->output_name_count) && !rename_all(&n, io))
        return qf_fail_memory(err);
    for (size_t i = 0; status == QF_OK && i < io->dynamic_axis_count; i++)
        status = apply_axis(&n, io, i);
    return status;
}
