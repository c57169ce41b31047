/* SPDX-License-Identifier: Apache-2.0 */
/* The record of a QDQ model, as text and back. The input: a byte of options, then the model. */
#include <stdlib.h>
#include <string.h>

#include "fuzz.h"

static void round_trip(const qf_record *record)
{
    qf_record *again;
    qf_error err;
    char *text;
    size_t length;
    qf_status status = qf_record_format(record, &text, &length, &err);
    FUZZ_REQUIRE(status == QF_OK, "%s", err.message);
    status = qf_record_parse("again", text, length, &again, &err);
    FUZZ_REQUIRE(status == QF_OK, "%s", err.message);
    FUZZ_REQUIRE(qf_record_count(again) == qf_record_count(record), "%zu entries",
                 qf_record_count(again));
    free(text);
    qf_record_close(again);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    fuzz_part input = {data, size};
    qf_on_unsupported unsupported =
        fuzz_byte(&input) % 2 ? QF_UNSUPPORTED_FLOAT : QF_UNSUPPORTED_ERROR;
    qf_model *model;
    qf_record *record;
    qf_error err;
    qf_status status = qf_model_open(fuzz_write("m.onnx", input.data, input.size), &model, &err);
    if (status != QF_OK) {
        fuzz_check_failure(status, &err);
        return 0;
    }
    qf_diagnostics *list = qf_diagnostics_create();
    status = qf_record_from_qdq(model, unsupported, list, &record, &err);
    if (status == QF_OK) {
        round_trip(record);
        qf_record_close(record);
    } else {
        fuzz_check_failure(status, &err);
    }
    qf_diagnostics_free(list);
    qf_model_close(model);
    return 0;
}
