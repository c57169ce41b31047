/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A checkpoint folder, planned and exported. Where it succeeds, the output is a checkpoint that
 * opens, of the planned lengths; where it fails, nothing is left behind. The input: two bytes of
 * options, config.json and, if it is not empty, the index, each with its length in front, then
 * model.safetensors.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fuzz.h"

static const char *const schemes[] = {"w8a16",         "w4a16",          "w8a8", "w4a16:group=4",
                                      "w8a16:group=2", "w4a16:group=32", "w8a8", "w8a16"};

static void read_options(fuzz_part *input, qf_checkpoint_options *o)
{
    uint8_t scheme = fuzz_byte(input), more = fuzz_byte(input);
    qf_checkpoint_options_init(o);
    o->out = fuzz_path("out/new");
    o->threads = 1;
    o->no_sync = true;
    o->io = QF_IO_PWRITE;
    o->scheme = schemes[scheme % 8];
    o->include = scheme >> 3 & 1 ? NULL : "weight|a"; /* else, only those of 32 x 32 or more */
    o->exclude = scheme >> 4 & 1 ? "b" : NULL;
    o->manifest = more & 1;
    if (more & 2)
        o->max_shard_bytes = 1 + (more >> 4) * UINT64_C(64);
    if (more & 4)
        o->scales = fuzz_path("in/model.safetensors"); /* its own tensors, of the wrong names */
}

static void check_output(const qf_checkpoint_plan *plan)
{
    for (size_t i = 0; i < qf_checkpoint_plan_output_count(plan); i++) {
        qf_output_file f = qf_checkpoint_plan_output(plan, i);
        struct stat st;
        FUZZ_REQUIRE(stat(f.path, &st) == 0, "no %s", f.path);
        FUZZ_REQUIRE((uint64_t)st.st_size == f.bytes, "%s has %lld bytes, %llu were planned",
                     f.path, (long long)st.st_size, (unsigned long long)f.bytes);
    }
    qf_checkpoint *made;
    qf_error err;
    qf_status status = qf_checkpoint_open(fuzz_path("out/new"), &made, &err);
    FUZZ_REQUIRE(status == QF_OK, "the output does not open: %s", err.message);
    qf_checkpoint_close(made);
}

static qf_status export(qf_checkpoint *checkpoint, const qf_checkpoint_options *options,
                        qf_error *err)
{
    qf_checkpoint_plan *plan;
    qf_report *report;
    qf_status status = qf_checkpoint_plan_create(checkpoint, options, &plan, err);
    if (status != QF_OK)
        return status;
    for (size_t i = 0; i < qf_checkpoint_plan_tensor_count(plan); i++) {
        qf_checkpoint_tensor t = qf_checkpoint_plan_tensor(plan, i);
        FUZZ_REQUIRE(!t.bits == (!t.reason || t.reason[0]), "tensor %s", t.name);
    }
    status = qf_checkpoint_export(plan, &report, err);
    if (status == QF_OK) {
        check_output(plan);
        qf_report_free(report);
    }
    qf_checkpoint_plan_free(plan);
    return status;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    fuzz_part input = {data, size};
    qf_checkpoint_options options;
    qf_checkpoint *checkpoint;
    qf_error err;
    read_options(&input, &options);
    fuzz_part config = fuzz_cut(&input), index = fuzz_cut(&input);
    mkdir(fuzz_path("in"), 0700);
    mkdir(fuzz_path("out"), 0700);
    fuzz_write("in/config.json", config.data, config.size);
    fuzz_write("in/model.safetensors", input.data, input.size);
    if (index.size)
        fuzz_write("in/model.safetensors.index.json", index.data, index.size);
    else
        unlink(fuzz_path("in/model.safetensors.index.json"));
    qf_status status = qf_checkpoint_open(fuzz_path("in"), &checkpoint, &err);
    if (status == QF_OK) {
        status = export(checkpoint, &options, &err);
        qf_checkpoint_close(checkpoint);
    }
    size_t left = fuzz_empty("out");
    if (status != QF_OK) {
        fuzz_check_failure(status, &err);
        FUZZ_REQUIRE(left == 0, "a failed export left %zu files", left);
    }
    return 0;
}
