/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The wire scanner: an ONNX file of any size becomes a skeleton.
 *
 * It walks every message of the file once, guided by the generated descriptors, and copies all of
 * it except the data of tensors, each of which it notes as a span and replaces by a payload index
 * (payload.h). The skeleton is a valid serialized ModelProto of kilobytes to a few megabytes, which
 * protobuf-c, unable to take more than 2 GiB and always copying, can unpack. Nesting is bounded
 * here, so that no recursive message can exhaust the stack later.
 */
#ifndef QF_ONNX_SCAN_H
#define QF_ONNX_SCAN_H

#include "base/file.h"
#include "onnx/payload.h"

/* Scans the mapped `file`. On success *skeleton is to be freed by qf_spill_free and one
 * QF_PAYLOAD_SPAN payload stands in `payloads` for each tensor that has data, raw_length still 0.
 * Tensors whose typed data is not one packed field (legal, but written by nobody known) keep it in
 * the skeleton. */
qf_status qf_scan(const qf_file *file, qf_payloads *payloads, unsigned char **skeleton,
                  size_t *length, qf_error *err);

#endif
