/* SPDX-License-Identifier: Apache-2.0 */
/*
 * quantfold: from a quantization-aware-trained ONNX model to the deploy and fake_quant models.
 *
 * Read this header top to bottom; it is the manual of the library.
 *
 *   1. Status, errors, diagnostics     how a call says what went wrong
 *   2. Inputs                          model, record, config
 *   3. Making records                  from a QDQ model, or from weights and activation ranges
 *   4. Export                          options -> plan -> export -> report
 *   5. One call                        qf_save_quant_retrain_model, the reference's function
 *   6. Checkpoints                     safetensors folders of large language models
 *   7. Reports                         a page of what was exported
 *   8. Verifying                       whether an output is sound, and that of these inputs
 *   9. Kernels                         which instruction set runs
 *
 * A whole program:
 *
 *     qf_export_options opt;
 *     qf_export_options_init(&opt);
 *     opt.save_path = "out/resnet";
 *     qf_report *report = NULL;
 *     qf_error err;
 *     if (qf_save_quant_retrain_model("c.json", "m.onnx", "r.txt", &opt, NULL, &report, &err) !=
 * QF_OK) fprintf(stderr, "%s\n", err.message); qf_report_free(report);
 *
 * Conventions. Every fallible function returns a qf_status and takes an optional qf_error last.
 * Out-parameters are set only on success. `_open`/`_close` hold files or mappings,
 * `_create`/`_free` own memory; every close and free accepts NULL. Strings and structs reached
 * through a handle are borrowed until that handle is closed. The library never prints, never exits,
 * never writes to an input and keeps none of the caller's pointers after a call returns, except
 * where a function says so. A handle may be used by one thread at a time; different handles are
 * independent.
 */
#ifndef QUANTFOLD_H
#define QUANTFOLD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define QF_API __attribute__((visibility("default")))
#else
#define QF_API
#endif

/* ---- 1. Status, errors, diagnostics ------------------------------------------------------- */

/* Numbers are stable. */
typedef enum qf_status {
    QF_OK = 0,
    QF_ERR_INPUT = -1,  /* a file or request is wrong; another try with the same input fails too */
    QF_ERR_USAGE = -2,  /* the call itself is wrong: a NULL argument, a bad enum value */
    QF_ERR_SYSTEM = -3, /* the system refused: no space, no permission, I/O error; see sys_errno */
    QF_ERR_MEMORY = -4, /* an allocation failed */
    QF_ERR_CANCELLED = -5, /* the progress callback asked to stop */
} qf_status;

/* Filled on failure. `message` is a whole sentence that already names file, item and position; the
 * other fields carry the same facts for programs. Text fields are always NUL-terminated. */
typedef struct qf_error {
    qf_status code;
    int sys_errno;   /* errno of the failing system call, or 0 */
    uint32_t line;   /* 1-based, for text inputs; 0 if there is none */
    uint32_t column; /* 1-based, for text inputs */
    uint64_t byte;   /* offset in a binary input; meaningful if has_byte */
    bool has_byte;
    char file[256]; /* the file at fault, shortened from the left if long; "" if none */
    char item[256]; /* layer, tensor or key at fault; "" if none */
    char message[1024];
} qf_error;

/* Short stable name of a status, for example "input". Never NULL. */
QF_API const char *qf_status_name(qf_status status);
/* "major.minor.patch" of the library. */
QF_API const char *qf_version(void);

typedef enum qf_severity { QF_WARNING = 1, QF_ERROR = 2 } qf_severity;

/* One finding about the inputs. Strings are borrowed from the list. */
typedef struct qf_diagnostic {
    qf_severity severity;
    const char *file; /* "" if none */
    uint32_t line;    /* 0 if none */
    uint32_t column;
    const char *item;    /* layer, tensor or key; "" if none */
    const char *message; /* a sentence: what was wrong, what was expected, what to do */
} qf_diagnostic;

/* A growing list of findings. Validation goes on after a finding, so that a run reports everything
 * that is wrong with its inputs at once. */
