/* SPDX-License-Identifier: Apache-2.0 */
#include "base/memory.h"

#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

uint64_t qf_memory_resident(void)
{
    uint64_t size = 0, pages = 0;
    FILE *f = fopen("/proc/self/statm", "re");
    if (!f)
        return 0;
    if (fscanf(f, "%" SCNu64 " %" SCNu64, &size, &pages) != 2)
        pages = 0;
    fclose(f);
    return pages * (uint64_t)sysconf(_SC_PAGESIZE);
}

/* The number in a file, UINT64_MAX if there is none ("max" is none). */
static uint64_t number_in(const char *path)
{
    uint64_t n = UINT64_MAX;
    FILE *f = fopen(path, "re");
    if (!f)
        return n;
    if (fscanf(f, "%" SCNu64, &n) != 1)
        n = UINT64_MAX;
    fclose(f);
    return n;
}

static uint64_t less(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

/* The limit of a group and, in a container, which sees its own group as the root, of the root. */
static uint64_t group_limit(const char *root, const char *group, const char *file)
{
    char path[PATH_MAX];
    uint64_t limit = UINT64_MAX;
    if (snprintf(path, sizeof path, "%s%s/%s", root, group, file) < (int)sizeof path)
        limit = number_in(path);
    if (snprintf(path, sizeof path, "%s/%s", root, file) < (int)sizeof path)
        limit = less(limit, number_in(path));
    return limit;
}

/* Lines are ID:CONTROLLERS:PATH; version 2 has no controllers. */
static uint64_t cgroup_limit(void)
{
    char line[PATH_MAX];
    uint64_t limit = UINT64_MAX;
    FILE *f = fopen("/proc/self/cgroup", "re");
    while (f && fgets(line, sizeof line, f)) {
        line[strcspn(line, "\n")] = '\0';
        char *controllers = strchr(line, ':');
        char *group = controllers ? strchr(controllers + 1, ':') : NULL;
        if (!group)
            continue;
        *group++ = '\0';
        if (!controllers[1])
            limit = less(limit, group_limit("/sys/fs/cgroup", group, "memory.max"));
        else if (strcmp(controllers + 1, "memory") == 0)
            limit =
                less(limit, group_limit("/sys/fs/cgroup/memory", group, "memory.limit_in_bytes"));
    }
    if (f)
        fclose(f);
    return limit;
}

uint64_t qf_memory_available(void)
{
    struct rlimit data;
    uint64_t limit = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);
    limit = less(limit, cgroup_limit());
    if (getrlimit(RLIMIT_DATA, &data) == 0 && data.rlim_cur != RLIM_INFINITY)
        limit = less(limit, data.rlim_cur);
    return limit;
}
