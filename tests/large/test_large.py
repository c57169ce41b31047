# SPDX-License-Identifier: Apache-2.0
"""Models over 2 GiB, which protobuf refuses, in memory that does not grow with them.

Outside the default run (needs some 12 GB of disk): meson test -C build --suite large.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

import make_large

SCALE = np.float32(0.0009)
GIB = 2.2


MEASURE = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:]).returncode
print(code, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def peak_memory(quantfold, *args) -> tuple[int, int]:
    """Exit code and peak resident bytes of a run, file pages included.

    A process starts with its parent's peak, and this one's may be large: a small one stands between.
    """
    command = [sys.executable, "-c", MEASURE, quantfold.binary, *map(str, args)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    code, kib = run.stdout.split()
    return int(code), int(kib) * 1024


@pytest.mark.parametrize("layout", ["inline", "external"])
def test_more_than_protobuf_takes(quantfold, tmp_path, layout):
    source = tmp_path / "in"
    spec = make_large.Spec(layout=layout).holding(GIB)
    make_large.write(source, spec)
    if layout == "inline":
        assert (source / "model.onnx").stat().st_size > 2**31
    out = tmp_path / "out"
    code, peak = peak_memory(
        quantfold, "export", "--model", source / "model.onnx", "--record", source / "record.txt",
        "--config", source / "config.json", "--save-path", out / "m", "-q",
    )  # fmt: skip
    assert code == 0
    assert peak < 400e6, f"{peak / 1e6:.0f} MB resident"

    code, peak = peak_memory(
        quantfold, "verify", out / "m", "-q", "--against", source / "model.onnx",
        "--record", source / "record.txt", "--config", source / "config.json",
    )  # fmt: skip
    assert code == 0
    assert peak < 400e6, f"verify: {peak / 1e6:.0f} MB resident"

    deploy = onnx.load(out / "m_deploy_model.onnx")
    found = {t.name: t for t in deploy.graph.initializer}
    fake = onnx.load(out / "m_fake_quant_model.onnx", load_external_data=False)
    assert (out / "m_fake_quant_model.onnx").stat().st_size < 2_000_000_000
    for index in (0, spec.count // 2, spec.count - 1):
        wanted = np.clip(np.rint(make_large.weight(spec, index) / SCALE), -128, 127)
        stored = onnx.numpy_helper.to_array(found[f"w{index}"])
        assert stored.dtype == np.int8 and np.array_equal(stored, wanted)
        tensor = next(t for t in fake.graph.initializer if t.name == f"w{index}")
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            onnx.external_data_helper.load_external_data_for_tensor(tensor, str(out))
        assert np.array_equal(onnx.numpy_helper.to_array(tensor), wanted)


def memory_group() -> Path | None:
    """A new cgroup in which memory can be limited, version 1 or 2; None without the rights."""
    for root in ("/sys/fs/cgroup/memory", "/sys/fs/cgroup"):
        folder = Path(root) / f"quantfold-test-{os.getpid()}"
        try:
            folder.mkdir()
        except OSError:
            continue
        if any((folder / f).exists() for f in LIMIT_FILES):
            return folder
        folder.rmdir()
    return None


LIMIT_FILES = ("memory.limit_in_bytes", "memory.max")


@pytest.mark.parametrize("io", ["auto", "pwrite", "mmap"])
def test_inside_a_cgroup(quantfold, tmp_path, io):
    """A limit of 160 MiB, page cache included, for a model and outputs of several GiB."""
    group = memory_group()
    if group is None:
        pytest.skip("needs the right to make a cgroup")
    source, out = tmp_path / "in", tmp_path / "out"
    make_large.write(source, make_large.Spec().holding(GIB))
    limit = next(group / f for f in LIMIT_FILES if (group / f).exists())
    try:
        limit.write_text(str(160 * 2**20))
        command = [quantfold.binary, "export", "-q", "--io", io, "--memory-limit", "128M"]
        command += ["--model", source / "model.onnx", "--record", source / "record.txt"]
        enter = f'echo $$ > {group}/cgroup.procs && exec "$@"'
        subprocess.run(
            ["sh", "-c", enter, "sh", *map(str, command), "--save-path", str(out / "m")], check=True
        )
    finally:
        group.rmdir()
    assert (out / "m_deploy_model.onnx").stat().st_size > GIB * 2**30 / 4