typedef struct qf_diagnostics qf_diagnostics;
/* Returns NULL when memory is exhausted. */
QF_API qf_diagnostics *qf_diagnostics_create(void);
QF_API void qf_diagnostics_free(qf_diagnostics *list);
QF_API size_t qf_diagnostics_count(const qf_diagnostics *list);
/* Number of findings with severity QF_ERROR; counts also those beyond the first thousand, which
 * are not kept; nor are warnings beyond the first thousand. */
QF_API size_t qf_diagnostics_errors(const qf_diagnostics *list);
/* Adds an error that a call returned, so that all findings of a run stand in one list. */
QF_API void qf_diagnostics_add_error(qf_diagnostics *list, const qf_error *err);
/* `index` < qf_diagnostics_count(list). */
QF_API qf_diagnostic qf_diagnostics_at(const qf_diagnostics *list, size_t index);

/* Signals. While a model or a checkpoint is open, or an export runs, the process has a handler for
 * SIGBUS: a source that another process cuts short, or a disk that fails under it, then ends the
 * call with an error that names the file, not the process. The handler acts on faults in the
 * library's own mappings alone; all others go to the handler that was there when the first file was
 * opened, which is back when the last is closed. A thread that blocks SIGBUS is not protected. No
 * other signal is touched. qf_handle_sigbus(false) leaves SIGBUS alone for what is opened from then
 * on. Default: true. May be called by any thread. */
QF_API void qf_handle_sigbus(bool on);

/* ---- 2. Inputs ---------------------------------------------------------------------------- */

/* An ONNX model: its graph in memory, its weights as spans of mapped files. Opening costs no memory
 * in proportion to the weights. */
typedef struct qf_model qf_model;

/* Opens `path` and checks its structure, that its graph hangs together, and the place and length of
 * each external tensor (locations must be relative and stay inside the model's folder).
 * QF_ERR_INPUT if it is not a readable ONNX model, QF_ERR_SYSTEM if it cannot be opened. */
QF_API qf_status qf_model_open(const char *path, qf_model **out, qf_error *err);
QF_API void qf_model_close(qf_model *model);

typedef struct qf_model_info {
    int64_t ir_version;
    int64_t opset;             /* of the default domain; 0 if it is not imported */
    const char *producer_name; /* "" if absent */
    const char *producer_version;
    const char *graph_name;
    uint64_t file_bytes;     /* size of the .onnx itself */
    uint64_t tensor_count;   /* constant tensors anywhere in the model, subgraphs included */
    uint64_t tensor_bytes;   /* their payload as stored, external files included */
    uint64_t external_count; /* how many of them are external */
    uint64_t node_count;     /* nodes of the main graph and of every subgraph */
    uint64_t graph_count;    /* 1 + subgraphs */
} qf_model_info;
QF_API qf_model_info qf_model_describe(const qf_model *model);
/* Whether `path` names the .onnx or one of its external files, by whatever link. False if there is
 * nothing of that name. What is read must not be written to while the model is open. */
QF_API bool qf_model_has_file(const qf_model *model, const char *path);

/* A node that could carry a record, as `quantfold inspect` lists them: Conv, ConvTranspose, Gemm,
 * MatMul, AveragePool, LSTM, GRU. */
typedef struct qf_layer_candidate {
    const char *name; /* node name; what a record's key should be */
    const char *op_type;
    const char *weight; /* name of the weight tensor, "" if there is none */
    const char *dtype;  /* of the weight: "float32", "float16", ...; "" if none */
    int64_t dims[8];    /* of the weight */
    size_t rank;
    uint64_t channels; /* expected number of channel-wise scales; 1 if only per tensor */
    bool quantizable;
    const char *reason; /* why it is not quantizable, "" if it is */
} qf_layer_candidate;
QF_API size_t qf_model_layer_count(const qf_model *model);
/* `index` < qf_model_layer_count(model). */
QF_API qf_layer_candidate qf_model_layer(const qf_model *model, size_t index);

/* A scale and offset record: protobuf text of message ScaleOffsetRecord. */
typedef struct qf_record qf_record;
QF_API qf_status qf_record_open(const char *path, qf_record **out, qf_error *err);
/* Parses `length` bytes at `text`; `name` stands for the file name in messages. */
QF_API qf_status qf_record_parse(const char *name, const char *text, size_t length, qf_record **out,
                                 qf_error *err);
