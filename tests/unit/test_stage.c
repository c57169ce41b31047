/* SPDX-License-Identifier: Apache-2.0 */
/* Staging: whole or not at all, and what a killed run leaves. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "exec/stage.h"

static char folder[64], other[128];

static int set_up(void **state)
{
    (void)state;
    strcpy(folder, "/tmp/qf_stage_XXXXXX");
    return mkdtemp(folder) ? 0 : -1;
}

static int tear_down(void **state)
{
    (void)state;
    char command[100];
    snprintf(command, sizeof command, "rm -rf %s", folder);
    return system(command);
}

static char *in_folder(const char *name)
{
    static char path[200];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

static void write_text(const char *path, const char *text)
{
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
}

static void assert_text(const char *name, const char *want)
{
    char got[100] = "";
    FILE *f = fopen(in_folder(name), "r");
    assert_non_null(f);
    size_t n = fread(got, 1, sizeof got - 1, f);
    got[n] = '\0';
    fclose(f);
    assert_string_equal(got, want);
}

static int entries(void)
{
    int n = 0;
    DIR *dir = opendir(folder);
    while (readdir(dir))
        n++;
    closedir(dir);
    return n - 2;
}

static void put_file(qf_stage *stage, const char *name, const char *text)
{
    size_t index;
    qf_error err;
    assert_int_equal(qf_stage_create(stage, name, strlen(text), &index, &err), QF_OK);
    assert_int_equal(qf_stage_write(stage, index, 0, text, strlen(text), &err), QF_OK);
}

static void test_commit(void **state)
{
    (void)state;
    qf_stage stage;
    qf_error err;
    struct stat st;
    char nested[100];
    snprintf(nested, sizeof nested, "%s/a/b", folder);
    assert_int_equal(qf_stage_open(nested, "m", QF_STAGE_FRESH, &stage, &err), QF_OK);
    put_file(&stage, "w.external", "weights");
    put_file(&stage, "m.onnx", "model");
    assert_int_equal(qf_stage_commit(&stage, &err), QF_OK);
    qf_stage_close(&stage);
    assert_text("a/b/w.external", "weights");
    assert_text("a/b/m.onnx", "model");
    assert_int_equal(stat(in_folder("a/b/m.onnx"), &st), 0);
    assert_int_equal(st.st_mode & 07777, 0640);
    assert_int_equal(stat(in_folder("a/b/.m.quantfold-partial"), &st), -1);
}

static void test_abandon_leaves_nothing(void **state)
{
    (void)state;
    qf_stage stage;
    qf_error err;
    char nested[100];
    write_text(in_folder("m.onnx"), "old");
    assert_int_equal(qf_stage_open(folder, "m", QF_STAGE_FRESH, &stage, &err), QF_OK);
    put_file(&stage, "m.onnx", "new");
    qf_stage_close(&stage);
    assert_text("m.onnx", "old");
    assert_int_equal(entries(), 1);
    snprintf(nested, sizeof nested, "%s/new/folder", folder);
    assert_int_equal(qf_stage_open(nested, "m", QF_STAGE_FRESH, &stage, &err), QF_OK);
    qf_stage_close(&stage);
    assert_int_equal(entries(), 1); /* the folders it made are gone */
}

/* What SIGKILL leaves: the folder, unlocked. Without `complete` it is thrown away. */
static void test_incomplete_run_is_cleaned(void **state)
{
    (void)state;
    qf_stage stage;
    qf_error err;
    write_text(in_folder("m.onnx"), "old");
    assert_int_equal(mkdir(in_folder(".m.quantfold-partial"), 0700), 0);
    write_text(in_folder(".m.quantfold-partial/m.onnx"), "half");
    assert_int_equal(qf_stage_open(folder, "m", QF_STAGE_FRESH, &stage, &err), QF_OK);
    qf_stage_close(&stage);
    assert_text("m.onnx", "old");
    assert_int_equal(entries(), 1);
}

