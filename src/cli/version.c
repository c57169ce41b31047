/* SPDX-License-Identifier: Apache-2.0 */
/* `quantfold --version`: what a report of a bug should say. */
#include <cjson/cJSON.h>
#include <protobuf-c/protobuf-c.h>
#include <xxhash.h>
#ifdef QF_WITH_MPI
#include <mpi.h>
#endif

#include "cli/cli.h"

/* The compiler that made this file, which made the rest too. */
static const char *compiler(void)
{
#if defined(__clang__)
    return "clang " __clang_version__;
#else
    return "gcc " __VERSION__;
#endif
}

static void print_mpi(void)
{
#ifdef QF_WITH_MPI
    char text[MPI_MAX_LIBRARY_VERSION_STRING];
    int length = 0;
    MPI_Get_library_version(text, &length);
    for (int i = 0; i < length; i++) { /* some add a list of their own parts */
        if (text[i] == ',' || text[i] == '\n')
            text[i] = '\0';
    }
    printf("  MPI            %s\n", text);
#else
    puts("  MPI            none (build with -Dmpi=enabled)");
#endif
}

void cli_print_version(void)
{
    unsigned hash = XXH_versionNumber();
    printf("quantfold %s\n", qf_version());
    printf("  build          %s, %s, %s\n", QF_BUILD_TARGET, QF_BUILD_TYPE, compiler());
    printf("  instructions   %s (QUANTFOLD_ISA chooses another)\n", qf_kernels_active());
    printf("  OpenMP         %d\n", _OPENMP);
    printf("  protobuf-c     %s\n", protobuf_c_version());
    printf("  cJSON          %s\n", cJSON_Version());
    printf("  xxHash         %u.%u.%u\n", hash / 10000, hash / 100 % 100, hash % 100);
    print_mpi();
}
