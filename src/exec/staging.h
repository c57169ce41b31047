/* SPDX-License-Identifier: Apache-2.0 */
/* What stage.c, which makes and commits a staging folder, and recover.c, which finds one that an
 * earlier run has left, have in common. */
#ifndef QF_EXEC_STAGING_H
#define QF_EXEC_STAGING_H

#include "exec/stage.h"

#define QF_STAGE_RUN "run"
#define QF_STAGE_COMPLETE "complete"
#define QF_STAGE_OLD "old"

/* Calls `visit` for each entry of an open folder; false with errno set if that or a visit fails. */
bool qf_stage_each(int fd, bool (*visit)(void *user, const char *name), void *user);
/* The reverse of qf_staged_name. */
void qf_final_name(const char *staged, char out[NAME_MAX + 1]);
/* Makes the subfolders of the target folder that `name` lies in. */
bool qf_stage_subfolders(const qf_stage *stage, char *name);
/* Renames a staged file into the target folder. */
bool qf_stage_move(const qf_stage *stage, const char *staged);
/* Files of an earlier run move into place if the run that left them was complete; those that it
 * replaced move back if it was about to undo that. The rest goes unless it is to be taken up again.
 * A shard, which is not alone, does none of this: *half tells it. */
qf_status qf_stage_recover(qf_stage *stage, bool *half, qf_error *err);

#endif
