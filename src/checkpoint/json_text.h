/* SPDX-License-Identifier: Apache-2.0 */
/* JSON that came with a checkpoint, read as strictly as those that load it do. */
#ifndef QF_CHECKPOINT_JSON_TEXT_H
#define QF_CHECKPOINT_JSON_TEXT_H

#include <cjson/cJSON.h>
#include <stdbool.h>
#include <stddef.h>

/* The object that `text` is; NULL, and *why what is wrong with it, or NULL if memory is exhausted.
 * cJSON alone takes bytes that are no UTF-8, ends a string at the character NUL and does not look
 * at what stands behind the value.
 */
cJSON *qf_json_object(const char *text, size_t length, const char **why);
/* Whether a member of the object stands there twice; names of few members. */
bool qf_json_repeats(const cJSON *object);

#endif
