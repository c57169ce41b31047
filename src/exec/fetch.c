/* SPDX-License-Identifier: Apache-2.0 */
/* The source of a run on its way in: mapped, read past the page cache or moved inside the kernel;
 * and let go of behind. What its bytes mean is source.c's. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/retry.h"
#include "exec/running.h"

/* bytes: shorter copies are not worth a system call of theirs */
enum { KERNEL_COPY = 1024 * 1024 };

void qf_span_advise(const qf_running *r, const qf_span *span, qf_range range, int advice)
{
    const unsigned char *from = span->data + range.offset;
    qf_file_advise(&r->work->sources[span->file], from, from + range.length, advice);
}

bool qf_span_is_cached(const qf_span *span, qf_range range)
{
    enum { SAMPLES = 8 };
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    int found = 0;
    for (uint64_t i = 0; i < SAMPLES; i++) {
        unsigned char in_core = 1;
        uintptr_t at = (uintptr_t)span->data + range.offset + range.length / SAMPLES * i;
        found += mincore((void *)(at & ~(page - 1)), 1, &in_core) != 0 || (in_core & 1);
    }
    return found * 2 > SAMPLES;
}

int qf_span_open(const qf_work *w, const qf_span *span, int flags)
{
    const qf_file *f = &w->sources[span->file];
    struct stat st;
    int fd = qf_open_at(AT_FDCWD, f->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY | flags, 0);
    if (fd >= 0 && (fstat(fd, &st) != 0 || st.st_dev != f->device || st.st_ino != f->inode)) {
        close(fd);
        fd = -1;
    }
    return fd;
}

const unsigned char *qf_span_fetch(qf_worker *k, int fd, const qf_span *span, qf_range range)
{
    uint64_t from = span->offset + range.offset, start = from - from % QF_DIRECT_ALIGN;
    size_t need = (size_t)(from + range.length - start);
    size_t room = (need + QF_DIRECT_ALIGN - 1) / QF_DIRECT_ALIGN * QF_DIRECT_ALIGN, got = 0;
    if (room > k->input_room) {
        free(k->input);
        k->input = aligned_alloc(QF_DIRECT_ALIGN, room);
        k->input_room = k->input ? room : 0;
    }
    while (k->input && got < need) {
        ssize_t n = pread(fd, k->input + got, room - got, (off_t)(start + got));
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return NULL;
        got += (size_t)n;
    }
    return k->input ? k->input + (from - start) : NULL;
}

bool qf_copy_in_kernel(qf_worker *k, const qf_copy *copy, const qf_item *it)
{
    qf_range range = qf_copy_reads(copy, it->first, it->count);
    bool moved = k->writer.io == QF_IO_PWRITE && !copy->decode && range.length >= KERNEL_COPY;
    int fd = moved ? qf_span_open(k->run->work, &copy->source, 0) : -1;
    moved = moved && fd >= 0;
    for (int t = 0; moved && t < QF_TARGETS; t++) {
        const qf_job_output *out = &copy->out[t];
        if (out->placed)
            moved = qf_stage_copy(k->run->stage, (size_t)out->file, out->offset + range.offset, fd,
                                  copy->source.offset + range.offset, range.length);
    }
    if (fd >= 0)
        close(fd);
    return moved;
}

void qf_batch_forget(const qf_running *r, const qf_item *it)
{
    const unsigned char *from = NULL, *to = NULL;
    uint64_t sum = 0;
    const qf_span *any = NULL;
    for (uint32_t i = 0; i < it->pieces; i++) {
        qf_part p = r->pieces[it->piece + i];
        if (p.kind == QF_PART_LITERAL)
            continue;
        const qf_span *span = qf_piece_span(r, p);
        if (any && span->file != any->file)
            return;
        any = span;
        from = !from || span->data < from ? span->data : from;
        to = span->data + span->length > to ? span->data + span->length : to;
        sum += span->length;
    }
    enum { GAPS = 4 };
    if (from && (uint64_t)(to - from) <= GAPS * sum + r->scale.step)
        qf_file_advise(&r->work->sources[any->file], from, to, MADV_DONTNEED);
}

void qf_piece_forget_varints(const qf_running *r, qf_part p, qf_range range)
{
    const qf_span *span = qf_piece_span(r, p);
    int32_t type =
        p.kind == QF_PART_JOB ? qf_piece_job(r, p)->data_type : qf_piece_copy(r, p)->data_type;
    qf_range bytes =
        qf_varint_index_bytes(qf_piece_index(r, p), span, qf_varint_width(type), range);
    qf_span_advise(r, span, bytes, MADV_DONTNEED);
}

qf_status qf_sources_check(const qf_running *r, qf_error *err)
{
    if (qf_guard_faults() == r->faults)
        return QF_OK;
    return qf_files_check_faults(r->work->sources, r->work->source_count, err);
}
