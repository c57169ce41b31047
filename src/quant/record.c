/* SPDX-License-Identifier: Apache-2.0 */
#include "quant/record.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "base/file.h"
#include "base/spill.h"
#include "exec/stage.h"
#include "quant/text_format.h"

/* A file may repeat itself millions of times; nobody reads more warnings than this. */
enum { MAX_DUPLICATES = 100 };

enum { FIELD_RECORD = 1 }; /* number of ScaleOffsetRecord.record */

typedef struct duplicate {
    const char *field; /* from the descriptor */
    size_t entry;      /* SIZE_MAX: in no record entry */
    uint32_t line, column;
} duplicate;

struct qf_record {
    char *path;
    bool is_file;
    qf_file_id id;
    qf_arena arena; /* holds the message */
    AMCTPytorchProto__ScaleOffsetRecord *message;
    uint32_t *lines; /* one for each entry */
    size_t line_count, line_cap;
    bool in_entry; /* while reading: is the current value of the root an entry? */
    duplicate duplicates[MAX_DUPLICATES];
    size_t duplicate_count; /* may be more than are kept */
};

static bool on_value(void *user, const ProtobufCFieldDescriptor *field, uint32_t line,
                     uint32_t column)
{
    (void)column;
    qf_record *record = user;
    record->in_entry = field->id == FIELD_RECORD;
    if (!record->in_entry)
        return true;
    if (!qf_table_grow((void **)&record->lines, &record->line_cap, record->line_count + 1,
                       sizeof *record->lines))
        return false;
    record->lines[record->line_count++] = line;
    return true;
}

static bool on_duplicate(void *user, const ProtobufCFieldDescriptor *field, uint32_t line,
                         uint32_t column)
{
    qf_record *record = user;
    size_t n = record->duplicate_count++;
    if (n < MAX_DUPLICATES)
        record->duplicates[n] = (duplicate){
            field->name, record->in_entry ? record->line_count - 1 : SIZE_MAX, line, column};
    return true;
}

qf_status qf_record_parse(const char *name, const char *text, size_t length, qf_record **out,
                          qf_error *err)
{
    if (!name || (!text && length) || !out)
        return qf_fail(err, QF_ERR_USAGE,
                       "qf_record_parse needs a name, a text and a place for "
                       "the record");
    if (length > QF_RECORD_MAX_BYTES)
        return qf_fail_at(err, QF_ERR_INPUT, (qf_where){.file = name},
                          "the record has %zu bytes; at most %" PRIu64 " are accepted", length,
                          QF_RECORD_MAX_BYTES);
    qf_record *record = calloc(1, sizeof *record);
    if (!record)
        return qf_fail_memory(err);
    qf_arena_init(&record->arena);
    record->path = strdup(name);
    qf_text_hooks hooks = {.user = record, .value = on_value, .duplicate = on_duplicate};
    ProtobufCMessage *message = NULL;
    qf_status status =
        record->path
            ? qf_text_parse(name, text, length, &amctpytorch_proto__scale_offset_record__descriptor,
                            &record->arena, &hooks, &message, err)
            : qf_fail_memory(err);
    if (status != QF_OK) {
        qf_record_close(record);
        return status;
    }
    record->message = (AMCTPytorchProto__ScaleOffsetRecord *)(void *)message;
    *out = record;
    return QF_OK;
}

qf_status qf_record_open(const char *path, qf_record **out, qf_error *err)
{
    if (!path || !out)
        return qf_fail(err, QF_ERR_USAGE, "qf_record_open needs a path and a place for the record");
    char *text;
    size_t length;
    qf_file_id id;
    qf_status status =
        qf_file_read_text(path, "record file", QF_RECORD_MAX_BYTES, &text, &length, &id, err);
    if (status != QF_OK)
        return status;
    qf_record *record;
    status = qf_record_parse(path, text, length, &record, err);
    qf_spill_free(text);
    if (status != QF_OK)
        return status;
    record->is_file = true;
    record->id = id;
    *out = record;
    return QF_OK;
}

const char *qf_type_name(int bits)
{
    return bits == 4 ? "INT4" : bits == 8 ? "INT8" : "INT16";
}

qf_status qf_record_wrap(const char *name, AMCTPytorchProto__ScaleOffsetRecord *message,
                         qf_record **out, qf_error *err)
{
    qf_record *record = calloc(1, sizeof *record);
    if (!record)
        return qf_fail_memory(err);
    qf_arena_init(&record->arena);
    record->message = message;
    record->path = strdup(name);
    if (!record->path) {
        qf_record_close(record);
        return qf_fail_memory(err);
    }
    *out = record;
    return QF_OK;
}

void qf_record_close(qf_record *record)
{
    if (!record)
        return;
    qf_arena_release(&record->arena);
    qf_spill_free(record->lines);
    free(record->path);
    free(record);
}

size_t qf_record_count(const qf_record *record)
{
    return record ? record->message->n_record : 0;
}

const char *qf_record_key(const qf_record *record, size_t index)
{
    if (index >= qf_record_count(record) || !record->message->record[index]->key)
        return "";
    return record->message->record[index]->key;
}

qf_status qf_record_format(const qf_record *record, char **out, size_t *length, qf_error *err)
{
    if (!record || !out)
        return qf_fail(err, QF_ERR_USAGE,
                       "qf_record_format needs a record and a place for the "
                       "text");
    return qf_text_format(&record->message->base, out, length, err);
}

const AMCTPytorchProto__ScaleOffsetRecord *qf_record_message(const qf_record *record)
{
    return record->message;
}

uint32_t qf_record_line(const qf_record *record, size_t index)
{
    return index < record->line_count ? record->lines[index] : 0;
}

const char *qf_record_path(const qf_record *record)
{
    return record->path;
}

const qf_file_id *qf_record_id(const qf_record *record)
{
    return record->is_file ? &record->id : NULL;
}

void qf_record_report(const qf_record *record, qf_diagnostics *list)
{
    for (size_t i = 0; i < record->duplicate_count && i < MAX_DUPLICATES; i++) {
        const duplicate *d = &record->duplicates[i];
        qf_where where = {.file = record->path,
                          .item = qf_record_key(record, d->entry),
                          .line = d->line,
                          .column = d->column};
        qf_diag_add(list, QF_WARNING, where,
                    "%s is given more than once; the last value counts, delete the others",
                    d->field);
    }
    if (record->duplicate_count > MAX_DUPLICATES)
        qf_diag_add(list, QF_WARNING, (qf_where){.file = record->path},
                    "%zu more fields are given more than once",
                    record->duplicate_count - MAX_DUPLICATES);
}

qf_status qf_record_save(const qf_record *record, const char *path, qf_error *err)
{
    char *text;
    size_t length;
    if (!record || !path)
        return qf_fail(err, QF_ERR_USAGE, "qf_record_save needs a record and a path");
    qf_status status = qf_record_format(record, &text, &length, err);
    if (status != QF_OK)
        return status;
    status = qf_save_text(path, "record", text, length, err);
    free(text);
    return status;
}
