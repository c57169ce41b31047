// SPDX-License-Identifier: Apache-2.0
/* The yardstick of the export benchmark: a plain copier on several threads.
 *
 *   copier --read IN [--read IN2]... --write OUT=BYTES [--write OUT2=BYTES]... [OPTIONS]
 *
 *   --threads N          default: one a core
 *   --io HOW             pwrite (default), mmap, direct
 *   --input HOW          mmap (default), pread
 *   --order HOW          split (default): each thread takes one contiguous share of the output
 *                        bytes; sweep: the threads go through the files side by side
 *   --block BYTES        of output at a time (default 1 MiB; direct: 8 MiB)
 *   --no-fallocate       do not allocate the outputs' space first
 *   --fsync              outputs reach the disk before the program ends
 *
 * It reads every byte of its sources and writes as many bytes as asked for, taken from the sources
 * without arithmetic. Byte s of all W output bytes comes from about s * N / W of the N source
 * bytes, so that the sources are swept once: with W > N neighbouring blocks overlap (what is read
 * twice is in the cache), with W < N what lies between them is summed up.
 */
#include <errno.h>
#include <fcntl.h>
#include <omp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define CHECK(truth, what) \
    do { \
        if (!(truth)) \
            die(what); \
    } while (0)

enum { PAGE = 4096, MAX_FILES = 8192, MIB = 1 << 20 };
enum io { IO_PWRITE, IO_MMAP, IO_DIRECT };

struct source {
    const char *path;
    int fd;
    size_t size, start; // start: of this file in all source bytes
    unsigned char *map;
};

struct output {
    const char *path;
    int fd, direct_fd;
    size_t size, start; // start: of this file in all output bytes
    unsigned char *map;
};

struct copier {
    struct source *sources;
    struct output *outputs;
    size_t source_count, output_count;
    size_t in_bytes, out_bytes;
    size_t block;
    int threads;
    enum io io;
    bool pread_input, sweep, fallocate, fsync;
};

struct block {
    const struct output *output;
    size_t offset, size;
};

