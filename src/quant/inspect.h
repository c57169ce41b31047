/* SPDX-License-Identifier: Apache-2.0 */
/* The list of a model's quantizable layers, made when it is first asked for. */
#ifndef QF_QUANT_INSPECT_H
#define QF_QUANT_INSPECT_H

typedef struct qf_layer_scan qf_layer_scan;
void qf_layer_scan_free(qf_layer_scan *scan);

#endif