QF_API void qf_record_close(qf_record *record);
/* Number of `record` entries. */
QF_API size_t qf_record_count(const qf_record *record);
/* Key of entry `index` < qf_record_count; "" if the entry has none. */
QF_API const char *qf_record_key(const qf_record *record, size_t index);
/* The record as text in the reference writer's form. *out is malloc'ed, NUL-terminated, and the
 * caller's to free(). *length excludes the NUL and may be NULL. */
QF_API qf_status qf_record_format(const qf_record *record, char **out, size_t *length,
                                  qf_error *err);

/* Writes that text to `path`, mode 0640, whole or not at all: as an export does, under a temporary
 * name beside it first. Missing folders are made. */
QF_API qf_status qf_record_save(const qf_record *record, const char *path, qf_error *err);

/* A QAT ("retrain") configuration, JSON. */
typedef struct qf_config qf_config;
/* Reads and checks every key that can be checked without the model. Findings go to `diagnostics`
 * (may be NULL); with at least one of severity QF_ERROR the call fails. */
QF_API qf_status qf_config_open(const char *path, qf_config **out, qf_diagnostics *diagnostics,
                                qf_error *err);
QF_API void qf_config_close(qf_config *config);

/* ---- 3. Making records -------------------------------------------------------------------- */

/* What happens to a layer of a QDQ model whose quantization the deploy format cannot express, for
 * example because a weight has a zero point: an error that names the layer, or a warning, and the
 * layer calculates in float. */
typedef enum qf_on_unsupported {
    QF_UNSUPPORTED_ERROR = 0,
    QF_UNSUPPORTED_FLOAT = 1
} qf_on_unsupported;

/* The record of a QDQ model: for each layer whose activation comes through QuantizeLinear and
 * DequantizeLinear and whose weight is dequantized (from an integer tensor, or from a float one
 * through QuantizeLinear), scale_d, offset_d and scale_w as the model has them, unsigned zero
 * points moved to the signed domain. Keys are node names. Findings go to `diagnostics` (may be
 * NULL). QF_ERR_INPUT if the model has no such layer, or, with QF_UNSUPPORTED_ERROR, one that
 * cannot be expressed. */
QF_API qf_status qf_record_from_qdq(qf_model *model, qf_on_unsupported on_unsupported,
                                    qf_diagnostics *diagnostics, qf_record **out, qf_error *err);

/* The values that activations take, by layer. */
typedef struct qf_ranges qf_ranges;
/* Reads a JSON object of layers:
 *     {"conv1": {"min": -0.7, "max": 2.0},
 *      "fc":    {"scale_d": 0.02, "offset_d": -12},
 *      "lstm":  {"min": -1.0, "max": 1.0, "h_min": -1.0, "h_max": 1.0}}
 * Keys are names as in a record or a config. Every violation names its entry. */
QF_API qf_status qf_ranges_open(const char *path, qf_ranges **out, qf_error *err);
/* The same from `length` bytes at `json`; `name` stands for the file name in messages. */
QF_API qf_status qf_ranges_parse(const char *name, const char *json, size_t length, qf_ranges **out,
                                 qf_error *err);
QF_API void qf_ranges_close(qf_ranges *ranges);

/* A record calculated from a float model: for each layer that `config` enables, weight scales from
 * the weights (the reference's ARQ rule: abs-max over 2^(bits-1) - 1, over 2^(bits-1) where the
 * extreme value is negative; one a channel or one a tensor as the config says), activation scale
 * and offset from `ranges`, or from clip_max and clip_min of the config where a layer is not in
 * `ranges` (which may be NULL). A layer with neither is an error. Batch norms that an export would
 * fold are folded first. `threads`: cores to use, 0: as many as OpenMP would. Findings go to
 * `diagnostics` (may be NULL). */
QF_API qf_status qf_record_compute(qf_model *model, const qf_config *config,
                                   const qf_ranges *ranges, int threads,
                                   qf_diagnostics *diagnostics, qf_record **out, qf_error *err);

/* ---- 4. Export ---------------------------------------------------------------------------- */

