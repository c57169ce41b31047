/* SPDX-License-Identifier: Apache-2.0 */
/* Numbers and strings in protobuf text. What counts as right was taken from Python's text_format.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <float.h>
#include <locale.h>
#include <math.h>
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

static void test_integers(void **state)
{
    (void)state;
    static const accepted cases[] = {
        {&layer_desc, "offset_d: 2147483647", "offset_d: 2147483647\n"},
        {&layer_desc, "offset_d: -2147483648", "offset_d: -2147483648\n"},
        {&layer_desc, "offset_d: 0x1F", "offset_d: 31\n"},
        {&layer_desc, "offset_d: -0X8", "offset_d: -8\n"},
        {&layer_desc, "offset_d: 017", "offset_d: 15\n"},
        {&layer_desc, "offset_d: -017", "offset_d: -15\n"},
        {&layer_desc, "offset_d: 00", "offset_d: 0\n"},
        {&layer_desc, "offset_d: +5", "offset_d: 5\n"},
        {&layer_desc, "offset_d: 1_0", "offset_d: 10\n"},
        {&layer_desc, "offset_d: 0b11", "offset_d: 3\n"},
        {&layer_desc, "offset_d: 0o17", "offset_d: 15\n"},
        {&layer_desc, "offset_d: 0x_1", "offset_d: 1\n"},
        {&layer_desc, "offset_d: 0_0", "offset_d: 0\n"},
        {&layer_desc, "shift_bit: 4294967295", "shift_bit: 4294967295\n"},
        {&layer_desc, "shift_bit: -0", "shift_bit: 0\n"},
        {&attr_desc, "i: -9223372036854775808", "i: -9223372036854775808\n"},
        {&attr_desc, "ints: [9223372036854775807, -1]", "ints: 9223372036854775807\nints: -1\n"},
    };
    check_accepted(cases, COUNT(cases));

    static const char *const refused[] = {
        "offset_d: 2147483648",
        "offset_d: -2147483649",
        "offset_d: - 5",
        "offset_d: 08",
        "offset_d: +017",
        "offset_d: 0x",
        "offset_d: 0xg",
        "offset_d: 1__0",
        "offset_d: _1",
        "offset_d: 1_",
        "offset_d: 0_7",
        "offset_d: 1.0",
        "offset_d: 1e3",
        "offset_d: '5'",
        "offset_d: true",
        "offset_d: -",
        "offset_d: --1",
        "offset_d: 0o8",
        "offset_d: 0b2",
        "shift_bit: -1",
        "shift_bit: 4294967296",
        "offset_d: 99999999999999999999999999999",
        "offset_d:",
    };
    for (size_t i = 0; i < COUNT(refused); i++) {
        qf_error err;
        char *out = round_trip(layer_desc, refused[i], strlen(refused[i]), &err);
        if (out)
            fail_msg("<%s> gave <%s>", refused[i], out);
        assert_int_equal(err.code, QF_ERR_INPUT);
    }
}

static void test_floats(void **state)
{
    (void)state;
    static const struct {
        const char *text, *expect; /* NULL: refused */
    } cases[] = {
        {"0.027565328", "0.027565328"},
        {"1", "1.0"},
        {"-0", "-0.0"},
        {"1e-4", "0.0001"},
        {"1e-5", "1e-05"},
        {"1.5E-5", "1.5e-05"},
        {"1e15", "1000000000000000.0"},
        {"1e16", "1e+16"},
        {"1e+20", "1e+20"},
        {"1234567890123456", "1234568000000000.0"},
        {"123456792", "123456790.0"},
        {"16777217", "16777216.0"},
        {".5", "0.5"},
        {"5.", "5.0"},
        {"+1.5", "1.5"},
        {"1_0.5", "10.5"},
        {"1.5f", "1.5"},
        {"1e5F", "100000.0"},
        {"1.ff", "1.0"},
        {"inf", "inf"},
        {"-INF", "-inf"},
        {"Infinity", "inf"},
        {"-infinityf", "-inf"},
        {"inff", "inf"},
        {"nan", "nan"},
        {"-NaN", "nan"},
        {"nanf", "nan"},
        {"1e39", "inf"},
        {"-1e400", "-inf"},
        {"3.4028235677973362e+38", "3.4028235e+38"},
        {"3.4028235677973366e+38", "inf"},
        {"-3.4028235677973366e+38", "-inf"},
        {"1e-45", "1.4013e-45"},
        {"1e-50", "0.0"},
        {"1.17549435e-38", "1.1754944e-38"},
        {"0f", "0.0"},
        {"- 1", NULL},
        {"01.5", NULL},
        {"-00.5", NULL},
        {"+01.5", "1.5"},
        {"+inff", NULL},
        {"infff", NULL},
        {"0x10", NULL},
        {"1e", NULL},
        {"1e+", NULL},
        {"1.2.3", NULL},
        {"1__0", NULL},
        {"1._5", NULL},
        {".", NULL},
        {"f", NULL},
        {"one", NULL},
        {"'1'", NULL},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        char text[64], expect[64];
        qf_error err;
        snprintf(text, sizeof text, "scale_d: %s", cases[i].text);
        snprintf(expect, sizeof expect, "scale_d: %s\n", cases[i].expect ? cases[i].expect : "");
        char *out = round_trip(layer_desc, text, strlen(text), &err);
        if (!out != !cases[i].expect || (out && strcmp(out, expect) != 0))
            fail_msg("%s gave %s", cases[i].text, out ? out : err.message);
        free(out);
    }
}

