/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What lies in a staging folder when shards are brought together: plan.json and a journal, which
 * may be anybody's. The input: plan.json with its length in front, then the journal. A staged file
 * of 16 bytes, `p_deploy_model.onnx`, is there; a file beside the target folder must stay.
 */
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fuzz.h"
#include "xxhash.h"

/* Entries of the journal get the check value that they should have, or none would be read. */
static void seal(uint8_t *journal, size_t size)
{
    enum { HEADER = 32, ENTRY = 128, CHECK = 120 }; /* as in journal.c */
    for (size_t at = HEADER; at + ENTRY <= size; at += ENTRY) {
        uint64_t check = XXH3_64bits(journal + at, CHECK);
        memcpy(journal + at + CHECK, &check, sizeof check);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static uint8_t journal[16384];
    fuzz_part input = {data, size};
    qf_report *report;
    qf_error err;
    fuzz_part plan = fuzz_cut(&input);
    mkdir(fuzz_path("to"), 0700);
    mkdir(fuzz_path("to/.p.quantfold-partial"), 0700);
    mkdir(fuzz_path("to/.p.quantfold-partial/run"), 0700);
    fuzz_write("bystander", "untouched", 9);
    fuzz_write("to/.p.quantfold-partial/p_deploy_model.onnx", "0123456789abcdef", 16);
    fuzz_write("to/.p.quantfold-partial/run/plan.json", plan.data, plan.size);
    size_t n = input.size < sizeof journal ? input.size : sizeof journal;
    memcpy(journal, input.data, n);
    seal(journal, n);
    fuzz_write("to/.p.quantfold-partial/run/journal.0-of-1", journal, n);
    qf_status status = qf_commit(fuzz_path("to/p"), true, &report, &err);
    if (status == QF_OK)
        qf_report_free(report);
    else
        fuzz_check_failure(status, &err);
    FUZZ_REQUIRE(access(fuzz_path("bystander"), F_OK) == 0, "a file outside is gone");
    fuzz_empty("to");
    return 0;
}
