# SPDX-License-Identifier: Apache-2.0
"""Sources that are cut, or written to, while they are read: an error, and nothing is written.

The shim does it at a certain call, so that each run goes the same way. Cut at a page's border or
below, the rest of a mapped file is a SIGBUS; cut inside the last page, it reads as zeroes.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

import scenarios  # noqa: E402
import shim  # noqa: E402
from support import Result, snapshot  # noqa: E402

IOS = ["pwrite", "mmap", "direct"]
WRONG_INPUT, SYSTEM_FAILED = 1, 3
FAST = ("--external", "always", "--no-fsync")


@dataclass
class Place:
    """Inputs, an older output and a way to run into trouble."""

    quantfold: object
    folder: Path

    @property
    def inputs(self) -> Path:
        return self.folder / "in"

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def write(self, write, steps) -> None:
        """Inputs, and the output of others."""
        write(self.inputs, 1)
        write(self.folder / "older", 0)
        for step in steps(self.folder / "older", self.out):
            assert self.quantfold(*step).code == 0
        self.before = snapshot(self.out)

    def strike(self, step: list, only: Path, fault: str) -> Result:
        """A run that meets a fault."""
        report = self.folder / "report"
        report.unlink(missing_ok=True)
        preload = shim.preload(Path(self.quantfold.binary))
        env = shim.environment(preload, only, fault, report)
        result = self.quantfold(*step, env=env)
        assert shim.fired(report) is not None, f"{fault} was not reached: {result.err}"
        return result

    def refused(self, step: list, only: Path, fault: str, victim: Path, *words: str) -> None:
        """The same, which must end in an error that names the file, and change nothing."""
        result = self.strike(step, only, fault)
        assert result.code in (WRONG_INPUT, SYSTEM_FAILED), f"exit {result.code}: {result.err}"
        assert victim.name in result.err, result.err
        assert any(word in result.err for word in words), result.err
        assert snapshot(self.out) == self.before, "the older output was touched"


@pytest.fixture
def place(quantfold, tmp_path) -> Place:
    return Place(quantfold, tmp_path)


def write_big(folder: Path, seed: int) -> None:
    """Weights of megabytes inside the model."""
    scenarios.write_model(folder, seed, width=2600, passed=300_000)


def largest(folder: Path) -> Path:
    """The file that most is read of."""
    return max(folder.iterdir(), key=lambda path: path.stat().st_size)


CUTS = {
    "all of it": lambda size: 0,
    "a half": lambda size: size // 2,
    "a byte": lambda size: size - 1,
}


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("io", IOS)
@pytest.mark.parametrize("write", [write_big, scenarios.write_external_model])
def test_source_cut_before_it_is_swept(place, write, io, threads, cut):
    steps = scenarios.export(*FAST, "--io", io, "--threads", threads)
    place.write(write, steps)
    victim = largest(place.inputs)
    fault = f"fallocate:1:truncate={victim},{CUTS[cut](victim.stat().st_size)}"
    place.refused(
        steps(place.inputs, place.out)[0],
        place.out,
        fault,
        victim,
        "became shorter while it was read",
    )


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    "io, call", [("pwrite", "pwrite:1"), ("mmap", "mmap:2"), ("direct", "pwrite:1")]
)
@pytest.mark.parametrize("write", [write_big, scenarios.write_external_model])
def test_source_cut_in_the_middle_of_the_sweep(place, write, io, call, threads):
    steps = scenarios.export(*FAST, "--io", io, "--threads", threads)
    place.write(write, steps)
    victim = largest(place.inputs)
    fault = f"{call}:truncate={victim},4096"
    place.refused(
        steps(place.inputs, place.out)[0],
        place.out,
        fault,
        victim,
        "became shorter while it was read",
    )


@pytest.mark.parametrize("io", IOS)
def test_source_changed_in_the_middle_of_the_sweep(place, io):
    steps = scenarios.export(*FAST, "--io", io)
    place.write(write_big, steps)
    victim = place.inputs / "model.onnx"
    place.refused(
        steps(place.inputs, place.out)[0],
        place.out,
        f"fallocate:1:write={victim}",
        victim,
        "was changed while it was read",
    )


@pytest.mark.parametrize("size", [0, 5000])
@pytest.mark.parametrize("call", ["mmap:1", "read:1"])
@pytest.mark.parametrize("command", ["export", "record"])
def test_model_cut_while_it_is_opened_or_planned(place, command, call, size):
    steps = scenarios.export() if command == "export" else scenarios.record
    place.write(write_big, steps)
    victim = place.inputs / "model.onnx"
    place.refused(
        steps(place.inputs, place.out)[0],
        place.inputs,
        f"{call}:truncate={victim},{size}",
        victim,
        "became shorter while it was read",
    )


@pytest.mark.parametrize("only, call", [("in", "mmap:1"), ("in", "read:1"), ("out", "fallocate:1")])
def test_checkpoint_cut(place, only, call):
    place.write(scenarios.write_checkpoint, scenarios.checkpoint)
    victim = place.inputs / scenarios.SHARD_NAMES[0]
    if call == "read:1":  # the index is read before any shard is opened
        call = "read:2"
    place.refused(
        scenarios.checkpoint(place.inputs, place.out)[0],
        place.folder / only,
        f"{call}:truncate={victim},300",
        victim,
        "became shorter while it was read",
    )


def exported(place: Place, *extra) -> Path:
    """A sound output with a manifest; its prefix."""
    place.write(write_big, scenarios.export("--manifest", "--no-fsync", *extra))
    step = scenarios.export("--manifest", "--no-fsync", *extra)(place.inputs, place.out)[0]
    assert place.quantfold(*step).code == 0
    return place.out / "m"


def verify_cut(place: Place, step: list, only: Path, call: str, victim: Path, size: int) -> None:
    """What verify saw of a file that was cut meanwhile is no finding: it says so, and that alone."""
    result = place.strike(step, only, f"{call}:truncate={victim},{size}")
    assert result.code in (WRONG_INPUT, SYSTEM_FAILED), f"exit {result.code}: {result.err}"
    lines = [line for line in result.err.splitlines() if line.strip()]
    assert len(lines) == 1 and victim.name in lines[0], result.err
    assert "became shorter while it was read" in lines[0], result.err


# with files of their own, each of them is mapped as its tensor is resolved
@pytest.mark.parametrize("size", [0, 4096])
@pytest.mark.parametrize("call", ["mmap:1", "mmap:2", "mmap:3"])
@pytest.mark.parametrize("form", [("--external", "never"), ("--external", "always")])
def test_output_cut_while_it_is_verified(place, form, call, size):
    prefix = exported(place, *form)
    victim = place.out / "m_deploy_model.onnx"
    if form[1] == "always":  # the graph alone is smaller than that
        size //= 8
    verify_cut(place, ["verify", prefix], place.out, call, victim, size)


def test_external_file_cut_while_it_is_verified(place):
    prefix = exported(place, "--external", "always")
    victim = max(place.out.glob("*_fakequant.external"), key=lambda path: path.stat().st_size)
    (place.out / "m_deploy_model.onnx").unlink()
    (place.out / "m.manifest.json").unlink()
    verify_cut(place, ["verify", prefix], place.out, "mmap:4", victim, 4096)


def test_file_of_the_manifest_cut_while_it_is_verified(place):
    """When it is mapped again for its hashes, which would be those of zeroes."""
    prefix = exported(place, "--external", "never")
    victim = place.out / "m_deploy_model.onnx"
    (place.out / "m_fake_quant_model.onnx").unlink()
    verify_cut(place, ["verify", prefix], place.out, "mmap:2", victim, 4096)


def test_source_cut_while_verify_recomputes(place):
    """When it is planned, and the planned model is put together in memory to be compared."""
    prefix = exported(place)
    model = place.inputs / "model.onnx"
    step = ["verify", prefix, "--against", model, "--record", place.inputs / "record.txt"]
    step += ["--config", place.inputs / "config.json"]
    memory = Path("/memfd")  # :quantfold-verify
    verify_cut(place, step, memory, "ftruncate:1", model, 4096)


def test_what_was_made_of_zeroes_is_not_taken_up_again(place):
    """The journal of a run that can be resumed has nothing of what could not be read."""
    steps = scenarios.export("--external", "always", "--resume", "--threads", "1")
    place.write(write_big, steps)
    model = place.inputs / "model.onnx"
    whole, times = model.read_bytes(), model.stat()
    step = steps(place.inputs, place.out)[0]
    result = place.strike(step, place.out, f"fallocate:1:truncate={model},4096")
    assert "became shorter" in result.err
    model.write_bytes(whole)
    os.utime(model, ns=(times.st_atime_ns, times.st_mtime_ns))  # as if only the disk had failed
    assert place.quantfold(*step).code == 0
    resumed = snapshot(place.out)
    clean = place.folder / "clean"
    assert place.quantfold(*steps(place.inputs, clean)[0]).code == 0
    assert resumed == snapshot(clean)


def test_output_cut_while_it_is_mapped(place):
    """What cannot take what is written is an error of the output."""
    steps = scenarios.export(
        "--external", "always", "--external-layout", "single", "--io", "mmap", "--threads", "1"
    )
    place.write(write_big, steps)
    victim = place.out / ".m.quantfold-partial" / "m_deploy_model.external"
    step = steps(place.inputs, place.out)[0]
    # a window is unmapped when it is full; what comes next in it finds no file below
    result = place.strike(step, place.out, f"mmap:1:truncate={victim},0")
    assert result.code == SYSTEM_FAILED, result.err
    assert "m_deploy_model.external: cannot write the output file" in result.err
    assert snapshot(place.out) == place.before
