/* SPDX-License-Identifier: Apache-2.0 */
/* plan.json in the staging folder: what is being written there, for shards of the same output, for
 * a run that takes it up again, and for `quantfold commit`. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/json.h"
#include "base/retry.h"
#include "base/spill.h"
#include "exec/outcome.h"

#define PLAN_PART "plan.part"

uint32_t qf_outcome_shards(const qf_outcome *o)
{
    return o->sharded ? o->options->shard_count : 1;
}

/* What `quantfold commit` needs to know. */
static cJSON *plan_json(const qf_outcome *o)
{
    char hash[QF_HASH_TEXT];
    const qf_layout *layout = o->output->layout;
    cJSON *root = cJSON_CreateObject();
    qf_hash_text(&o->fingerprint, hash);
    bool ok = root && qf_json_add_text(root, "fingerprint", hash) &&
              qf_json_add_number(root, "shards", qf_outcome_shards(o)) &&
              qf_json_add_number(root, "pieces", (double)o->piece_count) &&
              qf_json_add_number(root, "bytes_read", (double)o->totals.bytes_read);
    cJSON *files = ok ? cJSON_AddArrayToObject(root, "files") : NULL;
    ok = files != NULL;
    for (size_t i = 0; ok && i < layout->file_count; i++) {
        cJSON *file = cJSON_CreateObject();
        ok = file && cJSON_AddItemToArray(files, file) &&
             cJSON_AddStringToObject(file, "name", layout->files[i].name) &&
             qf_json_add_number(file, "bytes", (double)layout->files[i].size);
    }
    ok = ok && qf_json_add_text(root, "manifest_name", o->output->manifest_name);
    if (ok && o->manifest) {
        cJSON *copy = cJSON_Duplicate(o->manifest, true);
        ok = ok && copy && cJSON_AddItemToObject(root, "manifest", copy);
    }
    if (ok)
        return root;
    cJSON_Delete(root);
    return NULL;
}

qf_status qf_staged_plan_read(const qf_stage *stage, cJSON **plan, qf_error *err)
{
    enum { MOST = 1 << 30 };
    struct stat st;
    *plan = NULL;
    int fd = qf_open_at(stage->run_fd, QF_STAGED_PLAN, O_RDONLY | O_CLOEXEC | O_NOFOLLOW, 0);
    if (fd < 0 && errno == ENOENT)
        return QF_OK;
    char *text = NULL;
    ssize_t got = -1;
    bool examined = fd >= 0 && fstat(fd, &st) == 0;
    bool plain = examined && S_ISREG(st.st_mode) && st.st_size < MOST;
    if (plain)
        text = qf_spill_alloc((size_t)st.st_size + 1);
    if (text)
        got = qf_read_all_at(fd, text, (size_t)st.st_size, 0);
    int e = errno;
    bool exhausted = plain && !text;
    if (got >= 0)
        *plan = qf_json_parse(text, (size_t)got, NULL, false, &exhausted);
    qf_spill_free(text);
    if (fd >= 0)
        close(fd);
    if (exhausted)
        return qf_fail_memory(err);
    if (!examined || (plain && got < 0))
        return qf_fail_errno(err, stage->partial, e, "cannot read the plan in the staging folder");
    return QF_OK;
}

qf_status qf_staged_plan_write(const qf_outcome *o, qf_error *err)
{
    char part[64];
    cJSON *plan = plan_json(o);
    char *text = plan ? cJSON_PrintUnformatted(plan) : NULL;
    cJSON_Delete(plan);
    if (!text)
        return qf_fail_memory(err);
    snprintf(part, sizeof part, "%s.%ld", PLAN_PART, (long)getpid());
    size_t n = strlen(text);
    int fd = qf_open_at(o->stage.run_fd, part, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0640);
    int e = fd < 0 ? errno : qf_write_all(fd, text, n);
    free(text);
    if (!e && !o->stage.unsynced && qf_sync(fd) != 0)
        e = errno;
    if (fd >= 0 && qf_close(fd) != 0 && !e)
        e = errno;
    if (!e && renameat(o->stage.run_fd, part, o->stage.run_fd, QF_STAGED_PLAN) != 0)
        e = errno;
    return e ? qf_fail_errno(err, o->stage.partial, e, "cannot write the plan") : QF_OK;
}
