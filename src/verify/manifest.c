/* SPDX-License-Identifier: Apache-2.0 */
#include "verify/manifest.h"

#include <cjson/cJSON.h>
#include <errno.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "base/file.h"
#include "base/json.h"
#include "base/spill.h"
#include "exec/journal.h"
#include "exec/stage.h"
#include "verify/finding.h"

enum {
    STEP = 4 * 1024 * 1024,
    LONGEST = 256 * 1024 * 1024
}; /* bytes hashed at once; of a manifest */

typedef struct checker {
    const char *given;  /* the folder, */
    const char *folder; /* and its real path */
    char *path;         /* of the manifest */
    qf_diagnostics *findings;
    qf_strmap named;
    uint64_t bytes;
    qf_error *err;
} checker;

bool qf_manifest_files_add(qf_manifest_files *files, const char *name)
{
    if (qf_strmap_get(&files->seen, name))
        return true;
    if (!qf_strmap_set(&files->seen, name, files) ||
        !qf_grow((void **)&files->names, &files->cap, files->count + 1, sizeof *files->names))
        return false;
    files->names[files->count++] = name;
    return true;
}

void qf_manifest_files_release(qf_manifest_files *files)
{
    free(files->names);
    qf_strmap_release(&files->seen);
    *files = (qf_manifest_files){0};
}

static void note(checker *c, const char *item, const char *format, ...) QF_PRINTF(3, 4);
static void note(checker *c, const char *item, const char *format, ...)
{
    char message[700];
    va_list args;
    va_start(args, format);
    vsnprintf(message, sizeof message, format, args);
    va_end(args);
    qf_diag_add(c->findings, QF_ERROR, (qf_where){.file = c->path, .item = item}, "%s", message);
}

/* ---- files ---- */

/* A path below the folder, in the one way to write it. */
static bool is_safe(const char *name)
{
    if (!*name)
        return false;
    for (const char *at = name; *at;) {
        size_t n = strcspn(at, "/");
        if (n == 0 || (n == 1 && at[0] == '.') || (n == 2 && at[0] == '.' && at[1] == '.'))
            return false;
        at += n + (at[n] == '/');
    }
    return true;
}

/* Input that is wrong is a finding; what is left is the caller's to report. */
static qf_status note_error(checker *c, const char *file, qf_status status, const qf_error *err)
{
    if (status == QF_ERR_INPUT) {
        qf_note_error(c->findings, file, err);
        return QF_OK;
    }
    if (status != QF_OK && c->err)
        *c->err = *err;
    return status;
}

/* Opens a file that the manifest names; not *opened after a finding. */
static qf_status open_named(checker *c, const char *name, qf_file *file, bool *opened)
{
    char joined[PATH_MAX], real[PATH_MAX];
    qf_error err;
    size_t base = strlen(c->folder);
    int n = snprintf(joined, sizeof joined, "%s/%s", c->folder, name);
    *opened = false;
    if (!is_safe(name) || n < 0 || (size_t)n >= sizeof joined) {
        note(c, NULL, "it names the file '%.200s', which is no path below its folder", name);
        return QF_OK;
    }
    if (!realpath(joined, real)) {
        if (!qf_is_absent(errno))
            return qf_fail_errno(c->err, joined, errno, "cannot resolve the path");
        note(c, name, "the file is missing: %s", strerror(errno));
        return QF_OK;
    }
    if (strncmp(real, c->folder, base) != 0 || (real[base] != '/' && base != 1)) {
        note(c, name, "the file is a link out of the folder; it is not read");
        return QF_OK;
    }
    qf_status status = qf_file_open(real, "file of the manifest", file, &err);
    *opened = status == QF_OK;
    snprintf(joined, sizeof joined, "%s/%s", c->given, name);
    return note_error(c, joined, status, &err);
}

/* ---- parts ---- */

