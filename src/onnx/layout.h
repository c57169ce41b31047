/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From finished graphs to files: which tensors go into external files, what each file is called and
 * how long it is, and where in it each payload lies.
 *
 * The graph is packed by protobuf-c, node by node, without payloads; the wire bytes are copied with
 * the payloads' places left open and every enclosing length put right (splice.h). What remains to
 * be written is literal bytes, copies of source spans, and jobs, each at a known offset of a known
 * file.
 */
#ifndef QF_ONNX_LAYOUT_H
#define QF_ONNX_LAYOUT_H

#include "exec/job.h"
#include "base/strmap.h"
#include "onnx/model.h"

typedef struct qf_literal {
    qf_target target;
    int file;
    uint64_t offset;
    const unsigned char *data;
    size_t length;
} qf_literal;

typedef struct qf_layout_file {
    const char *name; /* in the destination folder */
    uint64_t size;
} qf_layout_file;

typedef struct qf_layout {
    qf_arena *arena;
    qf_layout_file *files; /* external files of a model before its .onnx */
    size_t file_count, file_cap;
    qf_literal *literals;
    size_t literal_count, literal_cap;
    qf_copy *copies;
    size_t copy_count, copy_cap;
    size_t *copy_of; /* payload index -> index into copies + 1, so that both targets share one */
    size_t copy_of_count, copy_of_cap;
    qf_arena literal_bytes[QF_TARGETS];
    uint64_t saved;    /* bytes that are not written because equal ones are */
    qf_strmap names;   /* files named so far */
    qf_strmap repeats; /* name -> last number behind it */
} qf_layout;

typedef struct qf_layout_request {
    qf_target target;
    const char *prefix;
    qf_external external;
    uint64_t threshold;
    qf_external_layout layout;
    const char *source; /* path of the source model, for messages; outlives the layout */
    /* Weights whose integer bytes are the same in both models lie in the deploy model's external
     * files alone; the deploy model is laid out first. */
    bool share_weights;
    /* External tensors of the same bytes are written once. `sources`: the files of their spans. */
    bool dedup;
    const qf_file *sources;
    bool runnable; /* names of the runnable model, which is laid out as the deploy target */
} qf_layout_request;

/* Lays out one model. `payloads` is the table that the model's tensors index; jobs in it receive
 * their place. Modifies `model` (data locations). */
qf_status qf_layout_add(qf_layout *layout, Onnx__ModelProto *model, const qf_payloads *payloads,
                        const qf_layout_request *request, qf_error *err);
/* A model that is the source file byte for byte. */
qf_status qf_layout_add_verbatim(qf_layout *layout, const qf_file *source,
                                 const qf_layout_request *request, qf_error *err);
void qf_layout_release(qf_layout *layout);

/* File name of an external tensor, before any suffix. Safe names stand as they are; in others '/',
 * '\', '%', '~', control characters and a leading '.' become %XX, which can be read back. `limit`
 * is the room in bytes; a longer name is cut and ends in '~' and the 128-bit hash of the whole. */
char *qf_external_name(qf_arena *arena, const char *tensor, size_t limit);

#endif
