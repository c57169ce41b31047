/* SPDX-License-Identifier: Apache-2.0 */
#include "exec/source.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/half.h"
#include "kernels.h"
#include "onnx/wire.h"

enum { STRIDE = 4096 };

qf_status qf_varint_index_build(const qf_span *span, uint64_t expected, const char *file,
                                const char *tensor, qf_varint_index *out, qf_error *err)
{
    *out = (qf_varint_index){0};
    if (!qf_field_is_varint(span->field))
        return QF_OK;
    /* a varint takes a byte at least, which bounds what the file can make us allocate */
    if (expected > span->length)
        return qf_fail_at(err, QF_ERR_INPUT,
                          (qf_where){.file = file, .item = tensor, .byte = &span->offset},
                          "the tensor's data has fewer elements than its dims say (%llu)",
                          (unsigned long long)expected);
    uint64_t *offsets = malloc((size_t)(expected / STRIDE + 1) * sizeof *offsets);
    if (!offsets)
        return qf_fail_memory(err);
    qf_wire wire = {span->data, span->data + span->length};
    uint64_t count = 0, value;
    while (wire.at < wire.end && count <= expected) {
        if (count % STRIDE == 0 && count / STRIDE <= expected / STRIDE)
            offsets[count / STRIDE] = (uint64_t)(wire.at - span->data);
        if (!qf_wire_varint(&wire, &value))
            break;
        count++;
    }
    if (wire.at < wire.end || count != expected) {
        free(offsets);
        return qf_fail_at(err, QF_ERR_INPUT,
                          (qf_where){.file = file, .item = tensor, .byte = &span->offset},
                          "the tensor's data does not have the %llu elements that its dims say",
                          (unsigned long long)expected);
    }
    *out = (qf_varint_index){offsets, count};
    return QF_OK;
}

void qf_varint_index_release(qf_varint_index *index)
{
    free(index->offsets);
    *index = (qf_varint_index){0};
}

qf_range qf_varint_index_bytes(const qf_varint_index *index, const qf_span *span, unsigned width,
                               qf_range plain)
{
    uint64_t first = plain.offset / width / STRIDE;
    uint64_t behind = (plain.offset + plain.length) / width / STRIDE + 1;
    uint64_t from = index->offsets[first];
    uint64_t to = behind * STRIDE < index->count ? index->offsets[behind] : span->length;
    return (qf_range){from, to - from};
}

void qf_source_elements(const qf_span *span, const qf_varint_index *index, unsigned width,
                        uint64_t first, size_t n, unsigned char *out)
{
    uint64_t at = first / STRIDE * STRIDE, value;
    qf_wire wire = {span->data + index->offsets[first / STRIDE], span->data + span->length};
    for (; at < first; at++)
        qf_wire_varint(&wire, &value);
    for (size_t i = 0; i < n; i++) {
        value = 0;
        qf_wire_varint(&wire, &value);
        memcpy(out + i * width, &value, width); /* little-endian host: the low bytes */
    }
}

/* An 8-bit float is a half whose lower bits are missing; one with 4 bits of exponent, bias 7, is
 * also 2^8 too small as such. Its only NaN has all bits set. */
static void load_f8(const unsigned char *src, size_t n, bool e4m3, float *out)
{
    for (size_t i = 0; i < n; i++) {
        unsigned magnitude = src[i] & 0x7fu;
        if (e4m3)
            out[i] = magnitude == 0x7f ? NAN : 256 * qf_half_value((uint16_t)(magnitude << 7));
        else
            out[i] = qf_half_value((uint16_t)(magnitude << 8));
        if (src[i] & 0x80)
            out[i] = -out[i];
    }
}

