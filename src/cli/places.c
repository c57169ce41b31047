/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/places.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* "<a>/<b>"; `a` may end in a slash. */
static char *join(const char *a, const char *b)
{
    size_t n = strlen(a);
    while (n > 0 && a[n - 1] == '/')
        n--;
    size_t room = n + strlen(b) + 2;
    char *path = malloc(room);
    if (path)
        snprintf(path, room, "%.*s/%s", (int)n, a, b);
    return path;
}

static bool has_step_up(const char *path)
{
    for (const char *at = path; (at = strstr(at, "..")); at++) {
        if ((at == path || at[-1] == '/') && (!at[2] || at[2] == '/'))
            return true;
    }
    return false;
}

/* Takes ".", ".." and empty steps out of an absolute path, in place. Only of what is not there yet:
 * once it is made, a step up leads to where it was made from. */
static void tidy(char *path)
{
    char *out = path;
    for (char *step = path; step;) {
        char *end = strchr(step, '/');
        size_t n = end ? (size_t)(end - step) : strlen(step);
        if (n == 2 && step[0] == '.' && step[1] == '.') {
            while (out > path && *--out != '/') {
            }
        } else if (n && !(n == 1 && *step == '.')) {
            *out++ = '/';
            memmove(out, step, n);
            out += n;
        }
        step = end ? end + 1 : NULL;
    }
    *out = '\0';
}

/* The folder, as far as it is there without links, and the steps behind that as they stand. */
static char *resolve(const char *folder)
{
    char *head = strdup(*folder ? folder : "."), *there = NULL;
    char *rest = head ? calloc(1, strlen(head) + 2) : NULL; /* what of `head` is not there */
    while (rest && !(there = realpath(head, NULL))) {
        char *slash = strrchr(head, '/');
        size_t behind = slash ? (size_t)(slash - head) + 1 : 0;
        if (!slash && strcmp(head, ".") == 0)
            break; /* the working folder itself is gone */
        snprintf(rest, strlen(folder) + 2, "%s", folder + behind);
        if (slash && slash != head)
            *slash = '\0';
        else
            snprintf(head, strlen(head) + 1, "%s", slash ? "/" : ".");
        if (slash == head) {
            there = realpath("/", NULL);
            break;
        }
    }
    char *path = there ? join(there, rest) : NULL;
    if (path)
        tidy(path);
    if (path && has_step_up(rest)) { /* what was behind a step up may be there, and a link */
        char *whole = resolve(path);
        free(path);
        path = whole;
    }
    free(there);
    free(rest);
    free(head);
    return path;
}

char *cli_place(const char *path)
{
    const char *slash = strrchr(path, '/');
    const char *name = slash ? slash + 1 : path;
    char *folder = slash == path ? strdup("/") : strndup(path, slash ? (size_t)(slash - path) : 0);
    char *there = folder ? resolve(folder) : NULL;
    char *place = there ? join(there, name) : NULL;
    free(there);
    free(folder);
    return place;
}