/* With `complete`, the renames that are missing are made. */
static void test_complete_run_is_finished(void **state)
{
    (void)state;
    qf_stage stage;
    qf_error err;
    write_text(in_folder("w.external"), "new weights, already moved");
    write_text(in_folder("m.onnx"), "old");
    assert_int_equal(mkdir(in_folder(".m.quantfold-partial"), 0700), 0);
    assert_int_equal(mkdir(in_folder(".m.quantfold-partial/run"), 0700), 0);
    write_text(in_folder(".m.quantfold-partial/run/complete"), "");
    write_text(in_folder(".m.quantfold-partial/m.onnx"), "new");
    write_text(in_folder(".m.quantfold-partial/v.external"), "more");
    assert_int_equal(qf_stage_open(folder, "m", QF_STAGE_FRESH, &stage, &err), QF_OK);
    qf_stage_close(&stage);
    assert_text("m.onnx", "new");
    assert_text("w.external", "new weights, already moved");
    assert_text("v.external", "more");
    assert_int_equal(entries(), 3);
}

/* A rename that fails in the middle: what was already replaced comes back. */
static void test_failed_rename_rolls_back(void **state)
{
    (void)state;
    qf_stage stage;
    qf_error err;
    write_text(in_folder("a.external"), "old a");
    assert_int_equal(qf_stage_open(folder, "m", QF_STAGE_FRESH, &stage, &err), QF_OK);
    put_file(&stage, "a.external", "new a");
    put_file(&stage, "b.external", "new b");
    put_file(&stage, "m.onnx", "new m");
    assert_int_equal(mkdir(in_folder("m.onnx"), 0700), 0);
    write_text(in_folder("m.onnx/x"), "in the way");
    assert_int_equal(qf_stage_commit(&stage, &err), QF_ERR_SYSTEM);
    assert_non_null(strstr(err.message, "m.onnx"));
    qf_stage_close(&stage);
    assert_text("a.external", "old a");
    assert_text("m.onnx/x", "in the way");
    assert_int_equal(entries(), 2);
}

/* A file that goes: with the others, or not at all; also when another run finishes that. */
static void test_a_file_goes(void **state)
{
    (void)state;
    qf_stage stage;
    qf_error err;
    write_text(in_folder("m.manifest.json"), "old");
    assert_int_equal(qf_stage_open(folder, "m", QF_STAGE_FRESH, &stage, &err), QF_OK);
    assert_int_equal(qf_stage_remove(&stage, "m.manifest.json", &err), QF_OK);
    put_file(&stage, "m.onnx", "new m");
    assert_int_equal(mkdir(in_folder("m.onnx"), 0700), 0);
    write_text(in_folder("m.onnx/x"), "in the way");
    assert_int_equal(qf_stage_commit(&stage, &err), QF_ERR_SYSTEM);
    qf_stage_close(&stage);
    assert_text("m.manifest.json", "old");
    assert_int_equal(entries(), 2);

    assert_int_equal(unlink(in_folder("m.onnx/x")), 0);
    assert_int_equal(rmdir(in_folder("m.onnx")), 0);
    assert_int_equal(qf_stage_open(folder, "m", QF_STAGE_FRESH, &stage, &err), QF_OK);
    put_file(&stage, "m.onnx", "new m");
    assert_int_equal(qf_stage_remove(&stage, "m.manifest.json", &err), QF_OK);
    assert_int_equal(qf_stage_commit(&stage, &err), QF_OK);
    qf_stage_close(&stage);
    assert_text("m.onnx", "new m");
    assert_int_equal(entries(), 1);

    write_text(in_folder("m.manifest.json"), "old");
    assert_int_equal(mkdir(in_folder(".m.quantfold-partial"), 0700), 0);
    assert_int_equal(mkdir(in_folder(".m.quantfold-partial/run"), 0700), 0);
    write_text(in_folder(".m.quantfold-partial/run/complete"), "m.manifest.json");
    assert_int_equal(qf_stage_open(folder, "m", QF_STAGE_RESUME, &stage, &err), QF_OK);
    qf_stage_close(&stage);
    assert_text("m.onnx", "new m");
    assert_int_equal(entries(), 1);

    write_text(in_folder("bystander"), "mine");
    assert_int_equal(mkdir(in_folder(".m.quantfold-partial"), 0700), 0);
    assert_int_equal(mkdir(in_folder(".m.quantfold-partial/run"), 0700), 0);
    const char *const outside[] = {"a/../../bystander", "a/bystander", ".."};
    for (int i = 0; i < 3; i++) {
        write_text(in_folder(".m.quantfold-partial/run/complete"), outside[i]);
        assert_int_equal(qf_stage_open(folder, "m", QF_STAGE_RESUME, &stage, &err), QF_ERR_INPUT);
    }
    assert_text("bystander", "mine");
}

