# SPDX-License-Identifier: Apache-2.0
"""The yardstick and the clock of the benchmarks do what they say."""

from __future__ import annotations

import itertools
import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

MODES = list(itertools.product(["pwrite", "mmap", "direct"], ["mmap", "pread"], ["split", "sweep"]))


@pytest.fixture(scope="module")
def tools(quantfold) -> Path:
    """The folder of the benchmark programs; they are built with -Dbench=true only."""
    folder = Path(quantfold.binary).parent / "bench"
    if not (folder / "copier").is_file():
        pytest.skip("built without benchmarks")
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("copier") / "source"
    path.write_bytes(np.random.default_rng(3).bytes(3 * 2**20 + 12345))
    return path


def copy(tools: Path, source: Path, sizes: list[int], *options: str) -> list[bytes]:
    """What a run of the copier wrote."""
    outs = [source.parent / f"out{i}" for i in range(len(sizes))]
    writes = [x for o, n in zip(outs, sizes) for x in ("--write", f"{o}={n}")]
    command = [tools / "copier", "--read", source, *writes, "--threads", "2", *options]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return [o.read_bytes() for o in outs]


@pytest.mark.parametrize("io,taken,order", MODES)
def test_equal_size_is_a_copy(tools, source, io, taken, order):
    data = source.read_bytes()
    options = ["--io", io, "--input", taken, "--order", order, "--block", "65536"]
    assert copy(tools, source, [len(data)], *options) == [data]


@pytest.mark.parametrize("sizes", [[1000], [700000, 0, 5], [2**20, 2**22, 77777], [2**23]])
def test_sizes(tools, source, sizes):
    found = copy(tools, source, sizes, "--fsync", "--block", "65536")
    assert [len(f) for f in found] == sizes
    data = source.read_bytes()
    assert all(f[:4096] in data for f in found)


def test_two_sources_one_after_the_other(tools, source):
    second = source.parent / "second"
    second.write_bytes(b"x" * 10000)
    both = source.read_bytes() + second.read_bytes()
    assert copy(tools, source, [len(both)], "--read", str(second)) == [both]


def test_timed(tools, tmp_path):
    to = tmp_path / "t.json"
    script = "import time; b = bytearray(64 << 20); time.sleep(0.2); raise SystemExit(3)"
    run = subprocess.run(
        [tools / "timed", "--prewarm", "16", "--to", to, "--", "python3", "-c", script]
    )
    result = json.loads(to.read_text())
    assert run.returncode == result["code"] == 3
    assert 0.2 < result["seconds"] < 10
    assert 64 << 20 < result["peak_anon"] <= result["peak_rss"] < 256 << 20
