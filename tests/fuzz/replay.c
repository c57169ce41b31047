/* SPDX-License-Identifier: Apache-2.0 */
/* Runs a fuzz target over files, and over all files of folders, that are given as arguments. A
 * folder that is not there is empty: a target of which nothing was ever found has no regressions.
 */
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fuzz.h"

static size_t count;

static void run_file(const char *path)
{
    FILE *file = fopen(path, "rb");
    size_t size = 0;
    FUZZ_REQUIRE(file && fseek(file, 0, SEEK_END) == 0, "cannot read %s", path);
    size = (size_t)ftell(file);
    rewind(file);
    uint8_t *data = malloc(size ? size : 1); /* no longer than the input, for the sanitizer */
    FUZZ_REQUIRE(data && fread(data, 1, size, file) == size, "cannot read %s", path);
    fclose(file);
    if (getenv("QUANTFOLD_FUZZ_VERBOSE"))
        fprintf(stderr, "%s\n", path);
    LLVMFuzzerTestOneInput(data, size);
    free(data);
    count++;
}

static void run_folder(const char *path, DIR *folder)
{
    char name[1024];
    for (const struct dirent *e; (e = readdir(folder));) {
        snprintf(name, sizeof name, "%s/%s", path, e->d_name);
        if (e->d_name[0] != '.')
            run_file(name);
    }
}

int main(int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        DIR *folder = opendir(argv[i]);
        if (folder) {
            run_folder(argv[i], folder);
            closedir(folder);
        } else if (errno == ENOTDIR) {
            run_file(argv[i]);
        }
    }
    printf("%zu inputs\n", count);
    return 0;
}
