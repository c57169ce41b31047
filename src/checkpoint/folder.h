/* SPDX-License-Identifier: Apache-2.0 */
/* A Hugging Face folder: its tensors, its config.json, and the files that go with them. */
#ifndef QF_CHECKPOINT_FOLDER_H
#define QF_CHECKPOINT_FOLDER_H

#include "base/strmap.h"
#include "checkpoint/safetensors.h"

#define QF_CONFIG_NAME "config.json"
#define QF_INDEX_NAME "model.safetensors.index.json"
#define QF_SINGLE_NAME "model.safetensors"
#define QF_MANIFEST_NAME "quantfold.manifest.json"

typedef struct qf_folder_file {
    const char *name; /* from the folder on, with '/' */
    bool shard;       /* holds tensors of the model */
    const char *metadata;
} qf_folder_file;

struct qf_checkpoint {
    qf_arena arena;
    char *path;
    qf_file *files; /* mapped: shards first, then what is copied */
    qf_folder_file *infos;
    size_t file_count, file_cap, info_cap, shard_count;
    qf_safetensors tensors;
    qf_strmap by_name;   /* tensor name -> qf_safetensor */
    const char **passed; /* names of files that are not taken along */
    size_t passed_count, passed_cap;
    bool indexed; /* it has an index */
    char *config; /* text of config.json */
    size_t config_length;
    qf_file_id config_id;
};

/* Reads a text file of the folder by its plain name. *out is to be freed by qf_spill_free;
 * `id` may be NULL. */
qf_status qf_folder_text(const qf_checkpoint *folder, const char *name, char **out, size_t *length,
                         qf_file_id *id, qf_error *err);

/* The name of a file in `folder` that ends in `end` and is none of those that `known` knows; NULL
 * if there is none, or no folder. It is the arena's. */
qf_status qf_find_entry(const char *folder, const char *end,
                        bool (*known)(const qf_checkpoint_plan *plan, const char *name),
                        const qf_checkpoint_plan *plan, qf_arena *arena, const char **found,
                        qf_error *err);

#endif
