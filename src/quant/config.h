/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A QAT configuration ("retrain config") in memory. qf_config_open has checked all that can be
 * checked without the model; whether a layer exists and may be quantized channel by channel is for
 * the planner. All pointers are borrowed until qf_config_close.
 */
#ifndef QF_QUANT_CONFIG_H
#define QF_QUANT_CONFIG_H

#include "base/diag.h"
#include "base/file.h"

/* Larger files are refused. */
#define QF_CONFIG_MAX_BYTES (UINT64_C(64) << 20)

typedef enum qf_choice { QF_UNSET = 0, QF_NO, QF_YES } qf_choice;

typedef struct qf_config_layer {
    const char *name;
    bool enabled;           /* retrain_enable; true if absent */
    int act_bits;           /* 4, 8 or 16; 8 if absent */
    int wts_bits;           /* 4 or 8; 8 if absent */
    qf_choice channel_wise; /* QF_UNSET: not in the file, the default depends on the layer's type */
    bool has_clip;          /* clip_max and clip_min are given */
    float clip_max, clip_min;
    bool fixed_min; /* the least activation is 0 */
} qf_config_layer;

size_t qf_config_layer_count(const qf_config *config);
/* `index` < qf_config_layer_count(config); in the order of the file. */
const qf_config_layer *qf_config_layer_at(const qf_config *config, size_t index);
/* Is fakequant_precision_mode FORCE_FP16_QUANT? */
bool qf_config_force_fp16(const qf_config *config);
const char *qf_config_path(const qf_config *config);
/* Identity of the file. */
const qf_file_id *qf_config_id(const qf_config *config);

#endif
