/* SPDX-License-Identifier: Apache-2.0 */
/* The protobuf text reader and writer. What counts as right was taken from Python's text_format. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "quant/text_format.h"
#include "record.pb-c.h"

#define COUNT(array) (sizeof(array) / sizeof(array)[0])

static const ProtobufCMessageDescriptor *const layer_desc =
    &amctpytorch_proto__single_layer_record__descriptor;
static const ProtobufCMessageDescriptor *const attr_desc =
    &amctpytorch_proto__attr_proto__descriptor;
static const ProtobufCMessageDescriptor *const prune_desc =
    &amctpytorch_proto__prune_record__descriptor;
static const ProtobufCMessageDescriptor *const root_desc =
    &amctpytorch_proto__scale_offset_record__descriptor;

/* A recursive message with a required scalar and the types that a record has not. */
typedef struct other {
    ProtobufCMessage base;
    int32_t required;
    protobuf_c_boolean has_d;
    double d;
    protobuf_c_boolean has_u;
    uint64_t u;
    struct other *m;
} other;

static void other_init(ProtobufCMessage *message);

#define OPTIONAL PROTOBUF_C_LABEL_OPTIONAL
static ProtobufCMessageDescriptor other_desc;
static const ProtobufCFieldDescriptor other_fields[] = {
    {.name = "required",
     .id = 1,
     .label = PROTOBUF_C_LABEL_REQUIRED,
     .type = PROTOBUF_C_TYPE_SINT32,
     .offset = offsetof(other, required)},
    {.name = "d",
     .id = 2,
     .label = OPTIONAL,
     .type = PROTOBUF_C_TYPE_DOUBLE,
     .quantifier_offset = offsetof(other, has_d),
     .offset = offsetof(other, d)},
    {.name = "u",
     .id = 3,
     .label = OPTIONAL,
     .type = PROTOBUF_C_TYPE_FIXED64,
     .quantifier_offset = offsetof(other, has_u),
     .offset = offsetof(other, u)},
    {.name = "m",
     .id = 4,
     .label = OPTIONAL,
     .type = PROTOBUF_C_TYPE_MESSAGE,
     .offset = offsetof(other, m),
     .descriptor = &other_desc},
};
static const unsigned other_by_name[] = {1, 3, 0, 2};
static ProtobufCMessageDescriptor other_desc = {
    .magic = PROTOBUF_C__MESSAGE_DESCRIPTOR_MAGIC,
    .name = "Other",
    .short_name = "Other",
    .sizeof_message = sizeof(other),
    .n_fields = COUNT(other_fields),
    .fields = other_fields,
    .fields_sorted_by_name = other_by_name,
    .message_init = other_init,
};

static void other_init(ProtobufCMessage *message)
{
    memset(message, 0, sizeof(other));
    message->descriptor = &other_desc;
}

/* Reads text and writes it again; the caller frees the result. NULL on failure. */
static char *round_trip(const ProtobufCMessageDescriptor *desc, const char *text, size_t length,
                        qf_error *err)
{
    qf_arena arena;
    qf_arena_init(&arena);
    ProtobufCMessage *message;
    char *out = NULL;
    size_t out_length = 0;
    /* an exact copy, so that a sanitizer sees a read beyond the end */
    char *copy = malloc(length ? length : 1);
    assert_non_null(copy);
    memcpy(copy, text, length);
    qf_status status = qf_text_parse("file.txt", copy, length, desc, &arena, NULL, &message, err);
    free(copy);
    if (status == QF_OK) {
        assert_int_equal(qf_text_format(message, &out, &out_length, err), QF_OK);
        assert_int_equal(strlen(out), out_length);
    }
    qf_arena_release(&arena);
    return out;
}

typedef struct accepted {
    const ProtobufCMessageDescriptor *const *desc;
    const char *text;
    const char *expect;
} accepted;

static void check_accepted(const accepted *cases, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        qf_error err;
        char *out = round_trip(*cases[i].desc, cases[i].text, strlen(cases[i].text), &err);
        if (!out)
            fail_msg("<%s> was refused: %s", cases[i].text, err.message);
        if (strcmp(out, cases[i].expect) != 0)
            fail_msg("<%s> gave <%s>, not <%s>", cases[i].text, out, cases[i].expect);
        free(out);
    }
}

