/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the fuzz targets share. A target defines LLVMFuzzerTestOneInput; linked with libFuzzer it
 * searches for inputs that break it, linked with replay.c it runs inputs that are known.
 */
#ifndef QF_TESTS_FUZZ_H
#define QF_TESTS_FUZZ_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "quantfold/quantfold.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* What must hold for any input; a message and abort() where it does not. */
#define FUZZ_REQUIRE(condition, ...) \
    do { \
        if (!(condition)) \
            fuzz_fail(__FILE__, __LINE__, #condition, __VA_ARGS__); \
    } while (0)
_Noreturn void fuzz_fail(const char *file, int line, const char *what, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

/* A failed call says why, and it is not the system that failed. */
void fuzz_check_failure(qf_status status, const qf_error *err);

/* Inputs of several parts. */
typedef struct fuzz_part {
    const uint8_t *data;
    size_t size;
} fuzz_part;
/* The next byte; 0 when there is none. */
uint8_t fuzz_byte(fuzz_part *input);
/* A part with its length, two little-endian bytes, in front; what is there if that is less. */
fuzz_part fuzz_cut(fuzz_part *input);

/* A folder of this process in memory, removed at exit. */
const char *fuzz_folder(void);
/* Writes a file in it, whose folder exists. Returns its path, valid until the next call. */
const char *fuzz_write(const char *name, const void *data, size_t size);
/* Path of `name` in it, in memory that is overwritten by the eighth call from here. */
const char *fuzz_path(const char *name);
/* Removes what is in a subfolder; returns the number of files that were there. */
size_t fuzz_empty(const char *name);

/* Reads each byte, so that the sanitizer sees memory that is not the object's. */
void fuzz_touch(const void *data, size_t size);

#endif
