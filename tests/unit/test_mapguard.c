/* SPDX-License-Identifier: Apache-2.0 */
/* Faults on guarded mappings are survived and noted; all others go to who had them before. */
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/file.h"

enum { PAGES = 8 };
static size_t page;
static char path[] = "/tmp/quantfold-guard-XXXXXX";

static int set_up(void **state)
{
    (void)state;
    page = (size_t)sysconf(_SC_PAGESIZE);
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    for (size_t i = 0; i < PAGES * page; i += 4)
        assert_int_equal(write(fd, "abcd", 4), 4);
    return close(fd);
}

static int tear_down(void **state)
{
    (void)state;
    return unlink(path);
}

static void fill(void)
{
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    for (size_t i = 0; i < PAGES * page; i++)
        fputc('a', f);
    assert_int_equal(fclose(f), 0);
}

static unsigned sum(const qf_file *file)
{
    unsigned total = 0;
    for (size_t i = 0; i < file->size; i++)
        total += ((const volatile unsigned char *)file->data)[i];
    return total;
}

static void open_one(qf_file *file)
{
    qf_error err;
    fill();
    assert_int_equal(qf_file_open(path, "test", file, &err), QF_OK);
}

static void test_cut_file_reads_as_zeroes_and_is_noted(void **state)
{
    (void)state;
    qf_file file;
    qf_error err;
    open_one(&file);
    assert_int_equal(sum(&file), PAGES * page * 'a');
    assert_int_equal(qf_files_check(&file, 1, QF_OK, &err), QF_OK);
    assert_int_equal(truncate(path, (off_t)(3 * page)), 0);
    assert_int_equal(sum(&file), 3 * page * 'a');
    assert_int_equal(qf_files_check_faults(&file, 1, &err), QF_ERR_INPUT);
    assert_non_null(strstr(err.message, "became shorter"));
    assert_non_null(strstr(err.message, path));
    /* what has failed for another reason stays that */
    assert_int_equal(qf_files_check(&file, 1, QF_ERR_CANCELLED, &err), QF_ERR_CANCELLED);
    qf_file_close(&file);
}

/* The whole file reads again, but what has been read was not: like a disk with a bad sector. */
static void test_fault_that_is_over_is_still_an_error(void **state)
{
    (void)state;
    qf_file file;
    qf_error err;
    open_one(&file);
    assert_int_equal(truncate(path, 0), 0);
    sum(&file);
    fill();
    assert_int_equal(qf_files_check_faults(&file, 1, &err), QF_ERR_SYSTEM);
    qf_file_close(&file);
}

static void test_last_page_in_part(void **state)
{
    (void)state;
    qf_file file;
    qf_error err;
    open_one(&file);
    assert_int_equal(truncate(path, (off_t)(PAGES * page - 1)), 0);
    sum(&file);
    assert_int_equal(qf_files_check_faults(&file, 1, &err), QF_OK);
    assert_int_equal(qf_files_check(&file, 1, QF_OK, &err), QF_ERR_INPUT);
    qf_file_close(&file);
}

static void *sum_in_thread(void *file)
{
    sum(file);
    return NULL;
}

static void test_threads_fault_together(void **state)
{
    (void)state;
    enum { THREADS = 4, FILES = 100 }; /* more than one block of slots */
    static qf_file files[FILES];
    pthread_t threads[THREADS];
    qf_error err;
    for (int i = 0; i < FILES; i++)
        open_one(&files[i]);
    assert_int_equal(truncate(path, 0), 0);
    for (int i = 0; i < THREADS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, sum_in_thread, &files[FILES - 1]), 0);
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    assert_int_equal(qf_files_check_faults(files, FILES - 1, &err), QF_OK);
    assert_int_equal(qf_files_check_faults(&files[FILES - 1], 1, &err), QF_ERR_INPUT);
    for (int i = 0; i < FILES; i++)
        qf_file_close(&files[i]);
}

/* ---- other people's faults and handlers ---- */

static sigjmp_buf back;

static void jump(int number)
{
    siglongjmp(back, number);
}

static void touch_foreign(void)
{
    int fd = open(path, O_RDWR);
    assert_true(fd >= 0);
    volatile char *map = mmap(NULL, page, PROT_READ, MAP_SHARED, fd, 0);
    close(fd);
    assert_true(map != MAP_FAILED);
    assert_int_equal(truncate(path, 0), 0);
    (void)map[0];
}

static void test_foreign_faults_go_to_the_handler_before(void **state)
{
    (void)state;
    struct sigaction mine = {.sa_handler = jump}, old, now;
    qf_file file;
    qf_error err;
    sigaction(SIGBUS, &mine, &old);
    open_one(&file);
    if (sigsetjmp(back, 1) == 0) {
        touch_foreign();
        fail();
    }
    assert_int_equal(qf_files_check_faults(&file, 1, &err), QF_OK);
    sigaction(SIGBUS, NULL, &now);
    assert_true(now.sa_handler != jump);
    qf_file_close(&file);
    sigaction(SIGBUS, &old, &now);
    assert_true(now.sa_handler == jump); /* it was put back */
}

