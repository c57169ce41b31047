/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The plan: every layer that will be quantized with all its numbers, and every file that will be
 * written. Made in this order, each step in a file of its own:
 *
 *   prepare.c   one graph for both targets: markers removed, inputs and outputs renamed, records
 *               matched to nodes (match.c), Q and DQ absorbed (qdq.c reads them), batch norms
 * folded layers.c    each record becomes a qf_layer: field rules of facts 1.4, bits, scales
 *   tensors.c   reading a layer's constants; weights.c makes jobs of its weights, bias.c numbers
 *               of its bias
 *   weight_only.c  layers of which the weight alone is quantized (scheme.c: which)
 *   consistency.c  config against record and model
 *   plan.c      passes for each target, layout of the files, checks on the target folder
 */
#ifndef QF_QUANT_PLAN_H
#define QF_QUANT_PLAN_H

#include "base/diag.h"
#include "exec/job.h"
#include "onnx/graph.h"
#include "onnx/layout.h"
#include "onnx/model.h"
#include "quant/config.h"
#include "quant/layer.h"
#include "quant/record.h"
#include "quant/scheme.h"

/* A weight of a layer: W, or R of an RNN. */
typedef struct qf_weight {
    qf_job *job;
    int64_t dims[QF_MAX_RANK]; /* in the output, before int4 packing */
    size_t rank;
    int64_t packed_dims[QF_MAX_RANK]; /* in the deploy model */
    int32_t deploy_type;              /* TensorProto data type in the deploy model */
    size_t payload[QF_TARGETS];       /* in plan->payloads */
    size_t scale_count;
    /* Layer whose weight this one is: an earlier layer that quantizes the same tensor in the same
     * way, or the layer itself. */
    size_t owner;
    size_t previous; /* layer + 1 that quantizes the same tensor differently; 0: none */
} qf_weight;

typedef struct qf_layer {
    const char *name; /* node name */
    const char *key;  /* of the record */
    size_t node_id;   /* in builds from plan->skeleton */
    size_t graph;     /* index of the node's graph, likewise */
    qf_op op;
    const AMCTPytorchProto__SingleLayerRecord *record;

    int act_bits, wts_bits;
    bool dst_type_set;    /* dst_type decides both, and INT4 weights stay a native INT4 tensor */
    const char *act_type; /* as given, "UNSET" if not: part of what makes two AscendQuants equal */
    float scale_d, scale_h;
    int32_t offset_d, offset_h;
    uint32_t dequant_mask; /* 0xFFFFE000 under FORCE_FP16_QUANT */
    const float *balance;  /* tensor_balance_factor */
    size_t balance_count;
    int32_t float_type; /* of the layer's activations: FLOAT, FLOAT16, ... */

    qf_weight weights[2];
    size_t weight_count;
    const float *dequant; /* scale_w * scale_d; RNN: then scale_r * scale_h */
    size_t dequant_count;

    /* Bias: input 2 (RNN: 3) of the layer, or input 1 of the Add behind a MatMul. */
    bool has_bias;
    int64_t *bias_dims;
    size_t bias_rank;
    size_t bias_payload[QF_TARGETS];
    bool folded; /* a batch norm went into it */
} qf_layer;

/* A constant matrix that both models store as integers, with a DequantizeLinear in front of all
 * that reads it. */
typedef struct qf_matrix {
    qf_job *job;
    size_t node_id;     /* of a layer that reads it, as in qf_layer */
    size_t record;      /* SIZE_MAX: its scales are found */
    int32_t float_type; /* as it was stored */
    int32_t scale_type; /* what DequantizeLinear gives; a Cast follows if that is another */
    int64_t dims[2], scale_dims[2];
    size_t scale_rank, scale_count;
    int64_t axis;   /* along which the scales go; with groups, along which those lie */
    uint64_t group; /* 0: a whole channel, or all, if there is one scale */
    size_t payload, scale_payload; /* in plan->payloads */
    size_t graph;                  /* index of the graph that holds it */
    size_t equal;                  /* matrix + 1 whose integers and scales these are; 0: none */
    size_t previous;               /* matrix + 1 of the same qf_same_key; 0: none */
} qf_matrix;

/* A layer whose weight is a qf_matrix and whose activations stay as they are. */
typedef struct qf_float_layer {
    const char *name, *key;
    qf_op op;
    size_t matrix; /* in plan->matrices */
} qf_float_layer;

struct qf_plan {
    qf_arena arena;
    qf_model *model;
    const qf_record *record;
    qf_record *own_record;   /* taken from the model's Q and DQ nodes; `record` points to it */
    const char *config_path; /* NULL: none was given */
    qf_file_id config_id;
    qf_diagnostics *diag;
    qf_export_options options;
    char *folder, *prefix;

