/* SPDX-License-Identifier: Apache-2.0 */
/*
 * External data: a model in a folder with a file beside it, one below it, links out of the folder,
 * a pipe and a folder. Whatever the model says, no file outside is opened and no byte outside a
 * file is read. The input: the bytes of `w.bin` with their length in front, then the model.
 */
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fuzz.h"
#include "onnx/model.h"

static void make_traps(void)
{
    if (access(fuzz_path("in"), F_OK) == 0)
        return;
    static const char secret[64] = "outside";
    mkdir(fuzz_path("in"), 0700);
    mkdir(fuzz_path("in/sub"), 0700);
    mkdir(fuzz_path("inside"), 0700); /* the folder's name is the start of this one's */
    fuzz_write("inside/secret", secret, sizeof secret);
    fuzz_write("secret", secret, sizeof secret);
    fuzz_write("in/sub/w.bin", secret, sizeof secret);
    fuzz_write("in/empty", secret, 0);
    int failed = symlink("../secret", fuzz_path("in/out")) +
                 symlink("../inside/secret", fuzz_path("in/out2")) +
                 symlink("sub/w.bin", fuzz_path("in/link")) +
                 symlink("loop", fuzz_path("in/loop")) + symlink("..", fuzz_path("in/up")) +
                 mkfifo(fuzz_path("in/pipe"), 0600);
    FUZZ_REQUIRE(failed == 0, "cannot make links");
}

static void check_files(const qf_model *model)
{
    char folder[PATH_MAX], real[PATH_MAX];
    FUZZ_REQUIRE(realpath(fuzz_path("in"), folder), "no folder");
    size_t n = strlen(folder);
    for (size_t i = 0; i < model->file_count; i++) {
        FUZZ_REQUIRE(realpath(model->files[i].path, real), "no %s", model->files[i].path);
        FUZZ_REQUIRE(strncmp(real, folder, n) == 0 && real[n] == '/', "%s was opened", real);
    }
    for (size_t i = 0; i < model->payloads.count; i++) {
        const qf_payload *p = &model->payloads.items[i];
        const qf_file *f = &model->files[p->span.file];
        FUZZ_REQUIRE(p->span.offset <= f->size && p->span.length <= f->size - p->span.offset,
                     "payload %zu lies outside its file", i);
        FUZZ_REQUIRE(!p->span.length || p->span.data == f->data + p->span.offset, "payload %zu", i);
        fuzz_touch(p->span.data, (size_t)p->span.length);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    fuzz_part input = {data, size};
    qf_model *model;
    qf_error err;
    make_traps();
    fuzz_part weights = fuzz_cut(&input);
    fuzz_write("in/w.bin", weights.data, weights.size);
    qf_status status = qf_model_open(fuzz_write("in/m.onnx", input.data, input.size), &model, &err);
    if (status != QF_OK) {
        fuzz_check_failure(status, &err);
        return 0;
    }
    check_files(model);
    qf_model_close(model);
    return 0;
}
