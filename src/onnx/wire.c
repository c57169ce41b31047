/* SPDX-License-Identifier: Apache-2.0 */
#include "onnx/wire.h"

bool qf_wire_varint(qf_wire *wire, uint64_t *value)
{
    uint64_t v = 0;
    for (unsigned shift = 0; shift < 70 && wire->at < wire->end; shift += 7) {
        unsigned char byte = *wire->at++;
        if (shift == 63 && (byte & 0x7e))
            return false;
        v |= (uint64_t)(byte & 0x7f) << shift;
        if (!(byte & 0x80)) {
            *value = v;
            return true;
        }
    }
    return false;
}

bool qf_wire_next(qf_wire *wire, qf_wire_field *field)
{
    uint64_t tag, length;
    field->start = wire->at;
    if (!qf_wire_varint(wire, &tag) || tag > UINT32_MAX || tag >> 3 == 0)
        return false;
    field->number = (uint32_t)(tag >> 3);
    field->type = (unsigned)(tag & 7);
    field->data = wire->at;
    switch (field->type) {
    case QF_WIRE_VARINT:
        if (!qf_wire_varint(wire, &length))
            return false;
        field->length = (uint64_t)(wire->at - field->data);
        return true;
    case QF_WIRE_I64:
        length = 8;
        break;
    case QF_WIRE_I32:
        length = 4;
        break;
    case QF_WIRE_LEN:
        if (!qf_wire_varint(wire, &length))
            return false;
        field->data = wire->at;
        break;
    default: /* groups were never part of ONNX */
        return false;
    }
    if (length > (uint64_t)(wire->end - wire->at))
        return false;
    field->length = length;
    wire->at += length;
    return true;
}

size_t qf_varint_size(uint64_t value)
{
    size_t n = 1;
    while (value >>= 7)
        n++;
    return n;
}

size_t qf_varint_put(unsigned char *out, uint64_t value)
{
    size_t n = 0;
    while (value >= 0x80) {
        out[n++] = (unsigned char)(value | 0x80);
        value >>= 7;
    }
    out[n++] = (unsigned char)value;
    return n;
}

uint64_t qf_len_field_size(uint32_t number, uint64_t length)
{
    return qf_varint_size((uint64_t)number << 3) + qf_varint_size(length) + length;
}