/* What is no missing page is not ours, wherever it happens. */
static void test_other_kinds_of_faults_are_passed_on(void **state)
{
    (void)state;
    struct sigaction mine = {.sa_handler = jump}, old, now;
    qf_file file;
    qf_error err;
    sigaction(SIGBUS, &mine, &old);
    open_one(&file);
    sigaction(SIGBUS, NULL, &now);
    siginfo_t info = {.si_signo = SIGBUS, .si_code = BUS_ADRALN};
    info.si_addr = (void *)(uintptr_t)file.data;
    if (sigsetjmp(back, 1) == 0) {
        now.sa_sigaction(SIGBUS, &info, NULL);
        fail();
    }
    assert_int_equal(qf_files_check_faults(&file, 1, &err), QF_OK);
    assert_int_equal(sum(&file), PAGES * page * 'a');
    info.si_code = BUS_MCEERR_AR;
    now.sa_sigaction(SIGBUS, &info, NULL);
    assert_int_not_equal(qf_files_check_faults(&file, 1, &err), QF_OK);
    qf_file_close(&file);
    sigaction(SIGBUS, &old, NULL);
}

/* A host that installs its handler while something is guarded has it to itself only until the next
 * time, and then behind ours. */
static void test_host_that_replaces_the_handler(void **state)
{
    (void)state;
    struct sigaction mine = {.sa_handler = jump}, first, old, now;
    qf_file file;
    qf_error err;
    sigaction(SIGBUS, NULL, &first);
    open_one(&file);
    sigaction(SIGBUS, &mine, &old);
    qf_file_close(&file);
    for (int i = 0; i < 3; i++) {
        sigaction(SIGBUS, NULL, &now);
        assert_true(now.sa_handler == jump);
        open_one(&file);
        assert_int_equal(truncate(path, 0), 0);
        if (sigsetjmp(back, 1) != 0)
            fail();
        assert_int_equal(sum(&file), 0);
        assert_int_equal(qf_files_check_faults(&file, 1, &err), QF_ERR_INPUT);
        fill();
        if (sigsetjmp(back, 1) == 0) {
            touch_foreign();
            fail();
        }
        qf_file_close(&file);
    }
    sigaction(SIGBUS, &old, NULL); /* ours, and then the first one */
    open_one(&file);
    qf_file_close(&file);
    sigaction(SIGBUS, NULL, &now);
    assert_true(now.sa_handler == first.sa_handler);
}

/* How a child ends that touches memory which is not there. */
static int death_of(void (*touch)(void))
{
    int status;
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        const struct rlimit none = {0, 0};
        setrlimit(RLIMIT_CORE, &none);
        signal(SIGBUS, SIG_DFL);
        touch();
        _exit(0);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    return WIFSIGNALED(status) ? WTERMSIG(status) : -WEXITSTATUS(status);
}

static void touch_foreign_beside_ours(void)
{
    qf_file file;
    open_one(&file);
    touch_foreign();
}

static void touch_ours(void)
{
    qf_file file;
    open_one(&file);
    if (truncate(path, 0) == 0)
        sum(&file);
}

static void touch_ours_unhandled(void)
{
    qf_handle_sigbus(false);
    touch_ours();
}

static void kill_beside_ours(void)
{
    qf_file file;
    open_one(&file);
    raise(SIGBUS);
}

static struct sigaction replaced;

static void call_replaced(int number, siginfo_t *info, void *context)
{
    replaced.sa_sigaction(number, info, context);
}

/* The host's handler has replaced ours and passes on to it, and ours stands above it again. */
static void touch_foreign_in_a_chain(void)
{
    struct sigaction chain = {.sa_sigaction = call_replaced, .sa_flags = SA_SIGINFO};
    qf_file file;
    open_one(&file);
    sigaction(SIGBUS, &chain, &replaced);
    qf_file_close(&file);
    touch_foreign_beside_ours();
}

static void test_who_dies(void **state)
{
    (void)state;
    assert_int_equal(death_of(touch_ours), 0);
    assert_int_equal(death_of(touch_foreign_beside_ours), SIGBUS);
    assert_int_equal(death_of(touch_foreign_in_a_chain), SIGBUS);
    assert_int_equal(death_of(touch_ours_unhandled), SIGBUS);
    assert_int_equal(death_of(kill_beside_ours), SIGBUS);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cut_file_reads_as_zeroes_and_is_noted),
        cmocka_unit_test(test_fault_that_is_over_is_still_an_error),
        cmocka_unit_test(test_last_page_in_part),
        cmocka_unit_test(test_threads_fault_together),
        cmocka_unit_test(test_foreign_faults_go_to_the_handler_before),
        cmocka_unit_test(test_other_kinds_of_faults_are_passed_on),
        cmocka_unit_test(test_host_that_replaces_the_handler),
        cmocka_unit_test(test_who_dies),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