/* RUNNABLE: <prefix>_runnable_model.onnx, the deploy model in operators that ONNX Runtime has, so
 * that it can be run as the NPU runs it (docs/runnable.md). The model may then be a deploy model,
 * which needs no record. */
typedef enum qf_emit {
    QF_EMIT_BOTH = 0,
    QF_EMIT_DEPLOY = 1,
    QF_EMIT_FAKE_QUANT = 2,
    QF_EMIT_RUNNABLE = 3
} qf_emit;

/* What goes into .external files. AUTO is the reference's rule: tensors that were external stay so,
 * and while a model is at or above `external_threshold` bytes, its largest tensor goes out. */
typedef enum qf_external {
    QF_EXTERNAL_AUTO = 0,
    QF_EXTERNAL_ALWAYS = 1,
    QF_EXTERNAL_NEVER = 2
} qf_external;

/* PER_TENSOR: <tensor>_deploy.external / <tensor>_fakequant.external, the reference's names.
 * SINGLE: <prefix>_deploy_model.external, tensors at multiples of 4096 bytes. */
typedef enum qf_external_layout {
    QF_LAYOUT_PER_TENSOR = 0,
    QF_LAYOUT_SINGLE = 1
} qf_external_layout;

/* How payloads reach the output files; the files are the same. DIRECT runs three threads for each
 * core, of which the others wait for the disk while one calculates. AUTO: DIRECT for large output
 * that is synced, else PWRITE. DIRECT falls back to PWRITE where the file system has no direct I/O,
 * MMAP where it cannot allocate space in advance. */
typedef enum qf_io { QF_IO_AUTO = 0, QF_IO_PWRITE = 1, QF_IO_MMAP = 2, QF_IO_DIRECT = 3 } qf_io;

/* How the fake_quant model holds the integers of quantized weights. FLOAT: as float32, the
 * reference's form. INT8: as int8 with a Cast behind it (and for LSTM and GRU, whose weights are
 * dequantized, a Mul), a quarter of the bytes and the same numbers. SHARED: the same graph, and
 * both models name the same .external file for every weight of 1 KiB or more whose int8 bytes are
 * the deploy model's too (INT4 weights of quantized layers are packed there, so they are not; those
 * of weight-only layers are alike in both); it needs both models and external data, so QF_EMIT_BOTH
 * and not QF_EXTERNAL_NEVER. */
typedef enum qf_fake_quant_weights {
    QF_FAKE_QUANT_FLOAT = 0,
    QF_FAKE_QUANT_INT8 = 1,
    QF_FAKE_QUANT_SHARED = 2
} qf_fake_quant_weights;

/* How QuantizeLinear and DequantizeLinear nodes of the model are taken. AUTO: those around layers
 * that the record names are absorbed into the layers, and without a record the layers are those of
 * qf_record_from_qdq. FLOAT: they are nodes like any other. QDQ: as AUTO, and a model without such
 * nodes is an error. */
typedef enum qf_source { QF_SOURCE_AUTO = 0, QF_SOURCE_FLOAT = 1, QF_SOURCE_QDQ = 2 } qf_source;

/* What becomes of pairs of QuantizeLinear and DequantizeLinear that belong to no quantized layer,
 * as on the inputs of a residual Add. KEEP: AscendQuant and AscendAntiQuant, and their arithmetic
 * in the fake_quant model, so that the outputs stay those of the QDQ model. DROP: they go, and what
 * they stood before calculates with the float values. */
typedef enum qf_free_qdq { QF_FREE_QDQ_KEEP = 0, QF_FREE_QDQ_DROP = 1 } qf_free_qdq;

/* One entry of a dynamic-axes request: dimension `axis` of graph input or output `tensor` becomes
 * symbolic. `label` NULL means the name the PyTorch exporter would give,
 * "<tensor>_dynamic_axes_<position in the list, from 1>". */
typedef struct qf_dynamic_axis {
    const char *tensor;
    int64_t axis;
    const char *label;
} qf_dynamic_axis;

/* Names and dynamic axes of the graph's inputs and outputs. Names are given in graph order to the
 * first `n` inputs or outputs. */
typedef struct qf_io_spec {
    const char *const *input_names;
    size_t input_name_count;
    const char *const *output_names;
    size_t output_name_count;
    const qf_dynamic_axis *dynamic_axes;
    size_t dynamic_axis_count;
} qf_io_spec;