static void test_long_number(void **state)
{
    (void)state;
    char text[2048] = "scale_d: 1.";
    size_t n = strlen(text);
    memset(text + n, '0', 1000);
    qf_error err;
    char *out = round_trip(layer_desc, text, n + 1000, &err);
    assert_string_equal(out, "scale_d: 1.0\n");
    free(out);
    memset(text + n, '0', 1100);
    assert_null(round_trip(layer_desc, text, n + 1100, &err));
    assert_int_equal(err.code, QF_ERR_INPUT);
}

static void test_locale(void **state)
{
    (void)state;
    static const char *const names[] = {"de_DE.UTF-8", "de_DE.utf8", "fr_FR.UTF-8", "fr_FR.utf8"};
    char old[64] = "C";
    size_t i = 0;
    snprintf(old, sizeof old, "%s", setlocale(LC_NUMERIC, NULL));
    while (i < COUNT(names) && !setlocale(LC_NUMERIC, names[i]))
        i++;
    if (i == COUNT(names))
        skip();
    qf_error err;
    char *out = round_trip(layer_desc, "scale_d: 0.25", 13, &err);
    setlocale(LC_NUMERIC, old);
    assert_non_null(out);
    assert_string_equal(out, "scale_d: 0.25\n");
    free(out);
}