/* A run that died while it was taking its renames back: the next one goes on with that. */
static void test_roll_back_is_finished(void **state)
{
    qf_stage stage;
    qf_error err;
    write_text(in_folder("a.external"), "new a");
    write_text(in_folder("m.onnx"), "old m");
    assert_int_equal(mkdir(in_folder(".m.quantfold-partial"), 0700), 0);
    assert_int_equal(mkdir(in_folder(".m.quantfold-partial/run"), 0700), 0);
    assert_int_equal(mkdir(in_folder(".m.quantfold-partial/run/old"), 0700), 0);
    write_text(in_folder(".m.quantfold-partial/run/old/a.external"), "old a");
    /* of this one, only the link was made */
    snprintf(other, sizeof other, "%s/.m.quantfold-partial/run/old/m.onnx", folder);
    assert_int_equal(link(in_folder("m.onnx"), other), 0);
    assert_int_equal(
        qf_stage_open(folder, "m", *state ? QF_STAGE_SHARD : QF_STAGE_RESUME, &stage, &err), QF_OK);
    assert_false(stage.recovered);
    stage.keep = false;
    stage.mode = QF_STAGE_RESUME; /* a shard's folder would stay */
    qf_stage_close(&stage);
    assert_text("a.external", "old a");
    assert_text("m.onnx", "old m");
    assert_int_equal(entries(), 2);
}

static int set_up_shard(void **state)
{
    static int shard;
    int result = set_up(state);
    *state = &shard;
    return result;
}

/* A complete run is finished by whoever comes, who is told; a shard has the folder empty then. */
static void test_complete_run_is_told(void **state)
{
    const qf_stage_mode modes[] = {QF_STAGE_FRESH, QF_STAGE_RESUME, QF_STAGE_SHARD};
    (void)state;
    for (int i = 0; i < 3; i++) {
        qf_stage stage;
        qf_error err;
        assert_int_equal(mkdir(in_folder(".m.quantfold-partial"), 0700), 0);
        assert_int_equal(mkdir(in_folder(".m.quantfold-partial/run"), 0700), 0);
        write_text(in_folder(".m.quantfold-partial/run/complete"), "");
        write_text(in_folder(".m.quantfold-partial/run/plan.json"), "{}");
        write_text(in_folder(".m.quantfold-partial/m.onnx"), "new");
        assert_int_equal(qf_stage_open(folder, "m", modes[i], &stage, &err), QF_OK);
        assert_text("m.onnx", "new");
        if (modes[i] != QF_STAGE_SHARD)
            assert_true(stage.recovered);
        assert_int_equal(faccessat(stage.run_fd, "plan.json", F_OK, 0),
                         modes[i] == QF_STAGE_RESUME ? 0 : -1);
        if (modes[i] != QF_STAGE_RESUME)
            assert_int_equal(faccessat(stage.run_fd, "complete", F_OK, 0), -1);
        stage.mode = QF_STAGE_RESUME;
        qf_stage_close(&stage);
        assert_int_equal(entries(), 1);
        assert_int_equal(unlink(in_folder("m.onnx")), 0);
    }
}

/* Names in the folder become paths; one that leads out of the target folder is refused, and so is
 * one through a link. */
