/* SPDX-License-Identifier: Apache-2.0 */
/* Memory that grows with the model: beyond a fixed amount it is not anonymous, whatever the order
 * in which it is taken and given back; and where no file can be had, it is anonymous again. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/vfs.h>

#include "base/spill.h"

enum { MIB = 1024 * 1024, BLOCKS = 96 };

/* kB of a line of /proc/self/status. */
static size_t status_kb(const char *name)
{
    char line[256];
    size_t kb = 0;
    FILE *f = fopen("/proc/self/status", "r");
    while (f && fgets(line, sizeof line, f)) {
        if (strncmp(line, name, strlen(name)) == 0)
            kb = strtoul(line + strlen(name) + 1, NULL, 10);
    }
    if (f)
        fclose(f);
    return kb;
}

/* Large blocks hold what is written to them and are zeroed when they are used again. */
static void test_blocks(void **state)
{
    (void)state;
    unsigned char *blocks[BLOCKS];
    for (int round = 0; round < 3; round++) {
        for (size_t i = 0; i < BLOCKS; i++) {
            blocks[i] = qf_spill_alloc(MIB - 64);
            assert_non_null(blocks[i]);
            assert_int_equal((uintptr_t)blocks[i] % 16, 0);
            for (size_t at = 0; at < MIB - 64; at += 4096)
                assert_int_equal(blocks[i][at], 0);
            memset(blocks[i], (int)(i + 1), MIB - 64);
        }
        for (size_t i = 0; i < BLOCKS; i++) {
            assert_int_equal(blocks[i][0], i + 1);
            assert_int_equal(blocks[i][MIB - 65], i + 1);
            if (round != 1 || i % 2) /* in the second round every other block stays */
                qf_spill_free(blocks[i]);
        }
        for (size_t i = 0; round == 1 && i < BLOCKS; i += 2) {
            assert_int_equal(blocks[i][4096], i + 1);
            qf_spill_free(blocks[i]);
        }
    }
    qf_spill_free(NULL);
}

static void test_table(void **state)
{
    (void)state;
    uint64_t *items = NULL;
    size_t cap = 0;
    for (size_t i = 0; i < 300000; i++) {
        assert_true(qf_table_grow((void **)&items, &cap, i + 1, sizeof *items));
        assert_true(cap > i);
        items[i] = i * i;
    }
    for (size_t i = 0; i < 300000; i++)
        assert_int_equal(items[i], i * i);
    assert_false(qf_table_grow((void **)&items, &cap, SIZE_MAX / 4, sizeof *items));
    assert_int_equal(items[299999], UINT64_C(299999) * 299999);
    qf_spill_free(items);
    assert_null(qf_spill_alloc(SIZE_MAX / 2));
}

static bool has_disk(void)
{
    struct statfs fs;
    return statfs("/var/tmp", &fs) == 0 && fs.f_type != 0x01021994 /* tmpfs */;
}

static void test_bound(void **state)
{
    (void)state;
    if (!has_disk())
        skip();
    size_t before = status_kb("RssAnon:");
    char *large = qf_spill_alloc(128 * MIB);
    assert_non_null(large);
    memset(large, 1, 128 * MIB);
    assert_true(status_kb("RssAnon:") < before + 40 * 1024);
    assert_true(status_kb("RssFile:") > 100 * 1024);
    qf_spill_free(large);
    assert_true(status_kb("RssFile:") < 60 * 1024); /* the file went with its last block */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bound),
        cmocka_unit_test(test_blocks),
        cmocka_unit_test(test_table),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
