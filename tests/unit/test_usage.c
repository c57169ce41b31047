/* SPDX-License-Identifier: Apache-2.0 */
/* Calls that are wrong themselves: QF_ERR_USAGE with a message, and nothing is given out. And the
 * options of programs that were built with another header. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#include "quantfold/quantfold.h"

static int never; /* what stands for an object that is not looked at */
static void *nothing = &never;

/* `out`: where the call would have put an object. */
static void assert_usage(qf_status status, const qf_error *err, const void *out)
{
    void *object;
    memcpy(&object, out, sizeof object);
    assert_int_equal(status, QF_ERR_USAGE);
    assert_int_equal(err->code, QF_ERR_USAGE);
    assert_true(strlen(err->message) > 10);
    assert_ptr_equal(object, &never);
}

static void test_inputs(void **state)
{
    (void)state;
    qf_error err;
    qf_model *model = (void *)&never;
    qf_record *record = (void *)&never;
    qf_config *config = (void *)&never;
    qf_ranges *ranges = (void *)&never;
    char *text = (void *)&never;
    assert_usage(qf_model_open(NULL, &model, &err), &err, &model);
    assert_usage(qf_model_open("m", NULL, &err), &err, &nothing);
    assert_usage(qf_record_open(NULL, &record, &err), &err, &record);
    assert_usage(qf_record_open("r", NULL, &err), &err, &nothing);
    assert_usage(qf_record_parse(NULL, "", 0, &record, &err), &err, &record);
    assert_usage(qf_record_parse("r", NULL, 1, &record, &err), &err, &record);
    assert_usage(qf_record_format(NULL, &text, NULL, &err), &err, &text);
    assert_usage(qf_record_save(NULL, "r", &err), &err, &nothing);
    assert_usage(qf_config_open(NULL, &config, NULL, &err), &err, &config);
    assert_usage(qf_config_open("c", NULL, NULL, &err), &err, &nothing);
    assert_usage(qf_ranges_open(NULL, &ranges, &err), &err, &ranges);
    assert_usage(qf_ranges_open("r", NULL, &err), &err, &nothing);
    assert_usage(qf_ranges_parse("r", NULL, 1, &ranges, &err), &err, &ranges);
    assert_usage(qf_record_from_qdq(NULL, QF_UNSUPPORTED_ERROR, NULL, &record, &err), &err,
                 &record);
    assert_usage(qf_record_compute(NULL, NULL, NULL, 1, NULL, &record, &err), &err, &record);
    qf_model_close(NULL);
    qf_record_close(NULL);
    qf_config_close(NULL);
    qf_ranges_close(NULL);
}

static void test_exports(void **state)
{
    (void)state;
    qf_error err;
    qf_plan *plan = (void *)&never;
    qf_report *report = (void *)&never;
    qf_dynamic_axis *axes = (void *)&never;
    size_t count;
    qf_export_options o;
    qf_export_options_init(&o);
    assert_usage(qf_plan_create(NULL, NULL, NULL, NULL, &o, NULL, &plan, &err), &err, &plan);
    assert_usage(qf_export(NULL, &report, &err), &err, &report);
    assert_usage(qf_commit(NULL, false, &report, &err), &err, &report);
    assert_usage(qf_save_quant_retrain_model(NULL, NULL, NULL, &o, NULL, &report, &err), &err,
                 &report);
    assert_usage(qf_dynamic_axes_parse(NULL, &axes, &count, &err), &err, &axes);
    assert_usage(qf_dynamic_axes_parse("{}", NULL, &count, &err), &err, &nothing);
    qf_plan_free(NULL);
    qf_report_free(NULL);
}

static void test_checkpoints_and_pages(void **state)
{
    (void)state;
    qf_error err;
    qf_checkpoint *checkpoint = (void *)&never;
    qf_checkpoint_plan *plan = (void *)&never;
    qf_report *report = (void *)&never;
    char *text = (void *)&never;
    qf_checkpoint_options o;
    qf_checkpoint_options_init(&o);
    assert_usage(qf_checkpoint_open(NULL, &checkpoint, &err), &err, &checkpoint);
    assert_usage(qf_checkpoint_open("c", NULL, &err), &err, &nothing);
    assert_usage(qf_checkpoint_plan_create(NULL, &o, &plan, &err), &err, &plan);
    assert_usage(qf_checkpoint_export(NULL, &report, &err), &err, &report);
    assert_usage(qf_summary_html(NULL, &text, NULL, &err), &err, &text);
    assert_usage(qf_summary_json("m", NULL, NULL, &err), &err, &nothing);
    assert_usage(qf_summary_save(NULL, NULL, &text, &err), &err, &text);
    qf_checkpoint_close(NULL);
    qf_checkpoint_plan_free(NULL);
}

static void test_verify(void **state)
{
    (void)state;
    qf_error err;
    qf_verify_options o;
    qf_verify_result result;
    qf_diagnostics *findings = qf_diagnostics_create();
    qf_verify_options_init(&o);
    assert_usage(qf_verify(NULL, findings, &result, &err), &err, &nothing);
    assert_usage(qf_verify(&o, findings, &result, &err), &err, &nothing); /* no prefix */
    o.prefix = "m";
    assert_usage(qf_verify(&o, NULL, &result, &err), &err, &nothing);
    assert_usage(qf_verify(&o, findings, NULL, &err), &err, &nothing);
    o.struct_size = sizeof o.struct_size;
    assert_usage(qf_verify(&o, findings, &result, &err), &err, &nothing);
    assert_int_equal(qf_diagnostics_count(findings), 0);
    qf_diagnostics_free(findings);
    qf_diagnostics_free(NULL);
}

/* Structs of a header that is newer than the library, and of an older one. */
static void test_options_of_other_sizes(void **state)
{
    (void)state;
    enum { MORE = 24 };
    static const unsigned char zeros[MORE];
    struct {
        qf_verify_options known;
        unsigned char more[MORE];
    } v;
    struct {
        qf_checkpoint_options known;
        unsigned char more[MORE];
    } c;
    memset(&v, 0x5a, sizeof v);
    memset(&c, 0x5a, sizeof c);
    qf_verify_options_init_sized(&v.known, sizeof v);
    qf_checkpoint_options_init_sized(&c.known, sizeof c);
    assert_int_equal(v.known.struct_size, sizeof v);
    assert_int_equal(c.known.struct_size, sizeof c);
    assert_null(v.known.prefix);
    assert_null(c.known.out);
    assert_memory_equal(v.more, zeros, MORE);
    assert_memory_equal(c.more, zeros, MORE);
    memset(&v, 0x5a, sizeof v);
    qf_verify_options_init_sized(&v.known, offsetof(qf_verify_options, threads));
    assert_null(v.known.model);
    assert_int_equal(v.known.threads, 0x5a5a5a5a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_inputs),
        cmocka_unit_test(test_exports),
        cmocka_unit_test(test_checkpoints_and_pages),
        cmocka_unit_test(test_verify),
        cmocka_unit_test(test_options_of_other_sizes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
