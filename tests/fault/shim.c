/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A library for LD_PRELOAD that counts calls of the C library and makes one of them fail.
 *
 *   QF_FAULT=FUNCTION:N:ACTION   what happens at the N-th call (from 1) of FUNCTION; N+: at that
 * and all later ones. FUNCTION is a name of the table below, or `any`: the N-th call of whichever
 * of those that name a file. QF_FAULT_ONLY=DIR:DIR        only calls count whose path, or whose
 * descriptor's, is below one of these folders; without it, all do. Memory has no path, always
 * counts. QF_FAULT_REPORT=FILE         gets a line "fired FUNCTION PATH" when it happens and, at
 * the end, a line "count FUNCTION CALLS" for each function that was called.
 *
 *   ACTION is one of
 *     ENOSPC, EIO, ...  the call fails with that errno and does nothing; close() closes first, as
 *                       Linux does
 *     short             a read or write does a half of what it was asked to, at least a byte
 *     SIGKILL, ...      the process gets the signal before the call; after-SIGKILL: behind it
 *     truncate=PATH,N   before the call, that file is cut to N bytes, as by another process
 *     write=PATH        before the call, a byte in the middle of that file is changed
 *
 * Calls that the C library makes inside itself cannot be seen, so fopen() counts as a call of its
 * own, as does opendir(). Not counted are allocations by the dynamic linker, which come before main
 * or with new threads, by libgomp: it ends the process itself when one fails, and nobody above
 * it can do anything about that, and behind exit(), where counters of coverage are written. All
 * counters are atomic; what is N-th among threads is up to them.
 */
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <link.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))

enum function {
    F_OPEN,
    F_FOPEN,
    F_OPENDIR,
    F_READDIR,
    F_READ,
    F_PREAD,
    F_WRITE,
    F_PWRITE,
    F_COPY_FILE_RANGE,
    F_MMAP,
    F_FALLOCATE,
    F_FTRUNCATE,
    F_FSYNC,
    F_CLOSE,
    F_RENAME,
    F_LINK,
    F_UNLINK,
    F_MKDIR,
    F_RMDIR,
    F_STAT,
    F_FCHMOD,
    F_FLOCK,
    F_REALPATH,
    F_MALLOC,
    FUNCTIONS
};

static const char *const names[FUNCTIONS] = {
    "open",   "fopen", "opendir",   "readdir",   "read",   "pread", "write",    "pwrite",
    "copy",   "mmap",  "fallocate", "ftruncate", "fsync",  "close", "rename",   "link",
    "unlink", "mkdir", "rmdir",     "stat",      "fchmod", "flock", "realpath", "malloc"};

static const struct {
    const char *name;
    int value;
} errors[] = {{"ENOSPC", ENOSPC}, {"EIO", EIO},       {"EDQUOT", EDQUOT},        {"EINTR", EINTR},
              {"ENOMEM", ENOMEM}, {"EACCES", EACCES}, {"EMFILE", EMFILE},        {"EROFS", EROFS},
              {"ENOLCK", ENOLCK}, {"EPERM", EPERM},   {"EOPNOTSUPP", EOPNOTSUPP}},
  signals[] = {{"SIGKILL", SIGKILL}, {"SIGTERM", SIGTERM}, {"SIGINT", SIGINT}};

static struct {
    bool ready, leaving;
    _Atomic bool entered;
    bool every;   /* from the N-th on */
    int function; /* FUNCTIONS: any */
    unsigned long at;
    int error, before, after; /* an errno; signals */
    bool half, change;
    char victim[PATH_MAX]; /* to be truncated or changed */
    long size;
    char only[4][PATH_MAX];
    int only_count;
    char report[PATH_MAX];
    uintptr_t skip[8][2]; /* code whose allocations do not count */
    int skip_count;
    _Atomic unsigned long counts[FUNCTIONS], any;
} shim;

/* ---- settings ---- */

