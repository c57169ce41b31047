/* SPDX-License-Identifier: Apache-2.0 */
/* The one call named after the reference's, against the same in steps. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "onnx.pb-c.h"
#include "quantfold/quantfold.h"

enum { IN = 4, OUT = 3, COUNT = IN * OUT, PATH = 200 };

static const float weight[COUNT] = {1, -2, 3, 0.5f, -0.25f, 0.75f, 2, 2.5f, -3, 0.1f, 1.5f, -1};
static const float scale_w = 0.03f;

static char folder[64], model[PATH], record[PATH], config[PATH];

static char *in_folder(char *path, const char *name)
{
    assert_true(snprintf(path, PATH, "%s/%s", folder, name) < PATH);
    return path;
}

static void write_file(const char *path, const void *data, size_t size)
{
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, size, f), size);
    assert_int_equal(fclose(f), 0);
}

static unsigned char *read_file(const char *path, size_t *size)
{
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    unsigned char *data = malloc(1 << 16);
    assert_non_null(data);
    *size = fread(data, 1, 1 << 16, f);
    assert_true(*size > 0 && *size < 1 << 16);
    fclose(f);
    return data;
}

/* y = MatMul(x, w) with x [2, IN], as a file. */
static void write_model(void)
{
    char x[] = "x", w[] = "w", y[] = "y", name[] = "fc", op[] = "MatMul", graph_name[] = "g";
    char *inputs[] = {x, w}, *outputs[] = {y};
    Onnx__NodeProto node = ONNX__NODE_PROTO__INIT, *nodes[] = {&node};
    node.name = name;
    node.op_type = op;
    node.input = inputs;
    node.n_input = 2;
    node.output = outputs;
    node.n_output = 1;

    int64_t dims[] = {IN, OUT};
    Onnx__TensorProto tensor = ONNX__TENSOR_PROTO__INIT, *tensors[] = {&tensor};
    tensor.name = w;
    tensor.has_data_type = 1;
    tensor.data_type = ONNX__TENSOR_PROTO__DATA_TYPE__FLOAT;
    tensor.dims = dims;
    tensor.n_dims = 2;
    float values[COUNT];
    memcpy(values, weight, sizeof values);
    tensor.float_data = values;
    tensor.n_float_data = COUNT;

    Onnx__ValueInfoProto in = ONNX__VALUE_INFO_PROTO__INIT, out = ONNX__VALUE_INFO_PROTO__INIT;
    Onnx__ValueInfoProto *ins[] = {&in}, *outs[] = {&out};
    in.name = x;
    out.name = y;
    Onnx__GraphProto graph = ONNX__GRAPH_PROTO__INIT;
    graph.name = graph_name;
    graph.node = nodes;
    graph.initializer = tensors;
    graph.input = ins;
    graph.output = outs;
    graph.n_node = graph.n_initializer = graph.n_input = graph.n_output = 1;

    Onnx__OperatorSetIdProto opset = ONNX__OPERATOR_SET_ID_PROTO__INIT, *opsets[] = {&opset};
    opset.has_version = 1;
    opset.version = 13;
    Onnx__ModelProto whole = ONNX__MODEL_PROTO__INIT;
    whole.has_ir_version = 1;
    whole.ir_version = 8;
    whole.opset_import = opsets;
    whole.n_opset_import = 1;
    whole.graph = &graph;
    unsigned char bytes[1000];
    assert_true(onnx__model_proto__get_packed_size(&whole) <= sizeof bytes);
    write_file(model, bytes, onnx__model_proto__pack(&whole, bytes));
}

static int set_up(void **state)
{
    (void)state;
    static const char text[] = "record { key: 'fc' value { scale_d: 0.02 offset_d: 3"
                               " scale_w: 0.03 offset_w: 0 act_type: 'INT8' wts_type: 'INT8' } }";
    static const char json[] =
        "{\"version\": 1, \"batch_num\": 1, \"fc\": {\"retrain_enable\": true,"
        " \"retrain_data_config\": {\"algo\": \"ulq_quantize\", \"dst_type\": \"INT8\"},"
        " \"retrain_weight_config\": {\"algo\": \"arq_retrain\", \"channel_wise\": false,"
        " \"dst_type\": \"INT8\"}}}";
    strcpy(folder, "/tmp/qf_entry_XXXXXX");
    if (!mkdtemp(folder))
        return -1;
    in_folder(model, "model.onnx");
    write_model();
    write_file(in_folder(record, "record.txt"), text, sizeof text - 1);
    write_file(in_folder(config, "config.json"), json, sizeof json - 1);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    char command[100];
    snprintf(command, sizeof command, "rm -rf %s", folder);
    return system(command);
}

