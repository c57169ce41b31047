/* SPDX-License-Identifier: Apache-2.0 */
/* The small JSON inputs. The first byte chooses: dynamic axes, or ranges of activations. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "fuzz.h"
#include "quant/ranges.h"

static void axes(const uint8_t *data, size_t size)
{
    qf_dynamic_axis *out;
    size_t count;
    qf_error err;
    char *text = malloc(size + 1);
    FUZZ_REQUIRE(text, "no memory");
    memcpy(text, data, size);
    text[size] = '\0';
    qf_status status = qf_dynamic_axes_parse(text, &out, &count, &err);
    free(text);
    if (status != QF_OK) {
        fuzz_check_failure(status, &err);
        return;
    }
    for (size_t i = 0; i < count; i++) {
        fuzz_touch(out[i].tensor, strlen(out[i].tensor) + 1);
        if (out[i].label)
            fuzz_touch(out[i].label, strlen(out[i].label) + 1);
        FUZZ_REQUIRE(out[i].axis >= 0, "axis %lld", (long long)out[i].axis);
    }
    free(out);
}

static void check_values(const qf_range_values *v)
{
    if (v->given && v->is_scale)
        FUZZ_REQUIRE(v->scale > 0 && isfinite(v->scale), "scale %g", (double)v->scale);
    else if (v->given)
        FUZZ_REQUIRE(v->min < v->max && isfinite(v->min) && isfinite(v->max), "%g to %g",
                     (double)v->min, (double)v->max);
}

static void ranges(const uint8_t *data, size_t size)
{
    qf_ranges *out;
    qf_error err;
    qf_status status = qf_ranges_parse("a.json", (const char *)data, size, &out, &err);
    if (status != QF_OK) {
        fuzz_check_failure(status, &err);
        return;
    }
    for (size_t i = 0; i < qf_ranges_count(out); i++) {
        const qf_layer_range *r = qf_ranges_at(out, i);
        fuzz_touch(r->layer, strlen(r->layer) + 1);
        check_values(&r->input);
        check_values(&r->hidden);
    }
    qf_ranges_close(out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    fuzz_part input = {data, size};
    if (fuzz_byte(&input) % 2)
        ranges(input.data, input.size);
    else
        axes(input.data, input.size);
    return 0;
}