/* Parses dynamic axes from JSON, both forms of the reference: {"x": {"0": "batch"}} and
 * {"x": [0, 2]}. *out is one allocation to free() as a whole. Every violation names its entry. */
QF_API qf_status qf_dynamic_axes_parse(const char *json, qf_dynamic_axis **out, size_t *count,
                                       qf_error *err);

/* Called from the calling thread while payloads are written, at most about ten times a second.
 * Returning false cancels the export: nothing is left behind and earlier output is untouched. */
typedef bool (*qf_progress_fn)(uint64_t bytes_done, uint64_t bytes_total, const char *tensor,
                               void *user);

typedef struct qf_export_options {
    size_t struct_size;    /* set by qf_export_options_init; tells the caller's version */
    const char *save_path; /* the reference's save_path: folder plus file name prefix */
    qf_emit emit;
    qf_external external;
    uint64_t external_threshold; /* bytes; 2,000,000,000 as the reference */
    qf_external_layout external_layout;
    int threads;             /* cores to use, at most 1024; 0: as many as OpenMP would */
    qf_progress_fn progress; /* may be NULL */
    void *progress_user;
    /* Plan without looking at the target folder: no check of free space, of files that exist, of
     * outputs that are inputs. */
    bool ignore_target;
    /* Bytes of memory that the process may have resident while it writes, mapped parts of files
     * included; 0: a quarter of the machine's, or of what a cgroup or RLIMIT_DATA allows. Fewer
     * threads and smaller buffers are used to keep it; QF_ERR_INPUT if that is not enough. */
    uint64_t memory_limit;
    qf_io io;
    qf_fake_quant_weights fake_quant_weights;
    /* Do not wait until the output is on disk before it is renamed into place. Faster, and safe
     * against anything but a crash of the machine, which may leave files in place whose contents
     * are lost. */
    bool no_sync;
    qf_source source;
    qf_on_unsupported on_unsupported;
    qf_free_qdq free_qdq;
    /* Weights that are quantized while activations stay float: NULL (none), "w8a16", "w4a16",
     * "w4a16:group=128" (scales are found: the largest magnitude of a channel or group over 127.5
     * or 7.5) or "record" (entries of the record with scale_w and no scale_d). With a record,
     * layers that it names are not taken a second time. */
    const char *weight_only;
    /* POSIX extended regular expressions that choose weights by tensor or node name; NULL: all,
     * none. */
    const char *include, *exclude;
    bool dedup;     /* external tensors of the same bytes are written once */
    bool manifest;  /* write <prefix>.manifest.json as well: docs/manifest.md */
    bool resume;    /* go on where an earlier run ended that was killed or failed; on failure, leave
                     * what is done for the next */
    uint32_t shard; /* of shard_count, from 0: write that part of the files and put none in place */
    uint32_t shard_count; /* 0: the whole */
    bool stats; /* the manifest, then written in any case, has what qf_summary_html shows */
} qf_export_options;
/* Fills the first `size` bytes of an options struct with the defaults of this library. */
QF_API void qf_export_options_init_sized(qf_export_options *options, size_t size);
/* Fills `options` with the defaults. The size is the caller's, so that a program built with an
 * older header goes on working when the struct grows. */
static inline void qf_export_options_init(qf_export_options *options)
{
    qf_export_options_init_sized(options, sizeof *options);
}

/* Everything an export will do, decided and validated before anything is written. */
typedef struct qf_plan qf_plan;

/* Matches records to nodes, checks every value against the model, rewrites both graphs, lays out
 * every output file. `config` and `io` may be NULL; so may `record` for a QDQ model, and then it is
 * that of qf_record_from_qdq. All findings go to `diagnostics` (may be NULL);
 * with at least one error the call fails and `err` holds the first and how many there are.
 * The plan borrows `model` and `record`: keep them open until qf_plan_free. */
QF_API qf_status qf_plan_create(qf_model *model, const qf_config *config, const qf_record *record,
                                const qf_io_spec *io, const qf_export_options *options,
                                qf_diagnostics *diagnostics, qf_plan **out, qf_error *err);
