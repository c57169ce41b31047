/* SPDX-License-Identifier: Apache-2.0 */
/* What "w4a16:group=128" says, and which tensors it is said of. */
#ifndef QF_CHECKPOINT_SCHEME_H
#define QF_CHECKPOINT_SCHEME_H

#include <regex.h>

#include "base/error.h"
#include "checkpoint/safetensors.h"

typedef struct qf_scheme {
    int weight_bits;     /* 8 or 4 */
    int activation_bits; /* 8 or 16 */
    uint64_t group;      /* 0: one scale a row */
} qf_scheme;
qf_status qf_scheme_parse(const char *text, qf_scheme *out, qf_error *err);

typedef struct qf_selection {
    regex_t include, exclude;
    bool has_include, has_exclude;
    bool transposed_modules; /* the model's linear layers are GPT-2's Conv1D, stored [in, out] */
} qf_selection;
/* `config` is the text of config.json. Release in any case. */
qf_status qf_selection_open(const char *include, const char *exclude, const char *config,
                            size_t config_length, qf_selection *out, qf_error *err);
void qf_selection_close(qf_selection *selection);
/* Whether a tensor is quantized: "" if it is, else why not; NULL if it is no weight matrix at all.
 */
const char *qf_selection_judge(const qf_selection *selection, const qf_safetensor *tensor);
/* Whether the name is that of a module that no scheme targets, as embeddings and norms are, so that
 * nobody must be told that it stays float. */
bool qf_is_never_linear(const char *tensor);

#endif