static qf_export_options options_for(char *save_path, const char *name)
{
    qf_export_options o;
    qf_export_options_init(&o);
    o.save_path = in_folder(save_path, name);
    o.external = QF_EXTERNAL_ALWAYS;
    return o;
}

static void export_in_steps(const qf_export_options *options, const qf_io_spec *io)
{
    qf_model *m;
    qf_record *r;
    qf_config *c;
    qf_plan *plan;
    qf_report *report;
    qf_error err;
    assert_int_equal(qf_model_open(model, &m, &err), QF_OK);
    assert_int_equal(qf_record_open(record, &r, &err), QF_OK);
    assert_int_equal(qf_config_open(config, &c, NULL, &err), QF_OK);
    assert_int_equal(qf_plan_create(m, c, r, io, options, NULL, &plan, &err), QF_OK);
    assert_int_equal(qf_plan_layer_count(plan), 1);
    assert_int_equal(qf_export(plan, &report, &err), QF_OK);
    assert_int_equal(qf_export(plan, NULL, &err), QF_ERR_USAGE); /* once */
    assert_int_equal(qf_report_get(report).bytes_read, sizeof weight);
    qf_report_free(report);
    qf_plan_free(plan);
    qf_config_close(c);
    qf_record_close(r);
    qf_model_close(m);
}

static void assert_same_file(const char *one, const char *other)
{
    char path[PATH];
    size_t sizes[2];
    unsigned char *a = read_file(in_folder(path, one), &sizes[0]);
    unsigned char *b = read_file(in_folder(path, other), &sizes[1]);
    assert_int_equal(sizes[0], sizes[1]);
    assert_memory_equal(a, b, sizes[0]);
    free(a);
    free(b);
}

/* The weight in the deploy model, wherever it lies there. */
static void assert_quantized(const char *name)
{
    char path[PATH];
    size_t size;
    int8_t want[COUNT];
    for (size_t i = 0; i < COUNT; i++)
        want[i] = (int8_t)rintf(weight[i] / scale_w);
    unsigned char *data = read_file(in_folder(path, name), &size);
    assert_non_null(memmem(data, size, want, sizeof want));
    free(data);
}

static void test_one_call_writes_what_the_steps_write(void **state)
{
    (void)state;
    char path[PATH];
    qf_error err;
    qf_report *report = NULL;
    qf_export_options o = options_for(path, "call/m");
    assert_int_equal(qf_save_quant_retrain_model(config, model, record, &o, NULL, &report, &err),
                     QF_OK);
    assert_int_equal(qf_report_get(report).bytes_read, sizeof weight);
    qf_report_free(report);
    o = options_for(path, "steps/m");
    export_in_steps(&o, NULL);
    assert_same_file("call/m_deploy_model.onnx", "steps/m_deploy_model.onnx");
    assert_same_file("call/m_fake_quant_model.onnx", "steps/m_fake_quant_model.onnx");
    assert_quantized("call/m_deploy_model.onnx");
}

static void test_inputs_and_outputs_are_handed_on(void **state)
{
    (void)state;
    char path[PATH];
    static const char *const ins[] = {"tokens"}, *const outs[] = {"logits"};
    const qf_io_spec io = {
        .input_names = ins, .input_name_count = 1, .output_names = outs, .output_name_count = 1};
    qf_export_options o = options_for(path, "call/m");
    assert_int_equal(qf_save_quant_retrain_model(config, model, record, &o, &io, NULL, NULL),
                     QF_OK);
    o = options_for(path, "steps/m");
    export_in_steps(&o, &io);
    assert_same_file("call/m_deploy_model.onnx", "steps/m_deploy_model.onnx");
    size_t size;
    unsigned char *data = read_file(in_folder(path, "call/m_deploy_model.onnx"), &size);
    assert_non_null(memmem(data, size, "tokens", 6));
    assert_non_null(memmem(data, size, "logits", 6));
    free(data);
}

