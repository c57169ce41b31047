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

/* All take a name that cannot clash first, so that names can be exchanged. */
static bool rename_all(namer *n, int s, const char *const *names, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        const char *name = qf_arena_printf(n->ir->arena, "quantfold.renaming.%s.%zu", side[s], i);
        if (!name || !qf_value_rename(n->ir, n->values[s][i], name))
            return false;
    }
    for (size_t i = 0; i < count; i++) {
        qf_value *holder = qf_strmap_get(&n->ir->value_names, names[i]);
        bool is_io = false;
        for (int t = 0; holder && t < 2; t++) {
            for (size_t j = 0; j < n->counts[t]; j++)
                is_io |= n->values[t][j] == holder;
        }
        if (is_io) {
            refuse(n, option[s], "'%s' is already the name of another graph input or output",
                   names[i]);
            continue;
        }
        /* an inner tensor of that name gives way */
        if (holder) {
            const char *other = qf_arena_printf(n->ir->arena, "%s_inner", names[i]);
            if (!other || !qf_value_rename(n->ir, holder, other))
                return false;
        }
        if (!qf_value_rename(n->ir, n->values[s][i], names[i]))
            return false;
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
    if (check_names(&n, 0, io->input_names, io->input_name_count) &&
        check_names(&n, 1, io->output_names, io->output_name_count) &&
        (!rename_all(&n, 0, io->input_names, io->input_name_count) ||
         !rename_all(&n, 1, io->output_names, io->output_name_count)))
        return qf_fail_memory(err);
    for (size_t i = 0; status == QF_OK && i < io->dynamic_axis_count; i++)
        status = apply_axis(&n, io, i);
    return status;
}
