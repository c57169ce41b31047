/* SPDX-License-Identifier: Apache-2.0 */
/* The wire scanner: a round trip through skeleton and splice keeps every byte, and no cut or change
 * of a file makes it crash or read outside. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "base/spill.h"
#include "onnx/model.h"
#include "onnx/scan.h"
#include "onnx/splice.h"

/* A model with a raw initializer, a packed float_data one, one in a Constant inside an If branch,
 * and fields that no onnx.proto knows. */
static unsigned char *sample(size_t *length)
{
    static float values[300];
    static uint8_t raw[2000];
    Onnx__ModelProto model = ONNX__MODEL_PROTO__INIT;
    Onnx__GraphProto graph = ONNX__GRAPH_PROTO__INIT, branch = ONNX__GRAPH_PROTO__INIT;
    Onnx__NodeProto node = ONNX__NODE_PROTO__INIT, constant = ONNX__NODE_PROTO__INIT;
    Onnx__AttributeProto body = ONNX__ATTRIBUTE_PROTO__INIT, value = ONNX__ATTRIBUTE_PROTO__INIT;
    Onnx__TensorProto a = ONNX__TENSOR_PROTO__INIT, b = a, c = a;
    Onnx__TensorProto *initializers[] = {&a, &b};
    Onnx__NodeProto *nodes[] = {&node}, *inner[] = {&constant};
    Onnx__AttributeProto *bodies[] = {&body}, *attributes[] = {&value};
    char *outputs[] = {(char *)"out"};
    int64_t dims[] = {500};
    uint8_t unknown_data[] = {3, 'x', 'y', 'z'};
    ProtobufCMessageUnknownField unknown = {.tag = 77,
                                            .wire_type = PROTOBUF_C_WIRE_TYPE_LENGTH_PREFIXED,
                                            .len = 4,
                                            .data = unknown_data};
    for (size_t i = 0; i < sizeof raw; i++)
        raw[i] = (uint8_t)(i * 7);
    for (size_t i = 0; i < 300; i++)
        values[i] = (float)i;
    a.name = (char *)"a";
    a.has_data_type = b.has_data_type = c.has_data_type = 1;
    a.data_type = b.data_type = c.data_type = ONNX__TENSOR_PROTO__DATA_TYPE__FLOAT;
    a.dims = dims;
    a.n_dims = 1;
    a.has_raw_data = c.has_raw_data = 1;
    a.raw_data = (ProtobufCBinaryData){sizeof raw, raw};
    a.base.unknown_fields = node.base.unknown_fields = model.base.unknown_fields = &unknown;
    a.base.n_unknown_fields = node.base.n_unknown_fields = model.base.n_unknown_fields = 1;
    b.name = (char *)"b";
    b.float_data = values;
    b.n_float_data = 300;
    c.raw_data = (ProtobufCBinaryData){100, raw};
    value.name = (char *)"value";
    value.t = &c;
    constant.attribute = attributes;
    constant.n_attribute = 1;
    constant.output = outputs;
    constant.n_output = 1;
    constant.op_type = (char *)"Constant";
    branch.node = inner;
    branch.n_node = 1;
    body.name = (char *)"then_branch";
    body.g = &branch;
    node.attribute = bodies;
    node.n_attribute = 1;
    node.op_type = (char *)"If";
    graph.node = nodes;
    graph.n_node = 1;
    graph.initializer = initializers;
    graph.n_initializer = 2;
    model.graph = &graph;
    model.has_ir_version = 1;
    model.ir_version = 8;
    *length = onnx__model_proto__get_packed_size(&model);
    unsigned char *bytes = malloc(*length);
    onnx__model_proto__pack(&model, bytes);
    return bytes;
}

static qf_file as_file(const unsigned char *bytes, size_t length)
{
    return (qf_file){.path = (char *)"m.onnx", .data = bytes, .size = length};
}

