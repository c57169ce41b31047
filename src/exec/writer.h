/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One thread's way to the output files: what the blocks make is gathered per slot as long as it
 * is contiguous in a file, and written in large pieces. Three ways, chosen for a run:
 *
 *   PWRITE  a buffer that stays in the second-level cache, written into the page cache
 *   DIRECT  a large buffer, written past the page cache; the ragged ends of a piece, which share a
 *           file system block with their neighbours, go through the page cache, many at once,
 *           because such a write waits for all direct ones to the file and holds up the next
 *   MMAP    no buffer: a window of the output file itself
 */
#ifndef QF_EXEC_WRITER_H
#define QF_EXEC_WRITER_H

#include "base/mapguard.h"
#include "exec/job.h"
#include "exec/stage.h"

/* What a slot has gathered and not yet written: `length` bytes for `offset` of `file`. */
typedef struct qf_slot {
    unsigned char *buffer; /* page-aligned; MMAP: the mapping, NULL if there is none */
    size_t lead;           /* unused bytes at the start, which bring the rest to its alignment */
    size_t length;
    size_t mapped;   /* MMAP: bytes */
    qf_guard *guard; /* MMAP: of the window, if the disk cannot take what is in it */
    int file;
    uint64_t offset;
} qf_slot;

typedef struct qf_writer {
    const qf_stage *stage;
    qf_io io;    /* not AUTO */
    size_t room; /* bytes of a buffer or window */
    qf_slot slots[QF_SLOTS];
    /* DIRECT: short writes put off, each a header (writer.c) and its bytes. */
    unsigned char *later;
    size_t later_used;
} qf_writer;

/* Bytes that buffers or windows take in a thread for each slot, if nothing forces less. */
size_t qf_writer_room(qf_io io);
/* `room` is a multiple of QF_DIRECT_ALIGN and at least 2 * QF_ROOM. */
void qf_writer_init(qf_writer *writer, const qf_stage *stage, qf_io io, size_t room);
/* The writer as a sink; the sink borrows it. */
qf_sink qf_writer_sink(qf_writer *writer);
/* Puts bytes that lie in memory in their place, of any number. */
qf_status qf_writer_put(qf_writer *writer, qf_target target, int file, uint64_t offset,
                        const void *data, size_t n, qf_error *err);
/* Writes all that the slots have gathered, or puts short ends off. */
qf_status qf_writer_flush(qf_writer *writer, qf_error *err);
/* Writes what was put off. */
qf_status qf_writer_finish(qf_writer *writer, qf_error *err);
/* Releases the buffers; what was not flushed is lost. */
void qf_writer_release(qf_writer *writer);

#endif
