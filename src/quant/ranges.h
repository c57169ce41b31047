/* SPDX-License-Identifier: Apache-2.0 */
/* What values activations take, by layer: a small JSON file. Borrowed until qf_ranges_close. */
#ifndef QF_QUANT_RANGES_H
#define QF_QUANT_RANGES_H

#include "base/error.h"

/* Larger files are refused. */
#define QF_RANGES_MAX_BYTES (UINT64_C(64) << 20)

/* One tensor's range, or its scale and offset. */
typedef struct qf_range_values {
    bool given, is_scale;
    float min, max; /* min < max */
    float scale;    /* is_scale */
    int32_t offset;
} qf_range_values;

typedef struct qf_layer_range {
    const char *layer;
    qf_range_values input, hidden; /* hidden: initial_h of an RNN */
} qf_layer_range;

size_t qf_ranges_count(const qf_ranges *ranges);
const qf_layer_range *qf_ranges_at(const qf_ranges *ranges, size_t index);
const char *qf_ranges_path(const qf_ranges *ranges);

#endif
