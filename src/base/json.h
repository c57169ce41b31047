/* SPDX-License-Identifier: Apache-2.0 */
/* Reading JSON, and writing that of texts that come from files. */
#ifndef QF_BASE_JSON_H
#define QF_BASE_JSON_H

#include <cjson/cJSON.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* cJSON_ParseWithLengthOpts, that tells a text which is no JSON from want of memory: *exhausted is
 * set to true (and else left alone) if NULL is returned for the latter. `end` may be NULL. */
cJSON *qf_json_parse(const char *text, size_t length, const char **end, bool whole,
                     bool *exhausted);
/* Adds a string member; bytes that are no UTF-8 become U+FFFD. False when memory is exhausted. */
bool qf_json_add_text(cJSON *object, const char *key, const char *text);
/* Adds an integer of at most 2^53, or a double; one that is not finite becomes null. */
bool qf_json_add_number(cJSON *object, const char *key, double value);
/* The integer that a number is, from 0 to 2^53; false if it is none. */
bool qf_json_integer(const cJSON *item, uint64_t *out);
/* The integer member `key` of at most 2^53, false if there is none. */
bool qf_json_get_integer(const cJSON *object, const char *key, uint64_t *out);

#endif
