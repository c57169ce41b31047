/* SPDX-License-Identifier: Apache-2.0 */
/* A model under examination: as much of it as can be read, however wrong it is. What cannot be read
 * is a finding, and everything else is looked at all the same. */
#ifndef QF_VERIFY_SUBJECT_H
#define QF_VERIFY_SUBJECT_H

#include "base/diag.h"
#include "onnx/model.h"
#include "passes/passes.h"

typedef struct qf_nameless qf_nameless;

typedef struct qf_subject {
    const char *role;   /* "deploy model", for messages */
    const char *origin; /* of what should be there: "the source" */
    const char *path;   /* as messages name it; the arena's */
    qf_model model;     /* its files and payloads; no skeleton */
    qf_arena arena;
    Onnx__ModelProto *proto;
    qf_ir ir;       /* nodes in the order of the file; main graph first */
    bool quantized; /* it has nodes that an export made; without them it may be a plain copy */
    qf_diagnostics *findings;
    qf_nameless *nameless; /* label.c: tensors that have no name */
    size_t nameless_count;
    bool listed;
} qf_subject;

/* Opens `path`. *readable is false, and there is a finding, if not even its graph could be read;
 * nothing is then to be closed. A status other than QF_OK is the system's or memory's, or says that
 * a file was changed while it was read; that is to be asked again when the subject is done with. */
qf_status qf_subject_open(const char *path, const char *role, qf_diagnostics *findings,
                          qf_subject *out, bool *readable, qf_error *err);
/* The same for a model whose bytes are in memory, mapped as `file`, which the subject takes over.
 * Its external data is not looked for. */
qf_status qf_subject_read(qf_file *file, const char *role, qf_diagnostics *findings,
                          qf_subject *out, bool *readable, qf_error *err);
void qf_subject_close(qf_subject *subject);

/* A finding about the model; `item` is the node or tensor. */
void qf_subject_note(const qf_subject *subject, const char *item, const char *format, ...)
    QF_PRINTF(3, 4);

/* The tensor that a value is, constant nodes and Identity looked through; NULL if it is none. */
const Onnx__TensorProto *qf_subject_constant(qf_value *value);

/* Name of a node as the file has it, or that of its first output; of a node in a function, which no
 * graph has, the function's. */
const char *qf_subject_node_name(const qf_node *node);

/* Whether two texts are the same; NULL is as good as "". */
bool qf_same_text(const char *a, const char *b);
/* What a tensor says of its external data: "location", "offset"; NULL if it does not. */
const char *qf_external_entry(const Onnx__TensorProto *tensor, const char *key);

/* Whether `text` is `start` followed by `end` and, where a name had to be made unique, by digits.
 */
bool qf_is_name(const char *text, const char *start, const char *end);

#endif
