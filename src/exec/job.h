/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Recipes: how one payload of the source becomes payloads of the outputs.
 *
 * A job sees its tensor as a matrix of `rows` x `cols` in the order of the output. It reads a block
 * of the source, quantizes it once and stores it in up to two forms, one for each output model, so
 * that a weight is read once for both.
 */
#ifndef QF_EXEC_JOB_H
#define QF_EXEC_JOB_H

#include "onnx/payload.h"

typedef enum qf_target { QF_DEPLOY = 0, QF_FAKE_QUANT = 1 } qf_target;
enum { QF_TARGETS = 2 };

typedef enum qf_format {
    QF_FORMAT_NONE = 0,
    QF_FORMAT_INT8,
    QF_FORMAT_INT4_FLAT, /* two neighbouring elements a byte, the last byte padded */
    QF_FORMAT_INT4_ROWS, /* elements of rows 2i and 2i+1 share a byte of output row i */
    QF_FORMAT_WORDS,     /* plus 2^(bits-1), packed into 32-bit words, each row into whole ones */
    QF_FORMAT_FLOAT,     /* the integers as float32 */
    QF_FORMAT_FLOAT_SCALED, /* the integers times their scale, float32 */
    QF_FORMAT_FLOAT_FOLDED, /* not quantized: the source times `fold`, float32 */
} qf_format;

typedef struct qf_job_output {
    qf_format format;
    int file; /* index of the output file */
    uint64_t offset;
    bool placed; /* file and offset are set */
    bool lent;   /* so they are, but to where an equal payload is written: nothing is to be done */
} qf_job_output;

/* The scales of a source whose elements are scaled already, as those of 8-bit floats are: element
 * (r, c) stands for its value times scales[r / rows * across + c / cols]. */
typedef struct qf_prescale {
    const float *scales;
    uint64_t rows, cols, across;
} qf_prescale;

/* Scales that a job finds itself, one for each group of elements: the largest magnitude over
 * `steps`, rounded to scale_type; where that is 0, the scale_type's epsilon. Group (r, g) of a row
 * has elements (r, g * group) on; by column, group (g, c) has (g * group, c) on. */
typedef struct qf_found {
    float steps;        /* 127.5, 7.5, ... */
    int32_t scale_type; /* FLOAT, FLOAT16 or BFLOAT16 */
    bool by_column;
    /* Elements; divides the columns, or the rows if by column. Even where 4-bit elements are
     * packed, or as many as there are. */
    uint64_t group;
    qf_job_output out[QF_TARGETS]; /* of the scales: rows x groups, or groups x columns */
} qf_found;
enum { QF_FOUND_WIDEST = 2 * 1024 * 1024 }; /* elements of a band that is quantized at once */

/* Whether a channel has several scales, and then what a channel is. */
typedef enum qf_grouping { QF_UNGROUPED = 0, QF_GROUPED_ROWS, QF_GROUPED_COLUMNS } qf_grouping;

typedef struct qf_job {
    const char *file, *layer, *tensor; /* for messages */
    const char *scale_tensor;          /* name of what `found` makes, likewise */
    qf_span source;
    int32_t data_type; /* a float type, or one that is quantized already: qf_source_is_integer */
    uint64_t rows, cols;
    bool transposed; /* the source is cols x rows; scales go by column, nothing is folded */

    /* Index of the scale of element (r, c), if scale_count > 1:
     * (r / row_div) * row_mul + r % row_mod + (col_div ? c / col_div : 0). */
    const float *scales;
    size_t scale_count;
    uint64_t row_div, row_mul, row_mod, col_div;
    qf_grouping grouping;

    qf_found *found;             /* NULL: scales are given. Not with transposed or fold */
    const qf_prescale *prescale; /* NULL: none. Only with found */

    const float *fold; /* factors of a folded batch norm by r / fold_div, or NULL */
    uint64_t fold_div;

    int bits; /* 8, 7, 6, 4; 0 for QF_FORMAT_FLOAT_FOLDED alone */
    qf_job_output out[QF_TARGETS];
} qf_job;

/* A payload moved unchanged, or from varints to plain elements. */
typedef struct qf_copy {
    const char *file, *tensor; /* for messages */
    qf_span source;
    int32_t data_type;
    bool decode; /* varints to little-endian elements of data_type */
    uint64_t length;
    qf_job_output out[QF_TARGETS]; /* format unused */
} qf_copy;

/* Bytes of the job's output in `format`. */
uint64_t qf_job_bytes(const qf_job *job, qf_format format);

