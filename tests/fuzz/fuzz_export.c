/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A whole export: model, record, config and options from one input. Where it succeeds, its files
 * have the planned lengths and are models that open; where it fails, nothing is left behind. The
 * input: four bytes of options, record and config, each with its length in front, then the model.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "fuzz.h"
#include "parts.h"

static const char *const schemes[] = {
    NULL, NULL, "w8a16", "w4a16", "record", "w4a16:group=4", "w4a16:group=32", "w8a16:group=2"};

static void read_options(fuzz_part *input, qf_export_options *o)
{
    uint8_t shape = fuzz_byte(input), kinds = fuzz_byte(input), scheme = fuzz_byte(input),
            more = fuzz_byte(input);
    qf_export_options_init(o);
    o->save_path = fuzz_path("out/p");
    o->threads = 1;
    o->emit = (qf_emit)(shape % 3);
    o->external = (qf_external)(shape / 4 % 3);
    o->external_layout = (qf_external_layout)(shape >> 4 & 1);
    o->dedup = shape >> 5 & 1;
    o->manifest = shape >> 6 & 1;
    o->no_sync = true;
    o->fake_quant_weights = (qf_fake_quant_weights)(kinds % 3);
    o->source = (qf_source)(kinds / 4 % 3);
    o->on_unsupported = (qf_on_unsupported)(kinds >> 4 & 1);
    o->free_qdq = (qf_free_qdq)(kinds >> 5 & 1);
    o->io = kinds >> 6 & 1 ? QF_IO_MMAP : QF_IO_PWRITE;
    o->weight_only = schemes[scheme % 8];
    o->exclude = scheme >> 3 & 1 ? "2" : NULL;
    o->include = scheme >> 4 & 1 ? "[w1]" : NULL;
    if (more & 1)
        o->external_threshold = 64 + (uint64_t)(more >> 4) * 256;
}

static const qf_io_spec *names_of(uint8_t more, qf_io_spec *spec)
{
    static const char *const inputs[] = {"first", "x"};
    static const char *const outputs[] = {"y", "last"};
    static const qf_dynamic_axis axes[] = {{"x", 0, "batch"}, {"y", 1, NULL}, {"first", 0, NULL}};
    *spec = (qf_io_spec){0};
    if (more & 2) {
        spec->input_names = inputs;
        spec->input_name_count = 1 + (more >> 4 & 1);
        spec->output_names = outputs;
        spec->output_name_count = 1;
    }
    if (more & 4) {
        spec->dynamic_axes = axes;
        spec->dynamic_axis_count = 1 + (more >> 5) % 3;
    }
    return more & 6 ? spec : NULL;
}

static void check_plan(const qf_plan *plan)
{
    for (size_t i = 0; i < qf_plan_layer_count(plan); i++) {
        qf_layer_info l = qf_plan_layer(plan, i);
        FUZZ_REQUIRE(l.name && l.key && l.op_type && l.weight, "layer %zu", i);
        fuzz_touch(l.name, strlen(l.name) + 1);
    }
    for (size_t i = 0; i < qf_plan_skipped_count(plan); i++) {
        qf_skipped_layer s = qf_plan_skipped(plan, i);
        FUZZ_REQUIRE(s.reason[0], "layer %s is skipped without a reason", s.name);
    }
}

/* Each file is there in the planned length, and each .onnx among them opens. */
static void check_output(const qf_plan *plan)
{
    for (size_t i = 0; i < qf_plan_output_count(plan); i++) {
        qf_output_file f = qf_plan_output(plan, i);
        struct stat st;
        qf_model *model;
        qf_error err;
        FUZZ_REQUIRE(stat(f.path, &st) == 0, "no %s", f.path);
        FUZZ_REQUIRE((uint64_t)st.st_size == f.bytes, "%s has %lld bytes, %llu were planned",
                     f.path, (long long)st.st_size, (unsigned long long)f.bytes);
        size_t n = strlen(f.path);
        if (n < 5 || strcmp(f.path + n - 5, ".onnx") != 0)
            continue;
        qf_status status = qf_model_open(f.path, &model, &err);
        FUZZ_REQUIRE(status == QF_OK, "the output does not open: %s", err.message);
        qf_model_close(model);
    }
}

static void export(qf_model *model, const qf_config *config, const qf_record *record,
                   const qf_io_spec *io, const qf_export_options *options)
{
    qf_diagnostics *list = qf_diagnostics_create();
    qf_plan *plan = NULL;
    qf_report *report;
    qf_error err;
    qf_status status = qf_plan_create(model, config, record, io, options, list, &plan, &err);
    if (status == QF_OK) {
        check_plan(plan);
        status = qf_export(plan, &report, &err);
        if (status == QF_OK) {
            check_output(plan);
            qf_report_free(report);
        }
        qf_plan_free(plan);
    }
    size_t left = fuzz_empty("out");
    if (status != QF_OK) {
        fuzz_check_failure(status, &err);
        FUZZ_REQUIRE(left == 0, "a failed export left %zu files", left);
    }
    qf_diagnostics_free(list);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    export_parts parts = export_parts_of(data, size);
    qf_export_options options;
    qf_io_spec spec;
    qf_model *model = NULL;
    qf_record *record = NULL;
    qf_config *config = NULL;
    qf_error err;
    const qf_io_spec *io = names_of(parts.options.size > 3 ? parts.options.data[3] : 0, &spec);
    read_options(&parts.options, &options);
    mkdir(fuzz_path("in"), 0700);
    mkdir(fuzz_path("out"), 0700);
    qf_status status =
        qf_model_open(fuzz_write("in/m.onnx", parts.model.data, parts.model.size), &model, &err);
    if (status == QF_OK && parts.record.size)
        status = qf_record_parse("r.txt", (const char *)parts.record.data, parts.record.size,
                                 &record, &err);
    if (status == QF_OK && parts.config.size)
        status = qf_config_open(fuzz_write("in/c.json", parts.config.data, parts.config.size),
                                &config, NULL, &err);
    if (status == QF_OK)
        export(model, config, record, io, &options);
    else
        fuzz_check_failure(status, &err);
    qf_config_close(config);
    qf_record_close(record);
    qf_model_close(model);
    return 0;
}
