/* SPDX-License-Identifier: Apache-2.0 */
/* Which tensors of a checkpoint are linear weights. */
#ifndef QF_CHECKPOINT_SELECTION_H
#define QF_CHECKPOINT_SELECTION_H

#include "base/pattern.h"
#include "checkpoint/safetensors.h"

typedef struct qf_selection {
    qf_pattern include, exclude;
    bool transposed_modules; /* the model's linear layers are GPT-2's Conv1D, stored [in, out] */
} qf_selection;
/* `config` is the text of config.json. Release in any case. */
qf_status qf_selection_open(const char *include, const char *exclude, const char *config,
                            size_t config_length, qf_selection *out, qf_error *err);
void qf_selection_close(qf_selection *selection);
/* Whether a tensor is quantized: "" if it is, else why not; NULL if it is no weight matrix at all.
 */
const char *qf_selection_judge(qf_selection *selection, const qf_safetensor *tensor);

#endif
