/* SPDX-License-Identifier: Apache-2.0 */
#include "exec/writer.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum {
    PAGE = QF_DIRECT_ALIGN,
    PWRITE_ROOM = 1024 * 1024,
    DIRECT_ROOM = 8 * 1024 * 1024 - PAGE, /* with PAGE more, a whole number of huge pages */
    MMAP_ROOM = 4 * 1024 * 1024,
    DIRECT_LEAST = 256 * 1024, /* bytes: shorter pieces go through the page cache */
    LATER_MOST = 64 * 1024,    /* bytes: longer ones are not put off */
    LATER_ROOM = 2 * 1024 * 1024,
    KEEP_APART = 16 * 1024, /* bytes: a piece that long is worth a write of its own to be aligned */
};

size_t qf_writer_room(qf_io io)
{
    return io == QF_IO_DIRECT ? DIRECT_ROOM : io == QF_IO_MMAP ? MMAP_ROOM : PWRITE_ROOM;
}

void qf_writer_init(qf_writer *writer, const qf_stage *stage, qf_io io, size_t room)
{
    *writer = (qf_writer){.stage = stage, .io = io, .room = room};
}

/* ---- writing what is gathered ---- */

/* What stands before the bytes of a write that was put off. */
typedef struct later {
    uint64_t offset;
    size_t length;
    int file;
} later;

qf_status qf_writer_finish(qf_writer *w, qf_error *err)
{
    qf_status status = QF_OK;
    for (size_t at = 0; status == QF_OK && at < w->later_used;) {
        later l;
        memcpy(&l, w->later + at, sizeof l);
        at += sizeof l;
        status = qf_stage_write(w->stage, (size_t)l.file, l.offset, w->later + at, l.length, err);
        at += l.length;
    }
    w->later_used = 0;
    return status;
}

static qf_status put_off(qf_writer *w, int file, uint64_t offset, const void *data, size_t n,
                         qf_error *err)
{
    const later l = {offset, n, file};
    if (!w->later)
        w->later = malloc(LATER_ROOM);
    if (!w->later)
        return qf_fail_memory(err);
    qf_status status = QF_OK;
    if (LATER_ROOM - w->later_used < sizeof l + n)
        status = qf_writer_finish(w, err);
    memcpy(w->later + w->later_used, &l, sizeof l);
    memcpy(w->later + w->later_used + sizeof l, data, n);
    w->later_used += sizeof l + n;
    return status;
}

static qf_status write_buffered(qf_writer *w, const qf_slot *s, size_t from, size_t to,
                                qf_error *err)
{
    if (from == to)
        return QF_OK; /* the buffer may be none */
    const unsigned char *data = s->buffer + s->lead + from;
    if (w->io == QF_IO_DIRECT && to - from <= LATER_MOST)
        return put_off(w, s->file, s->offset + from, data, to - from, err);
    return qf_stage_write(w->stage, (size_t)s->file, s->offset + from, data, to - from, err);
}

/* Writes all whole blocks of a slot directly; its ends are written too unless `more` follows, in
 * which case what is left of a block at the end stays for later. Returns how much was written. */
static size_t write_direct(qf_writer *w, const qf_slot *s, bool more, qf_status *status,
                           qf_error *err)
{
    size_t head = (size_t)((PAGE - s->offset % PAGE) % PAGE);
    size_t tail = (size_t)((s->offset + s->length) % PAGE);
    *status = QF_OK;
    if (w->stage->files[s->file].direct && s->length >= head + tail + DIRECT_LEAST) {
        size_t end = s->length - tail;
        bool done = qf_stage_write_direct(w->stage, (size_t)s->file, s->offset + head,
                                          s->buffer + s->lead + head, end - head, status, err);
        if (done && *status == QF_OK)
            *status = write_buffered(w, s, 0, head, err);
        if (done && *status == QF_OK && !more)
            *status = write_buffered(w, s, end, s->length, err);
        if (done)
            return more ? end : s->length;
    }
    *status = write_buffered(w, s, 0, s->length, err);
    return s->length;
}

static qf_status close_window(qf_writer *w, qf_slot *s, qf_error *err)
{
    bool lost = qf_guard_struck(s->guard);
    qf_guard_remove(s->guard);
    munmap(s->buffer, s->mapped);
    s->buffer = NULL;
    s->guard = NULL;
    s->mapped = 0;
    return lost ? qf_stage_fail_write(w->stage, (size_t)s->file, EIO, err) : QF_OK;
}

/* Empties a slot. With `more`, bytes that continue it follow, and some may stay in it. */
static qf_status flush(qf_writer *w, qf_slot *s, bool more, qf_error *err)
{
    qf_status status = QF_OK;
    size_t done = s->length;
    if (w->io == QF_IO_MMAP && s->mapped) {
        status = close_window(w, s, err);
    } else if (s->length && w->io == QF_IO_DIRECT) {
        done = write_direct(w, s, more, &status, err);
    } else {
        status = write_buffered(w, s, 0, s->length, err);
    }
    if (done < s->length) /* NOLINTNEXTLINE(clang-analyzer-core.NonNullParamChecker): a buffer is */
        memmove(s->buffer, s->buffer + s->lead + done, s->length - done);
    s->lead = 0;
    s->offset += done;
    s->length -= done;
    return status;
}

