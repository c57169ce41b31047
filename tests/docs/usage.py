# SPDX-License-Identifier: Apache-2.0
"""What the program itself says of its commands, options and words: what documents are held against."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

OPTION = r"--[a-z][a-z-]*"


@dataclass
class Command:
    """One command: the options of its --help, and those of these that take one of some words."""

    name: str
    summary: str
    options: set[str] = field(default_factory=set)
    words: dict[str, list[str]] = field(default_factory=dict)


def printed_options(text: str) -> set[str]:
    """Options of a --help text: of its usage lines and of its list, not those it mentions."""
    usage, *rest = text.split("\n\n")
    found = set(re.findall(rf"(?:[ \[|])({OPTION})", usage))
    for line in "\n\n".join(rest).splitlines():
        if re.match(r" {2,8}(-\w, )?--\w", line):
            found.add(re.search(OPTION, line)[0])
            # more of them in one line: with a letter, with what they take, or in brackets
            found |= set(re.findall(rf"(?:-\w, |\()({OPTION})", line))
            found |= set(re.findall(rf"[,;] ({OPTION})(?= [A-Z])", line))
    return found


def accepts(quantfold, command: str, option: str) -> bool:
    """Whether the command knows the option, in its full length or cut."""
    return "unknown option" not in quantfold(command, option).err


def words_of(quantfold, command: str, option: str) -> list[str]:
    """The words an option takes, as the message about a wrong one lists them; else nothing."""
    said = quantfold(command, f"{option}=?").err
    listed = re.search(rf"{option} takes ((?:[a-z0-9-]+, )+[a-z0-9-]+), not", said)
    return listed[1].split(", ") if listed else []


def read_commands(quantfold) -> dict[str, Command]:
    """All commands, from the program's --help."""
    listed = re.findall(r"^  (\w+) {2,}(\S.*)$", quantfold("--help").out, re.MULTILINE)
    commands = {}
    for name, summary in listed:
        help_text = quantfold(name, "--help").out
        command = Command(name, summary, printed_options(help_text) | {"--help"})
        # getopt takes a unique beginning too: only what is listed or written out in full counts
        for option in sorted(command.options):
            words = words_of(quantfold, name, option)
            if words:
                command.words[option] = words
        commands[name] = command
    return commands