static void test_strings(void **state)
{
    (void)state;
    static const struct {
        const char *text, *expect; /* NULL: refused */
    } cases[] = {
        {"\"a\"", "a"},
        {"'a\"b'", "a\\\"b"},
        {"\"a'b\"", "a\\'b"},
        {"'a' \"b\" # c\n'd'", "abd"},
        {"''", ""},
        {"'\\n\\t\\r\\a\\b\\f\\v\\\\\\'\\\"'", "\\n\\t\\r\\007\\010\\014\\013\\\\\\'\\\""},
        {"'\t\x01\x7f'", "\\t\\001\\177"},
        {"'\\101\\1014\\60'", "AA40"},
        {"'\\x41\\x414\\x4'", "AA4\\004"},
        {"'\\u00e9\\U0001F600'", "\xc3\xa9\xf0\x9f\x98\x80"},
        {"'\\303\\251'", "\xc3\xa9"},
        {"'\\xe4' '\\xb8\\xad'", "\xe4\xb8\xad"},
        {"'\xe4\xb8\xad'", "\xe4\xb8\xad"},
        {"'#{}<>[]:;,'", "#{}<>[]:;,"},
        {"'\\?'", "\\\\?"}, /* the reference keeps the backslash of an escape it does not know */
        {"'\\q'", "\\\\q"},
        {"'a", NULL},
        {"'a\\'", NULL},
        {"'a\\", NULL},
        {"'a\nb'", NULL},
        {"'a\rb'", NULL},
        {"'\\400'", NULL},
        {"'\\x'", NULL},
        {"'\\xg'", NULL},
        {"'\\u12'", NULL},
        {"'\\U0011'", NULL},
        {"'\\U00110000'", NULL},
        {"'\\ud83d\\ude00'", NULL},
        {"'\\N{BULLET}'", NULL},
        {"'\\377'", NULL},
        {"'\\000'", NULL},
        {"abc", NULL},
        {"5", NULL},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        char text[128], expect[128];
        qf_error err;
        snprintf(text, sizeof text, "act_type: %s", cases[i].text);
        snprintf(expect, sizeof expect, "act_type: \"%s\"\n",
                 cases[i].expect ? cases[i].expect : "");
        char *out = round_trip(layer_desc, text, strlen(text), &err);
        if (!out != !cases[i].expect || (out && strcmp(out, expect) != 0))
            fail_msg("%s gave %s", cases[i].text, out ? out : err.message);
        free(out);
    }
    const char *bytes = "s: '\\000\\377\xc3\xa9'";
    qf_error err;
    char *out = round_trip(attr_desc, bytes, strlen(bytes), &err);
    assert_string_equal(out, "s: \"\\000\\377\\303\\251\"\n");
    free(out);
}

static void test_bools(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        int value; /* -1: refused */
    } cases[] = {
        {"true", 1},  {"True", 1}, {"t", 1},  {"1", 1},     {"false", 0},
        {"False", 0}, {"f", 0},    {"0", 0},  {"TRUE", -1}, {"yes", -1},
        {"01", -1},   {"+1", -1},  {"2", -1}, {"T", -1},    {"'t'", -1},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        char text[64];
        qf_error err;
        snprintf(text, sizeof text, "skip_fusion: %s", cases[i].text);
        char *out = round_trip(layer_desc, text, strlen(text), &err);
        int value = !out ? -1 : strcmp(out, "skip_fusion: true\n") == 0;
        free(out);
        if (value != cases[i].value)
            fail_msg("%s gave %d", cases[i].text, value);
    }
}

/* Each float must read back as itself, and no shorter text of at least six digits may do. */
static void test_float_printing(void **state)
{
    (void)state;
    uint32_t bits = 1;
    for (int i = 0; i < 20000; i++) {
        bits = bits * 1664525u + 1013904223u;
        float value;
        memcpy(&value, &bits, sizeof value);
        if (isnan(value) || isinf(value))
            continue;
        char text[QF_TEXT_NUMBER], shorter[400];
        qf_text_float(value, text);
        assert_true(strtof(text, NULL) == value);
        int digits = 9;
        while (digits > 6) {
            snprintf(shorter, sizeof shorter, "%.*g", digits - 1, (double)value);
            if (strtof(shorter, NULL) != value)
                break;
            digits--;
        }
        snprintf(shorter, sizeof shorter, "%.*g", digits, (double)value);
        assert_true(strtod(shorter, NULL) == strtod(text, NULL));
    }
    char text[QF_TEXT_NUMBER];
    qf_text_float(FLT_MAX, text);
    assert_string_equal(text, "3.4028235e+38");
    qf_text_float(-FLT_MIN, text);
    assert_string_equal(text, "-1.1754944e-38");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_integers),       cmocka_unit_test(test_floats),
        cmocka_unit_test(test_long_number),    cmocka_unit_test(test_locale),
        cmocka_unit_test(test_strings),        cmocka_unit_test(test_bools),
        cmocka_unit_test(test_float_printing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