static qf_hash hash_range(const qf_file *file, uint64_t offset, uint64_t length,
                          XXH3_state_t *state)
{
    XXH3_128bits_reset(state);
    for (uint64_t at = 0; at < length; at += STEP) {
        size_t n = (size_t)(length - at < STEP ? length - at : STEP);
        const unsigned char *from = file->data + offset + at;
        XXH3_128bits_update(state, from, n);
        qf_file_advise(file, from, from + n, MADV_DONTNEED);
    }
    return qf_hash_digest(state);
}

/* The first byte in [from, to) that is not zero; `to` if all are. */
static uint64_t first_set(const qf_file *file, uint64_t from, uint64_t to)
{
    while (from < to && !file->data[from])
        from++;
    return from;
}

typedef struct file_check {
    const qf_file *file;
    const char *name;
    XXH3_state_t *part, *whole;
    uint64_t behind; /* the parts so far */
    bool sound;
} file_check;

/* Bytes between parts are padding, and zero. */
static void check_gap(checker *c, file_check *f, uint64_t to)
{
    uint64_t at = first_set(f->file, f->behind, to);
    if (at < to)
        note(c, f->name, "byte %llu lies %s and is 0x%02x; expected %s", (unsigned long long)at,
             to == f->file->size ? "behind the last tensor" : "between tensors", f->file->data[at],
             to == f->file->size ? "none" : "0");
}

static void check_part(checker *c, file_check *f, const cJSON *part)
{
    uint64_t offset, length;
    char text[QF_HASH_TEXT];
    const char *wanted = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(part, "hash"));
    const char *tensor = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(part, "tensor"));
    if (!f->sound)
        return;
    f->sound = wanted && qf_json_get_integer(part, "offset", &offset) &&
               qf_json_get_integer(part, "bytes", &length) && offset >= f->behind &&
               length <= f->file->size && offset <= f->file->size - length;
    if (!f->sound) {
        note(
            c, f->name,
            "a part has no hash, or lies outside the file or before its neighbour; the manifest or "
            "the file is damaged");
        return;
    }
    check_gap(c, f, offset);
    qf_hash hash = hash_range(f->file, offset, length, f->part);
    qf_hash_text(&hash, text);
    c->bytes += length;
    f->behind = offset + length;
    XXH3_128bits_update(f->whole, &hash, sizeof hash);
    if (strcmp(text, wanted) != 0)
        note(c, f->name,
             "%s%s%s, bytes %llu to %llu, has the hash %s; the manifest has %.40s: the bytes are "
             "not "
             "those that were written",
             tensor && *tensor ? "tensor '" : "the graph", tensor ? tensor : "",
             tensor && *tensor ? "'" : "", (unsigned long long)offset,
             (unsigned long long)(offset + length), text, wanted);
}

static void check_parts(checker *c, file_check *f, const cJSON *item)
{
    char text[QF_HASH_TEXT];
    const cJSON *part;
    const char *wanted =
        cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(item, "hash_of_part_hashes"));
    XXH3_128bits_reset(f->whole);
    f->sound = true;
    cJSON_ArrayForEach(part, cJSON_GetObjectItemCaseSensitive(item, "parts"))
    {
        check_part(c, f, part);
    }
    if (!f->sound)
        return;
    check_gap(c, f, f->file->size);
    qf_hash hash = qf_hash_digest(f->whole);
    qf_hash_text(&hash, text);
    if (!wanted || strcmp(text, wanted) != 0)
        note(c, f->name, "hash_of_part_hashes is %.40s; that of the file's parts is %s",
             wanted ? wanted : "missing", text);
}