static int find_skipped(struct dl_phdr_info *info, size_t size, void *user)
{
    (void)size;
    (void)user;
    const char *name = info->dlpi_name;
    if (!strstr(name, "libgomp") && !strstr(name, "libomp") && !strstr(name, "/ld-"))
        return 0;
    for (int i = 0; i < info->dlpi_phnum && shim.skip_count < 8; i++) {
        const ElfW(Phdr) *p = &info->dlpi_phdr[i];
        if (p->p_type != PT_LOAD || !(p->p_flags & PF_X))
            continue;
        shim.skip[shim.skip_count][0] = info->dlpi_addr + p->p_vaddr;
        shim.skip[shim.skip_count++][1] = info->dlpi_addr + p->p_vaddr + p->p_memsz;
    }
    return 0;
}

static void stop(const char *what)
{
    fprintf(stderr, "fault shim: cannot understand '%s'\n", what);
    _exit(99);
}

static void read_action(const char *text)
{
    for (size_t i = 0; i < sizeof errors / sizeof *errors; i++) {
        if (strcmp(text, errors[i].name) == 0) {
            shim.error = errors[i].value;
            return;
        }
    }
    for (size_t i = 0; i < sizeof signals / sizeof *signals; i++) {
        if (strcmp(text, signals[i].name) == 0)
            shim.before = signals[i].value;
        if (strncmp(text, "after-", 6) == 0 && strcmp(text + 6, signals[i].name) == 0)
            shim.after = signals[i].value;
    }
    shim.half = strcmp(text, "short") == 0;
    shim.change = strncmp(text, "write=", 6) == 0;
    if (shim.change)
        snprintf(shim.victim, sizeof shim.victim, "%s", text + 6);
    else if (sscanf(text, "truncate=%4000[^,],%ld", shim.victim, &shim.size) != 2 && !shim.before &&
             !shim.after && !shim.half)
        stop(text);
}

static void read_fault(const char *text)
{
    char function[32], action[PATH_MAX], sign = 0;
    if (sscanf(text, "%31[^:]:%lu%c", function, &shim.at, &sign) != 3 || !strrchr(text, ':') ||
        (sign != ':' && sign != '+'))
        stop(text);
    const char *behind = strchr(strchr(text, ':') + 1, ':') + 1;
    snprintf(action, sizeof action, "%s", behind);
    shim.every = sign == '+';
    for (shim.function = 0; shim.function < FUNCTIONS; shim.function++) {
        if (strcmp(function, names[shim.function]) == 0)
            break;
    }
    if (shim.function == FUNCTIONS && strcmp(function, "any") != 0)
        stop(text);
    read_action(action);
}

static void leave(void)
{
    shim.leaving = true;
}

__attribute__((constructor)) static void start(void)
{
    const char *fault = getenv("QF_FAULT"), *report = getenv("QF_FAULT_REPORT");
    const char *only = getenv("QF_FAULT_ONLY");
    dl_iterate_phdr(find_skipped, NULL);
    while (only && *only && shim.only_count < 4) {
        size_t n = strcspn(only, ":");
        snprintf(shim.only[shim.only_count++], PATH_MAX, "%.*s", (int)n, only);
        only += n + (only[n] == ':');
    }
    if (report)
        snprintf(shim.report, sizeof shim.report, "%s", report);
    if (fault && *fault)
        read_fault(fault);
    shim.ready = true;
}

