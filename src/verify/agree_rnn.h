/* SPDX-License-Identifier: Apache-2.0 */
/* A recurrent layer in both models: between agree_rnn.c and agree_rnn_weights.c. */
#ifndef QF_VERIFY_AGREE_RNN_H
#define QF_VERIFY_AGREE_RNN_H

#include "verify/agree.h"

typedef struct qf_rnn_pair {
    qf_pairing *p;
    const qf_node *deploy;
    qf_node *fake;
    bool lstm;
    uint64_t rows;         /* gates times hidden size */
    const uint64_t *param; /* packed scales of the deploy model */
    uint64_t param_count;
    bool per_row;    /* W's scales, where that is not clear from their number */
    float scales[2]; /* of x and of h: not their reciprocals */
    float *found[2]; /* scale of each row of W and R, 0: not known */
} qf_rnn_pair;

/* W (0) or R (1); sets found[which]. */
qf_status qf_compare_rnn_weight(qf_rnn_pair *r, int which);

#endif
