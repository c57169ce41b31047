/* SPDX-License-Identifier: Apache-2.0 */
#include "exec/share.h"

#include "base/file.h"
#include "base/spill.h"

enum { SMALL = 1024 * 1024 };

/* Files that belong together, as a forest: a file's parent is a file before it. */
static size_t root_of(size_t *parents, size_t file)
{
    while (parents[file] != file) {
        parents[file] = parents[parents[file]];
        file = parents[file];
    }
    return file;
}

static void join_files(size_t *parents, const qf_place places[QF_SLOTS])
{
    int first = -1;
    for (int i = 0; i < QF_SLOTS; i++) {
        if (!places[i].used)
            continue;
        if (first < 0)
            first = places[i].file;
        size_t a = root_of(parents, (size_t)first), b = root_of(parents, (size_t)places[i].file);
        parents[a > b ? a : b] = a < b ? a : b;
    }
}

/* Files of weights, which are dealt out; all others, graphs and what lies beside a checkpoint, are
 * the first shard's. */
static bool is_weights(const char *name)
{
    return qf_ends_with(name, ".external") || qf_ends_with(name, ".safetensors");
}

qf_status qf_share_files(const qf_layout *layout, qf_job *const *jobs, const qf_part *pieces,
                         size_t count, uint32_t shards, uint32_t **out, qf_error *err)
{
    size_t n = layout->file_count;
    size_t *parents = qf_spill_alloc((n + 1) * sizeof *parents);
    uint64_t *bytes = qf_spill_alloc((n + 1) * sizeof *bytes), total = 0, before = 0;
    uint32_t *owners = qf_spill_alloc((n + 1) * sizeof *owners);
    bool *first = qf_spill_alloc((n + 1) * sizeof *first); /* the group is the first shard's */
    if (!parents || !bytes || !owners || !first) {
        qf_spill_free(first);
        qf_spill_free(parents);
        qf_spill_free(bytes);
        qf_spill_free(owners);
        return qf_fail_memory(err);
    }
    for (size_t i = 0; i < n; i++)
        parents[i] = i;
    for (size_t i = 0; i < count; i++) {
        qf_place places[QF_SLOTS];
        qf_part_places(pieces[i], jobs, layout, places);
        join_files(parents, places);
    }
    for (size_t i = 0; i < n; i++) {
        bytes[root_of(parents, i)] += layout->files[i].size;
        total += layout->files[i].size;
        first[root_of(parents, i)] |= !is_weights(layout->files[i].name);
    }
    for (size_t i = 0; i < n; i++) {
        if (parents[i] == i && (first[i] || bytes[i] < SMALL))
            before += bytes[i];
    }
    for (size_t i = 0; i < n; i++) {
        if (parents[i] == i && !first[i] && bytes[i] >= SMALL) { /* by its middle */
            double at = ((double)before + (double)bytes[i] / 2) / (double)total;
            owners[i] = (uint32_t)(at * shards);
            before += bytes[i];
        }
        owners[i] = owners[root_of(parents, i)];
    }
    qf_spill_free(parents);
    qf_spill_free(bytes);
    qf_spill_free(first);
    *out = owners;
    return QF_OK;
}
