/* SPDX-License-Identifier: Apache-2.0 */
/* Export options of programs that were built with an older header. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "quantfold/quantfold.h"

/* The struct as it ended before memory_limit was added, its tail padding included. */
typedef struct older_options {
    size_t struct_size;
    const char *save_path;
    qf_emit emit;
    qf_external external;
    uint64_t external_threshold;
    qf_external_layout external_layout;
    int threads;
    qf_progress_fn progress;
    void *progress_user;
    bool ignore_target;
} older_options;

static void test_new_fields_lie_behind_older_structs(void **state)
{
    (void)state;
    assert_int_equal(offsetof(older_options, ignore_target),
                     offsetof(qf_export_options, ignore_target));
    assert_true(offsetof(qf_export_options, memory_limit) >= sizeof(older_options));
}

static void test_defaults_fill_no_more_than_asked(void **state)
{
    (void)state;
    qf_export_options o;
    memset(&o, 0x5a, sizeof o);
    qf_export_options_init_sized(&o, sizeof(older_options));
    assert_int_equal(o.struct_size, sizeof(older_options));
    assert_int_equal(o.fake_quant_weights, 0x5a5a5a5a);
    qf_export_options_init(&o);
    assert_int_equal(o.fake_quant_weights, QF_FAKE_QUANT_FLOAT);
}

/* A struct of a header that is newer than the library: what it does not know is zero. */
static void test_defaults_fill_what_a_newer_struct_has_more(void **state)
{
    (void)state;
    struct {
        qf_export_options known;
        unsigned char more[40];
    } o;
    static const unsigned char zeros[sizeof o.more];
    memset(&o, 0x5a, sizeof o);
    qf_export_options_init_sized(&o.known, sizeof o);
    assert_int_equal(o.known.struct_size, sizeof o);
    assert_int_equal(o.known.external_threshold, 2000000000);
    assert_memory_equal(o.more, zeros, sizeof zeros);
}

/* A model of an empty graph, which no record fits: ir_version 8, opset 13. */
static qf_status plan_with(const qf_export_options *options)
{
    static const char bytes[] = "\x08\x08\x3a\x03\x12\x01g\x42\x02\x10\x0d";
    static const char text[] = "record { key: 'a' value { scale_d: 1 } }";
    char path[] = "/tmp/quantfold-options-XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, bytes, sizeof bytes - 1), sizeof bytes - 1);
    close(fd);
    qf_model *model;
    qf_record *record;
    qf_plan *plan;
    qf_error err;
    assert_int_equal(qf_model_open(path, &model, &err), QF_OK);
    assert_int_equal(qf_record_parse("r", text, strlen(text), &record, &err), QF_OK);
    qf_status status = qf_plan_create(model, NULL, record, NULL, options, NULL, &plan, &err);
    qf_record_close(record);
    qf_model_close(model);
    unlink(path);
    return status;
}

static void test_bytes_behind_an_older_struct_are_not_read(void **state)
{
    (void)state;
    qf_export_options o;
    qf_export_options_init(&o);
    o.save_path = "nowhere/m";
    o.emit = QF_EMIT_DEPLOY;
    assert_int_equal(plan_with(&o), QF_ERR_INPUT);
    o.fake_quant_weights = QF_FAKE_QUANT_SHARED; /* not with one model */
    assert_int_equal(plan_with(&o), QF_ERR_USAGE);
    o.struct_size = sizeof(older_options);
    assert_int_equal(plan_with(&o), QF_ERR_INPUT);
    o.struct_size = sizeof o;
    o.fake_quant_weights = (qf_fake_quant_weights)3;
    assert_int_equal(plan_with(&o), QF_ERR_USAGE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_new_fields_lie_behind_older_structs),
        cmocka_unit_test(test_defaults_fill_no_more_than_asked),
        cmocka_unit_test(test_defaults_fill_what_a_newer_struct_has_more),
        cmocka_unit_test(test_bytes_behind_an_older_struct_are_not_read),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
