/* SPDX-License-Identifier: Apache-2.0 */
/* What is looked at of an exported checkpoint, beside its hashes. */
#ifndef QF_VERIFY_CHECKPOINT_H
#define QF_VERIFY_CHECKPOINT_H

#include "verify/manifest.h"
#include "verify/place.h"

/* Whether the place is a folder that holds one. */
qf_status qf_is_checkpoint(qf_place *place, bool *found, qf_error *err);
/* Index, headers and configuration; counts what there is. Input that is wrong is a finding. */
qf_status qf_check_checkpoint(const qf_place *place, qf_diagnostics *findings,
                              qf_verify_result *result, qf_error *err);
/* Names of the shards that lie in the folder, and of the index; they live as long as the place. */
qf_status qf_list_shards(qf_place *place, qf_manifest_files *files, qf_error *err);

#endif