/* Work is cut into blocks, numbered from 0, whose bounds depend on the job alone. */
uint64_t qf_job_blocks(const qf_job *job);
/* Whether the job's scales take in more than a block: they are then found by qf_job_find_scales
 * before the first block is run, as those of whole columns are. */
bool qf_job_two_pass(const qf_job *job);
uint64_t qf_copy_blocks(const qf_copy *copy);
/* Part of the source that blocks [first, first + count) read; of a transposed job, the whole rows
 * of the source that they read from. Meaningless for spans of varints. */
typedef struct qf_range {
    uint64_t offset, length;
} qf_range;
qf_range qf_job_reads(const qf_job *job, uint64_t first, uint64_t count);
/* Bytes of the source that a block of a transposed job reads from: a stripe of columns, which is a
 * stretch of the source. 0 for other jobs. */
uint64_t qf_job_mapped(const qf_job *job);
qf_range qf_copy_reads(const qf_copy *copy, uint64_t first, uint64_t count);

/* Scratch memory of one thread, of a size that no model changes; zero-initialise, release with
 * qf_scratch_release. Parts are allocated as blocks first need them. */
typedef struct qf_scratch {
    float *values; /* a block of the source as floats */
    float *floats; /* a block of float output on its way to an unaligned place */
    float *scales; /* that a block found */
    int8_t *ints;  /* quantized elements that no output takes as they are */
    size_t int_count, scale_count;
    struct qf_error_sums *errors; /* borrowed; quantized elements are counted there. NULL: not */
    struct qf_collector *stats;   /* likewise; only with `errors` */
} qf_scratch;
void qf_scratch_release(qf_scratch *scratch);

/* Where blocks go. `room` gives memory for n <= QF_ROOM bytes at `offset` of output file `file`,
 * which holds the block's bytes by the next request for the same slot: slot t has
 * what goes to target t, slot QF_TARGETS + t its scales. */
enum { QF_ROOM = 256 * 1024 };
enum { QF_SLOTS = 2 * QF_TARGETS };
typedef struct qf_sink {
    qf_status (*room)(void *user, int slot, int file, uint64_t offset, size_t n, unsigned char **at,
                      qf_error *err);
    void *user;
} qf_sink;

/* Random access into a span of varints. */
typedef struct qf_varint_index {
    uint64_t *offsets; /* of every 4096th element; NULL for spans of plain elements */
    uint64_t count;    /* elements */
} qf_varint_index;
/* Counts and indexes the elements; QF_ERR_INPUT if there are not exactly `expected`. `file` and
 * `tensor` are for messages. */
qf_status qf_varint_index_build(const qf_span *span, uint64_t expected, const char *file,
                                const char *tensor, qf_varint_index *out, qf_error *err);
void qf_varint_index_release(qf_varint_index *index);
/* Where in the span the elements lie whose plain bytes, `width` each, are `plain`; with those that
 * share a stretch of the index. */
qf_range qf_varint_index_bytes(const qf_varint_index *index, const qf_span *span, unsigned width,
                               qf_range plain);

/* Scales as scale_type has them: float32, float16 or bfloat16. One's nearest value, and the stored
 * bytes, 2 or 4 for each. */
float qf_scale_round(float scale, int32_t scale_type);
void qf_scales_write(const float *scales, uint64_t count, int32_t scale_type, unsigned char *out);

/* Of a job in two passes: reads stretch `part` of `parts` and takes its magnitudes into `largest`,
 * one for each scale, which begins as zeros; then makes scales of all magnitudes, in place, and
 * stores them. A job whose `scales` then points there and whose `found` is NULL is an ordinary one
 * (qf_job_with_scales). */
uint64_t qf_job_scale_count(const qf_job *job);
uint64_t qf_job_scale_bytes(const qf_job *job); /* of them in scale_type, in one file */
qf_status qf_job_find_largest(const qf_job *job, const qf_varint_index *index, uint64_t block,
                              qf_scratch *scratch, float *largest, qf_error *err);
qf_status qf_job_store_scales(const qf_job *job, float *largest, const qf_sink *sink,
                              qf_error *err);
qf_job qf_job_with_scales(const qf_job *job, const float *scales);

qf_status qf_job_run_block(const qf_job *job, const qf_varint_index *index, uint64_t block,
                           qf_scratch *scratch, const qf_sink *sink, qf_error *err);
qf_status qf_copy_run_block(const qf_copy *copy, const qf_varint_index *index, uint64_t block,
                            const qf_sink *sink, qf_error *err);

#endif