static void test_names_that_lead_out(void **state)
{
    const char *const names[] = {"..\x01x", "\x01\x01tmp\x01x", "a\x01..\x01x", ".\x01x",
                                 "link\x01x"};
    (void)state;
    for (int i = 0; i < 10; i++) {
        bool replaced = i % 2;
        const char *name = names[i / 2];
        qf_stage stage;
        qf_error err;
        char nested[100], path[120];
        snprintf(nested, sizeof nested, "%s/to", folder);
        mkdir(nested, 0700);
        assert_int_equal(symlink("..", in_folder("to/link")), 0);
        assert_int_equal(mkdir(in_folder("to/.m.quantfold-partial"), 0700), 0);
        assert_int_equal(mkdir(in_folder("to/.m.quantfold-partial/run"), 0700), 0);
        assert_int_equal(mkdir(in_folder("to/.m.quantfold-partial/run/old"), 0700), 0);
        if (!replaced)
            write_text(in_folder("to/.m.quantfold-partial/run/complete"), "");
        snprintf(path, sizeof path, "to/.m.quantfold-partial/%s%s", replaced ? "run/old/" : "",
                 name);
        write_text(in_folder(path), "evil");
        qf_status want = i / 2 == 4 ? QF_ERR_SYSTEM : QF_ERR_INPUT;
        for (int mode = QF_STAGE_FRESH; mode <= QF_STAGE_SHARD; mode++) {
            assert_int_equal(qf_stage_open(nested, "m", (qf_stage_mode)mode, &stage, &err), want);
            assert_text(path, "evil");
            assert_int_equal(entries(), 1);
        }
        tear_down(NULL);
        assert_int_equal(mkdir(folder, 0700), 0);
    }
}

static void test_safe_names(void **state)
{
    char name[300];
    (void)state;
    assert_true(qf_name_is_safe("v1..2.onnx"));
    assert_true(qf_name_is_safe("..a/b.."));
    assert_true(qf_name_is_safe("a/..."));
    assert_false(qf_name_is_safe(""));
    assert_false(qf_name_is_safe("/a"));
    assert_false(qf_name_is_safe("a/"));
    assert_false(qf_name_is_safe("a//b"));
    assert_false(qf_name_is_safe(".."));
    assert_false(qf_name_is_safe("a/.."));
    assert_false(qf_name_is_safe("../a"));
    assert_false(qf_name_is_safe("a/./b"));
    memset(name, 'a', sizeof name);
    name[255] = '\0';
    assert_true(qf_name_is_safe(name));
    name[255] = 'a';
    name[256] = '\0';
    assert_false(qf_name_is_safe(name));
}

/* What cannot be looked at is not thrown away. */
static void test_failed_open_keeps_what_is_there(void **state)
{
    (void)state;
    qf_stage stage;
    qf_error err;
    assert_int_equal(mkdir(in_folder(".m.quantfold-partial"), 0700), 0);
    write_text(in_folder(".m.quantfold-partial/run"), "not a folder");
    write_text(in_folder(".m.quantfold-partial/m.onnx"), "perhaps whole");
    assert_int_equal(qf_stage_open(folder, "m", QF_STAGE_FRESH, &stage, &err), QF_ERR_SYSTEM);
    assert_text(".m.quantfold-partial/m.onnx", "perhaps whole");
    assert_int_equal(entries(), 1);
}

static void test_second_run_is_refused(void **state)
{
    (void)state;
    qf_stage first, second;
    qf_error err;
    assert_int_equal(qf_stage_open(folder, "m", QF_STAGE_FRESH, &first, &err), QF_OK);
    put_file(&first, "m.onnx", "first");
    assert_int_equal(qf_stage_open(folder, "m", QF_STAGE_FRESH, &second, &err), QF_ERR_INPUT);
    assert_non_null(strstr(err.message, "another export"));
    assert_int_equal(qf_stage_open(folder, "other", QF_STAGE_FRESH, &second, &err), QF_OK);
    qf_stage_close(&second);
    assert_int_equal(qf_stage_commit(&first, &err), QF_OK);
    qf_stage_close(&first);
    assert_text("m.onnx", "first");
}

