/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A scale and offset record in memory: the message of record.proto, where each entry stood in the
 * file, and what was odd but allowed. Values are not judged here; the planner does that against the
 * model. All pointers are borrowed until qf_record_close.
 */
#ifndef QF_QUANT_RECORD_H
#define QF_QUANT_RECORD_H

#include "base/diag.h"
#include "base/file.h"
#include "record.pb-c.h"

/* Longer files are refused. */
#define QF_RECORD_MAX_BYTES (UINT64_C(1) << 30)

/* The whole record. A field that was not given has a NULL pointer, a false has_ flag or a zero
 * count; no field has a default. Strings are valid UTF-8. */
const AMCTPytorchProto__ScaleOffsetRecord *qf_record_message(const qf_record *record);

/* How records call a number of bits: "INT4", "INT8" or "INT16". */
const char *qf_type_name(int bits);

/* A record that was not read from a text. `message` is the caller's, who may go on filling it in,
 * and must live as long. `name` stands for the file name in messages. */
qf_status qf_record_wrap(const char *name, AMCTPytorchProto__ScaleOffsetRecord *message,
                         qf_record **out, qf_error *err);

/* Line on which entry `index` begins, from 1; 0 if there is no such entry. */
uint32_t qf_record_line(const qf_record *record, size_t index);

/* Path of the file, or the name given to qf_record_parse. */
const char *qf_record_path(const qf_record *record);

/* Identity of the file. NULL if the record did not come from one. */
const qf_file_id *qf_record_id(const qf_record *record);

/* Adds a warning for each field that was given more than once where only one value counts. `list`
 * may be NULL. */
void qf_record_report(const qf_record *record, qf_diagnostics *list);

#endif
