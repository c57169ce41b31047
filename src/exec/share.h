/* SPDX-License-Identifier: Apache-2.0 */
/* Which shard writes which output file. */
#ifndef QF_EXEC_SHARE_H
#define QF_EXEC_SHARE_H

#include "exec/order.h"

/* Files that one piece writes to have one owner, for a weight is read once for both models. Shard 0
 * has graphs, indexes and all that holds no weights, whatever its size, and what is less than 1
 * MiB; the rest is split by bytes, in its order, with regard to what shard 0 has. *out has an owner
 * for each file of the layout; to be released with qf_spill_free. */
qf_status qf_share_files(const qf_layout *layout, qf_job *const *jobs, const qf_part *pieces,
                         size_t count, uint32_t shards, uint32_t **out, qf_error *err);

#endif
