# SPDX-License-Identifier: Apache-2.0
"""Completion: both shells offer what the program takes, and are run to see it."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
from usage import accepts

HERE = Path(__file__).resolve().parent
OUTPUT = ("out_deploy_model.onnx", "out.manifest.json")  # files of an export


class Bash:
    """Calls the function that the script registers, as bash would."""

    def __init__(self, script: Path):
        self.script = script

    def __call__(self, folder: Path, *words: str) -> set[str]:
        """What is offered for the last word."""
        words = [part for word in words for part in self.split(word)]
        run = subprocess.run(
            ["bash", HERE / "complete.bash", self.script, "quantfold", *words],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert not run.stderr, run.stderr
        return set(run.stdout.split())

    @staticmethod
    def split(word: str) -> list[str]:
        """bash takes --option=word for three words, and for two where nothing is behind the sign."""
        option, sign, value = word.partition("=")
        return [part for part in (option, sign, value) if part] if sign else [word]


class Zsh:
    """Types the line into an interactive zsh and takes down what the completion adds."""

    def __init__(self, script: Path):
        self.script = script
        self.own = tempfile.TemporaryDirectory()

    def __call__(self, folder: Path, *words: str) -> set[str]:
        """What is offered for the last word."""
        out = Path(self.own.name, "offered")
        for path in (out, Path(f"{out}.done")):
            path.unlink(missing_ok=True)
        environment = {
            **os.environ,
            "TERM": "dumb",
            "COMPLETE_FOLDER": str(self.script.parent),
            "COMPLETE_OUT": str(out),
            "COMPLETE_DUMP": f"{self.own.name}/dump",
        }
        line = " ".join(("quantfold", *words))
        master, slave = pty.openpty()
        try:
            with subprocess.Popen(
                ["zsh", "-f", "-i"],
                cwd=folder,
                env=environment,
                stdin=slave,
                stdout=slave,
                stderr=slave,
                start_new_session=True,
            ) as shell:
                os.write(master, f"source {HERE}/complete.zsh\n{line}\t".encode())
                self.wait(Path(f"{out}.done"), master)
                shell.kill()
        finally:
            os.close(master)
            os.close(slave)
        return {word.rstrip("/") for word in out.read_text().splitlines() if word}

    @staticmethod
    def wait(path: Path, master: int) -> None:
        """Reads what the terminal shows until the file is there."""
        os.set_blocking(master, False)
        shown, end = b"", time.monotonic() + 30
        while not path.exists():
            assert time.monotonic() < end, f"zsh did not answer:\n{shown.decode(errors='replace')}"
            try:
                shown += os.read(master, 65536)
            except BlockingIOError:
                time.sleep(0.01)


@pytest.fixture(scope="session", params=[Bash, Zsh])
def complete(request, repo):
    """The completion of one shell."""
    name = {"Bash": "quantfold.bash", "Zsh": "_quantfold"}[request.param.__name__]
    return request.param(repo / "docs" / "completion" / name)


@pytest.fixture
def folder(tmp_path):
    """A folder with one file of each kind, and a folder."""
    place = tmp_path / "here"
    (place / "deep").mkdir(parents=True)
    for name in ("m.onnx", "c.json", "r.txt", "w.safetensors", "notes.md", *OUTPUT):
        (place / name).touch()
    return place


def write_checkpoint(place: Path) -> None:
    """A folder as of Hugging Face, with one linear weight."""
    tensor = {"dtype": "F32", "shape": [64, 128], "data_offsets": [0, 64 * 128 * 4]}
    header = json.dumps({"model.layers.0.mlp.up_proj.weight": tensor}).encode()
    data = len(header).to_bytes(8, "little") + header + bytes(64 * 128 * 4)
    (place / "model.safetensors").write_bytes(data)
    (place / "config.json").write_text('{"model_type": "llama"}')


def long_options(offered: set[str]) -> set[str]:
    """Options as offered: zsh adds the sign that may follow."""
    return {word.rstrip("=") for word in offered if word.startswith("--")}


def test_commands_are_offered(complete, commands, folder):
    """All of them, and no other."""
    assert complete(folder, "") - {"-h", "-V"} >= set(commands)
    assert {w for w in complete(folder, "") if not w.startswith("-")} == set(commands)
    assert complete(folder, "--") == {"--help", "--version"}
    assert complete(folder, "ch") == {"check", "checkpoint"}


def test_options_are_offered(complete, commands, quantfold, folder):
    """Each that --help prints; and no other that the program does not take."""
    for name, command in commands.items():
        offered = long_options(complete(folder, name, "--"))
        missing = command.options - offered
        assert not missing, f"{name}: {sorted(missing)} not offered"
        stale = [o for o in offered - command.options if not accepts(quantfold, name, o)]
        assert not stale, f"{name}: {stale} offered, which the program does not take"


def test_words_are_offered(complete, commands, folder):
    """Of each option that takes a word: exactly those that the program takes."""
    for name, command in commands.items():
        for option, words in command.words.items():
            assert complete(folder, name, option, "") == set(words), f"{name} {option}"


def test_words_behind_a_sign(complete, folder):
    """--option=word is completed too."""
    assert complete(folder, "export", "--external-layout=") == {"per-tensor", "single"}
    assert complete(folder, "export", "--io=p") == {"pwrite"}
    assert complete(folder, "export", "--model", "m.onnx", "--io", "d") == {"direct"}


def test_schemes_are_the_programs(complete, quantfold, repo, folder):
    """Every scheme that is offered is one that the program takes."""
    model = repo / "datasets" / "digits" / "model.onnx"
    offered = complete(folder, "check", "--weight-only", "")
    assert "record" in offered and len(offered) > 2
    for scheme in offered - {"record"}:
        run = quantfold("check", "--model", model, "--weight-only", scheme)
        assert "scheme" not in run.err and run.code != 2, run.err
    offered = complete(folder, "checkpoint", "--scheme", "")
    assert len(offered) > 2
    write_checkpoint(folder / "deep")
    paths = ("--model", folder / "deep", "--out", folder / "out", "--dry-run")
    for scheme in offered:
        run = quantfold("checkpoint", *paths, "--scheme", scheme)
        assert run.code == 0 and "would quantize 1 of 1" in run.out, run.err
    assert quantfold("checkpoint", *paths, "--scheme", "w3a16").code != 0


@pytest.mark.parametrize(
    "words, files",
    [
        (("export", "--model"), {"m.onnx", OUTPUT[0]}),
        (("export", "--config"), {"c.json", OUTPUT[1]}),
        (("export", "--record"), {"r.txt"}),
        (("export", "--save-path"), set()),
        (("check", "--model"), {"m.onnx", OUTPUT[0]}),
        (("record", "--activations"), {"c.json", OUTPUT[1]}),
        (("record", "--output"), {"r.txt"}),
        (("checkpoint", "--model"), set()),
        (("checkpoint", "--out"), set()),
        (("checkpoint", "--scales"), {"minmax", "record", "r.txt", "w.safetensors"}),
        (("inspect",), {"m.onnx", OUTPUT[0]}),
        (("batch",), {"c.json", OUTPUT[1]}),
        (("report",), {OUTPUT[1]}),
        (("verify",), set(OUTPUT)),
        (("verify", "m", "--against"), {"m.onnx", OUTPUT[0]}),
    ],
)
def test_files_are_offered_by_kind(complete, folder, words, files):
    """Files with the right suffix, and folders to go on in."""
    offered = complete(folder, *words, "")
    assert {word for word in offered if not word.startswith("-")} == files | {"deep"}


def test_nothing_is_offered_where_anything_goes(complete, folder):
    """A number or a name of the user's own."""
    for option in ("--threads", "--input-names", "--include"):
        assert complete(folder, "export", option, "") == set(), option