    unsigned char *skeleton; /* the prepared graph, source of both targets */
    size_t skeleton_length;
    bool had_markers;         /* QuantIdentity nodes were removed */
    bool from_deploy;         /* the model is a deploy model, to be made runnable */
    qf_strmap node_flags;     /* node name -> QF_NODE_* */
    qf_strmap record_of_node; /* node name -> const size_t *, index of its record */
    qf_scheme scheme;
    qf_strmap matrix_record_of_node; /* likewise of records that have weight scales alone */

    qf_payloads payloads; /* the model's, then those made here */
    qf_job **jobs;
    size_t job_count, job_cap;
    qf_layer *layers;
    size_t layer_count;
    qf_skipped_layer *skipped;
    size_t skipped_count, skipped_cap;
    qf_matrix *matrices;
    size_t matrix_count, matrix_cap;
    qf_float_layer *float_layers;
    size_t float_layer_count, float_layer_cap;
    qf_strmap matrix_of_payload; /* payload index as text -> matrix + 1 */
    qf_strmap matrix_of_bytes;   /* with dedup: qf_same_key -> matrix + 1, the latest */
    bool opset_refused;          /* it is one finding, not one for each layer */
    qf_strmap weight_of_payload; /* payload index and scales as text -> layer + 1, the latest */
    qf_strmap folded;            /* names of Conv nodes that took in a batch norm */

    qf_layout layout;
    qf_output_file *outputs;
    uint64_t bytes_out;
    bool ran;
};

/* An empty plan, to be freed by qf_plan_free. `record` may be set later. Borrows all but the
 * options. */
qf_status qf_plan_start(qf_model *model, const qf_record *record, const qf_export_options *options,
                        qf_diagnostics *diagnostics, qf_plan **out, qf_error *err);
/* qf_files_check of the model's files; what it finds goes to the diagnostics too. */
qf_status qf_plan_check_sources(qf_plan *plan, qf_status status, qf_error *err);

/* Steps, in order. Findings about the inputs go to plan->diag and do not end a step; a status other
 * than QF_OK means that it could not go on. */
qf_status qf_plan_prepare(qf_plan *plan, const qf_io_spec *io, qf_error *err);
qf_status qf_plan_match(qf_plan *plan, const qf_ir *ir, qf_error *err);
qf_status qf_plan_layers(qf_plan *plan, qf_ir *ir, qf_error *err);
qf_status qf_plan_tensors(qf_plan *plan, const qf_node *node, const qf_probe *probe,
                          qf_layer *layer, qf_error *err);
/* Quantizes the weight of `node` alone if the scheme says so. Where it is not taken, *why may say
 * why, as a sentence about "it"; NULL: there is nothing to say. */
qf_status qf_plan_weight_only(qf_plan *plan, const qf_ir *ir, const qf_node *node, bool *taken,
                              const char **why, qf_error *err);
qf_status qf_plan_consistency(qf_plan *plan, const qf_config *config, const qf_ir *ir,
                              qf_error *err);

/* Whether the scheme takes an entry for a layer of which the weight alone is quantized. */
bool qf_plan_is_weight_only(const qf_plan *plan, const AMCTPytorchProto__SingleLayerRecord *v);

/* Whether the model has a node of which `is` says so. */
qf_status qf_model_has_node(const qf_model *model, bool (*is)(const qf_node *), bool *out,
                            qf_error *err);
/* Sets plan->from_deploy, for a model that is to be made runnable. One of which weights alone are
 * quantized has standard operators only, and so has one that is all float. */
qf_status qf_plan_find_deploy(qf_plan *plan, qf_error *err);

/* A finding about a record entry; `item` is the layer. */
void qf_plan_report(qf_plan *plan, qf_severity severity, size_t record, const char *item,
                    const char *format, ...) QF_PRINTF(5, 6);
unsigned qf_plan_flags(const qf_plan *plan, const char *node);
/* Adds a payload made by the plan; SIZE_MAX when memory is exhausted. */
size_t qf_plan_add_bytes(qf_plan *plan, int field, const void *bytes, uint64_t length,
                         bool was_external);
/* Reads a small constant tensor of a float dtype as float32 into the arena (float64 tensors into
 * *wide instead if that is not NULL). NULL in *out and a finding in *why if it cannot be read. */
qf_status qf_plan_read_floats(qf_plan *plan, const Onnx__TensorProto *tensor, const float **out,
                              const double **wide, uint64_t *count, const char **why,
                              qf_error *err);

#endif
