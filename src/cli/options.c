/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/options.h"

#include <ctype.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "cli/cli.h"

/* ---- values ---- */

static bool digits(const char *text, size_t n)
{
    return n > 0 && strspn(text, "0123456789") == n;
}

static int find_word(const char *word, const char *const *words, char why[CLI_WHY])
{
    size_t at = (size_t)snprintf(why, CLI_WHY, "takes");
    for (int i = 0; words[i]; i++) {
        if (strcmp(word, words[i]) == 0)
            return i;
        if (at < CLI_WHY)
            at += (size_t)snprintf(why + at, CLI_WHY - at, "%s %s", i ? "," : "", words[i]);
    }
    if (at < CLI_WHY)
        snprintf(why + at, CLI_WHY - at, ", not '%s'", word);
    return -1;
}

static bool parse_number(const char *text, uint64_t most, uint64_t *out, char why[CLI_WHY])
{
    size_t n = strlen(text);
    bool good = digits(text, n) && n <= 19;
    uint64_t v = good ? strtoull(text, NULL, 10) : 0;
    if (!good || v > most) {
        snprintf(why, CLI_WHY, "takes a whole number up to %llu, not '%s'",
                 (unsigned long long)most, text);
        return false;
    }
    *out = v;
    return true;
}

/* Units are powers of 1024 however they are written: 5G, 5g, 5GB, 5GiB. */
static bool parse_size(const char *text, uint64_t *out, char why[CLI_WHY])
{
    static const char units[] = "KMGT";
    size_t count = strspn(text, "0123456789");
    const char *unit = text[count] ? strchr(units, toupper((unsigned char)text[count])) : NULL;
    const char *behind = text + count + (unit != NULL);
    unsigned shift = unit ? 10 * (unsigned)(unit - units + 1) : 0;
    bool known =
        !*behind || (unit && (strcasecmp(behind, "b") == 0 || strcasecmp(behind, "ib") == 0));
    uint64_t v = known && count && count <= 18 ? strtoull(text, NULL, 10) : 0;
    if (!v || v > UINT64_MAX >> shift) {
        snprintf(why, CLI_WHY, "takes a size in bytes, or with K, M, G or T behind it, not '%s'",
                 text);
        return false;
    }
    *out = v << shift;
    return true;
}

/* Says what a parser found wrong with --`option`. */
static int complain(const char *option, const char *why)
{
    fprintf(stderr, "quantfold: --%s ", option);
    cli_put_text(stderr, why);
    fputc('\n', stderr);
    return EXIT_USAGE;
}

/* ---- options ---- */

const cli_option *cli_find_option(const cli_option *table, const char *name)
{
    while (table->name && strcmp(table->name, name) != 0)
        table++;
    return table->name ? table : NULL;
}

bool cli_takes_value(const cli_option *o)
{
    return o->kind != CLI_FLAG && o->kind != CLI_OFF;
}

void cli_set_flag(const cli_option *o, void *target, bool given)
{
    bool value = o->kind == CLI_FLAG ? given : !given;
    memcpy((char *)target + o->at, &value, sizeof value);
}

static bool add_text(cli_texts *texts, const char *text, char why[CLI_WHY])
{
    const char **list = realloc(texts->list, (texts->count + 1) * sizeof *list);
    if (!list) {
        snprintf(why, CLI_WHY, "is one too many: out of memory");
        return false;
    }
    texts->list = list;
    texts->list[texts->count++] = text;
    return true;
}