static void test_round_trip(void **state)
{
    (void)state;
    size_t length, skeleton_length, at = 0;
    unsigned char *bytes = sample(&length), *skeleton;
    qf_payloads payloads = {0};
    qf_arena arena;
    qf_error err;
    Onnx__ModelProto *model;
    qf_spliced spliced;
    qf_file file = as_file(bytes, length);
    qf_arena_init(&arena);
    assert_int_equal(qf_scan(&file, &payloads, &skeleton, &skeleton_length, &err), QF_OK);
    assert_int_equal(payloads.count, 3);
    assert_true(skeleton_length < 300); /* no weights in it */
    assert_int_equal(qf_skeleton_unpack(skeleton, skeleton_length, "m.onnx", &arena, &model, &err),
                     QF_OK);
    assert_int_equal(qf_splice(model, &payloads, &spliced, &err), QF_OK);
    assert_int_equal(spliced.size, length);
    size_t holes = 0;
    for (size_t i = 0; i < spliced.count; i++) {
        const qf_piece *piece = &spliced.pieces[i];
        assert_memory_equal(bytes + at, piece->literal, piece->literal_length);
        at += piece->literal_length;
        if (piece->payload == SIZE_MAX)
            continue;
        const qf_payload *p = &payloads.items[piece->payload];
        assert_int_equal(piece->length, p->span.length);
        assert_ptr_equal(p->span.data, bytes + at); /* points into the file, at the same place */
        at += p->span.length;
        holes++;
    }
    assert_int_equal(holes, 3);
    assert_int_equal(at, length);
    qf_spliced_release(&spliced);
    qf_payloads_release(&payloads);
    qf_arena_release(&arena);
    qf_spill_free(skeleton);
    free(bytes);
}

/* Whatever the bytes are: a status, no crash. Bounds are the sanitizer's to see: the copy is exact.
 */
static void scan_bytes(const unsigned char *bytes, size_t length)
{
    unsigned char *copy = malloc(length ? length : 1), *skeleton = NULL;
    if (length)
        memcpy(copy, bytes, length);
    qf_payloads payloads = {0};
    size_t skeleton_length;
    qf_error err;
    qf_file file = as_file(copy, length);
    if (qf_scan(&file, &payloads, &skeleton, &skeleton_length, &err) == QF_OK) {
        qf_arena arena;
        Onnx__ModelProto *model;
        qf_arena_init(&arena);
        qf_skeleton_unpack(skeleton, skeleton_length, "m.onnx", &arena, &model, &err);
        qf_arena_release(&arena);
        qf_spill_free(skeleton);
    } else {
        assert_true(strlen(err.message) > 0);
    }
    qf_payloads_release(&payloads);
    free(copy);
}

static void test_cuts_and_flips(void **state)
{
    (void)state;
    size_t length;
    unsigned char *bytes = sample(&length);
    for (size_t n = 0; n < length; n++)
        scan_bytes(bytes, n);
    srand(7);
    for (int i = 0; i < 20000; i++) {
        unsigned char *copy = malloc(length);
        memcpy(copy, bytes, length);
        for (int k = 0; k <= i % 4; k++)
            copy[(size_t)rand() % length] = (unsigned char)rand();
        scan_bytes(copy, length);
        free(copy);
    }
    free(bytes);
}

/* Subgraphs in subgraphs without end would exhaust a recursive reader. */
static void test_deep_nesting_is_refused(void **state)
{
    (void)state;
    enum { LEVELS = 20000 };
    unsigned char *bytes = malloc(20 * LEVELS), *end = bytes + 20 * LEVELS, *at = end;
    size_t inside = 0;
    for (int i = 0; i < LEVELS; i++) { /* graph.node.attribute.g.node.attribute.g ... */
        static const unsigned char tags[] = {1 << 3 | 2, 5 << 3 | 2, 6 << 3 | 2};
        unsigned char varint[QF_VARINT_MAX];
        size_t n = qf_varint_put(varint, inside);
        at -= n;
        memcpy(at, varint, n);
        *--at = i == LEVELS - 1 ? 7 << 3 | 2 : tags[(LEVELS - 2 - i) % 3];
        inside += n + 1;
    }
    qf_payloads payloads = {0};
    unsigned char *skeleton;
    size_t length;
    qf_error err;
    qf_file file = as_file(at, inside);
    assert_int_equal(qf_scan(&file, &payloads, &skeleton, &length, &err), QF_ERR_INPUT);
    qf_payloads_release(&payloads);
    free(bytes);
}

static void test_reserved_field_is_refused(void **state)
{
    (void)state;
    unsigned char tensor[16], model[40];
    size_t n = qf_varint_put(tensor, (uint64_t)QF_PAYLOAD_FIELD << 3);
    tensor[n++] = 5;
    model[0] = 7 << 3 | 2; /* graph */
    model[1] = (unsigned char)(n + 2);
    model[2] = 5 << 3 | 2; /* initializer */
    model[3] = (unsigned char)n;
    memcpy(model + 4, tensor, n);
    qf_payloads payloads = {0};
    unsigned char *skeleton;
    size_t length;
    qf_error err;
    qf_file file = as_file(model, n + 4);
    assert_int_equal(qf_scan(&file, &payloads, &skeleton, &length, &err), QF_ERR_INPUT);
    assert_non_null(strstr(err.message, "reserved"));
    qf_payloads_release(&payloads);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_cuts_and_flips),
        cmocka_unit_test(test_deep_nesting_is_refused),
        cmocka_unit_test(test_reserved_field_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
