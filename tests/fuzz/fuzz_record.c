/* SPDX-License-Identifier: Apache-2.0 */
/* A record: what is read and written reads again as the same. */
#include <stdlib.h>
#include <string.h>

#include "fuzz.h"
#include "quant/record.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    qf_record *record, *again;
    qf_error err;
    char *text, *text_again;
    size_t length, length_again;
    qf_status status = qf_record_parse("r.txt", (const char *)data, size, &record, &err);
    if (status != QF_OK) {
        fuzz_check_failure(status, &err);
        return 0;
    }
    qf_diagnostics *list = qf_diagnostics_create();
    qf_record_report(record, list);
    for (size_t i = 0; i < qf_record_count(record); i++)
        FUZZ_REQUIRE(qf_record_line(record, i) > 0 && qf_record_key(record, i), "entry %zu", i);
    status = qf_record_format(record, &text, &length, &err);
    FUZZ_REQUIRE(status == QF_OK, "%s", err.message);
    FUZZ_REQUIRE(strlen(text) == length, "a text of %zu bytes ends at %zu", length, strlen(text));
    status = qf_record_parse("again", text, length, &again, &err);
    FUZZ_REQUIRE(status == QF_OK, "%s", err.message);
    FUZZ_REQUIRE(qf_record_count(again) == qf_record_count(record), "%zu entries",
                 qf_record_count(again));
    status = qf_record_format(again, &text_again, &length_again, &err);
    FUZZ_REQUIRE(status == QF_OK, "%s", err.message);
    FUZZ_REQUIRE(strcmp(text, text_again) == 0, "first:\n%s\nthen:\n%s", text, text_again);
    free(text);
    free(text_again);
    qf_diagnostics_free(list);
    qf_record_close(record);
    qf_record_close(again);
    return 0;
}
