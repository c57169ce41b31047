/* SPDX-License-Identifier: Apache-2.0 */
#include "quant/ascend.h"

#include <math.h>
#include <string.h>

bool qf_offset_fits(float offset, int bits)
{
    float most = bits == 16 ? 32767 : 127;
    return offset >= -most - 1 && offset <= most && offset == truncf(offset);
}

int qf_dst_bits(const Onnx__AttributeProto *a)
{
    static const struct {
        const char *name;
        int bits;
    } types[] = {{"INT4", 4}, {"INT8", 8}, {"INT16", 16}};
    for (size_t i = 0; a && a->has_s && i < sizeof types / sizeof *types; i++) {
        if (a->s.len == strlen(types[i].name) && memcmp(a->s.data, types[i].name, a->s.len) == 0)
            return types[i].bits;
    }
    return 0;
}

bool qf_scale_fits(float scale)
{
    return isfinite(scale) && scale > 0;
}
