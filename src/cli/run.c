/* SPDX-License-Identifier: Apache-2.0 */
/* What the subcommands that write have in common: options of the run, and how it went. */
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"

const char *const cli_whens[] = {"auto", "always", "never", "json", NULL};
const char *const cli_externals[] = {"auto", "always", "never", NULL};
const char *const cli_ios[] = {"auto", "pwrite", "mmap", "direct", NULL};

char *cli_folder_path(const char *folder)
{
    size_t room = strlen(folder) + 2;
    char *path = malloc(room);
    if (path)
        snprintf(path, room, "%s/", folder);
    return path;
}

void cli_print_totals(qf_report_totals t, uint32_t shard, uint32_t shard_count, const char *option,
                      const char *target)
{
    char in[32], out[32], rate[32], kept[32];
    double per_second = t.seconds > 0 ? (double)(t.bytes_read + t.bytes_written) / t.seconds : 0;
    if (t.bytes_kept)
        printf("%s were there from an earlier run\n", cli_bytes(t.bytes_kept, kept));
    if (shard_count) {
        printf("shard %u of %u is done; when all are, put them in place with 'quantfold commit %s ",
               shard, shard_count, option);
        cli_put_text(stdout, target);
        puts("'");
    }
    printf("%s in, %s out, %.2f s, %s/s\n", cli_bytes(t.bytes_read, in),
           cli_bytes(t.bytes_written, out), t.seconds, cli_bytes((uint64_t)per_second, rate));
}

void cli_json_totals(cJSON *root, qf_report_totals t)
{
    cJSON_AddNumberToObject(root, "bytes_read", (double)t.bytes_read);
    cJSON_AddNumberToObject(root, "bytes_written", (double)t.bytes_written);
    cJSON_AddNumberToObject(root, "bytes_kept", (double)t.bytes_kept);
    cJSON_AddNumberToObject(root, "seconds", t.seconds);
}
