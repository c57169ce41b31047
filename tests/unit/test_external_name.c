/* SPDX-License-Identifier: Apache-2.0 */
/* Names of external files: safe ones stand as they are, others can be read back. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "onnx/layout.h"

static char *name_of(qf_arena *arena, const char *tensor)
{
    char *name = qf_external_name(arena, tensor, 200);
    assert_non_null(name);
    assert_null(strchr(name, '/'));
    assert_true(name[0] != '.');
    assert_true(strlen(name) <= 200);
    return name;
}

/* Undoes %XX. */
static void decode(const char *name, char *out)
{
    while (*name) {
        unsigned code = 0;
        if (*name == '%') {
            char digits[3] = {name[1], name[2], 0};
            code = (unsigned)strtoul(digits, NULL, 16);
            name += 3;
        } else {
            code = (unsigned char)*name++;
        }
        *out++ = (char)code;
    }
    *out = '\0';
}

static void test_safe_names_stand(void **state)
{
    (void)state;
    static const char *const names[] = {"conv1.sub_module.weight", "onnx::MatMul_84", "a b",
                                        "gewicht_\xc3\xa4", "x"};
    qf_arena arena;
    qf_arena_init(&arena);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        assert_string_equal(name_of(&arena, names[i]), names[i]);
    qf_arena_release(&arena);
}

static void test_unsafe_names_can_be_read_back(void **state)
{
    (void)state;
    static const char *const names[] = {"/block/Constant_output_0",
                                        "..",
                                        ".hidden",
                                        "a/../b",
                                        "tab\there",
                                        "100%",
                                        "%2F",
                                        "/",
                                        "a~2",
                                        "back\\slash",
                                        "\x7f",
                                        "line\nbreak"};
    enum { COUNT = sizeof names / sizeof *names };
    char *encoded[COUNT], back[400];
    qf_arena arena;
    qf_arena_init(&arena);
    for (size_t i = 0; i < COUNT; i++) {
        encoded[i] = name_of(&arena, names[i]);
        assert_string_not_equal(encoded[i], names[i]);
        decode(encoded[i], back);
        assert_string_equal(back, names[i]);
        for (size_t j = 0; j < i; j++)
            assert_string_not_equal(encoded[i], encoded[j]);
    }
    qf_arena_release(&arena);
}

static void test_long_names_differ(void **state)
{
    (void)state;
    char a[5000], b[5000];
    qf_arena arena;
    qf_arena_init(&arena);
    memset(a, 'x', sizeof a - 1);
    a[sizeof a - 1] = '\0';
    memcpy(b, a, sizeof a);
    b[sizeof b - 2] = 'y';
    assert_string_not_equal(name_of(&arena, a), name_of(&arena, b));
    memset(a, '/', sizeof a - 1);
    name_of(&arena, a);
    qf_arena_release(&arena);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_safe_names_stand),
        cmocka_unit_test(test_unsafe_names_can_be_read_back),
        cmocka_unit_test(test_long_names_differ),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