/* Past all wrappers. */
static void add_line(const char *format, ...)
{
    char line[PATH_MAX + 64];
    va_list args;
    va_start(args, format);
    int n = vsnprintf(line, sizeof line, format, args);
    va_end(args);
    if (!*shim.report)
        return;
    long fd =
        syscall(SYS_openat, AT_FDCWD, shim.report, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    syscall(SYS_write, fd, line, (size_t)n);
    syscall(SYS_close, fd);
}

__attribute__((destructor)) static void finish(void)
{
    shim.ready = false;
    for (int f = 0; f < FUNCTIONS; f++) {
        if (shim.counts[f])
            add_line("count %s %lu\n", names[f], shim.counts[f]);
    }
    add_line("count any %lu\n", shim.any);
}

/* ---- deciding ---- */

static bool is_below(const char *path)
{
    for (int i = 0; i < shim.only_count; i++) {
        size_t n = strlen(shim.only[i]);
        if (strncmp(path, shim.only[i], n) == 0 &&
            (path[n] == '/' || !path[n] || path[n] == ' ' || path[n] == ':'))
            return true;
    }
    return shim.only_count == 0;
}

/* The absolute path of `path` at `folder`; of `folder` itself if it is NULL. */
static void name_of(int folder, const char *path, char out[2 * PATH_MAX])
{
    char link[64];
    out[0] = '\0';
    if (path && path[0] == '/') {
        snprintf(out, 2 * PATH_MAX, "%s", path);
        return;
    }
    snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
    long n = folder == AT_FDCWD ? syscall(SYS_getcwd, out, PATH_MAX) - 1
                                : syscall(SYS_readlinkat, AT_FDCWD, link, out, PATH_MAX);
    out[n > 0 ? n : 0] = '\0';
    if (path)
        snprintf(out + strlen(out), PATH_MAX, "/%s", path);
}

static void strike(const char *path)
{
    if (*shim.victim && shim.change) {
        struct stat st;
        long fd = syscall(SYS_openat, AT_FDCWD, shim.victim, O_WRONLY | O_CLOEXEC);
        if (fd < 0 || syscall(SYS_fstat, fd, &st) != 0 ||
            syscall(SYS_pwrite64, fd, "\x7f", (size_t)1, (long)st.st_size / 2) != 1)
            stop(shim.victim);
        syscall(SYS_close, fd);
    } else if (*shim.victim && syscall(SYS_truncate, shim.victim, shim.size) != 0) {
        stop(shim.victim);
    }
    add_line("fired %s\n", path);
    if (shim.before)
        kill(getpid(), shim.before);
}

/* What happens at a call. */
typedef struct fate {
    bool struck, fails, half;
} fate;

static fate decide(enum function f, int folder, const char *path)
{
    char name[2 * PATH_MAX] = "";
    int saved = errno;
    if (!shim.ready || (f == F_MALLOC && shim.leaving))
        return (fate){0};
    if (f != F_MALLOC) {
        name_of(folder, path, name);
        errno = saved;
        if (!is_below(name))
            return (fate){0};
    }
    unsigned long n = ++shim.counts[f], any = f == F_MALLOC ? 0 : ++shim.any;
    if (!shim.at || (shim.function != FUNCTIONS && shim.function != (int)f))
        return (fate){0};
    n = shim.function == FUNCTIONS ? any : n;
    if (shim.every ? n < shim.at : n != shim.at)
        return (fate){0};
    if (n == shim.at)
        strike(name);
    errno = shim.error ? shim.error : saved;
    return (fate){true, shim.error != 0, shim.half};
}

static void behind(fate fate)
{
    int saved = errno;
    if (fate.struck && shim.after)
        kill(getpid(), shim.after);
    errno = saved;
}

static size_t part(fate fate, size_t n)
{
    return fate.half && n > 1 ? n / 2 : n;
}

static uintptr_t next(const char *name)
{
    void *function = dlsym(RTLD_NEXT, name);
    if (!function)
        stop(name);
    return (uintptr_t)function;
}

/* The C library's own function of a name, as `real`. */
#define REAL(name) __typeof__(&name) real = (__typeof__(&name))next(#name)

/* ---- files ---- */

static int open_at(int folder, const char *path, int flags, unsigned mode)
{
    fate fate = decide(F_OPEN, folder, path);
    int fd = fate.fails ? -1 : (int)syscall(SYS_openat, folder, path, flags, mode);
    behind(fate);
    return fd;
}

#define OPEN(name, folder_parameter, folder) \
    EXPORT int name(folder_parameter const char *path, int flags, ...) \
    { \
        va_list args; \
        va_start(args, flags); \
        unsigned mode = \
            flags & (O_CREAT | (O_TMPFILE & ~O_DIRECTORY)) ? va_arg(args, unsigned) : 0; \
        va_end(args); \
        return open_at(folder, path, flags, mode); \
    }
#define AT_FOLDER int folder,
OPEN(open64, , AT_FDCWD)
OPEN(openat64, AT_FOLDER, folder)

EXPORT FILE *fopen64(const char *path, const char *mode)
{
    REAL(fopen64);
    fate fate = decide(F_FOPEN, AT_FDCWD, path);
    return fate.fails ? NULL : real(path, mode);
}

EXPORT DIR *opendir(const char *path)
{
    REAL(opendir);
    fate fate = decide(F_OPENDIR, AT_FDCWD, path);
    return fate.fails ? NULL : real(path);
}

EXPORT DIR *fdopendir(int fd)
{
    REAL(fdopendir);
    fate fate = decide(F_OPENDIR, fd, NULL);
    return fate.fails ? NULL : real(fd);
}

EXPORT struct dirent64 *readdir64(DIR *dir)
{
    REAL(readdir64);
    fate fate = decide(F_READDIR, dirfd(dir), NULL);
    return fate.fails ? NULL : real(dir);
}

EXPORT ssize_t read(int fd, void *to, size_t n)
{
    fate fate = decide(F_READ, fd, NULL);
    ssize_t done = fate.fails ? -1 : syscall(SYS_read, fd, to, part(fate, n));
    behind(fate);
    return done;
}

EXPORT ssize_t pread64(int fd, void *to, size_t n, off64_t at)
{
    fate fate = decide(F_PREAD, fd, NULL);
    ssize_t done = fate.fails ? -1 : syscall(SYS_pread64, fd, to, part(fate, n), at);
    behind(fate);
    return done;
}

EXPORT ssize_t write(int fd, const void *from, size_t n)
{
    fate fate = decide(F_WRITE, fd, NULL);
    ssize_t done = fate.fails ? -1 : syscall(SYS_write, fd, from, part(fate, n));
    behind(fate);
    return done;
}

EXPORT ssize_t pwrite64(int fd, const void *from, size_t n, off64_t at)
{
    fate fate = decide(F_PWRITE, fd, NULL);
    ssize_t done = fate.fails ? -1 : syscall(SYS_pwrite64, fd, from, part(fate, n), at);
    behind(fate);
    return done;
}

EXPORT ssize_t copy_file_range(int in, off64_t *from, int out, off64_t *to, size_t n,
                               unsigned flags)
{
    fate fate = decide(F_COPY_FILE_RANGE, out, NULL);
    ssize_t done =
        fate.fails ? -1 : syscall(SYS_copy_file_range, in, from, out, to, part(fate, n), flags);
    behind(fate);
    return done;
}

EXPORT void *mmap64(void *at, size_t n, int protection, int flags, int fd, off64_t offset)
{
    fate fate = decide(F_MMAP, fd, NULL);
    void *map =
        fate.fails ? MAP_FAILED : (void *)syscall(SYS_mmap, at, n, protection, flags, fd, offset);
    behind(fate);
    return map;
}

EXPORT int fallocate64(int fd, int mode, off64_t from, off64_t n)
{
    fate fate = decide(F_FALLOCATE, fd, NULL);
    int result = fate.fails ? -1 : (int)syscall(SYS_fallocate, fd, mode, from, n);
    behind(fate);
    return result;
}

EXPORT int ftruncate64(int fd, off64_t n)
{
    fate fate = decide(F_FTRUNCATE, fd, NULL);
    int result = fate.fails ? -1 : (int)syscall(SYS_ftruncate, fd, n);
    behind(fate);
    return result;
}

EXPORT int fsync(int fd)
{
    fate fate = decide(F_FSYNC, fd, NULL);
    int result = fate.fails ? -1 : (int)syscall(SYS_fsync, fd);
    behind(fate);
    return result;
}

EXPORT int close(int fd)
{
    fate fate = decide(F_CLOSE, fd, NULL);
    int saved = errno, result = (int)syscall(SYS_close, fd);
    if (fate.fails) {
        errno = saved;
        result = -1;
    }
    behind(fate);
    return result;
}

EXPORT int flock(int fd, int operation)
{
    fate fate = decide(F_FLOCK, fd, NULL);
    int result = fate.fails ? -1 : (int)syscall(SYS_flock, fd, operation);
    behind(fate);
    return result;
}

EXPORT int fchmod(int fd, mode_t mode)
{
    fate fate = decide(F_FCHMOD, fd, NULL);
    int result = fate.fails ? -1 : (int)syscall(SYS_fchmod, fd, mode);
    behind(fate);
    return result;
}

/* ---- names ---- */

EXPORT int renameat(int from, const char *old, int to, const char *new)
{
    fate fate = decide(F_RENAME, to, new);
    int result = fate.fails ? -1 : (int)syscall(SYS_renameat2, from, old, to, new, 0);
    behind(fate);
    return result;
}

EXPORT int linkat(int from, const char *old, int to, const char *new, int flags)
{
    fate fate = decide(F_LINK, to, new);
    int result = fate.fails ? -1 : (int)syscall(SYS_linkat, from, old, to, new, flags);
    behind(fate);
    return result;
}

EXPORT int unlinkat(int folder, const char *path, int flags)
{
    fate fate = decide(flags & AT_REMOVEDIR ? F_RMDIR : F_UNLINK, folder, path);
    int result = fate.fails ? -1 : (int)syscall(SYS_unlinkat, folder, path, flags);
    behind(fate);
    return result;
}

EXPORT int rmdir(const char *path)
{
    return unlinkat(AT_FDCWD, path, AT_REMOVEDIR);
}

EXPORT int mkdirat(int folder, const char *path, mode_t mode)
{
    fate fate = decide(F_MKDIR, folder, path);
    int result = fate.fails ? -1 : (int)syscall(SYS_mkdirat, folder, path, mode);
    behind(fate);
    return result;
}

EXPORT int mkdir(const char *path, mode_t mode)
{
    return mkdirat(AT_FDCWD, path, mode);
}

EXPORT int fstatat64(int folder, const char *restrict path, struct stat64 *restrict out, int flags)
{
    REAL(fstatat64);
    fate fate = decide(F_STAT, folder, path);
    return fate.fails ? -1 : real(folder, path, out, flags);
}

EXPORT int fstat64(int fd, struct stat64 *out)
{
    REAL(fstat64);
    fate fate = decide(F_STAT, fd, NULL);
    return fate.fails ? -1 : real(fd, out);
}

EXPORT int faccessat(int folder, const char *path, int mode, int flags)
{
    REAL(faccessat);
    fate fate = decide(F_STAT, folder, path);
    return fate.fails ? -1 : real(folder, path, mode, flags);
}

EXPORT int stat64(const char *restrict path, struct stat64 *restrict out)
{
    return fstatat64(AT_FDCWD, path, out, 0);
}

EXPORT int lstat64(const char *restrict path, struct stat64 *restrict out)
{
    return fstatat64(AT_FDCWD, path, out, AT_SYMLINK_NOFOLLOW);
}

EXPORT int statvfs64(const char *restrict path, struct statvfs64 *restrict out)
{
    REAL(statvfs64);
    fate fate = decide(F_STAT, AT_FDCWD, path);
    return fate.fails ? -1 : real(path, out);
}

EXPORT char *realpath(const char *restrict path, char *restrict out)
{
    REAL(realpath);
    fate fate = decide(F_REALPATH, AT_FDCWD, path);
    return fate.fails ? NULL : real(path, out);
}

/* ---- memory ---- */

/* glibc's own, which need no dlsym, that allocates itself. */
extern void *__libc_malloc(size_t size);
extern void *__libc_calloc(size_t count, size_t size);
extern void *__libc_realloc(void *block, size_t size);
extern void *__libc_memalign(size_t alignment, size_t size);

static bool fails_for(const void *caller)
{
    for (int i = 0; shim.ready && i < shim.skip_count; i++) {
        if ((uintptr_t)caller >= shim.skip[i][0] && (uintptr_t)caller < shim.skip[i][1])
            return false;
    }
    /* not before: what libraries register as they are loaded is called behind their destructors */
    if (shim.ready && !atomic_exchange(&shim.entered, true))
        atexit(leave);
    return decide(F_MALLOC, -1, NULL).fails;
}

EXPORT void *malloc(size_t size)
{
    return fails_for(__builtin_return_address(0)) ? NULL : __libc_malloc(size);
}

EXPORT void *calloc(size_t count, size_t size)
{
    return fails_for(__builtin_return_address(0)) ? NULL : __libc_calloc(count, size);
}

EXPORT void *realloc(void *block, size_t size)
{
    return fails_for(__builtin_return_address(0)) ? NULL : __libc_realloc(block, size);
}

EXPORT void *aligned_alloc(size_t alignment, size_t size)
{
    return fails_for(__builtin_return_address(0)) ? NULL : __libc_memalign(alignment, size);
}
