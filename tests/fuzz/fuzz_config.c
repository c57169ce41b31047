/* SPDX-License-Identifier: Apache-2.0 */
/* A QAT configuration. */
#include <math.h>
#include <string.h>

#include "fuzz.h"
#include "quant/config.h"

static void look(const qf_config *config)
{
    qf_config_force_fp16(config);
    for (size_t i = 0; i < qf_config_layer_count(config); i++) {
        const qf_config_layer *l = qf_config_layer_at(config, i);
        fuzz_touch(l->name, strlen(l->name) + 1);
        FUZZ_REQUIRE(l->act_bits == 4 || l->act_bits == 8 || l->act_bits == 16, "%d bits",
                     l->act_bits);
        FUZZ_REQUIRE(l->wts_bits == 4 || l->wts_bits == 8, "%d bits", l->wts_bits);
        FUZZ_REQUIRE(!l->has_clip || (isfinite(l->clip_max) && isfinite(l->clip_min)),
                     "clip %g to %g", (double)l->clip_min, (double)l->clip_max);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    qf_config *config;
    qf_error err;
    qf_diagnostics *list = qf_diagnostics_create();
    qf_status status = qf_config_open(fuzz_write("c.json", data, size), &config, list, &err);
    for (size_t i = 0; i < qf_diagnostics_count(list); i++)
        FUZZ_REQUIRE(qf_diagnostics_at(list, i).message[0], "finding %zu", i);
    if (status == QF_OK) {
        FUZZ_REQUIRE(qf_diagnostics_errors(list) == 0, "accepted in spite of errors");
        look(config);
        qf_config_close(config);
    } else {
        fuzz_check_failure(status, &err);
    }
    qf_diagnostics_free(list);
    return 0;
}
