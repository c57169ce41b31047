/* SPDX-License-Identifier: Apache-2.0 */
/* The plan as JSON, for the manifest: docs/manifest.md, docs/report.md. */
#ifndef QF_QUANT_DESCRIBE_H
#define QF_QUANT_DESCRIBE_H

#include <cjson/cJSON.h>

#include "quant/plan.h"

/* An object with `record` and `config`, the texts that told how to quantize, where they were given,
 * and with `layers` if wanted, and `skipped`. NULL when memory is exhausted. */
cJSON *qf_plan_describe(const qf_plan *plan, bool layers);

#endif