QF_API void qf_plan_free(qf_plan *plan);

/* A quantized layer of the plan; first those that calculate with integers. */
typedef struct qf_layer_info {
    const char *name; /* node name in the output */
    const char *key;  /* key of its record */
    const char *op_type;
    const char *weight;  /* weight tensor in the output, "" for AveragePool */
    int activation_bits; /* 4, 8 or 16; 0: its weight alone is quantized */
    int weight_bits;     /* 4, 6, 7 or 8; 0 if there is no weight */
    uint64_t channels;   /* number of weight scales; 1 is per tensor */
    float scale_d;
    int32_t offset_d;
    bool has_bias; /* an int32 bias is written */
    bool batch_norm_folded;
    uint64_t group; /* elements of a channel that share a scale; 0: all */
} qf_layer_info;
QF_API size_t qf_plan_layer_count(const qf_plan *plan);
QF_API qf_layer_info qf_plan_layer(const qf_plan *plan, size_t index);

/* A layer of a quantizable type that stays float. */
typedef struct qf_skipped_layer {
    const char *name;
    const char *op_type;
    const char *reason;
} qf_skipped_layer;
QF_API size_t qf_plan_skipped_count(const qf_plan *plan);
QF_API qf_skipped_layer qf_plan_skipped(const qf_plan *plan, size_t index);

/* A file that the plan will write, in the order in which files are put in place. */
typedef struct qf_output_file {
    const char *path;
    uint64_t bytes;
    bool exists; /* a file of that name is there now and will be replaced */
} qf_output_file;
QF_API size_t qf_plan_output_count(const qf_plan *plan);
QF_API qf_output_file qf_plan_output(const qf_plan *plan, size_t index);
/* Bytes that are not written because `dedup` found equal ones. */
QF_API uint64_t qf_plan_bytes_saved(const qf_plan *plan);

/* Outcome of an export. */
typedef struct qf_report qf_report;
typedef struct qf_report_totals {
    uint64_t bytes_read;    /* weight bytes of the source */
    uint64_t bytes_written; /* all output files */
    double seconds;         /* from the first write to the last rename */
    uint64_t bytes_kept;    /* of those written: what an earlier run had written already */
} qf_report_totals;
QF_API qf_report_totals qf_report_get(const qf_report *report);
QF_API void qf_report_free(qf_report *report);

/* Runs the plan: writes every file under temporary names in the target folder, syncs them, then
 * renames them into place, each model's .onnx after its external files. On any failure nothing of
 * this run stays and earlier output is untouched. A plan can be run once. */
QF_API qf_status qf_export(qf_plan *plan, qf_report **out, qf_error *err);

/* Puts in place what the shards of one output have written, all of them. `save_path` and `no_sync`
 * are those of the shards. QF_ERR_INPUT, naming them, if shards are missing or were made from other
 * inputs. */
QF_API qf_status qf_commit(const char *save_path, bool no_sync, qf_report **out, qf_error *err);

/* ---- 5. One call -------------------------------------------------------------------------- */

/* The reference's save_quant_retrain_model with an exported ONNX file in place of the module:
 * opens the three files, plans, exports. options->save_path is the reference's save_path.
 * `config_file`, `io`, `out` and `err` may be NULL, and `record_file` for a QDQ model. */
QF_API qf_status qf_save_quant_retrain_model(const char *config_file, const char *model_file,
                                             const char *record_file,
                                             const qf_export_options *options, const qf_io_spec *io,
                                             qf_report **out, qf_error *err);

/* ---- 6. Checkpoints ----------------------------------------------------------------------- */

/* A Hugging Face folder: safetensors files, config.json and what lies beside them. */
typedef struct qf_checkpoint qf_checkpoint;

/* Reads index, headers and config of the folder `path` and maps its files; weights are not read.
 * QF_ERR_INPUT for a folder that is not sound: a header that lies, an index that names what is not
 * there, a link that leads out of the folder (links into the `blobs` of a Hugging Face cache are
 * followed). */
QF_API qf_status qf_checkpoint_open(const char *path, qf_checkpoint **out, qf_error *err);
QF_API void qf_checkpoint_close(qf_checkpoint *checkpoint);

