/* SPDX-License-Identifier: Apache-2.0 */
/* How an input of the export target is laid out; its mutator takes it apart in the same way. */
#ifndef QF_TESTS_FUZZ_PARTS_H
#define QF_TESTS_FUZZ_PARTS_H

#include "fuzz.h"

enum { EXPORT_OPTIONS = 4 };

typedef struct export_parts {
    fuzz_part options, record, config, model;
} export_parts;

static inline export_parts export_parts_of(const uint8_t *data, size_t size)
{
    export_parts parts = {.options = {data, size < EXPORT_OPTIONS ? size : EXPORT_OPTIONS}};
    fuzz_part rest = {data + parts.options.size, size - parts.options.size};
    parts.record = fuzz_cut(&rest);
    parts.config = fuzz_cut(&rest);
    parts.model = rest;
    return parts;
}

#endif
