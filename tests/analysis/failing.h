/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Read by clang-tidy before each file. Its analyzer does not look into other files; without this it
 * takes it for possible that a failure gives QF_OK, and follows what cannot happen.
 */
#ifndef QF_TESTS_ANALYSIS_FAILING_H
#define QF_TESTS_ANALYSIS_FAILING_H

#include "../../src/base/error.h"

#define qf_fail_at(err, code, ...) ((void)qf_fail_at(err, code, __VA_ARGS__), (code))
#define qf_fail(err, code, ...) ((void)qf_fail(err, code, __VA_ARGS__), (code))
#define qf_fail_errno(...) ((void)qf_fail_errno(__VA_ARGS__), QF_ERR_SYSTEM)
#define qf_fail_memory(err) ((void)qf_fail_memory(err), QF_ERR_MEMORY)

#endif
