/* SPDX-License-Identifier: Apache-2.0 */
/* The manifest: docs/manifest.md. Made in two steps, so that shards can be brought together by a
 * process that has not planned: a template, which knows places, and results, which know hashes. */
#ifndef QF_EXEC_MANIFEST_H
#define QF_EXEC_MANIFEST_H

#include "exec/journal.h"
#include "exec/output.h"

/* The manifest without what only writing tells; to be freed by cJSON_Delete. */
qf_status qf_manifest_template(const qf_output *output, const qf_part *pieces, size_t count,
                               cJSON **out, qf_error *err);
/* Fills a template with the results of its pieces, whose `stats` index `stats`. QF_ERR_INPUT if it
 * is not one. */
qf_status qf_manifest_fill(cJSON *manifest, const qf_result *results, size_t count,
                           const qf_stats *stats, qf_error *err);

/* Refuses, with QF_ERR_INPUT, to put a manifest in the place of one whose models are there and are
 * none of those that this run writes: they would be without theirs. */
qf_status qf_manifest_check(const char *folder, const char *name, const qf_layout *layout,
                            qf_error *err);
/* Adds the filled manifest to the files to be put in place. */
qf_status qf_manifest_stage(qf_stage *stage, const char *name, cJSON *manifest,
                            const qf_result *results, size_t count, const qf_stats_table *stats,
                            qf_error *err);
/* A manifest that an earlier run has left describes other output: it goes with the commit. A file
 * of that name that is none stays. */
qf_status qf_manifest_drop(qf_stage *stage, const char *name, qf_error *err);

#endif
