# SPDX-License-Identifier: Apache-2.0
"""README and docs: links lead somewhere, command lines are ones the program takes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
ROOMS = ("docs", "datasets", "kernels", "bench", "tests", "python", "src")
DOCUMENTS = [
    REPO / "README.md",
    *(d for room in ROOMS for d in sorted((REPO / room).rglob("*.md"))),
]
# of sbatch, mpirun, a program that checkpoints are compared with
OF_OTHERS = {"--array", "--bind-to", "--dependency", "--float32", "--map-by"}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def ids(path: Path) -> str:
    """Name of a case."""
    return str(path.relative_to(REPO))


every_document = pytest.mark.parametrize("document", DOCUMENTS, ids=ids)


def prose(document: Path) -> str:
    """The text without its blocks of code."""
    return FENCE.sub("", document.read_text())


def anchors(document: Path) -> set[str]:
    """What headings can be referred to by, as GitHub makes it."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.*)$", prose(document), re.MULTILINE):
        base = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        name, n = base, 0
        while name in found:
            n += 1
            name = f"{base}-{n}"
        found.add(name)
    return found


def links(document: Path) -> list[str]:
    """Targets of links and pictures that lie in the tree."""
    targets = re.findall(r"\]\(([^)\s]+)\)", prose(document))
    return [target for target in targets if not re.match(r"[a-z]+:", target)]


@every_document
def test_links_lead_to_files_and_headings(document):
    """Each relative link has its file, and its heading where it names one."""
    for target in links(document):
        path, _, anchor = target.partition("#")
        file = (document.parent / path).resolve() if path else document
        assert file.exists(), f"{target} leads to no file"
        assert file.is_relative_to(REPO), f"{target} leads out of the tree"
        if anchor:
            assert anchor in anchors(file), f"{target}: no such heading"


def test_every_document_is_linked():
    """Each page of docs/ can be found from the README, by way of others if need be."""
    seen, found = set(), [REPO / "README.md"]
    while found:
        document = found.pop()
        if document in seen or document.suffix != ".md":
            continue
        seen.add(document)
        paths = [target.partition("#")[0] for target in links(document)]
        found += [(document.parent / path).resolve() for path in paths if path]
    lost = [ids(document) for document in DOCUMENTS if document not in seen]
    assert not lost, f"no link leads to {lost}"


def command_lines(document: Path) -> list[list[str]]:
    """Command lines of the program in blocks and in running text, in words."""
    text = document.read_text()
    lines = []
    for language, block in FENCE.findall(text):
        if language in ("sh", "bash", ""):
            lines += block.replace("\\\n", " ").splitlines()
    lines += re.findall(r"`([^`\n]+)`", prose(document))
    found = []
    for line in lines:
        words = shlex.split(line, comments=True) if "quantfold " in line else []
        while words and re.match(r"\w+=", words[0]):  # variables of the environment
            words.pop(0)
        if len(words) > 1 and Path(words[0]).name == "quantfold":
            found.append(words)
    return found


@every_document
def test_command_lines_are_understood(document, commands):
    """Commands, options and their words in examples exist."""
    for line in command_lines(document):
        name, *rest = line[1:]
        if name.startswith("-"):
            assert name in ("--version", "--help"), line
            continue
        if name.isupper():  # COMMAND
            continue
        assert name in commands, f"{shlex.join(line)}: no such command"
        for word, following in zip(rest, [*rest[1:], ""]):
            option, sign, value = word.partition("=")
            if not option.startswith("--"):
                continue
            assert option in commands[name].options, f"{shlex.join(line)}: {option}"
            words = commands[name].words.get(option)
            value = value if sign else following
            assert not words or value in words, f"{shlex.join(line)}: {option} {value}"


@every_document
def test_options_in_text_exist(document, commands):
    """`--option` and `--option word` in running text are of some command."""
    known: dict[str, set[str]] = {"--version": set(), "--fsync": set()}
    known |= {option: set() for option in OF_OTHERS}
    for command in commands.values():
        for option in command.options:
            known.setdefault(option, set()).update(command.words.get(option, ()))
    for text in re.findall(r"`(--[^`\n]+)`", prose(document)):
        option, *rest = text.replace("=", " ").split()
        assert option in known, f"`{text}`: no command has {option} (of another: OF_OTHERS)"
        if rest and known[option]:
            assert rest[0].strip(",") in known[option] or rest[0].isupper(), f"`{text}`"


def test_there_is_something_to_check():
    """The patterns above still find links and command lines."""
    readme = REPO / "README.md"
    assert len(links(readme)) >= 8
    assert {line[1] for line in command_lines(readme)} >= {"export", "check", "inspect", "record"}