void qf_source_floats(const qf_span *span, const qf_varint_index *index, int32_t data_type,
                      uint64_t first, size_t n, float *out)
{
    const qf_kernels *k = qf_kernels_get();
    unsigned width = qf_dtype_bits(data_type) / 8;
    const unsigned char *src = span->data + first * width;
    unsigned char chunk[2 * 512];
    if (index->offsets) { /* 16-bit floats in int32_data */
        while (n) {
            size_t m = n < 512 ? n : 512;
            qf_source_elements(span, index, 2, first, m, chunk);
            (data_type == ONNX__TENSOR_PROTO__DATA_TYPE__FLOAT16 ? k->load_f16
                                                                 : k->load_bf16)(chunk, m, out);
            first += m;
            out += m;
            n -= m;
        }
        return;
    }
    switch (data_type) {
    case ONNX__TENSOR_PROTO__DATA_TYPE__FLOAT16:
        k->load_f16(src, n, out);
        break;
    case ONNX__TENSOR_PROTO__DATA_TYPE__BFLOAT16:
        k->load_bf16(src, n, out);
        break;
    case ONNX__TENSOR_PROTO__DATA_TYPE__DOUBLE:
        k->load_f64(src, n, out);
        break;
    case QF_DTYPE_F8_E4M3FN:
    case QF_DTYPE_F8_E5M2:
        load_f8(src, n, data_type == QF_DTYPE_F8_E4M3FN, out);
        break;
    default:
        if (n)
            memcpy(out, src, n * sizeof *out);
    }
}

bool qf_source_is_integer(int32_t data_type)
{
    return data_type == ONNX__TENSOR_PROTO__DATA_TYPE__INT8 ||
           data_type == ONNX__TENSOR_PROTO__DATA_TYPE__UINT8 || data_type == QF_DTYPE_INT4 ||
           data_type == QF_DTYPE_UINT4;
}

/* The loops are what a compiler makes vectors of by itself. */
static void unpack_bytes(const unsigned char *src, size_t n, unsigned char middle, int8_t *out)
{
    for (size_t i = 0; i < n; i++)
        out[i] = (int8_t)(src[i] ^ middle);
}

/* Two's complement and an offset of 8 differ in the top bit alone. */
static int8_t nibble(unsigned bits, unsigned flip)
{
    return (int8_t)((int)((bits & 15) ^ flip) - 8);
}

static void unpack_nibbles(const unsigned char *src, bool high_first, size_t n, unsigned flip,
                           int8_t *out)
{
    if (high_first && n) {
        *out++ = nibble((unsigned)*src++ >> 4, flip);
        n--;
    }
    for (size_t i = 0; i < n / 2; i++) {
        out[2 * i] = nibble(src[i], flip);
        out[2 * i + 1] = nibble((unsigned)src[i] >> 4, flip);
    }
    if (n % 2)
        out[n - 1] = nibble(src[n / 2], flip);
}

static void unpack_ints(int32_t data_type, const unsigned char *src, bool high_first, size_t n,
                        int8_t *out)
{
    switch (data_type) {
    case ONNX__TENSOR_PROTO__DATA_TYPE__UINT8:
        unpack_bytes(src, n, 0x80, out);
        break;
    case QF_DTYPE_INT4:
        unpack_nibbles(src, high_first, n, 8, out);
        break;
    case QF_DTYPE_UINT4:
        unpack_nibbles(src, high_first, n, 0, out);
        break;
    default:
        memcpy(out, src, n);
    }
}

void qf_source_ints(const qf_span *span, const qf_varint_index *index, int32_t data_type,
                    uint64_t first, size_t n, int8_t *out)
{
    enum { CHUNK = 1024 };
    unsigned per_byte = qf_dtype_bits(data_type) == 4 ? 2 : 1;
    if (!index->offsets) {
        if (n)
            unpack_ints(data_type, span->data + first / per_byte, first % per_byte, n, out);
        return;
    }
    unsigned char bytes[CHUNK];
    while (n) {
        size_t m = n < CHUNK ? n : CHUNK;
        bool high_first = first % per_byte;
        size_t stored = (m + high_first + per_byte - 1) / per_byte;
        qf_source_elements(span, index, 1, first / per_byte, stored, bytes);
        unpack_ints(data_type, bytes, high_first, m, out);
        first += m;
        out += m;
        n -= m;
    }
}
