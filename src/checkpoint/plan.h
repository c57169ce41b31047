/* SPDX-License-Identifier: Apache-2.0 */
/* The plan of a checkpoint: which weights are quantized, what stands in each output shard, and the
 * texts that describe them. */
#ifndef QF_CHECKPOINT_PLAN_H
#define QF_CHECKPOINT_PLAN_H

#include "checkpoint/folder.h"
#include "checkpoint/scales.h"
#include "checkpoint/selection.h"
#include "onnx/layout.h"
#include "quant/scheme.h"

/* A tensor of the output. */
typedef struct qf_out_tensor {
    const char *name, *dtype;
    int64_t dims[2];
    const qf_safetensor *copied; /* as it is: its dims count */
    qf_job *job;                 /* its integers, or with `scales` the scales that it finds */
    bool scales;
    const unsigned char *bytes; /* or these */
    uint64_t length;
    unsigned bits; /* of an element */
    size_t order, shard;
} qf_out_tensor;

struct qf_checkpoint_plan {
    qf_arena arena;
    qf_checkpoint *checkpoint;
    qf_checkpoint_options options;
    qf_form scheme;
    qf_selection selection;
    qf_scales scales; /* given ones */
    bool has_scales;
    int32_t fp8_scale_type; /* of scales for weights that are 8-bit floats */
    char *folder;           /* target */
    qf_out_tensor *tensors;
    size_t tensor_count, tensor_cap;
    const char **shards; /* file names */
    size_t shard_count;
    qf_job **jobs;
    size_t job_count, job_cap;
    qf_checkpoint_tensor *infos; /* one for each tensor of the source that is looked at */
    size_t info_count, info_cap;
    qf_layout layout;
    qf_output_file *outputs;
    bool ran;
};

/* config_json.c: texts of the output, in the plan's arena. */
qf_status qf_checkpoint_config(qf_checkpoint_plan *plan, const char **out, qf_error *err);
qf_status qf_checkpoint_index(qf_checkpoint_plan *plan, const char **out, qf_error *err);
/* What an 8-bit float checkpoint says of its scales: elements of a block, 0 where it does not. */
qf_status qf_checkpoint_source_blocks(const qf_checkpoint *checkpoint, uint64_t *rows,
                                      uint64_t *cols, int32_t *float_type, qf_error *err);

/* choice.c: whether the scheme's groups divide the columns of a weight, and the error, if there are
 * chosen ones that they do not divide. */
bool qf_is_grouped(const qf_checkpoint_plan *plan, const qf_checkpoint_tensor *weight);
qf_status qf_refuse_groups(const qf_checkpoint_plan *plan, qf_error *err);
/* The error that no weight is chosen, and why. */
qf_status qf_refuse_unchosen(const qf_checkpoint_plan *plan, qf_error *err);

/* target.c: whether a folder, or the nearest one above it that is there, is on a read-only mount;
 * and the list of the output's files. */
bool qf_is_read_only(const char *folder);
qf_status qf_checkpoint_list_outputs(qf_checkpoint_plan *plan, qf_error *err);

/* shards.c: distributes plan->tensors over shards and fills the layout. */
qf_status qf_checkpoint_layout(qf_checkpoint_plan *plan, qf_error *err);

#endif
