/* SPDX-License-Identifier: Apache-2.0 */
/* A model: wire scan, skeleton, opening, linking. */
#include <stdlib.h>
#include <string.h>

#include "base/spill.h"
#include "fuzz.h"
#include "onnx/model.h"
#include "onnx/scan.h"

/* The scan alone, over memory that ends where the input ends. */
static void scan(const uint8_t *data, size_t size)
{
    unsigned char *skeleton = NULL;
    size_t length = 0;
    qf_payloads payloads = {0};
    qf_error err;
    char name[] = "m.onnx";
    const qf_file file = {.path = name, .data = data, .size = size};
    qf_status status = qf_scan(&file, &payloads, &skeleton, &length, &err);
    if (status != QF_OK)
        fuzz_check_failure(status, &err);
    for (size_t i = 0; i < payloads.count; i++) {
        const qf_span *span = &payloads.items[i].span;
        FUZZ_REQUIRE(span->offset <= size && span->length <= size - span->offset,
                     "payload %zu lies outside the file", i);
    }
    if (status == QF_OK)
        qf_spill_free(skeleton);
    qf_payloads_release(&payloads);
}

static void look(const qf_model *model)
{
    qf_model_info info = qf_model_describe(model);
    fuzz_touch(info.producer_name, strlen(info.producer_name));
    fuzz_touch(info.graph_name, strlen(info.graph_name));
    for (size_t i = 0; i < qf_model_layer_count(model); i++) {
        qf_layer_candidate c = qf_model_layer(model, i);
        FUZZ_REQUIRE(c.quantizable == !c.reason[0], "layer %zu: '%s'", i, c.reason);
        fuzz_touch(c.name, strlen(c.name));
        fuzz_touch(c.weight, strlen(c.weight));
    }
    for (size_t i = 0; i < model->payloads.count; i++)
        fuzz_touch(model->payloads.items[i].span.data,
                   (size_t)model->payloads.items[i].span.length);
}

/* A model that was opened links, and what it is after that unpacks again. */
static void relink(const qf_model *model)
{
    qf_linked linked, again;
    qf_error err;
    unsigned char *packed;
    size_t length;
    qf_status status = qf_linked_open(model->skeleton, model->skeleton_length, "m", &linked, &err);
    FUZZ_REQUIRE(status == QF_OK, "%s", err.message);
    status = qf_ir_finish(&linked.ir, "m", &err);
    if (status == QF_OK) {
        status = qf_skeleton_pack(linked.model, &packed, &length, &err);
        FUZZ_REQUIRE(status == QF_OK, "%s", err.message);
        status = qf_linked_open(packed, length, "m", &again, &err);
        FUZZ_REQUIRE(status == QF_OK, "%s", err.message);
        qf_linked_close(&again);
        qf_spill_free(packed);
    } else {
        fuzz_check_failure(status, &err);
    }
    qf_linked_close(&linked);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    qf_model *model;
    qf_error err;
    scan(data, size);
    qf_status status = qf_model_open(fuzz_write("m.onnx", data, size), &model, &err);
    if (status != QF_OK) {
        fuzz_check_failure(status, &err);
        return 0;
    }
    look(model);
    relink(model);
    qf_model_close(model);
    return 0;
}