static void die(const char *what)
{
    fprintf(stderr, "copier: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void usage(void)
{
    fputs(
        "usage: copier --read IN... --write OUT=BYTES... [--threads N] [--io pwrite|mmap|direct]\n"
        "              [--input mmap|pread] [--order split|sweep] [--block BYTES]\n"
        "              [--no-fallocate] [--fsync]\n",
        stderr);
    exit(2);
}

// ---- opening and closing -----------------------------------------------------------------------

static void open_source(struct copier *c, struct source *s)
{
    struct stat st;
    s->fd = open(s->path, O_RDONLY | O_CLOEXEC);
    CHECK(s->fd >= 0 && fstat(s->fd, &st) == 0, s->path);
    s->size = (size_t)st.st_size;
    s->start = c->in_bytes;
    c->in_bytes += s->size;
    if (!s->size || c->pread_input)
        return;
    s->map = mmap(NULL, s->size, PROT_READ, MAP_SHARED, s->fd, 0);
    CHECK(s->map != MAP_FAILED, s->path);
    madvise(s->map, s->size, MADV_SEQUENTIAL);
}

static void open_output(const struct copier *c, struct output *o)
{
    o->fd = open(o->path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    CHECK(o->fd >= 0, o->path);
    if (!o->size)
        return;
    if (!c->fallocate || fallocate(o->fd, 0, 0, (off_t)o->size))
        CHECK(ftruncate(o->fd, (off_t)o->size) == 0, o->path);
    if (c->io == IO_DIRECT) {
        o->direct_fd = open(o->path, O_WRONLY | O_DIRECT | O_CLOEXEC);
        CHECK(o->direct_fd >= 0, o->path);
    }
    if (c->io == IO_MMAP) {
        o->map = mmap(NULL, o->size, PROT_READ | PROT_WRITE, MAP_SHARED, o->fd, 0);
        CHECK(o->map != MAP_FAILED, o->path);
    }
}

static void close_output(const struct copier *c, struct output *o)
{
    if (o->map)
        munmap(o->map, o->size);
    if (c->fsync)
        CHECK(fsync(o->fd) == 0, o->path);
    close(o->fd);
    if (o->direct_fd > 0)
        close(o->direct_fd);
}

// ---- one block ---------------------------------------------------------------------------------

static uint64_t sum_bytes(const unsigned char *p, size_t n)
{
    uint64_t sum[8] = {0}, word[8];
    size_t i = 0;
    for (; i + sizeof word <= n; i += sizeof word) {
        memcpy(word, p + i, sizeof word);
        for (int k = 0; k < 8; k++)
            sum[k] += word[k];
    }
    for (; i < n; i++)
        sum[0] += p[i];
    return sum[0] + sum[1] + sum[2] + sum[3] + sum[4] + sum[5] + sum[6] + sum[7];
}

static void write_all(int fd, const unsigned char *p, size_t n, size_t at, const char *path)
{
    while (n) {
        ssize_t w = pwrite(fd, p, n, (off_t)at);
        CHECK(w > 0, path);
        p += w;
        at += (size_t)w;
        n -= (size_t)w;
    }
}

/* Direct writes take whole pages from page-aligned memory; the rest goes through the cache. */
static void put_direct(const struct output *o, const unsigned char *p, size_t n, size_t at)
{
    bool aligned = (uintptr_t)p % PAGE == 0 && at % PAGE == 0;
    size_t direct = aligned ? n / PAGE * PAGE : 0;
    write_all(o->direct_fd, p, direct, at, o->path);
    write_all(o->fd, p + direct, n - direct, at + direct, o->path);
}

static void put(const struct copier *c, const struct output *o, const unsigned char *p, size_t n,
                size_t at)
{
    if (c->io == IO_MMAP)
        memcpy(o->map + at, p, n);
    else if (c->io == IO_DIRECT)
        put_direct(o, p, n, at);
    else
        write_all(o->fd, p, n, at, o->path);
}

/* Where in the source bytes the output bytes from `at` on come from. */
static size_t source_of(const struct copier *c, size_t at)
{
    if (at >= c->out_bytes)
        return c->in_bytes;
    double share = (double)c->in_bytes / (double)c->out_bytes;
    size_t from = (size_t)((double)at * share) / PAGE * PAGE;
    return from < c->in_bytes ? from : c->in_bytes;
}

static const struct source *source_at(const struct copier *c, size_t at)
{
    const struct source *s = c->sources;
    while (at >= s->start + s->size)
        s++;
    return s;
}

/* Source bytes from `at` on, in place or in the buffer; *n is lowered to what lies in one file. */
static const unsigned char *take(const struct copier *c, unsigned char *buffer, size_t at,
                                 size_t *n)
{
    const struct source *s = source_at(c, at);
    size_t offset = at - s->start;
    if (*n > s->size - offset)
        *n = s->size - offset;
    if (s->map)
        return s->map + offset;
    if (*n > c->block)
        *n = c->block;
    ssize_t got = pread(s->fd, buffer, *n, (off_t)offset);
    CHECK(got > 0, s->path);
    *n = (size_t)got;
    return buffer;
}

static uint64_t sum_source(const struct copier *c, unsigned char *buffer, size_t from, size_t to)
{
    uint64_t sum = 0;
    while (from < to) {
        size_t n = to - from;
        const unsigned char *p = take(c, buffer, from, &n);
        sum += sum_bytes(p, n);
        from += n;
    }
    return sum;
}

static uint64_t copy_block(const struct copier *c, const struct block *b, unsigned char *buffer)
{
    size_t from = source_of(c, b->output->start + b->offset);
    size_t next = source_of(c, b->output->start + b->offset + b->size);
    size_t done = 0;
    while (done < b->size) {
        if (from >= c->in_bytes)
            from = 0;
        size_t n = b->size - done;
        const unsigned char *p = take(c, buffer, from, &n);
        put(c, b->output, p, n, b->offset + done);
        done += n;
        from += n;
    }
    return sum_source(c, buffer, from, next);
}

// ---- all blocks --------------------------------------------------------------------------------

static struct block *all_blocks(const struct copier *c, size_t *count)
{
    size_t most = c->out_bytes / c->block + c->output_count, n = 0;
    struct block *blocks = malloc(most * sizeof *blocks);
    CHECK(blocks, "memory");
    for (const struct output *o = c->outputs; o < c->outputs + c->output_count; o++)
        for (size_t at = 0; at < o->size; at += c->block) {
            size_t size = o->size - at < c->block ? o->size - at : c->block;
            blocks[n++] = (struct block){o, at, size};
        }
    *count = n;
    return blocks;
}

static int by_place(const void *a, const void *b)
{
    const struct block *x = a, *y = b;
    double p = (double)x->offset / (double)x->output->size;
    double q = (double)y->offset / (double)y->output->size;
    return (p > q) - (p < q);
}

static uint64_t copy_blocks(const struct copier *c)
{
    size_t count;
    struct block *blocks = all_blocks(c, &count);
    if (c->sweep)
        qsort(blocks, count, sizeof *blocks, by_place);
    omp_set_schedule(c->sweep ? omp_sched_dynamic : omp_sched_static, c->sweep ? 1 : 0);
    uint64_t sum = 0;
#pragma omp parallel num_threads(c->threads) reduction(+ : sum)
    {
        unsigned char *buffer = NULL;
        if (c->pread_input)
            CHECK((buffer = aligned_alloc(PAGE, c->block)) != NULL, "memory");
#pragma omp for schedule(runtime)
        for (size_t i = 0; i < count; i++)
            sum += copy_block(c, &blocks[i], buffer);
        free(buffer);
    }
    free(blocks);
    return sum;
}

static uint64_t run(struct copier *c)
{
    for (size_t i = 0; i < c->source_count; i++)
        open_source(c, &c->sources[i]);
    CHECK(c->in_bytes, "empty source");
    for (size_t i = 0; i < c->output_count; i++)
        open_output(c, &c->outputs[i]);
    uint64_t sum = c->out_bytes ? copy_blocks(c) : sum_source(c, NULL, 0, c->in_bytes);
    int parallel = c->fsync ? 2 * c->threads : c->threads;
#pragma omp parallel for schedule(dynamic, 1) num_threads(parallel)
    for (size_t i = 0; i < c->output_count; i++)
        close_output(c, &c->outputs[i]);
    return sum;
}

// ---- command line ------------------------------------------------------------------------------

static int one_of(const char *text, const char *const *names)
{
    for (int i = 0; names[i]; i++)
        if (!strcmp(text, names[i]))
            return i;
    usage();
    return 0;
}

static size_t number(const char *text)
{
    char *end;
    unsigned long long n = strtoull(text, &end, 10);
    if (end == text || *end)
        usage();
    return (size_t)n;
}

static void add_output(struct copier *c, char *text)
{
    char *equals = strrchr(text, '=');
    if (!equals || c->output_count == MAX_FILES)
        usage();
    *equals = '\0';
    size_t size = number(equals + 1);
    c->outputs[c->output_count++] =
        (struct output){.path = text, .size = size, .start = c->out_bytes};
    c->out_bytes += size;
}

static void add_source(struct copier *c, const char *path)
{
    if (c->source_count == MAX_FILES)
        usage();
    c->sources[c->source_count++].path = path;
}

/* Takes an option without a value; false if it is none. */
static bool flag(struct copier *c, const char *name)
{
    if (!strcmp(name, "--fsync"))
        c->fsync = true;
    else if (!strcmp(name, "--no-fallocate"))
        c->fallocate = false;
    else
        return false;
    return true;
}

static void option(struct copier *c, const char *name, char *value)
{
    static const char *const io[] = {"pwrite", "mmap", "direct", NULL};
    static const char *const input[] = {"mmap", "pread", NULL};
    static const char *const order[] = {"split", "sweep", NULL};
    if (!strcmp(name, "--read"))
        add_source(c, value);
    else if (!strcmp(name, "--write"))
        add_output(c, value);
    else if (!strcmp(name, "--threads"))
        c->threads = (int)number(value);
    else if (!strcmp(name, "--io"))
        c->io = (enum io)one_of(value, io);
    else if (!strcmp(name, "--input"))
        c->pread_input = one_of(value, input) == 1;
    else if (!strcmp(name, "--order"))
        c->sweep = one_of(value, order) == 1;
    else if (!strcmp(name, "--block"))
        c->block = number(value);
    else
        usage();
}

int main(int argc, char **argv)
{
    struct copier c = {.threads = omp_get_num_procs(), .fallocate = true};
    c.sources = calloc(MAX_FILES, sizeof *c.sources);
    c.outputs = calloc(MAX_FILES, sizeof *c.outputs);
    CHECK(c.sources && c.outputs, "memory");
    for (int i = 1; i < argc; i++) {
        if (flag(&c, argv[i]))
            continue;
        if (i + 1 == argc)
            usage();
        option(&c, argv[i], argv[i + 1]);
        i++;
    }
    if (!c.block)
        c.block = c.io == IO_DIRECT ? 8 * (size_t)MIB : MIB;
    if (!c.source_count || c.threads < 1 || c.block % PAGE)
        usage();
    printf("sum %016llx\n", (unsigned long long)run(&c)); // keeps the reads from being dropped
    free(c.sources);
    free(c.outputs);
    return 0;
}