static void test_syntax(void **state)
{
    (void)state;
    static const accepted cases[] = {
        {&layer_desc, "", ""},
        {&layer_desc, " \t\r\n\v\f # only a comment", ""},
        {&layer_desc, "scale_d: 1", "scale_d: 1.0\n"},
        {&layer_desc, "scale_d:1,offset_d:2;skip_fusion:t",
         "scale_d: 1.0\noffset_d: 2\nskip_fusion: true\n"},
        {&layer_desc, "offset_d:2 scale_d:1", "scale_d: 1.0\noffset_d: 2\n"},
        {&layer_desc, "scale_d # a\n : # b\n 1 # c", "scale_d: 1.0\n"},
        {&layer_desc, "scale_d: 1 # old Mac line end\roffset_d: 2", "scale_d: 1.0\noffset_d: 2\n"},
        {&layer_desc,
         "scale_d\xc2\xa0:\xe3\x80\x80\x1c"
         "1",
         "scale_d: 1.0\n"},
        {&layer_desc, "scale_w: [1, 2.5] scale_w: 3", "scale_w: 1.0\nscale_w: 2.5\nscale_w: 3.0\n"},
        {&layer_desc, "scale_w: [] scale_w: [ ]", ""},
        {&layer_desc, "scale_d: 1 scale_d: 2", "scale_d: 2.0\n"},
        {&layer_desc, "act_type: 'A' act_type: 'B'", "act_type: \"B\"\n"},
        {&root_desc, "record { }", "record {\n}\n"},
        {&root_desc, "record: { key: 'a' value: < > }",
         "record {\n  key: \"a\"\n  value {\n  }\n}\n"},
        {&root_desc, "record <key: 'a'>; record [{key: 'b'}, <key: 'c'>], record: []",
         "record {\n  key: \"a\"\n}\nrecord {\n  key: \"b\"\n}\nrecord {\n  key: \"c\"\n}\n"},
        {&root_desc, "record { value { scale_d: 1 } value { offset_d: 2 scale_w: 3 } }",
         "record {\n  value {\n    scale_d: 1.0\n    offset_d: 2\n    scale_w: 3.0\n  }\n}\n"},
        {&prune_desc, "selective_prune { attr {} } selective_prune { name: 'a' }",
         "selective_prune {\n  name: \"a\"\n  attr {\n  }\n}\n"},
        {&attr_desc, "type: FLOATS", "type: FLOATS\n"},
        {&attr_desc, "type: 0x2", "type: INT\n"},
        {&attr_desc, "type: -0", "type: UNDEFINED\n"},
        {&attr_desc, "s: 'a' strings: ['b' \"c\", 'd']",
         "s: \"a\"\nstrings: \"bc\"\nstrings: \"d\"\n"},
    };
    check_accepted(cases, COUNT(cases));
}

static void test_errors(void **state)
{
    (void)state;
    static const struct {
        const ProtobufCMessageDescriptor *const *desc;
        const char *text;
        uint32_t line, column;
        const char *says;
    } cases[] = {
        {&layer_desc, "scale_d: 1\n  scal_w: 2", 2, 3, "did you mean scale_w?"},
        {&layer_desc, "\r\n\rcompletely_unknown: 2", 3, 1, "SingleLayerRecord has no field"},
        {&layer_desc, "scale_d 1", 1, 9, "\":\" must follow scale_d"},
        {&layer_desc, "scale_d: }", 1, 10, "scale_d needs a number, not \"}\""},
        {&layer_desc, "scale_d:", 1, 9, "the end of the text"},
        {&layer_desc, "scale_d: [1]", 1, 10, "scale_d needs a number"},
        {&layer_desc, "scale_d {}", 1, 9, "\":\" must follow"},
        {&layer_desc, "scale_w: [1 2]", 1, 13, "\",\" or \"]\""},
        {&layer_desc, "scale_w: [1,]", 1, 13, "scale_w needs a number"},
        {&layer_desc, "scale_w: [1", 1, 12, "the end of the text"},
        {&layer_desc, "scale_w [1]", 1, 9, "\":\" must follow"},
        {&layer_desc, "scale_d: 1,, offset_d: 2", 1, 12, "a field name"},
        {&layer_desc, ", scale_d: 1", 1, 1, "a field name"},
        {&layer_desc, "5: 1", 1, 1, "a field name"},
        {&layer_desc, "}", 1, 1, "a field name"},
        {&layer_desc, "[a.b]: 1", 1, 1, "extensions"},
        {&layer_desc, "[type.googleapis.com/a.B] {}", 1, 1, "extensions"},
        {&layer_desc, "offset_d: 3000000000", 1, 11, "not in [-2147483648, 2147483647]"},
        {&layer_desc, "act_type: 'a\\u1'", 1, 11, "four hexadecimal digits"},
        {&layer_desc, "# caf\xe9\nscale_d: 1", 1, 6, "0xe9 is not valid UTF-8"},
        {&layer_desc, "\xed\xa0\x80", 1, 1, "not valid UTF-8"},
        {&layer_desc, "\xc0\x80", 1, 1, "not valid UTF-8"},
        {&layer_desc, "\xf4\x90\x80\x80", 1, 1, "not valid UTF-8"},
        {&layer_desc, "\xe4\xb8", 1, 1, "not valid UTF-8"},
        {&layer_desc, "\xef\xbb\xbfscale_d: 1", 1, 1, "a field name"},
        {&attr_desc, "type: FLOATSS", 1, 7, "did you mean FLOATS?"},
        {&attr_desc, "type: 9", 1, 7, "type has no value \"9\""},
        {&attr_desc, "type: -2147483649", 1, 7, "type has no value"},
        {&attr_desc, "type: 01", 1, 7, "type has no value"},
        {&attr_desc, "type: 'INT'", 1, 7, "type has no value"},
        {&root_desc, "record", 1, 7, "\"{\" must follow"},
        {&root_desc, "record: 5", 1, 9, "\"{\" must follow"},
        {&root_desc, "record {\n key: 'a'\n", 3, 1, "opened on line 1"},
        {&root_desc, "record { >", 1, 10, "a field name"},
        {&root_desc, "record: [{}, 1]", 1, 14, "\"{\" must follow"},
        {&root_desc, "record {} }", 1, 11, "a field name"},
        {&prune_desc, "producer { name: 'a' }\nconsumer {\n}", 2, 10, "lacks name"},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        qf_error err;
        char *out = round_trip(*cases[i].desc, cases[i].text, strlen(cases[i].text), &err);
        if (out)
            fail_msg("<%s> gave <%s>", cases[i].text, out);
        assert_int_equal(err.code, QF_ERR_INPUT);
        assert_string_equal(err.file, "file.txt");
        if (err.line != cases[i].line || err.column != cases[i].column ||
            !strstr(err.message, cases[i].says))
            fail_msg("<%s> failed with %s", cases[i].text, err.message);
    }
}

