/* SPDX-License-Identifier: Apache-2.0 */
#include <signal.h>
#include <string.h>

#include "cli/cli.h"

static const struct {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *summary;
} commands[] = {
    {"export", cmd_export, "write the deploy and fake_quant models"},
    {"checkpoint", cmd_checkpoint, "quantize the weights of a safetensors checkpoint"},
    {"batch", cmd_batch, "run many exports, one after another"},
    {"commit", cmd_commit, "put in place what the shards of an export have written"},
    {"check", cmd_check, "validate model, config and record; report everything that is wrong"},
    {"record", cmd_record,
     "calculate a record from weights and ranges, or take it from a QDQ model"},
    {"verify", cmd_verify, "say whether an output is sound, and that of these inputs"},
    {"report", cmd_report, "make an HTML page of what an export with --stats has written"},
    {"inspect", cmd_inspect, "show a model's layers and which can be quantized"},
};

static void print_help(FILE *out)
{
    fprintf(out,
            "quantfold %s: from a QAT-trained ONNX model to what ships on the NPU\n\n"
            "usage: quantfold COMMAND [OPTIONS]\n\n",
            qf_version());
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
        fprintf(out, "  %-10s  %s\n", commands[i].name, commands[i].summary);
    fprintf(out,
            "\nquantfold COMMAND --help explains a command. Exit codes: 0 done, 1 the input or "
            "the\nrequest is wrong, 2 wrong usage, 3 the system failed, 130 interrupted.\n");
}

int main(int argc, char **argv)
{
    /* a write past a limit or into a closed pipe is an error to report, not a death */
    signal(SIGXFSZ, SIG_IGN);
    signal(SIGPIPE, SIG_IGN);
    const char *word = argc > 1 ? argv[1] : NULL;
    if (!word) {
        print_help(stderr);
        return EXIT_USAGE;
    }
    if (strcmp(word, "--help") == 0 || strcmp(word, "-h") == 0 || strcmp(word, "help") == 0) {
        print_help(stdout);
        return cli_flush() ? EXIT_DONE : EXIT_SYSTEM;
    }
    if (strcmp(word, "--version") == 0 || strcmp(word, "-V") == 0) {
        cli_print_version();
        return cli_flush() ? EXIT_DONE : EXIT_SYSTEM;
    }
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++) {
        if (strcmp(word, commands[i].name) == 0)
            return commands[i].run(argc - 1, argv + 1);
    }
    return cli_usage_error(NULL, "unknown command '%s'", word);
}
