# SPDX-License-Identifier: Apache-2.0
"""File systems without flock: runs and shards go on, and are only not kept apart."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest
import shim
from scenarios import write_model

from support import assert_no_sanitizer_report, decode, snapshot


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    """A small model with its record and configuration."""
    folder = tmp_path_factory.mktemp("no-locks") / "in"
    write_model(folder, 1)
    return folder


def run(quantfold, inputs: Path, out: Path, fault: str, *extra) -> subprocess.CompletedProcess:
    """An export, or another command, in which a fault strikes."""
    binary = Path(quantfold.binary)
    line = ["export", "--model", inputs / "model.onnx", "--record", inputs / "record.txt"]
    line += ["--external", "always", *extra]
    if extra == ("commit",):
        line = ["commit"]
    environment = shim.environment(shim.preload(binary), out, fault, out.parent / "report")
    result = subprocess.run(
        [binary, *map(str, line), "--save-path", out / "m"],
        env=environment, capture_output=True, timeout=60,
    )  # fmt: skip
    assert_no_sanitizer_report(decode(result.stderr))
    return result


@pytest.mark.parametrize("error", ["ENOLCK", "EOPNOTSUPP"])
def test_without_locks(quantfold, inputs, tmp_path, error):
    fault, whole, out = f"flock:1+:{error}", tmp_path / "whole", tmp_path / "o"
    result = run(quantfold, inputs, whole, fault, "--resume")
    assert result.returncode == 0, decode(result.stderr)
    start = time.monotonic()
    for shard in range(3):
        result = run(quantfold, inputs, out, fault, "--shard", f"{shard}/3")
        assert result.returncode == 0, decode(result.stderr)
        assert shim.fired(tmp_path / "report"), "no lock was asked for"
    assert time.monotonic() - start < 8, "they waited for a lock that nobody has"
    result = run(quantfold, inputs, out, fault, "commit")
    assert result.returncode == 0, decode(result.stderr)
    assert snapshot(out) == snapshot(whole)


def test_a_lock_that_fails_is_an_error(quantfold, inputs, tmp_path):
    """Not one that somebody else has: that would be waited for."""
    for call in (1, 2):
        result = run(quantfold, inputs, tmp_path / "o", f"flock:{call}+:EIO", "--shard", "0/2")
        assert result.returncode == 3, decode(result.stderr)
        assert b"cannot lock the staging folder" in result.stderr
