/* SPDX-License-Identifier: Apache-2.0 */
/* Files against the manifest that an export wrote beside them (docs/manifest.md). */
#ifndef QF_VERIFY_MANIFEST_H
#define QF_VERIFY_MANIFEST_H

#include "base/diag.h"
#include "base/strmap.h"

/* What is there, which the manifest should name. */
typedef struct qf_manifest_files {
    const char **names; /* in the folder */
    size_t count, cap;
    qf_strmap seen;
} qf_manifest_files;
/* Adds a name that is not in the list yet; the text is the caller's. False: out of memory. */
bool qf_manifest_files_add(qf_manifest_files *files, const char *name);
void qf_manifest_files_release(qf_manifest_files *files);

/* Hashes of the record and the configuration of the export, hexadecimal; "": it names none. */
typedef struct qf_manifest_inputs {
    char record[33], config[33];
} qf_manifest_inputs;

/* Reads <folder>/<name>, hashes every part of every file that it names, and looks for those of
 * `present` that it does not. *found is false, and nothing else is done, if there is no manifest.
 * *bytes: what was hashed. It may be a hostile file: nothing outside the folder is opened. */
qf_status qf_check_manifest(const char *folder, const char *name, const qf_manifest_files *present,
                            qf_diagnostics *findings, bool *found, uint64_t *bytes,
                            qf_manifest_inputs *inputs, qf_error *err);

#endif
