/* SPDX-License-Identifier: Apache-2.0 */
/* The plan's layers as JSON, for the manifest: docs/report.md. */
#ifndef QF_QUANT_DESCRIBE_H
#define QF_QUANT_DESCRIBE_H

#include <cjson/cJSON.h>

#include "quant/plan.h"

/* An object with members `layers` and `skipped`; NULL when memory is exhausted. */
cJSON *qf_plan_describe(const qf_plan *plan);

#endif
