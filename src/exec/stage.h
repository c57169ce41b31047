/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Staging: output is written whole or not at all.
 *
 * Files are written in a hidden folder beside their destination,
 *
 *     <folder>/.<prefix>.quantfold-partial/
 *
 * which is locked for the length of the run, so that two exports to one prefix cannot mix. When all
 * are written and synced, a file `complete` is made there and synced, empty but for the name of a
 * file that is to go from the destination (a manifest of other output); from then on the run
 * counts as done, and the files are renamed into place in the order in which they were created. A
 * run that finds such a folder without a lock finishes the renames if `complete` is there and
 * deletes the folder if not: a killed run leaves either the old output or, after the next run has
 * started, the new one, and nothing else.
 *
 * Files that are replaced are kept in run/old/ until all are. If a rename fails, `complete` goes
 * and they are put back; if that fails too, or the run dies in between, the next one puts them
 * back.
 *
 * The run's own files (`complete`, replaced files, journals: journal.h) are in its subfolder `run`.
 * Shards of one output share the folder and its lock; `quantfold commit` takes it for itself, and
 * so does a shard that finds an earlier output half in place.
 */
#ifndef QF_EXEC_STAGE_H
#define QF_EXEC_STAGE_H

#include <limits.h>

#include "base/arena.h"

enum { QF_FILE_MODE = 0640 };

typedef struct qf_stage_file {
    char *name; /* in the destination folder */
    uint64_t size;
    int fd;        /* -1: opened for each write */
    bool direct;   /* direct I/O is worth it, and possible as far as is known */
    int direct_fd; /* the same file opened for that; -1: opened for each write */
    bool foreign;  /* written by another process */
    bool goes;     /* not written, but taken away */
    bool mappable; /* all of its space is allocated, so that a mapping can hardly fault */
} qf_stage_file;

typedef enum qf_stage_mode {
    QF_STAGE_FRESH,  /* alone, from nothing */
    QF_STAGE_RESUME, /* alone, with what an earlier run left */
    QF_STAGE_SHARD,  /* beside others, with what is there */
} qf_stage_mode;

typedef struct qf_stage {
    qf_stage_mode mode;
    bool resumed;   /* set by the caller: files of an earlier run are of this very output */
    bool recovered; /* an earlier run was complete, and its files have been put in place; `run` is
                     * still as it was if the mode is RESUME, and to be emptied */
    bool keep;      /* set by the caller: closing leaves what is there */
    char *folder;   /* destination */
    bool direct;    /* set by the caller: files are opened for direct I/O too */
    bool unsynced;  /* set by the caller: commit does not wait for the disk */
    char *partial;  /* path of the staging folder */
    int folder_fd, partial_fd, run_fd, old_fd;
    qf_stage_file *files;
    size_t count, cap;
    char **made; /* folders that were made for this run, outermost first */
    size_t made_count, made_cap;
} qf_stage;

/* What the staging folder of a prefix is called. */
void qf_stage_name(const char *prefix, char out[NAME_MAX + 1]);
/* Makes the destination folder (mode 0750) where it is missing, takes the lock, finishes what a
 * killed run left half in place, and removes what it left in staging if `mode` is FRESH.
 * QF_ERR_INPUT if another run holds the lock. */
qf_status qf_stage_open(const char *folder, const char *prefix, qf_stage_mode mode, qf_stage *out,
                        qf_error *err);
/* flock, but a file system without locks is no error: runs are not kept apart there. */
int qf_stage_lock(int fd, int operation);
/* Removes all that is staged. False with errno set if that fails. */
bool qf_stage_empty(qf_stage *stage);
/* Creates a file of `size` bytes, mode 0640, its space allocated where the file system can. `name`
 * may have subfolders. */
qf_status qf_stage_create(qf_stage *stage, const char *name, uint64_t size, size_t *index,
                          qf_error *err);
/* Takes up the next index for a file that another process writes. */
qf_status qf_stage_expect(qf_stage *stage, const char *name, uint64_t size, qf_error *err);
/* A file of the destination folder, at most one, that goes when the others are put in place, and
 * comes back if they are taken back. It takes up an index too. */
qf_status qf_stage_remove(qf_stage *stage, const char *name, qf_error *err);
/* Writes all `n` bytes. May be called by several threads. */
qf_status qf_stage_write(const qf_stage *stage, size_t index, uint64_t offset, const void *data,
                         size_t n, qf_error *err);
/* The same past the page cache: `data`, `offset` and `n` are multiples of QF_DIRECT_ALIGN and the
 * file is `direct`. False if the file system refuses; the caller then writes as usual. */
enum { QF_DIRECT_ALIGN = 4096 };
bool qf_stage_write_direct(const qf_stage *stage, size_t index, uint64_t offset, const void *data,
                           size_t n, qf_status *status, qf_error *err);
/* The error of a write that has failed with errno `e`. */
qf_status qf_stage_fail_write(const qf_stage *stage, size_t index, int e, qf_error *err);
/* Maps `n` bytes from `offset`, a multiple of the page size, for writing; munmap when done. NULL if
 * the file cannot be mapped. */
void *qf_stage_map(const qf_stage *stage, size_t index, uint64_t offset, size_t n);
/* The size that a staged file has; false, with errno ENOENT if it is not there. */
bool qf_stage_size(const qf_stage *stage, size_t index, uint64_t *size);
/* Reads `n` bytes of what is staged. False if they are not there. */
bool qf_stage_read(const qf_stage *stage, size_t index, uint64_t offset, void *out, size_t n);
/* Copies `n` bytes at `from` of the open file `source` inside the kernel. False if the file systems
 * cannot; nothing or a part has then been written. */
bool qf_stage_copy(const qf_stage *stage, size_t index, uint64_t offset, int source, uint64_t from,
                   uint64_t n);
/* Closes every file, synced unless the caller does without. */
qf_status qf_stage_finish(qf_stage *stage, qf_error *err);
/* Finishes and renames everything. On failure before the point of no return nothing has changed. */
qf_status qf_stage_commit(qf_stage *stage, qf_error *err);
/* Releases the stage; without a commit, removes all that it made unless that is to be kept. */
void qf_stage_close(qf_stage *stage);

/* "a/b", malloc'ed; NULL when memory is exhausted. */
char *qf_stage_path(const char *a, const char *b);
/* Whether a name, which may have subfolders, stays inside its folder: no part of it is empty, "."
 * or
 * "..", and in staging it is one file's. */
bool qf_name_is_safe(const char *name);
/* What an output's file is called in the staging folder. */
void qf_staged_name(const char *name, char out[NAME_MAX + 1]);

/* Splits a save path as the reference does: "" -> (cwd, ""), "a/b" -> ("a", "b"), "a/" -> ("a",
 * ""),
 * "." and ".." name the folder itself by its real path. *folder and *prefix are malloc'ed. */
qf_status qf_save_path_split(const char *save_path, char **folder, char **prefix, qf_error *err);
/* The save path of a file that an export wrote, by its name: a model, a manifest; NULL if it is
 * none, or when memory is exhausted. */
char *qf_save_path_of(qf_arena *arena, const char *file);
/* Bytes before the ending of the name of an output's model; 0 if it is none's, or has nothing
 * before. */
size_t qf_model_stem(const char *name);
/* Writes one file at `path`, staged as any output is: whole or not at all. `what` names it in
 * messages. */
qf_status qf_save_text(const char *path, const char *what, const char *text, size_t length,
                       qf_error *err);
/* Bytes that can still be written to the file system of `folder` or of its nearest existing parent;
 * UINT64_MAX if that is not known. */
uint64_t qf_free_space(const char *folder);

#endif