static void test_nul_byte(void **state)
{
    (void)state;
    qf_error err;
    assert_null(round_trip(layer_desc, "scale_d: 1\n\0", 12, &err));
    assert_int_equal(err.line, 2);
    assert_non_null(strstr(err.message, "NUL byte"));
    assert_null(round_trip(layer_desc, "act_type: 'a\0'", 14, &err));
    assert_int_equal(err.column, 13);
}

static void test_hostile_token_is_shown_safely(void **state)
{
    (void)state;
    qf_error err;
    char text[300];
    memset(text, 'x', sizeof text);
    assert_null(round_trip(layer_desc, text, sizeof text, &err));
    assert_non_null(strstr(err.message, "xxx..."));
    assert_true(strlen(err.message) < 150);
    assert_null(round_trip(layer_desc, "scale_d: '\x1b[31m\x7f'", 17, &err));
    assert_null(strchr(err.message, '\x1b'));
    assert_null(strchr(err.message, '\x7f'));
}

static void test_other_types(void **state)
{
    (void)state;
    static const ProtobufCMessageDescriptor *const desc = &other_desc;
    static const accepted cases[] = {
        {&desc, "required: -7", "required: -7\n"},
        {&desc, "required: 0 u: 18446744073709551615", "required: 0\nu: 18446744073709551615\n"},
        {&desc, "d: 0.1 required: 1", "required: 1\nd: 0.1\n"},
        {&desc, "d: 1e400 required: 1", "required: 1\nd: inf\n"},
        {&desc, "d: 123456789012345678 required: 1", "required: 1\nd: 1.2345678901234568e+17\n"},
        {&desc, "d: 5e-324 required: 1", "required: 1\nd: 5e-324\n"},
        {&desc, "m { u: 1 } required: 1 m { required: 2 }",
         "required: 1\nm {\n  required: 2\n  u: 1\n}\n"},
    };
    check_accepted(cases, COUNT(cases));
    qf_error err;
    assert_null(round_trip(desc, "u: 1", 4, &err));
    assert_non_null(strstr(err.message, "lacks required"));
    assert_null(round_trip(desc, "required: 1 u: 18446744073709551616", 35, &err));
    assert_non_null(strstr(err.message, "out of range"));
}

/* "required:1 m{" depth times, then the closing braces. */
static char *nested(unsigned depth)
{
    char *text = calloc(depth + 1, 16);
    assert_non_null(text);
    for (unsigned i = 0; i < depth; i++)
        strcat(text, "required:1 m{");
    strcat(text, "required:1");
    for (unsigned i = 0; i < depth; i++)
        strcat(text, "}");
    return text;
}