bool cli_set_option(const cli_option *o, void *target, const char *text, char why[CLI_WHY])
{
    char *at = (char *)target + o->at;
    uint64_t n = 0;
    uint32_t shard[2];
    int i;
    why[0] = '\0';
    switch (o->kind) {
    case CLI_FLAG:
    case CLI_OFF:
        cli_set_flag(o, target, true);
        return true;
    case CLI_WORD:
        i = find_word(text, o->words, why);
        if (i >= 0)
            memcpy(at, &i, sizeof i); /* an enum has the size of an int */
        return i >= 0;
    case CLI_COUNT:
        if (!parse_number(text, o->most, &n, why))
            return false;
        i = (int)n;
        memcpy(at, &i, sizeof i);
        return true;
    case CLI_NUMBER:
    case CLI_SIZE:
        if (!(o->kind == CLI_SIZE ? parse_size(text, &n, why)
                                  : parse_number(text, o->most, &n, why)))
            return false;
        memcpy(at, &n, sizeof n);
        return true;
    case CLI_SHARD:
        if (!cli_read_shard(text, &shard[0], &shard[1]))
            return false;
        memcpy(at, shard, sizeof shard);
        return true;
    case CLI_EACH:
        return add_text((cli_texts *)(void *)at, text, why);
    case CLI_TEXT:
    case CLI_PATH:
    case CLI_SOURCE:
    case CLI_NAMES:
    case CLI_AXES:
        break;
    }
    memcpy(at, &text, sizeof text);
    return true;
}

/* ---- a command line ---- */

enum { HELP = 'h', FIRST = 256 }; /* what getopt_long returns for an entry: above all letters */

/* The table as getopt_long takes it. */
static void list_options(const cli_option *table, struct option *list, char *letters)
{
    size_t n = 0;
    *letters++ = ':'; /* a missing value is told from an option that is none */
    *letters++ = HELP;
    for (; table[n].name; n++) {
        list[n] =
            (struct option){.name = table[n].name,
                            .has_arg = cli_takes_value(&table[n]) ? required_argument : no_argument,
                            .val = FIRST + (int)n};
        if (table[n].letter)
            *letters++ = table[n].letter;
        if (table[n].letter && cli_takes_value(&table[n]))
            *letters++ = ':';
    }
    list[n] = (struct option){.name = "help", .val = HELP};
    list[n + 1] = (struct option){0};
    *letters = '\0';
}

static const cli_option *by_letter(const cli_option *table, int letter)
{
    while (table->name && table->letter != letter)
        table++;
    return table;
}

/* Says what getopt_long could not make of `word`, with what it left in optopt. */
static int refuse_option(const char *command, const cli_option *table, bool value_missing,
                         const char *word)
{
    size_t length = strcspn(word, "="), near = 0;
    for (size_t i = 0; table[i].name; i++)
        near += length > 2 && strncmp(word + 2, table[i].name, length - 2) == 0;
    const cli_option *known = optopt >= FIRST ? &table[optopt - FIRST] : by_letter(table, optopt);
    if (optopt && value_missing)
        return cli_usage_error(command, "--%s needs a value", known->name);
    if (optopt >= FIRST || (optopt == HELP && length > 2))
        return cli_usage_error(command, "--%s takes no value",
                               optopt == HELP ? "help" : known->name);
    if (optopt)
        return cli_usage_error(command, "unknown option '-%c'", optopt);
    return cli_usage_error(
        command, near > 1 ? "option '%.*s' is short for several" : "unknown option '%.*s'",
        (int)length, word);
}

int cli_read_options(const char *command, const char *help, const cli_option *table, void *target,
                     int argc, char **argv, const char **word)
{
    struct option list[CLI_OPTIONS_MOST + 2];
    char letters[2 * CLI_OPTIONS_MOST + 3], why[CLI_WHY];
    list_options(table, list, letters);
    opterr = 0;
    for (int c; (c = getopt_long(argc, argv, letters, list, NULL)) != -1;) {
        if (c == HELP) {
            fputs(help, stdout);
            return cli_flush() ? EXIT_DONE : EXIT_SYSTEM;
        }
        if (c == '?' || c == ':')
            return refuse_option(command, table, c == ':', argv[optind - 1]);
        const cli_option *o = c >= FIRST ? &table[c - FIRST] : by_letter(table, c);
        if (cli_set_option(o, target, optarg, why))
            continue;
        return *why ? complain(o->name, why) : EXIT_USAGE;
    }
    if (word)
        *word = optind < argc ? argv[optind++] : NULL;
    if (optind != argc)
        return cli_usage_error(command, "unexpected word '%s'", argv[optind]);
    return -1;
}