static qf_status check_file(checker *c, const cJSON *item)
{
    qf_file file = {0};
    uint64_t bytes;
    const char *name = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(item, "name"));
    if (!name || !qf_json_get_integer(item, "bytes", &bytes)) {
        note(c, NULL, "an entry of 'files' has no name or no size; the manifest is damaged");
        return QF_OK;
    }
    if (qf_strmap_get(&c->named, name)) {
        note(c, name, "the file is named twice in 'files'; the manifest is damaged");
        return QF_OK;
    }
    if (!qf_strmap_set(&c->named, name, c))
        return qf_fail_memory(c->err);
    bool opened;
    qf_status status = open_named(c, name, &file, &opened);
    if (!opened)
        return status;
    file_check f = {.file = &file, .name = name};
    f.part = XXH3_createState();
    f.whole = XXH3_createState();
    bool memory = f.part && f.whole;
    if (file.size != bytes)
        note(c, name, "the file has %llu bytes; the manifest has %llu: it was cut, or written anew",
             (unsigned long long)file.size, (unsigned long long)bytes);
    if (memory)
        check_parts(c, &f, item);
    XXH3_freeState(f.part);
    XXH3_freeState(f.whole);
    status = memory ? QF_OK : qf_fail_memory(c->err);
    status = qf_files_check(&file, 1, status, c->err);
    qf_file_close(&file);
    return status;
}

/* ---- the whole ---- */

static qf_status check_document(checker *c, const cJSON *root, const qf_manifest_files *present)
{
    const cJSON *item, *files = cJSON_GetObjectItemCaseSensitive(root, "files");
    const char *hash = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(root, "hash"));
    qf_status status = QF_OK;
    if (!cJSON_IsArray(files) || !hash) {
        note(c, NULL, "this is not a manifest of quantfold: it has no 'files' or no 'hash'");
        return QF_OK;
    }
    if (strcmp(hash, "xxh3-128") != 0) {
        note(c, NULL, "its hashes are of the kind '%.40s'; only xxh3-128 is known", hash);
        return QF_OK;
    }
    cJSON_ArrayForEach(item, files)
    {
        if (status == QF_OK)
            status = check_file(c, item);
    }
    for (size_t i = 0; status == QF_OK && i < present->count; i++) {
        if (!qf_strmap_get(&c->named, present->names[i]))
            note(c, present->names[i],
                 "the file belongs to the output but is not in the manifest; it is of another "
                 "export");
    }
    return status;
}

/* *found: there is a manifest; c->folder is then known. */
static qf_status find(checker *c, const char *folder, char real[PATH_MAX], bool *found)
{
    struct stat st;
    *found = stat(c->path, &st) == 0 && realpath(folder, real);
    c->folder = real;
    return *found || qf_is_absent(errno)
               ? QF_OK
               : qf_fail_errno(c->err, c->path, errno, "cannot look for the manifest");
}

static void read_hash(const cJSON *root, const char *key, char out[33])
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(root, key);
    const char *hash = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(item, "hash"));
    snprintf(out, 33, "%s", hash ? hash : "");
}

static qf_status check(checker *c, const qf_manifest_files *present, qf_manifest_inputs *inputs)
{
    qf_error err;
    char *text;
    size_t length;
    qf_status status = qf_file_read_text(c->path, "manifest", LONGEST, &text, &length, NULL, &err);
    if (status != QF_OK)
        return note_error(c, c->path, status, &err);
    bool exhausted = false;
    cJSON *root = qf_json_parse(text, length, NULL, false, &exhausted);
    read_hash(root, "record", inputs->record);
    read_hash(root, "config", inputs->config);
    if (root)
        status = check_document(c, root, present);
    else if (exhausted)
        status = qf_fail_memory(c->err);
    else
        note(c, NULL, "this is no JSON; the manifest is damaged");
    cJSON_Delete(root);
    qf_spill_free(text);
    return status;
}

qf_status qf_check_manifest(const char *folder, const char *name, const qf_manifest_files *present,
                            qf_diagnostics *findings, bool *found, uint64_t *bytes,
                            qf_manifest_inputs *inputs, qf_error *err)
{
    char real[PATH_MAX];
    checker c = {
        .findings = findings, .err = err, .given = folder, .path = qf_stage_path(folder, name)};
    *found = false;
    *inputs = (qf_manifest_inputs){0};
    if (!c.path)
        return qf_fail_memory(err);
    qf_status status = find(&c, folder, real, found);
    if (*found)
        status = check(&c, present, inputs);
    *bytes += c.bytes;
    qf_strmap_release(&c.named);
    free(c.path);
    return status;
}
