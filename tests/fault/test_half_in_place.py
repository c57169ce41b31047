# SPDX-License-Identifier: Apache-2.0
"""Runs that were killed between two renames: whoever comes next finishes them and does not fail."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
import shim
from scenarios import write_model

from support import assert_no_sanitizer_report, decode, snapshot

RUN = ".m.quantfold-partial/run"


@dataclass
class Rig:
    """A model, and what an undisturbed export of it writes."""

    binary: Path
    source: Path
    wanted: dict

    def line(self, out: Path, *extra) -> list[str]:
        line = [
            self.binary,
            "export",
            "--model",
            self.source / "model.onnx",
            "--external",
            "always",
        ]
        line += ["--record", self.source / "record.txt", "--save-path", out / "m", "--json"]
        return [str(word) for word in [*line, "--progress", "never", *extra]]

    def commit_line(self, out: Path) -> list[str]:
        return [str(self.binary), "commit", "--save-path", str(out / "m"), "--json"]

    def kill(self, line: list[str], out: Path, rename: int) -> None:
        """Kills a command before one of its renames."""
        report = out.parent / "report"
        fault = f"rename:{rename}:SIGKILL"
        environment = shim.environment(shim.preload(self.binary), out, fault, report)
        result = subprocess.run(line, env=environment, capture_output=True, timeout=60)
        assert result.returncode == -signal.SIGKILL
        assert (out / RUN / "complete").exists()


def run(line: list[str]) -> dict:
    """A command to its end; what it said as JSON."""
    result = subprocess.run(line, capture_output=True, timeout=60)
    assert_no_sanitizer_report(decode(result.stderr))
    assert result.returncode == 0, decode(result.stderr)
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def rig(quantfold, tmp_path_factory) -> Rig:
    folder = tmp_path_factory.mktemp("half")
    write_model(folder / "in", 1)
    rig = Rig(Path(quantfold.binary), folder / "in", {})
    run(rig.line(folder / "one"))
    rig.wanted = snapshot(folder / "one")
    assert len(rig.wanted) > 3
    return rig


@pytest.fixture
def killed_commit(rig, tmp_path) -> Path:
    """The output of four shards, half of it in place."""
    out = tmp_path / "o"
    for shard in range(4):
        run(rig.line(out, "--shard", f"{shard}/4"))
    rig.kill(rig.commit_line(out), out, 3)
    return out


def test_commit_again(rig, killed_commit):
    report = run(rig.commit_line(killed_commit))
    assert snapshot(killed_commit) == rig.wanted
    assert report["bytes_written"] == sum(map(len, rig.wanted.values()))


def test_shards_again(rig, killed_commit):
    """As a job that is queued again does: all shards at once, then the commit."""
    lines = [rig.line(killed_commit, "--shard", f"{i}/4", "--resume") for i in range(4)]
    shards = [
        subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) for line in lines
    ]
    for shard in shards:
        _, err = shard.communicate(timeout=60)
        assert shard.returncode == 0, decode(err)
    run(rig.commit_line(killed_commit))
    assert snapshot(killed_commit) == rig.wanted


def test_resume_has_nothing_to_write(rig, tmp_path):
    out = tmp_path / "o"
    rig.kill(rig.line(out, "--resume"), out, 4)  # the first rename is the plan's
    report = run(rig.line(out, "--resume"))
    assert report["bytes_kept"] == report["bytes_written"] > 0
    assert snapshot(out) == rig.wanted


def test_another_run_writes(rig, tmp_path):
    """What is in place is of the same model before it was touched: it is not taken for this run's."""
    out = tmp_path / "o"
    rig.kill(rig.line(out, "--resume"), out, 4)
    model = rig.source / "model.onnx"
    times = model.stat()
    os.utime(model, ns=(times.st_atime_ns, times.st_mtime_ns + 1))
    assert run(rig.line(out, "--resume"))["bytes_kept"] == 0
    assert snapshot(out) == rig.wanted


@pytest.mark.parametrize("synced", [True, False])
def test_the_plan_is_on_the_disk_before_it_counts(rig, tmp_path, synced):
    """It is the first that a shard syncs, under the name that it has before it counts."""
    out, report = tmp_path / "o", tmp_path / "report"
    environment = shim.environment(shim.preload(rig.binary), out, "fsync:1:EIO", report)
    line = rig.line(out, "--shard", "0/2", *([] if synced else ["--no-fsync"]))
    result = subprocess.run(line, env=environment, capture_output=True, timeout=60)
    assert result.returncode == (3 if synced else 0), decode(result.stderr)
    if synced:
        assert b"cannot write the plan" in result.stderr
        assert "/plan.part" in shim.fired(report) and not (out / RUN / "plan.json").exists()