/* What a caller in C can ask for and the command line cannot. */
static void test_names_and_axes_that_are_refused(void **state)
{
    (void)state;
    char path[PATH];
    static const char *const empty[] = {""}, *const none[] = {NULL}, *const both[] = {"a", "a"};
    static const qf_dynamic_axis before = {"x", -1, NULL}, behind = {"x", 2, NULL},
                                 nameless = {"x", 0, ""}, inner = {"w", 0, NULL};
    static const struct {
        qf_io_spec io;
        const char *words;
    } cases[] = {
        {{.input_names = empty, .input_name_count = 1}, "name 1 is empty"},
        {{.output_names = none, .output_name_count = 1}, "name 1 is empty"},
        {{.input_names = both, .input_name_count = 2}, "2 names are given"},
        {{.dynamic_axes = &before, .dynamic_axis_count = 1}, "axis -1 is negative"},
        {{.dynamic_axes = &behind, .dynamic_axis_count = 1}, "'x'"},
        {{.dynamic_axes = &nameless, .dynamic_axis_count = 1}, "the name of axis 0 is empty"},
        {{.dynamic_axes = &inner, .dynamic_axis_count = 1}, "is not a graph input or output"},
    };
    qf_export_options o = options_for(path, "none/m");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        qf_error err;
        assert_int_equal(
            qf_save_quant_retrain_model(config, model, record, &o, &cases[i].io, NULL, &err),
            QF_ERR_INPUT);
        assert_non_null(strstr(err.message, cases[i].words));
    }
    assert_int_equal(access(in_folder(path, "none"), F_OK), -1);
}

static void test_what_may_be_null(void **state)
{
    (void)state;
    char path[PATH], other[PATH];
    qf_error err;
    qf_export_options o = options_for(path, "call/m");
    assert_int_equal(qf_save_quant_retrain_model(NULL, model, record, &o, NULL, NULL, NULL), QF_OK);
    assert_quantized("call/m_deploy_model.onnx");
    o = options_for(path, "none/m");
    assert_int_equal(qf_save_quant_retrain_model(config, NULL, record, &o, NULL, NULL, &err),
                     QF_ERR_USAGE);
    assert_non_null(strstr(err.message, "model_file"));
    assert_int_equal(qf_save_quant_retrain_model(config, model, record, NULL, NULL, NULL, &err),
                     QF_ERR_USAGE);
    /* no record: it is not taken from a model that has no QuantizeLinear */
    assert_int_equal(qf_save_quant_retrain_model(NULL, model, NULL, &o, NULL, NULL, &err),
                     QF_ERR_INPUT);
    assert_non_null(strstr(err.message, "QuantizeLinear"));
    o.source = QF_SOURCE_FLOAT;
    assert_int_equal(qf_save_quant_retrain_model(NULL, model, NULL, &o, NULL, NULL, &err),
                     QF_ERR_USAGE);
    assert_int_equal(access(in_folder(other, "none"), F_OK), -1);
}

static void test_a_file_that_is_missing_is_named(void **state)
{
    (void)state;
    char path[PATH], gone[PATH];
    in_folder(gone, "gone");
    qf_export_options o = options_for(path, "none/m");
    for (int i = 0; i < 3; i++) {
        qf_error err;
        qf_report *report = NULL;
        assert_int_equal(qf_save_quant_retrain_model(i == 0 ? gone : config, i == 1 ? gone : model,
                                                     i == 2 ? gone : record, &o, NULL, &report,
                                                     &err),
                         QF_ERR_INPUT);
        assert_string_equal(err.file, gone);
        assert_int_equal(err.sys_errno, ENOENT);
        assert_null(report);
        assert_int_equal(access(in_folder(path, "none"), F_OK), -1);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_one_call_writes_what_the_steps_write, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(test_inputs_and_outputs_are_handed_on, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_names_and_axes_that_are_refused, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_what_may_be_null, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_a_file_that_is_missing_is_named, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
