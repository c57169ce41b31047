/* SPDX-License-Identifier: Apache-2.0 */
/* Whether two paths name the same place, also where nothing is yet. */
#ifndef QF_CLI_PLACES_H
#define QF_CLI_PLACES_H

/* The path of a file to be, malloc'ed: its folder without links, dots and doubled slashes as far as
 * it is there, and its name. Of "a/" it is that of folder a with a slash behind. NULL when memory
 * is exhausted. */
char *cli_place(const char *path);

#endif
