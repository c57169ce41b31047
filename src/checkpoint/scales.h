/* SPDX-License-Identifier: Apache-2.0 */
/* Scales that are given: in a record, or in a safetensors file. */
#ifndef QF_CHECKPOINT_SCALES_H
#define QF_CHECKPOINT_SCALES_H

#include "checkpoint/safetensors.h"
#include "base/strmap.h"
#include "quant/record.h"

typedef struct qf_scales {
    qf_file file; /* safetensors */
    qf_safetensors tensors;
    qf_record *record;
    qf_strmap by_name; /* tensor name, or key of the record -> its qf_safetensor or entry */
} qf_scales;

/* A file whose name ends in .safetensors, or a record. Release in any case. */
qf_status qf_scales_open(const char *path, qf_arena *arena, qf_scales *out, qf_error *err);
void qf_scales_close(qf_scales *scales);
/* The scales of weight `name` ("a.b.weight"), which must be 1 or `count`, row by row; one stands
 * for all. Rounded to `scale_type`. They are the arena's. */
qf_status qf_scales_find(const qf_scales *scales, qf_arena *arena, const char *name, uint64_t count,
                         int32_t scale_type, const float **out, qf_error *err);

#endif
