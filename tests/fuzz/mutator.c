/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The mutator of targets whose input ends in a model. FUZZ_HEAD says what stands before it:
 * nothing, a number of bytes, a part with its length (FUZZ_CUT), or the parts of an export
 * (FUZZ_EXPORT).
 */
#include <stdlib.h>
#include <string.h>

#include "mutate_onnx.h"
#include "parts.h"

#define FUZZ_CUT (-1)
#define FUZZ_EXPORT (-2)

size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t most);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t most, unsigned seed);
size_t LLVMFuzzerCustomCrossOver(const uint8_t *a, size_t a_size, const uint8_t *b, size_t b_size,
                                 uint8_t *out, size_t most, unsigned seed);

enum { PARTS = 4, LENGTH = 2, PART_MOST = 0xffff };

/* An input as parts; the last one is the model. */
typedef struct split {
    fuzz_part parts[PARTS];
    bool cut[PARTS]; /* has its length in front */
    int count;
} split;

static split take_apart(const uint8_t *data, size_t size)
{
    split s = {.count = 2};
    fuzz_part rest = {data, size};
    if (FUZZ_HEAD == FUZZ_EXPORT) {
        export_parts e = export_parts_of(data, size);
        s = (split){{e.options, e.record, e.config, e.model}, {false, true, true, false}, 4};
    } else if (FUZZ_HEAD == FUZZ_CUT) {
        s.parts[0] = fuzz_cut(&rest);
        s.cut[0] = true;
        s.parts[1] = rest;
    } else {
        size_t head = (size_t)(FUZZ_HEAD > 0 ? FUZZ_HEAD : 0);
        head = head < size ? head : size;
        s.parts[0] = (fuzz_part){data, head};
        s.parts[1] = (fuzz_part){data + head, size - head};
    }
    return s;
}

/* Part `which` becomes [body, body + n). Returns the size of the whole, 0 if that is too much. */
static size_t join(const split *s, int which, const uint8_t *body, size_t n, uint8_t *out,
                   size_t most)
{
    size_t size = 0;
    for (int i = 0; i < s->count; i++) {
        const uint8_t *data = i == which ? body : s->parts[i].data;
        size_t length = i == which ? n : s->parts[i].size;
        if (s->cut[i] && length > PART_MOST)
            length = PART_MOST;
        if (size + length + LENGTH > most)
            return 0;
        if (s->cut[i]) {
            out[size++] = (uint8_t)length;
            out[size++] = (uint8_t)(length >> 8);
        }
        if (length)
            memcpy(out + size, data, length);
        size += length;
    }
    return size;
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t most, unsigned seed)
{
    split s = take_apart(data, size);
    int which = s.count - 1;
    if (seed % 8 < 3) /* often the model, now and then what stands before it */
        which = (int)(seed / 8 % (unsigned)s.count);
    size_t room = most - (size - s.parts[which].size), n = s.parts[which].size, made = 0;
    bool fixed = which < s.count - 1 && !s.cut[which];
    room = fixed ? n : room;
    uint8_t *body = malloc(room ? room : 1), *whole = malloc(most);
    if (body && whole && room) {
        memcpy(body, s.parts[which].data, n);
        n = which == s.count - 1 ? fuzz_mutate_onnx(body, n, room, seed)
                                 : LLVMFuzzerMutate(body, n, room);
        n = fixed ? s.parts[which].size : n;
        made = join(&s, which, body, n, whole, most);
        if (made)
            memcpy(data, whole, made);
    }
    free(body);
    free(whole);
    return made ? made : size;
}

size_t LLVMFuzzerCustomCrossOver(const uint8_t *a, size_t a_size, const uint8_t *b, size_t b_size,
                                 uint8_t *out, size_t most, unsigned seed)
{
    split x = take_apart(a, a_size), y = take_apart(b, b_size);
    int which = (int)(seed / 4 % (unsigned)x.count);
    if (seed % 4)
        which = x.count - 1;
    if (which < x.count - 1)
        return join(&x, which, y.parts[which].data, y.parts[which].size, out, most);
    uint8_t *model = malloc(most);
    size_t n = model ? fuzz_cross_onnx(x.parts[which], y.parts[which], model, most, seed) : 0;
    size_t made = n ? join(&x, which, model, n, out, most) : 0;
    free(model);
    return made;
}