/* ---- giving room ---- */

/* A window of the file itself for `n` bytes at `offset` and what follows them. False if the file
 * cannot be mapped. */
static bool open_window(qf_writer *w, qf_slot *s, int file, uint64_t offset)
{
    uint64_t from = offset - offset % (uint64_t)sysconf(_SC_PAGESIZE);
    uint64_t size = w->stage->files[file].size;
    size_t length = (size_t)(size - from < w->room ? size - from : w->room);
    void *map = qf_stage_map(w->stage, (size_t)file, from, length);
    qf_guard *guard = map ? qf_guard_add(map, length, true) : NULL;
    if (map && !guard)
        munmap(map, length);
    if (!guard)
        return false;
    free(s->buffer);
    *s = (qf_slot){.buffer = map,
                   .mapped = length,
                   .guard = guard,
                   .lead = (size_t)(offset - from),
                   .file = file,
                   .offset = offset};
    return true;
}

/* In huge pages where it is large, which take less time to be touched and to be pinned. */
static unsigned char *new_buffer(size_t size)
{
    enum { HUGE = 2 * 1024 * 1024 };
    size_t unit = size >= HUGE ? HUGE : PAGE;
    unsigned char *buffer = aligned_alloc(unit, (size + unit - 1) / unit * unit);
    if (buffer && size >= HUGE)
        madvise(buffer, size, MADV_HUGEPAGE);
    return buffer;
}

/* Scales are few beside the weights. */
static size_t room_of(const qf_writer *w, const qf_slot *s)
{
    return s - w->slots < QF_TARGETS ? w->room : 2 * QF_ROOM;
}

/* Starts a slot anew at `offset`. In memory, floats are best aligned; on the way to the disk, file
 * system blocks. */
static bool open_slot(qf_writer *w, qf_slot *s, int file, uint64_t offset)
{
    if (w->io == QF_IO_MMAP && open_window(w, s, file, offset))
        return true;
    if (!s->buffer)
        s->buffer = new_buffer(room_of(w, s) + PAGE);
    if (!s->buffer)
        return false;
    s->lead = w->io == QF_IO_DIRECT ? (size_t)(offset % PAGE) : 0;
    s->length = 0;
    s->file = file;
    s->offset = offset;
    return true;
}

static size_t slot_end(const qf_writer *w, const qf_slot *s)
{
    return s->mapped ? s->mapped : room_of(w, s) + (w->io == QF_IO_DIRECT ? PAGE : 0);
}

static qf_status give_room(void *user, int slot, int file, uint64_t offset, size_t n,
                           unsigned char **at, qf_error *err)
{
    qf_writer *w = user;
    qf_slot *s = &w->slots[slot];
    bool follows = s->length && s->file == file && s->offset + s->length == offset;
    bool fits = s->lead + s->length + n <= slot_end(w, s);
    bool crooked = w->io == QF_IO_PWRITE && n >= KEEP_APART && s->length % sizeof(float);
    qf_status status = QF_OK;
    if (!follows || !fits || crooked) {
        status = flush(w, s, follows && w->io == QF_IO_DIRECT, err);
        if (status == QF_OK && !s->length && !open_slot(w, s, file, offset))
            status = qf_fail_memory(err);
    }
    *at = s->buffer + s->lead + s->length;
    s->length += n;
    return status;
}

qf_sink qf_writer_sink(qf_writer *writer)
{
    return (qf_sink){give_room, writer};
}

qf_status qf_writer_put(qf_writer *writer, qf_target target, int file, uint64_t offset,
                        const void *data, size_t n, qf_error *err)
{
    qf_status status = QF_OK;
    for (size_t done = 0; status == QF_OK && done < n;) {
        size_t m = n - done < QF_ROOM ? n - done : QF_ROOM;
        unsigned char *at;
        status = give_room(writer, (int)target, file, offset + done, m, &at, err);
        if (status == QF_OK) /* NOLINTNEXTLINE(clang-analyzer-core.NonNullParamChecker): given */
            memcpy(at, (const char *)data + done, m);
        done += m;
    }
    return status;
}

qf_status qf_writer_flush(qf_writer *writer, qf_error *err)
{
    qf_status status = QF_OK;
    for (int t = 0; status == QF_OK && t < QF_SLOTS; t++)
        status = flush(writer, &writer->slots[t], false, err);
    return status;
}

void qf_writer_release(qf_writer *writer)
{
    for (int t = 0; t < QF_SLOTS; t++) {
        qf_slot *s = &writer->slots[t];
        qf_guard_remove(s->guard);
        if (s->mapped)
            munmap(s->buffer, s->mapped);
        else
            free(s->buffer);
    }
    free(writer->later);
}
