# SPDX-License-Identifier: Apache-2.0
"""Man pages: one for each command, with its options and no others, sound and readable."""

from __future__ import annotations

import re
import subprocess

from usage import accepts


def pages(repo):
    """Source of every page by its name."""
    return {page.stem: page for page in (repo / "docs" / "man").glob("*.1")}


def described(source: str) -> set[str]:
    """Long options that have an entry of a list."""
    entries = re.findall(r"^\.It (.*)$", source, re.MULTILINE)
    return {f"-{o}" for e in entries for o in re.findall(r"(?:Fl |, )(?:\w , )?(-[a-z][a-z-]*)", e)}


def mentioned(source: str) -> set[str]:
    """Long options anywhere in a page: in its macros and in its examples."""
    return {f"-{o}" for o in re.findall(r"(?:Fl |Fl \w , |[ |] ?-)(-[a-z][a-z-]*)", source)} | set(
        re.findall(r"(?<= )--[a-z][a-z-]*", source)
    )


def test_every_command_has_a_page_and_every_page_a_command(commands, repo):
    """A command that is added needs its page; one that goes takes it along."""
    assert set(pages(repo)) == {"quantfold"} | {f"quantfold-{name}" for name in commands}


def test_pages_are_installed(repo):
    """meson.build lists each page."""
    listed = re.findall(r"man/([\w-]+)\.1", (repo / "docs" / "meson.build").read_text())
    assert sorted(listed) == sorted(pages(repo))


def test_main_page_lists_the_commands(commands, repo):
    """The same commands with the same words as --help."""
    source = pages(repo)["quantfold"].read_text()
    listed = dict(re.findall(r"^\.It Cm (\w+)\n(.*?)^\.Xr", source, re.MULTILINE | re.DOTALL))
    assert set(listed) == set(commands)
    for name, text in listed.items():
        text = re.sub(r"^\.Fl (-\S+)", r"-\1", text, flags=re.MULTILINE)
        said = re.sub(r"\s+", " ", text).strip().rstrip(":")
        summary = commands[name].summary.replace("; report", ", and report")
        assert said == summary, f"{name}: the page says '{said}', --help '{summary}'"
        assert f".Xr quantfold-{name} 1" in source.partition(".Sh SEE ALSO")[2], name


def test_options_are_those_of_the_program(commands, quantfold, repo):
    """Each option that --help prints has its entry; each entry is an option the program takes."""
    for name, command in commands.items():
        source = pages(repo)[f"quantfold-{name}"].read_text()
        entries = described(source)
        missing = command.options - entries
        assert not missing, f"quantfold-{name}.1 lacks {sorted(missing)}"
        stale = [o for o in entries - command.options if not accepts(quantfold, name, o)]
        assert not stale, f"quantfold-{name}.1 has {stale}, which the program does not take"


def test_no_page_mentions_an_option_that_is_none(commands, repo):
    """Options of other commands may be spoken of; those of no command may not."""
    known = set().union(*(c.options for c in commands.values())) | {"--version", "--fsync"}
    for name, page in pages(repo).items():
        stray = mentioned(page.read_text()) - known
        assert not stray, f"{name}.1 speaks of {sorted(stray)}"


def test_words_of_options_are_told(commands, repo):
    """The entry of an option that takes a word names each word."""
    for name, command in commands.items():
        source = pages(repo)[f"quantfold-{name}"].read_text()
        for option, words in command.words.items():
            entry = source.partition(f".It Fl {option[1:]} ")[2].partition("\n.It ")[0]
            told = re.sub(r"^\.Cm |^\.\w\w |[,.:;]", " ", entry, flags=re.MULTILINE).split()
            for word in words:
                assert word in told, f"quantfold-{name}.1: {option} does not tell of '{word}'"


def run_mandoc(page, form: str) -> tuple[int, str]:
    """Exit code and output; from the folder of the pages, where lint looks for those referred to."""
    run = subprocess.run(
        ["mandoc", f"-T{form}", page.name],
        cwd=page.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return run.returncode, run.stdout


def test_pages_are_sound(repo):
    """mandoc finds nothing to say, not even of style; references lead to pages."""
    for page in pages(repo).values():
        assert run_mandoc(page, "lint") == (0, ""), page


def test_pages_render(commands, repo):
    """What a reader sees: name, options with two dashes, sections in order."""
    for name, command in commands.items():
        code, text = run_mandoc(pages(repo)[f"quantfold-{name}"], "utf8")
        text = re.sub(".\b", "", text)
        assert code == 0
        assert re.search(rf"^NAME\n +quantfold-{name} \N{{EN DASH}} \w", text, re.MULTILINE), name
        for option in command.options:
            assert re.search(rf"^ +(-\w, )?.*{option}( |,|$)", text, re.MULTILINE), (name, option)
        heads = re.findall(r"^[A-Z][A-Z ]+$", text, re.MULTILINE)
        order = ["NAME", "SYNOPSIS", "DESCRIPTION", "ENVIRONMENT", "FILES", "EXIT STATUS"]
        order += ["EXAMPLES", "SEE ALSO"]
        assert heads == [head for head in order if head in heads], f"{name}: {heads}"
        assert "SYNOPSIS" in heads and "EXIT STATUS" in heads, f"{name}: {heads}"
