/* SPDX-License-Identifier: Apache-2.0 */
#include "fuzz.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

void fuzz_fail(const char *file, int line, const char *what, const char *format, ...)
{
    va_list args;
    fprintf(stderr, "%s:%d: does not hold: %s: ", file, line, what);
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fputc('\n', stderr);
    abort();
}

void fuzz_check_failure(qf_status status, const qf_error *err)
{
    FUZZ_REQUIRE(err->code == status, "returned %d, the error says %d", (int)status,
                 (int)err->code);
    FUZZ_REQUIRE(err->message[0], "status %d has no message", (int)status);
    FUZZ_REQUIRE(status == QF_ERR_INPUT || status == QF_ERR_USAGE, "status %d: %s", (int)status,
                 err->message);
}

uint8_t fuzz_byte(fuzz_part *input)
{
    if (!input->size)
        return 0;
    input->size--;
    return *input->data++;
}

fuzz_part fuzz_cut(fuzz_part *input)
{
    size_t size = fuzz_byte(input);
    size |= (size_t)fuzz_byte(input) << 8;
    fuzz_part part = {input->data, size < input->size ? size : input->size};
    input->data += part.size;
    input->size -= part.size;
    return part;
}

void fuzz_touch(const void *data, size_t size)
{
    const volatile uint8_t *at = data;
    for (size_t i = 0; i < size; i++)
        (void)at[i];
}

/* ---- the folder ---- */

static char folder[256];

static int remove_entry(const char *path, const struct stat *st, int kind, struct FTW *at)
{
    (void)st;
    (void)kind;
    (void)at;
    return remove(path);
}

static void remove_folder(void)
{
    nftw(folder, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
}

const char *fuzz_folder(void)
{
    if (folder[0])
        return folder;
    const char *base = getenv("QUANTFOLD_FUZZ_FOLDER");
    if (!base)
        base = access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp";
    snprintf(folder, sizeof folder, "%s/quantfold-fuzz-XXXXXX", base);
    FUZZ_REQUIRE(mkdtemp(folder), "cannot make %s: %s", folder, strerror(errno));
    atexit(remove_folder);
    return folder;
}

const char *fuzz_path(const char *name)
{
    static char paths[8][512];
    static unsigned next;
    char *path = paths[next++ % 8];
    snprintf(path, sizeof *paths, "%s/%s", fuzz_folder(), name);
    return path;
}

const char *fuzz_write(const char *name, const void *data, size_t size)
{
    static char path[512];
    snprintf(path, sizeof path, "%s/%s", fuzz_folder(), name);
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    FUZZ_REQUIRE(fd >= 0, "cannot make %s: %s", path, strerror(errno));
    FUZZ_REQUIRE(write(fd, data, size) == (ssize_t)size, "cannot write %s", path);
    close(fd);
    return path;
}

static size_t emptied;

static int empty_entry(const char *path, const struct stat *st, int kind, struct FTW *at)
{
    (void)st;
    if (at->level == 0)
        return 0;
    emptied += kind != FTW_DP;
    return remove(path);
}

size_t fuzz_empty(const char *name)
{
    emptied = 0;
    nftw(fuzz_path(name), empty_entry, 16, FTW_DEPTH | FTW_PHYS);
    return emptied;
}

/* ---- mappings end where the file ends ---- */

/* The last page of a mapping can be read beyond the end of the file, and no sanitizer would see it.
 * The linker gives the library these in place of mmap and munmap. */
#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define WITH_ASAN
#endif
#elif defined(__SANITIZE_ADDRESS__)
#define WITH_ASAN
#endif

#ifdef WITH_ASAN
#include <sanitizer/asan_interface.h>

static size_t to_page(size_t size)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    return (size + page - 1) & ~(page - 1);
}
#endif

void *__real_mmap(void *at, size_t size, int protection, int flags, int fd, off_t offset);
int __real_munmap(void *at, size_t size);
void *__wrap_mmap(void *at, size_t size, int protection, int flags, int fd, off_t offset);
void *__wrap_mmap64(void *at, size_t size, int protection, int flags, int fd, off_t offset);
int __wrap_munmap(void *at, size_t size);

void *__wrap_mmap(void *at, size_t size, int protection, int flags, int fd, off_t offset)
{
    void *map = __real_mmap(at, size, protection, flags, fd, offset);
#ifdef WITH_ASAN
    if (map != MAP_FAILED && fd >= 0 && protection == PROT_READ)
        ASAN_POISON_MEMORY_REGION((char *)map + size, to_page(size) - size);
#endif
    return map;
}

void *__wrap_mmap64(void *at, size_t size, int protection, int flags, int fd, off_t offset)
{
    return __wrap_mmap(at, size, protection, flags, fd, offset);
}

int __wrap_munmap(void *at, size_t size)
{
#ifdef WITH_ASAN
    ASAN_UNPOISON_MEMORY_REGION(at, to_page(size));
#endif
    return __real_munmap(at, size);
}
