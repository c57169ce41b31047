/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Protobuf text for any message that protobuf-c describes: a reader with the meaning of Python's
 * text_format.Merge and a writer with the form of its MessageToString(as_utf8=True).
 *
 * Both go by the descriptors alone. They know proto2 messages without oneofs, groups and extensions
 * and with at most 64 fields; a descriptor beyond that is QF_ERR_USAGE.
 */
#ifndef QF_QUANT_TEXT_FORMAT_H
#define QF_QUANT_TEXT_FORMAT_H

#include <protobuf-c/protobuf-c.h>

#include "base/arena.h"
#include "base/error.h"

/* Messages may nest this deep, the root not counted. */
enum { QF_TEXT_DEPTH = 64, QF_TEXT_FIELDS = 64 };

/* What a caller may watch while a text is read. Either function may be NULL; returning false means
 * that memory is exhausted and ends the reading. Lines and columns count from 1, columns in bytes.
 */
typedef struct qf_text_hooks {
    void *user;
    /* A value of a field of the root message begins: at the field's name, or, in the short form
     * [a, b], at the value. */
    bool (*value)(void *user, const ProtobufCFieldDescriptor *field, uint32_t line,
                  uint32_t column);
    /* A singular scalar is given again, here, in the same message; this value will replace the one
     * before. */
    bool (*duplicate)(void *user, const ProtobufCFieldDescriptor *field, uint32_t line,
                      uint32_t column);
} qf_text_hooks;

/*
 * Reads `length` bytes at `text` into a message of type `desc`. The message and all it points to
 * lie in `arena` (whose release is the only way to free them) and borrow nothing from `text`; on
 * failure the arena holds leavings. Time is linear in `length`, memory at most 16 * length + 64
 * MiB. `file_name` is for messages. QF_ERR_INPUT, with line and column, for anything wrong with the
 * text: stricter than Merge in that a missing required field, a NUL byte, a NUL inside a string
 * field and a number of more than QF_TOKEN_NUMBER_MAX characters are errors.
 */
qf_status qf_text_parse(const char *file_name, const char *text, size_t length,
                        const ProtobufCMessageDescriptor *desc, qf_arena *arena,
                        const qf_text_hooks *hooks, ProtobufCMessage **out, qf_error *err);

/* Writes a message as text. *out is malloc'ed, NUL-terminated, the caller's to free(); *length
 * excludes the NUL and may be NULL. */
qf_status qf_text_format(const ProtobufCMessage *message, char **out, size_t *length,
                         qf_error *err);

enum { QF_TEXT_NUMBER = 48 };
/* The shortest decimal that reads back as the same float, as Python's text_format prints it. */
void qf_text_float(float value, char out[QF_TEXT_NUMBER]);
/* The same for double: Python's repr. */
void qf_text_double(double value, char out[QF_TEXT_NUMBER]);

#endif
