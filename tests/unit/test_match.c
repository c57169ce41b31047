/* SPDX-License-Identifier: Apache-2.0 */
/* Keys of records to nodes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#include "onnx/payload.h"
#include "quant/match.h"

typedef struct net {
    qf_arena arena;
    Onnx__ModelProto model;
    Onnx__GraphProto graph;
    Onnx__ValueInfoProto x;
    Onnx__ValueInfoProto *inputs[1];
    Onnx__NodeProto nodes[8], *node_list[8];
    Onnx__TensorProto tensors[8], *tensor_list[8];
    qf_ir ir;
} net;

/* Adds a Conv `name` whose weight is initializer `weight`. */
static void add_conv(net *n, const char *name, const char *weight)
{
    size_t i = n->graph.n_node++;
    Onnx__NodeProto *node = &n->nodes[i];
    Onnx__TensorProto *tensor = &n->tensors[i];
    onnx__node_proto__init(node);
    onnx__tensor_proto__init(tensor);
    node->op_type = (char *)"Conv";
    node->name = (char *)name;
    node->input = qf_arena_array(&n->arena, 2, sizeof(char *));
    node->input[0] = (char *)"x";
    node->input[1] = (char *)weight;
    node->n_input = 2;
    node->output = qf_arena_array(&n->arena, 1, sizeof(char *));
    node->output[0] = qf_arena_printf(&n->arena, "out%zu", i);
    node->n_output = 1;
    tensor->name = (char *)weight;
    tensor->dims = qf_arena_array(&n->arena, 4, sizeof(int64_t));
    tensor->n_dims = 4;
    tensor->has_data_type = 1;
    tensor->data_type = ONNX__TENSOR_PROTO__DATA_TYPE__FLOAT;
    for (size_t d = 0; d < 4; d++)
        tensor->dims[d] = 2;
    assert_true(qf_tensor_set_payload(&n->arena, tensor, 0));
    n->node_list[i] = node;
    n->tensor_list[i] = tensor;
    n->graph.n_initializer++;
}

static void start(net *n)
{
    memset(n, 0, sizeof *n);
    qf_arena_init(&n->arena);
    onnx__model_proto__init(&n->model);
    onnx__graph_proto__init(&n->graph);
    onnx__value_info_proto__init(&n->x);
    n->x.name = (char *)"x";
    n->inputs[0] = &n->x;
    n->graph.input = n->inputs;
    n->graph.n_input = 1;
    n->graph.node = n->node_list;
    n->graph.initializer = n->tensor_list;
    n->model.graph = &n->graph;
}

static void find(net *n, const char *key, qf_match *match)
{
    qf_matcher matcher;
    qf_error err;
    if (!n->ir.arena)
        assert_int_equal(qf_ir_build(&n->arena, &n->model, "m.onnx", &n->ir, &err), QF_OK);
    assert_int_equal(qf_matcher_init(&matcher, &n->ir, &err), QF_OK);
    qf_matcher_find(&matcher, key, match);
    qf_matcher_release(&matcher);
}

static void assert_found(net *n, const char *key, const char *node)
{
    qf_match match;
    find(n, key, &match);
    if (!match.node)
        fail_msg("%s: %s", key, match.problem);
    assert_string_equal(match.node->name, node);
}

static void end(net *n)
{
    qf_ir_release(&n->ir);
    qf_arena_release(&n->arena);
}

static void test_ways_to_a_node(void **state)
{
    (void)state;
    net n;
    start(&n);
    add_conv(&n, "conv1", "w0");
    add_conv(&n, "node_conv2d_1", "backbone.conv2.weight");
    add_conv(&n, "/wrapped/sub_module/Conv", "wrapped.sub_module.weight");
    add_conv(&n, "/layer1/layer1.0/conv3/Conv", "onnx::Conv_7");
    add_conv(&n, NULL, "w4");
    assert_found(&n, "conv1", "conv1");
    assert_found(&n, "backbone.conv2", "node_conv2d_1");
    assert_found(&n, "wrapped", "/wrapped/sub_module/Conv");
    assert_found(&n, "layer1.0.conv3", "/layer1/layer1.0/conv3/Conv");
    assert_found(&n, "/layer1/layer1.0/conv3/Conv", "/layer1/layer1.0/conv3/Conv");
    assert_found(&n, "node_4", "node_4");
    qf_match match;
    find(&n, "conv1:0", &match);
    assert_true(match.node && match.is_tensor);
    find(&n, "conv9", &match);
    assert_null(match.node);
    assert_non_null(strstr(match.problem, "conv1")); /* did you mean */
    end(&n);
}

static void test_exact_name_comes_first(void **state)
{
    (void)state;
    net n;
    start(&n);
    add_conv(&n, "a", "b.weight");
    add_conv(&n, "b", "a.weight");
    assert_found(&n, "a", "a");
    assert_found(&n, "b", "b");
    end(&n);
}

static void test_ambiguous(void **state)
{
    (void)state;
    net n;
    qf_match match;
    start(&n);
    add_conv(&n, "/block/Conv", "w0");
    add_conv(&n, "/block/Conv_1", "w1");
    find(&n, "block", &match);
    assert_null(match.node);
    assert_non_null(strstr(match.problem, "ambiguous"));
    assert_non_null(strstr(match.problem, "'/block/Conv'"));
    assert_non_null(strstr(match.problem, "'/block/Conv_1'"));
    end(&n);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ways_to_a_node),
        cmocka_unit_test(test_exact_name_comes_first),
        cmocka_unit_test(test_ambiguous),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