typedef struct qf_checkpoint_options {
    size_t struct_size; /* set by qf_checkpoint_options_init */
    const char *out;    /* target folder; not the checkpoint's own */
    /* "w8a16" and "w4a16": weights of 8 or 4 bits; "w8a8": activations are int8 as well, quantized
     * as they come, one scale a token. One scale an output channel, or, with ":group=N" behind a
     * w4a16 or w8a16, one for N elements of a row. */
    const char *scheme;
    /* POSIX extended regular expressions over tensor names. NULL `include`: two-dimensional float
     * weights that are not embeddings, norms, routers or lm_head. */
    const char *include, *exclude;
    /* NULL or "minmax": scales are the largest magnitudes over 127.5 or 7.5. Else a file: a record
     * (keys are module names), or safetensors with `<module>.weight_scale` tensors. */
    const char *scales;
    uint64_t max_shard_bytes; /* new shards of at most that many; 0: as in the source */
    /* As in qf_export_options. */
    int threads;
    qf_io io;
    uint64_t memory_limit;
    bool no_sync, manifest, resume;
    uint32_t shard, shard_count;
    bool ignore_target;
    qf_progress_fn progress;
    void *progress_user;
    bool stats;
} qf_checkpoint_options;
QF_API void qf_checkpoint_options_init_sized(qf_checkpoint_options *options, size_t size);
static inline void qf_checkpoint_options_init(qf_checkpoint_options *options)
{
    qf_checkpoint_options_init_sized(options, sizeof *options);
}

/* What will be written: the compressed-tensors convention (docs/checkpoint.md). */
typedef struct qf_checkpoint_plan qf_checkpoint_plan;
/* Chooses weights, checks everything, lays out every file. Borrows `checkpoint` until
 * qf_checkpoint_plan_free. */
QF_API qf_status qf_checkpoint_plan_create(qf_checkpoint *checkpoint,
                                           const qf_checkpoint_options *options,
                                           qf_checkpoint_plan **out, qf_error *err);
QF_API void qf_checkpoint_plan_free(qf_checkpoint_plan *plan);

/* A tensor of the checkpoint. */
typedef struct qf_checkpoint_tensor {
    const char *name;
    const char *dtype;  /* as the source has it: "BF16" */
    const char *reason; /* why it is not quantized, "" if it is; NULL: it is no weight matrix */
    uint64_t rows, cols;
    int bits;       /* 0 if it is not quantized */
    uint64_t group; /* elements to a scale; 0 for one scale a row */
} qf_checkpoint_tensor;
QF_API size_t qf_checkpoint_plan_tensor_count(const qf_checkpoint_plan *plan);
QF_API qf_checkpoint_tensor qf_checkpoint_plan_tensor(const qf_checkpoint_plan *plan, size_t index);
QF_API size_t qf_checkpoint_plan_output_count(const qf_checkpoint_plan *plan);
QF_API qf_output_file qf_checkpoint_plan_output(const qf_checkpoint_plan *plan, size_t index);
/* Files of the source folder that are not taken along: weights in other formats. */
QF_API size_t qf_checkpoint_plan_passed_count(const qf_checkpoint_plan *plan);
QF_API const char *qf_checkpoint_plan_passed(const qf_checkpoint_plan *plan, size_t index);

/* Runs the plan as qf_export does; a plan can be run once. */
QF_API qf_status qf_checkpoint_export(qf_checkpoint_plan *plan, qf_report **out, qf_error *err);

/* ---- 7. Reports --------------------------------------------------------------------------- */

/* What an export or a checkpoint with `stats` wrote, as a page or as JSON: docs/report.md. `path`
 * is the save path, the folder of the checkpoint, or the manifest itself. A manifest without
 * statistics gives what it has. QF_ERR_INPUT if there is no manifest, or it is none. */

/* The page: one HTML document that refers to nothing outside itself. *out is malloc'ed,
 * NUL-terminated and the caller's to free(). *length excludes the NUL and may be NULL. */