static void test_depth(void **state)
{
    (void)state;
    qf_error err;
    char *text = nested(64);
    char *out = round_trip(&other_desc, text, strlen(text), &err);
    assert_non_null(out);
    free(out);
    free(text);
    text = nested(65);
    assert_null(round_trip(&other_desc, text, strlen(text), &err));
    assert_non_null(strstr(err.message, "deeper than 64"));
    free(text);
}

/* Three bytes of text would otherwise cost a hundred of memory. */
static void test_memory_budget(void **state)
{
    (void)state;
    enum { ITEMS = 2 * 1000 * 1000 };
    char *text = malloc(32 + 3 * (size_t)ITEMS);
    assert_non_null(text);
    size_t n = (size_t)sprintf(text, "producer{name:'a' attr:[");
    for (int i = 0; i < ITEMS; i++, n += 3)
        memcpy(text + n, "{},", 3);
    n += (size_t)sprintf(text + n, "{}]}");
    qf_arena arena;
    qf_arena_init(&arena);
    ProtobufCMessage *message;
    qf_error err;
    assert_int_equal(qf_text_parse("f", text, n, prune_desc, &arena, NULL, &message, &err),
                     QF_ERR_INPUT);
    assert_non_null(strstr(err.message, "too many empty or tiny values"));
    qf_arena_release(&arena);
    free(text);
}

static void test_many_values(void **state)
{
    (void)state;
    enum { LINES = 300 * 1000 };
    char *text = malloc(16 * (size_t)LINES);
    assert_non_null(text);
    size_t n = 0;
    for (int i = 0; i < LINES; i++)
        n += (size_t)sprintf(text + n, "scale_w:%d\n", i);
    qf_arena arena;
    qf_arena_init(&arena);
    ProtobufCMessage *message;
    qf_error err;
    assert_int_equal(qf_text_parse("f", text, n, layer_desc, &arena, NULL, &message, &err), QF_OK);
    free(text);
    const AMCTPytorchProto__SingleLayerRecord *layer = (const void *)message;
    assert_int_equal(layer->n_scale_w, LINES);
    for (int i = 0; i < LINES; i++)
        assert_true(layer->scale_w[i] == (float)i);
    qf_arena_release(&arena);
}

typedef struct seen {
    uint32_t lines[8], columns[8];
    size_t values, duplicates;
    uint32_t duplicate_line;
    const char *duplicate_field;
    bool refuse;
} seen;

static bool on_value(void *user, const ProtobufCFieldDescriptor *field, uint32_t line,
                     uint32_t column)
{
    seen *s = user;
    assert_int_equal(field->id, 1);
    s->lines[s->values] = line;
    s->columns[s->values++] = column;
    return !s->refuse;
}

static bool on_duplicate(void *user, const ProtobufCFieldDescriptor *field, uint32_t line,
                         uint32_t column)
{
    (void)column;
    seen *s = user;
    s->duplicates++;
    s->duplicate_line = line;
    s->duplicate_field = field->name;
    return true;
}

static void test_hooks(void **state)
{
    (void)state;
    const char *text = "record { key: 'a' value { scale_d: 1 scale_w: 1 scale_w: 2\n"
                       "scale_d: 2 } }\n"
                       " record: [{},\n  {value{} value{}}]";
    qf_arena arena;
    qf_arena_init(&arena);
    seen s = {.refuse = false};
    qf_text_hooks hooks = {.user = &s, .value = on_value, .duplicate = on_duplicate};
    ProtobufCMessage *message;
    qf_error err;
    assert_int_equal(
        qf_text_parse("f", text, strlen(text), root_desc, &arena, &hooks, &message, &err), QF_OK);
    assert_int_equal(s.values, 3);
    assert_int_equal(s.lines[0], 1);
    assert_int_equal(s.columns[0], 1);
    assert_int_equal(s.lines[1], 3);
    assert_int_equal(s.columns[1], 11);
    assert_int_equal(s.lines[2], 4);
    assert_int_equal(s.columns[2], 3);
    assert_int_equal(s.duplicates, 1);
    assert_int_equal(s.duplicate_line, 2);
    assert_string_equal(s.duplicate_field, "scale_d");

    s = (seen){.refuse = true};
    assert_int_equal(
        qf_text_parse("f", text, strlen(text), root_desc, &arena, &hooks, &message, &err),
        QF_ERR_MEMORY);
    assert_int_equal(s.values, 1);
    qf_arena_release(&arena);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_syntax),        cmocka_unit_test(test_errors),
        cmocka_unit_test(test_nul_byte),      cmocka_unit_test(test_hostile_token_is_shown_safely),
        cmocka_unit_test(test_other_types),   cmocka_unit_test(test_depth),
        cmocka_unit_test(test_memory_budget), cmocka_unit_test(test_many_values),
        cmocka_unit_test(test_hooks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
