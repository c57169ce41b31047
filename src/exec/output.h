/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From work to files in place: what every front door ends in. A door (export.c,
 * checkpoint/export.c) hands over files, the pieces that they are made of, and how it is to be
 * done; here they are staged, written, hashed, taken up again after a kill, shared among processes,
 * and put in place.
 */
#ifndef QF_EXEC_OUTPUT_H
#define QF_EXEC_OUTPUT_H

#include <cjson/cJSON.h>

#include "exec/job.h"
#include "exec/run.h"
#include "onnx/layout.h"

/* How, as the public options of every door have it. */
typedef struct qf_run_options {
    int threads;
    qf_io io;
    uint64_t memory_limit;
    bool no_sync, manifest, resume;
    bool stats; /* in the manifest, which is then written too */
    uint32_t shard, shard_count;
    qf_progress_fn progress;
    void *progress_user;
} qf_run_options;

/* What. Borrowed for the length of the call. */
typedef struct qf_output {
    const char *folder, *prefix;
    const qf_layout *layout; /* files in the order in which they are put in place */
    qf_job *const *jobs;     /* those without a place are passed over */
    size_t job_count;
    const qf_file *sources;
    size_t source_count;
    const char *manifest_name; /* file name of the manifest */
    /* Members of the manifest that only the door knows; NULL: none. */
    const cJSON *about;
} qf_output;

/* Writes, or writes one shard. *out may be NULL. */
qf_status qf_output_run(const qf_output *output, const qf_run_options *options, qf_report **out,
                        qf_error *err);

#endif
