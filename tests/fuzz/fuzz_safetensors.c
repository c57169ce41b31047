/* SPDX-License-Identifier: Apache-2.0 */
/* The header of a safetensors file. */
#include <string.h>

#include "base/spill.h"
#include "checkpoint/safetensors.h"
#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    qf_arena arena;
    qf_error err;
    qf_safetensors tensors = {0};
    const char *metadata;
    uint64_t covered = 0;
    char name[] = "m.safetensors";
    const qf_file file = {.path = name, .data = data, .size = size};
    qf_arena_init(&arena);
    qf_status status = qf_safetensors_read(&file, 0, &arena, &tensors, &metadata, &err);
    if (status != QF_OK)
        fuzz_check_failure(status, &err);
    else if (metadata)
        fuzz_touch(metadata, strlen(metadata) + 1);
    for (size_t i = 0; status == QF_OK && i < tensors.count; i++) {
        const qf_safetensor *t = &tensors.items[i];
        qf_span span = qf_safetensor_span(t, &file);
        uint64_t elements;
        FUZZ_REQUIRE(t->offset <= size && t->length <= size - t->offset, "tensor %zu", i);
        FUZZ_REQUIRE(qf_dims_count(t->dims, t->rank, &elements), "tensor %zu has odd dims", i);
        fuzz_touch(span.data, (size_t)span.length);
        fuzz_touch(t->name, strlen(t->name) + 1);
        covered += t->length;
    }
    FUZZ_REQUIRE(status != QF_OK || covered <= size, "tensors overlap");
    qf_spill_free(tensors.items);
    qf_arena_release(&arena);
    return 0;
}
