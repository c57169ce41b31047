/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels.h"

const qf_kernels *qf_kernels_get(void)
{
    return &qf_kernels_scalar;
}