QF_API qf_status qf_summary_html(const char *path, char **out, size_t *length, qf_error *err);
/* The same data as a JSON document. */
QF_API qf_status qf_summary_json(const char *path, char **out, size_t *length, qf_error *err);
/* Writes the page to `target`, mode 0640, whole or not at all; NULL: beside the manifest,
 * <prefix>.report.html. *saved, which may be NULL, is where, malloc'ed and the caller's to free().
 * QF_ERR_INPUT too if the target is the manifest, or a file beside it that it names. */
QF_API qf_status qf_summary_save(const char *path, const char *target, char **saved, qf_error *err);

/* ---- 8. Verifying ------------------------------------------------------------------------- */

/* What an output is looked at for, in this order.
 * STRUCTURE: each model by itself: operators, attributes, dtypes, shapes, names, links, the data of
 * every tensor. AGREEMENT: deploy against fake_quant, number by number. MANIFEST: hashes and sizes
 * of files. AGAINST: every payload recomputed from the source. RUNNABLE: a runnable model against
 * what is made of the deploy model beside it. */
typedef enum qf_verify_check {
    QF_VERIFY_STRUCTURE = 0,
    QF_VERIFY_AGREEMENT = 1,
    QF_VERIFY_MANIFEST = 2,
    QF_VERIFY_AGAINST = 3,
    QF_VERIFY_RUNNABLE = 4
} qf_verify_check;
enum { QF_VERIFY_CHECKS = 5 };

typedef struct qf_verify_options {
    size_t struct_size; /* set by qf_verify_options_init */
    /* The save path of an export, or the folder of an exported checkpoint. */
    const char *prefix;
    /* What it was exported from; `model` NULL: nothing is recomputed. As in
     * qf_save_quant_retrain_model. With a checkpoint, QF_ERR_USAGE: its payloads are not. */
    const char *model, *record, *config;
    const qf_io_spec *io; /* as at the export; NULL: none */
    /* Of these, external_threshold, source, on_unsupported, free_qdq, weight_only, include and
     * exclude must be as at the export; the others are told from its files. NULL: the defaults. */
    const qf_export_options *export_options;
    int threads;        /* to recompute with; 0: as many as OpenMP would */
    bool skip_runnable; /* a runnable model is to be written anew, so that the one that may be there
                           is not looked at */
} qf_verify_options;
QF_API void qf_verify_options_init_sized(qf_verify_options *options, size_t size);
static inline void qf_verify_options_init(qf_verify_options *options)
{
    qf_verify_options_init_sized(options, sizeof *options);
}

typedef struct qf_verify_result {
    bool done[QF_VERIFY_CHECKS];       /* which checks could be made */
    uint64_t errors[QF_VERIFY_CHECKS]; /* what each found */
    /* Findings of check c are those of the list from listed[c - 1] (0 for the first check) to
     * before listed[c]; warnings tell what could not be checked. */
    uint64_t listed[QF_VERIFY_CHECKS];
    uint64_t models;     /* read; a checkpoint is one */
    uint64_t layers;     /* quantized, in the deploy model, or in fake_quant without one; of a
                            checkpoint, quantized weights */
    uint64_t agreeing;   /* compared between the two: weights, biases, scales */
    uint64_t tensors;    /* in all models */
    uint64_t hashed;     /* bytes, by the manifest */
    uint64_t recomputed; /* bytes, from the source */
    uint64_t apart;      /* quantized layers of which not all could be compared */
    uint64_t shards;     /* files of tensors of a checkpoint; 0: it is none, or cannot be read */
} qf_verify_result;

/* Looks at an output and reports everything that is wrong with it to `diagnostics`; nothing is
 * written. QF_OK if that could be done, whatever was found: an output is sound if no errors were.
 * Files are compared a block at a time, so that memory does not grow with the weights. */
QF_API qf_status qf_verify(const qf_verify_options *options, qf_diagnostics *diagnostics,
                           qf_verify_result *out, qf_error *err);

/* ---- 9. Kernels --------------------------------------------------------------------------- */

/* Name of the instruction set whose kernels run: "scalar", "avx2", "avx512", "neon". It is the best
 * that the machine has, or what the environment variable QUANTFOLD_ISA says; a value that names
 * none that runs here makes qf_plan_create fail with QF_ERR_USAGE. */
QF_API const char *qf_kernels_active(void);

#ifdef __cplusplus
}
#endif
#endif