static void assert_split(const char *path, const char *folder_want, const char *prefix_want)
{
    char *dir, *prefix;
    qf_error err;
    assert_int_equal(qf_save_path_split(path, &dir, &prefix, &err), QF_OK);
    if (folder_want)
        assert_string_equal(dir, folder_want);
    assert_string_equal(prefix, prefix_want);
    free(dir);
    free(prefix);
}

static void test_save_path(void **state)
{
    (void)state;
    char long_name[300], *dir, *prefix;
    qf_error err;
    assert_split("", ".", "");
    assert_split("model", ".", "model");
    assert_split("./", ".", "");
    assert_split("./model", ".", "model");
    assert_split("a/b/", "a/b", "");
    assert_split("a/b/c", "a/b", "c");
    assert_split("/c", "/", "c");
    char *cwd = getcwd(NULL, 0);
    assert_split(".", NULL, strrchr(cwd, '/') + 1); /* facts 9: the folder's name is the prefix */
    free(cwd);
    memset(long_name, 'p', sizeof long_name);
    long_name[241] = '\0';
    assert_split(long_name, ".", long_name);
    long_name[241] = 'p';
    long_name[242] = '\0';
    assert_int_equal(qf_save_path_split(long_name, &dir, &prefix, &err), QF_ERR_INPUT);
}

/* facts 9: it is the real path that is split. */
static void test_save_path_link(void **state)
{
    (void)state;
    char link[100], want[100];
    snprintf(link, sizeof link, "%s/link", folder);
    snprintf(want, sizeof want, "%s/sub", folder);
    assert_int_equal(symlink("sub/model", link), 0); /* need not exist */
    assert_split(link, want, "model");
    char *dir, *prefix;
    qf_error err;
    snprintf(link, sizeof link, "%s/circle", folder);
    assert_int_equal(symlink("circle", link), 0);
    assert_int_equal(qf_save_path_split(link, &dir, &prefix, &err), QF_ERR_INPUT);
}

/* More files than are kept open: the last is written directly if the first is. */
static void test_direct_files_without_end(void **state)
{
    enum { FILES = 300, SIZE = 1024 * 1024 };
    (void)state;
    qf_stage stage;
    qf_error err;
    size_t index = 0;
    char name[32];
    unsigned char *page = aligned_alloc(QF_DIRECT_ALIGN, QF_DIRECT_ALIGN), got[4];
    assert_non_null(page);
    memset(page, 0x5a, QF_DIRECT_ALIGN);
    assert_int_equal(qf_stage_open(folder, "m", QF_STAGE_FRESH, &stage, &err), QF_OK);
    stage.direct = true;
    for (int i = 0; i < FILES; i++) {
        qf_status status;
        snprintf(name, sizeof name, "w%d.external", i);
        assert_int_equal(qf_stage_create(&stage, name, SIZE, &index, &err), QF_OK);
        bool done = qf_stage_write_direct(&stage, index, SIZE - QF_DIRECT_ALIGN, page,
                                          QF_DIRECT_ALIGN, &status, &err);
        assert_int_equal(status, QF_OK);
        assert_int_equal(done, stage.files[0].direct); /* not every file system has it */
        if (!done)
            break;
        assert_true(qf_stage_read(&stage, index, SIZE - 4, got, sizeof got));
        assert_memory_equal(got, page, sizeof got);
    }
    qf_stage_close(&stage);
    free(page);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_commit, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_abandon_leaves_nothing, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_incomplete_run_is_cleaned, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_complete_run_is_finished, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_failed_rename_rolls_back, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_a_file_goes, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_roll_back_is_finished, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_roll_back_is_finished, set_up_shard, tear_down),
        cmocka_unit_test_setup_teardown(test_complete_run_is_told, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_names_that_lead_out, set_up, tear_down),
        cmocka_unit_test(test_safe_names),
        cmocka_unit_test_setup_teardown(test_failed_open_keeps_what_is_there, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_second_run_is_refused, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_direct_files_without_end, set_up, tear_down),
        cmocka_unit_test(test_save_path),
        cmocka_unit_test_setup_teardown(test_save_path_link, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
